"""Spellings of the same thing, and things that only look like it: from MOD019 on, and of several rules.

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

    def select_block(self, **kwargs):
        return None

class D(ConditionalPipelineBlocks):  #!
    block_classes = [ToyStep]
    block_names = ["a"]
    block_trigger_inputs = ["x"]
    default_block_name = "b"

    def select_block(self, **kwargs):
        return None

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
