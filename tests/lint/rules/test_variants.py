"""Spellings of the same thing, and things that only look like it. ``#!`` marks the lines that must be reported."""

import pytest

from diffusers_offload_plus.lint.analysis import analyse_source
from diffusers_offload_plus.lint.finding import Level
from diffusers_offload_plus.lint.rules import rule_by_code
from diffusers_offload_plus.lint.rules.report import blocks_example

VARIANTS = []


def variant(code, name, source, file="denoise.py", folder="diffusers/modular_pipelines/toy"):
    VARIANTS.append(pytest.param(code, source, f"{folder}/{file}", id=f"{code}-{name}"))


def body(code, name, text, file="denoise.py", before="", **declared):
    variant(code, name, before + blocks_example(text, **declared), file)


@pytest.mark.parametrize(("code", "source", "path"), VARIANTS)
def test_variant(code, source, path):
    expected = [number for number, line in enumerate(source.split("\n"), start=1) if "#!" in line]
    analysis = analyse_source(source, path, [rule_by_code(code)])
    assert not analysis.problems
    assert sorted({finding.line for finding in analysis.findings if finding.level is not Level.OFF}) == expected, (
        source
    )


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

SCALE = 'InputParam("guidance_scale", description="Scale."), InputParam("mask", description="Mask.")'
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

ENCODER = dict(components='ComponentSpec("text_encoder", torch.nn.Module)', file="encoders.py")
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

LEAF = (
    blocks_example("pass")
    .replace(
        "ModularPipelineBlocks, PipelineState",
        "AutoPipelineBlocks, ConditionalPipelineBlocks, ModularPipelineBlocks, PipelineState, "
        "SequentialPipelineBlocks",
    )
    .replace("InputParam, OutputParam", "InputParam, InsertableDict, OutputParam")
)
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

body(
    "MOD019",
    "spellings",
    "if block_state.steps is None:\n    block_state.steps = DEFAULT  #!\nsize = block_state.size or (1, 2)  #!\n"
    "rate = 24 if block_state.rate is None else block_state.rate  #!\nkw = block_state.kw or {}\n"
    "steps = block_state.steps\nif steps is None:\n    steps = components.default_steps\n"
    "neg = block_state.neg or ''\nother = other or 5\nsize = block_state.size or [1] * n",
    before="DEFAULT = 4 * 8\n",
    inputs=", ".join(f'InputParam("{n}", description="N.")' for n in ("steps", "size", "rate", "kw", "neg")),
)

variant(
    "MOD020",
    "protocol",
    blocks_example("if block_state.x:\n    return components, state  #!\nraise ValueError", end=False)
    + """

class Swapped(ToyStep):
    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        self.set_block_state(state, block_state)
        return state, components  #!


class Bare(ToyStep):
    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        try:
            x = 1
        finally:
            self.set_block_state(state, block_state)
        return  #!


class Ends(ToyStep):
    def __call__(self, components, state):  #!
        block_state = self.get_block_state(state)
        self.set_block_state(state, block_state)


class Delegates(ToyStep):
    def __call__(self, components, state):
        return super().__call__(components, state)


class Helps(ToyStep):
    def _finish(self, state, block_state):
        self.set_block_state(state, block_state)

    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        with torch.no_grad():
            for i in range(3):
                pass
            self._finish(state, block_state)
        return components, state


class LoopStep(ModularPipelineBlocks):
    model_name = "toy"

    def __call__(self, components, block_state, i, t):
        return components, block_state


class WrongLoopStep(LoopStep):
    def __call__(self, components, block_state, i, t):
        return block_state  #!
""",
)

variant(
    "MOD021",
    "names",
    LEAF.replace('    model_name = "toy"\n\n', "").replace(
        "class ToyStep(ModularPipelineBlocks):", "class ToyStep(ModularPipelineBlocks):  #!"
    )
    + '\n\nclass Named(ToyStep):\n    model_name = "toy"\n\n\nclass Assembled(SequentialPipelineBlocks):\n'
    '    block_classes = [Named]\n    block_names = ["a"]\n',
)

variant(
    "MOD022",
    "markers",
    "from ..modular_pipeline import AutoPipelineBlocks, SequentialPipelineBlocks, ModularPipelineBlocks\n\n\n"
    "# auto_docstring\nclass A(AutoPipelineBlocks):\n    pass\n\n\n# auto_docstring\n\n"
    "class B(SequentialPipelineBlocks):  #!\n"
    "    pass\n\n\nclass C(ModularPipelineBlocks):\n    pass\n\n\n# auto_docstring\n"
    "@decorated\nclass D(A):  #!\n    pass\n",
    "modular_blocks_toy.py",
)

body(
    "MOD024",
    "spellings",
    "pass",
    inputs='InputParam("a"),  #!\n'
    ' InputParam("b", int, 1, False, "Text."), InputParam(name="c", description=""),  #!\n'
    ' InputParam.template("height"), InputParam(**options), InputParam("d", description=TEXT),'
    ' InputParam("e", description="TODO: describe"),  #!\n',
    outputs='OutputParam("x", int, "Text."), OutputParam("y", int)  #!\n',
)

body(
    "MOD029",
    "spellings",
    "vae = components.vae\nvae.to('cuda')  #!\nvae.enable_tiling()  #!\ncomponents.scheduler.set_timesteps(4)\n"
    "components.vae.config.x = 1  #!\nlatents.to('cuda')\ncomponents.latents_mean.to('cpu')\n"
    "components.text_encoder._lora_scale = 1\nvae.decode(latents.to('cuda')).to('cpu')",
    components='ComponentSpec("vae", torch.nn.Module), ComponentSpec("text_encoder", torch.nn.Module)',
)

body(
    "MOD030",
    "spellings",
    "a = components.transformer.dtype  #!\nt = getattr(components, 'unet', None)\n"
    "if t is not None:\n    b = components.unet\n"
    "c = components.config.x\nd = components._execution_device\ne = components.vae\nf = components.vae_scale_factor\n"
    "if hasattr(components, 'controlnet'):\n    g = components.controlnet",
    components='ComponentSpec("vae", torch.nn.Module)',
)

body(
    "MOD031",
    "spellings",
    "a = block_state.height\nb = block_state.missing  #!\nblock_state.mask = 1\nc = block_state.mask\n"
    "d = block_state.prompt_embeds\ne = getattr(block_state, 'x', None)\nif hasattr(block_state, 'y'):\n"
    "    f = block_state.y",
    inputs='InputParam.template("height"), InputParam.template("denoiser_input_fields"),'
    'InputParam("prompt_embeds", kwargs_type="denoiser_input_fields", description="E.")',
    outputs='OutputParam("mask", description="Mask.")',
)

variant(
    "MOD036",
    "lengths",
    LEAF
    + """
class A(SequentialPipelineBlocks):  #!
    block_classes = [ToyStep, ToyStep]
    block_names = ["a"]

class B(AutoPipelineBlocks):  #!
    block_classes = [ToyStep, ToyStep]
    block_names = ["a", "b"]
    block_trigger_inputs = ["x"]

class C(ConditionalPipelineBlocks):
    block_classes = [ToyStep]
    block_names = ["a"]
    block_trigger_inputs = ["x", "y"]

class D(ConditionalPipelineBlocks):  #!
    block_classes = [ToyStep]
    block_names = ["a"]
    block_trigger_inputs = ["x"]
    default_block_name = "b"

class E(SequentialPipelineBlocks):
    block_classes = computed()
    block_names = ["a"]
""",
    "modular_blocks_toy.py",
)

body("MOD042", "in a block", "components.maybe_free_model_hooks()  #!\ncomponents.enable_model_cpu_offload()  #!")

body("MOD005", "another base", "x = a + block_state.guidance_scale * (b - c)", inputs=SCALE)
body(
    "MOD006",
    "required and rearranged",
    "pass",
    inputs='InputParam("image_latents", required=True, description="E.")',
    outputs='OutputParam("image_latents", description="E.")',
    **ENCODER,
)
variant(
    "MOD009",
    "only the outermost",
    LEAF
    + """
class A(AutoPipelineBlocks):
    block_classes = [ToyStep]
    block_names = ["a"]
    block_trigger_inputs = ["a"]

class B(AutoPipelineBlocks):
    block_classes = [A]
    block_names = ["a"]
    block_trigger_inputs = ["b"]

class C(AutoPipelineBlocks):  #!
    block_classes = [B]
    block_names = ["b"]
    block_trigger_inputs = ["c"]
""",
    "modular_blocks_toy.py",
)
body(
    "MOD019",
    "empty texts",
    "a = '' if block_state.neg is None else block_state.neg\nif block_state.neg is None:\n    block_state.neg = [' ']",
    inputs='InputParam("neg", description="N.")',
)
