"""Spellings of the same thing, and things that only look like it: MOD001 to MOD018.

``#!`` marks the lines that must be reported.
"""

import pytest

from diffusers_offload_plus.lint.rules.base.examples import blocks_example

from .variants import ENCODER, LEAF, SCALE, Variants, check

VARIANTS = Variants()
variant, body = VARIANTS.variant, VARIANTS.body


@pytest.mark.parametrize(("code", "source", "path"), VARIANTS)
def test_variant(code, source, path):
    check(code, source, path)


IMPORTS = """\
import diffusers.pipelines as p  #!
import diffusers.pipelines.flux.pipeline_flux  #!
from diffusers.pipelines.flux import (  #!
    FluxPipeline,
)
from ...pipelines import flux  #!
from ... import pipelines as std  #!
from diffusers import FluxModularPipeline, AutoencoderKL
from diffusers import DiffusionPipeline as Base  #!
from ...pipelines.flux.pipeline_output import FluxPipelineOutput  #!
from ....other.pipelines import x
from ..pipelines_util import y
from mycompany.pipelines import z
import importlib
from importlib import import_module as load
importlib.import_module("...pipelines.flux", __package__)  #!
importlib.import_module(".denoise", __package__)
text = "from diffusers.pipelines import FluxPipeline"
"""
variant("MOD001", "spellings", IMPORTS)
variant(
    "MOD001", "framework", "from ..pipelines.pipeline_utils import x\n", "node_utils.py", "diffusers/modular_pipelines"
)
variant("MOD001", "test", "from diffusers import FluxPipeline\n", "test_toy.py", "tests/modular_pipelines/toy")

FAMILIES = """\
from ..wan import encoders  #!
from .. import flux, toy  #!
from ..stable_diffusion_3.inputs import a as b  #!
from ...modular_pipelines.qwenimage import QwenImageAutoBlocks  #!
from diffusers.modular_pipelines import FluxAutoBlocks, ModularPipelineBlocks  #!
from diffusers import QwenImageAutoBlocks  #!
from ..modular_pipeline import ModularPipelineBlocks
from ..modular_pipeline_utils import InputParam
from .. import modular_pipeline
from diffusers.modular_pipelines import ComponentSpec, ModularPipelineBlocks
from . import encoders
from .encoders import c
# Copied from diffusers.modular_pipelines.flux.inputs.repeat
"""
variant("MOD002", "spellings", FAMILIES)

GUIDER = 'ComponentSpec("guider", torch.nn.Module)'
body(
    "MOD004",
    "spellings",
    "g = components.guider\ng.scale = 1  #!\nsetattr(g, 'scale', 2)  #!\ncomponents.guider.a, x = 1, 2  #!\n"
    "components.guider.config['scale'] = 3\nself._tune(components.guider)\nblock_state.guider = components.guider\n"
    "block_state.guider.scale = 3  #!\ndel components.guider.scale  #!\nstates = g.prepare_inputs({})\n"
    "states[0].noise_pred = 1\nfor state_batch in states:\n    state_batch.noise_pred = 2",
    components=GUIDER,
)
variant(
    "MOD004",
    "in a helper",
    "def tune(guider):\n    guider.scale = 2  #!\n\n\n" + blocks_example("tune(components.guider)", components=GUIDER),
)
body(
    "MOD004",
    "second guider by type",
    "components.cfg.scale = 1  #!\ncomponents.other.scale = 1",
    before="from ...guiders import ClassifierFreeGuidance\n",
    components='ComponentSpec("cfg", ClassifierFreeGuidance), ComponentSpec("other", torch.nn.Module)',
)

body(
    "MOD005",
    "spellings",
    "block_state.do_cfg = True  #!\nif block_state.guidance_scale > 1.0:  #!\n    pass\n"
    "if block_state.guidance_scale is None:\n    pass\nif (do_true_cfg := True):  #!\n    pass\n"
    "x = u + (c - u) * block_state.guidance_scale  #!\ny = a + block_state.mask * (b - a)\n"
    "z = a + 0.5 * (b - a)\ncontrol_guidance_start = 0\n"
    "if block_state.controlnet_conditioning_scale == 1.0:\n    pass\n"
    "if block_state.strength == 1.0:\n    pass",
    inputs=SCALE,
)
variant(
    "MOD005",
    "in a helper",
    "def combine(cond, uncond, cfg_scale):\n    return uncond + cfg_scale * (cond - uncond)  #!\n\n\n"
    "def encode(do_classifier_free_guidance=True):\n    if do_classifier_free_guidance:\n        return 1\n\n\n"
    + blocks_example("pass"),
)
variant(
    "MOD005",
    "no block",
    "class Processor:\n    def __call__(self, guidance_scale):\n        return guidance_scale > 1\n",
    "image_processor.py",
)

body(
    "MOD006",
    "required connector",
    "pass",
    inputs='InputParam("prompt_embeds", required=True, description="E.")',
    outputs='OutputParam("connector_embeds", description="E.")',
    **ENCODER,
)
body(
    "MOD006",
    "with a default",
    "pass",
    inputs='InputParam("image_embeds", required=True, default=0, description="E.")  #!\n',
    outputs='OutputParam("image_embeds", description="E.")',
    **ENCODER,
)
body(
    "MOD006",
    "raw input that is rewritten",
    "pass",
    inputs='InputParam("prompt", description="E."), InputParam("height", description="H.")',
    outputs='OutputParam("prompt", description="E."), OutputParam("height", description="H.")',
    **ENCODER,
)
variant(
    "MOD006",
    "inherited",
    blocks_example(
        "pass",
        inputs='InputParam("pooled_prompt_embeds", description="E.")  #!\n',
        outputs='OutputParam("prompt_embeds", description="E.")',
        components='ComponentSpec("text_encoder", torch.nn.Module)',
    )
    + "\n\nclass ToyTextEncoderStep(ToyStep):\n    @property\n    def intermediate_outputs(self):\n"
    '        return super().intermediate_outputs + [OutputParam("pooled_prompt_embeds", description="P.")]\n',
    "text.py",
)

VAE = dict(components='ComponentSpec("vae", torch.nn.Module)', file="before_denoise.py")
body(
    "MOD007",
    "spellings",
    "vae = components.vae\na = vae.encode(x)  #!\nencode = components.vae.encode\nb = encode(x)  #!\n"
    "c = components.tokenizer.encode(x)\nd = 'a'.encode()\ne = components.vae.config.encode",
    **VAE,
)
variant(
    "MOD007",
    "method of the block",
    blocks_example("x = self._encode_image(components.vae, 1)")
    + "\n    def _encode_image(self, vae, image):\n        return vae.encode(image)  #!\n",
    "before_denoise.py",
)
variant(
    "MOD007",
    "encoder class",
    blocks_example("x = components.vae.encode(1)").replace("ToyStep", "ToyVaeEncoderStep"),
    "before_denoise.py",
)

PROCESSOR = "from ...image_processor import VaeImageProcessor\n"
variant(
    "MOD008",
    "spellings",
    PROCESSOR
    + "from ... import image_processor as ip\nfrom ...schedulers import FlowMatchEulerDiscreteScheduler as S\n"
    + "from transformers import CLIPTokenizer, DynamicCache\nfrom ...models.autoencoders.vae import "
    "DiagonalGaussianDistribution\nP = VaeImageProcessor\n"
    + blocks_example(
        "a = P()  #!\nb = ip.VaeImageProcessor()  #!\nc = S()  #!\nd = CLIPTokenizer.from_pretrained('x')  #!\n"
        "e = DynamicCache()\nf = DiagonalGaussianDistribution(1)\ng = torch.Generator()\nh = ValueError()\n"
        "isinstance(a, VaeImageProcessor)"
    ),
)
variant(
    "MOD008",
    "helper and class body",
    PROCESSOR
    + "\n\ndef helper():\n    return VaeImageProcessor()  #!\n\n\n"
    + blocks_example("helper()")
    + "\n    processor = VaeImageProcessor()  #!\n",
)
variant("MOD008", "no block", PROCESSOR + "\n\ndef helper():\n    return VaeImageProcessor()\n", "image_tools.py")

variant(
    "MOD009",
    "through dictionaries",
    LEAF
    + """
class InnerAuto(AutoPipelineBlocks):
    block_classes = [ToyStep]
    block_names = ["a"]
    block_trigger_inputs = ["mask"]

PLAIN = InsertableDict([("a", ToyStep())])
NESTED = PLAIN.copy()
NESTED.insert("inner", InnerAuto(), 1)

class PlainStep(SequentialPipelineBlocks):
    block_classes = list(PLAIN.values())
    block_names = PLAIN.keys()

class NestedStep(SequentialPipelineBlocks):
    block_classes = list(NESTED.values())
    block_names = list(NESTED)

class Fine(AutoPipelineBlocks):
    block_classes = [PlainStep, ToyStep]
    block_names = ["a", "b"]
    block_trigger_inputs = ["image", None]

class Outer(ConditionalPipelineBlocks):  #!
    block_classes = [NestedStep(), PlainStep]
    block_names = ["a", "b"]
    block_trigger_inputs = ["image"]

class Top(SequentialPipelineBlocks):
    block_classes = [Fine, Outer]
    block_names = ["a", "b"]
""",
    "modular_blocks_toy.py",
)

body(
    "MOD012",
    "spellings",
    "a = getattr(block_state, 'height', 512)  #!\nb = hasattr(block_state, 'height')  #!\n"
    "c = getattr(block_state, 'height')\nd = getattr(block_state, name, None)\n"
    "e = getattr(block_state, 'mask', None)\n"
    "f = getattr(components, 'vae', None)  #!\ng = getattr(components, 'unet', None)\n"
    "h = getattr(components.vae, 'config', None)\ntry:\n    i = block_state.height  #!\n"
    "except AttributeError:\n    i = 1\nbs = block_state\nj = getattr(bs, 'height', None)  #!",
    inputs='InputParam.template("height"), InputParam.template("denoiser_input_fields")',
    outputs='OutputParam("mask", description="Mask.")',
    components='ComponentSpec("vae", torch.nn.Module)',
)

body(
    "MOD013",
    "spellings",
    "block_state.a = 1  #!\nblock_state['b'] = 1  #!\nsetattr(block_state, 'c', 1)  #!\nblock_state.d, x = 1, 2  #!\n"
    "bs = block_state\nbs.e = 1  #!\nfor block_state.f in (1, 2):  #!\n    pass\n"
    "with open('x') as block_state.g:  #!\n    pass\nblock_state.height = 1\nblock_state.mask = 1\n"
    "block_state.prompt_embeds = 1\nsetattr(block_state, name, 1)\nblock_state.h: int = 1  #!\nblock_state.mask += 1",
    inputs='InputParam.template("height"), InputParam.template("denoiser_input_fields"),'
    'InputParam("prompt_embeds", kwargs_type="denoiser_input_fields", description="E.")',
    outputs='OutputParam("mask", description="Mask.")',
)
variant(
    "MOD013",
    "in a helper",
    "def note(block_state, x):\n    block_state.size = x  #!\n    block_state.mask = x\n\n\n"
    + blocks_example("note(block_state, 1)", outputs='OutputParam("mask", description="Mask.")'),
)
variant(
    "MOD013",
    "declared by the subclass",
    blocks_example("block_state.size = 1")
    + "\n\nclass ToySizedStep(ToyStep):\n    @property\n    def intermediate_outputs(self):\n"
    '        return [OutputParam("size", description="Size.")]\n',
)

body(
    "MOD014",
    "spellings",
    "state.set('a', 1)  #!\nstate.values['b'] = 1  #!\nstate.values.update(c=1)  #!\nstate.d = 1  #!\n"
    "x = state.get('a')\ns = set()\ns.add(1)\ncomponents.guider.set_state(step=1)\nst = state\nst.set('e', 1)  #!",
)

body(
    "MOD015",
    "skips",
    "image = block_state.image\nif not image:\n    logger.info('no image')\n"
    "    self.set_block_state(state, block_state)\n    return components, state  #!\nblock_state.x = 1",
    inputs='InputParam("image", description="Image.")',
    outputs='OutputParam("x", description="X.")',
)
body(
    "MOD015",
    "work before, and other tests",
    "block_state.x = components.vae(1)\nif block_state.image is None:\n    return components, state\n"
    "if block_state.kind == 'latent':\n    return components, state\nblock_state.x = 2",
    inputs='InputParam("image", description="Image."), InputParam("kind", description="Kind.")',
    outputs='OutputParam("x", description="X.")',
)
body(
    "MOD015",
    "both branches write",
    "if block_state.image is None:\n    block_state.x = components.vae(1)\nelse:\n    block_state.x = 2",
    inputs='InputParam("image", description="Image.")',
    outputs='OutputParam("x", description="X.")',
)

body(
    "MOD016",
    "spellings",
    "if components.config.is_distilled:  #!\n    pass\nx = 1 if not components.config.use_pe else 2  #!\n"
    "flag = components.config.requires_x\nif flag:  #!\n    pass\nif components.config.boundary_ratio > 1:\n    pass\n"
    "if components.scheduler.config.use_flow:\n    pass\n"
    "if getattr(components.config, 'is_turbo', False):  #!\n    pass\n"
    "y = components.config.is_distilled",
)

body(
    "MOD017",
    "spellings",
    "a = torch.randn(1, generator=g)\nb = torch.randn(1, generator=g, device='cpu')  #!\n"
    "c = torch.normal(0, 1, (1,))  #!\nd = torch.empty(1, device='cuda')\n"
    "gen_device = g.device if g else device\ne = torch.randn(1, generator=g, device=gen_device)\n"
    "f = torch.rand(1, device=components.device)  #!\nk = torch.randint(0, 1, (1,))",
)
variant("MOD017", "no block", "import torch\n\n\ndef f():\n    return torch.randn(1)\n", "image_processor.py")
