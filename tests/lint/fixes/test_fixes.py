"""What each fix does, and what it refuses to touch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from diffusers_offload_plus.lint.core.finding import Finding
from diffusers_offload_plus.lint.fixes import calls, statements
from diffusers_offload_plus.lint.fixes.edits import CannotFix, Edits, Tree
from diffusers_offload_plus.lint.running.run import examine

from .fixing import FAMILY, INPUTS, NOISE, READ, STRENGTH, block, changed, findings_in, fix, request

NAMED = """

class ToyOtherStep(ModularPipelineBlocks):
    model_name = "toy"
"""


@pytest.mark.parametrize(
    ("code", "text", "gone", "came"),
    [
        pytest.param(
            "MOD012",
            block('vae = getattr(components, "vae", None)  # may be absent\nblock_state.noise = vae(1)'),
            ['vae = getattr(components, "vae", None)  # may be absent'],
            ["vae = components.vae  # may be absent"],
            id="MOD012",
        ),
        pytest.param(
            "MOD013",
            block(
                "block_state.device = components._execution_device\n"
                "block_state.noise = components.vae(block_state.generator, device=block_state.device)"
            ),
            [
                "block_state.device = components._execution_device",
                "block_state.noise = components.vae(block_state.generator, device=block_state.device)",
            ],
            [
                "device = components._execution_device",
                "block_state.noise = components.vae(block_state.generator, device=device)",
            ],
            id="MOD013",
        ),
        pytest.param(
            "MOD017",
            block(
                "shape = (1, 4, 8, 8)\n"
                "block_state.noise = torch.randn(\n"
                "    shape,  \n"
                "    generator=block_state.generator, device=components._execution_device, dtype=torch.half\n"
                ")"
            ),
            ["block_state.noise = torch.randn("],
            ["from ...utils.torch_utils import randn_tensor", "block_state.noise = randn_tensor("],
            id="MOD017",
        ),
        pytest.param(
            "MOD019",
            block(
                f"if block_state.strength is None:\n    block_state.strength = 0.5\n{READ}",
                INPUTS + STRENGTH.format(""),
            ),
            [STRENGTH.format(""), "if block_state.strength is None:", "block_state.strength = 0.5"],
            [STRENGTH.format(", default=0.5")],
            id="MOD019",
        ),
        pytest.param(
            "MOD020",
            block(NOISE).replace("        self.set_block_state(state, block_state)\n", ""),
            [],
            ["self.set_block_state(state, block_state)"],
            id="MOD020",
        ),
        pytest.param(
            "MOD021",
            block(NOISE).replace('    model_name = "toy"\n\n', "") + NAMED,
            [],
            ['model_name = "toy"', ""],
            id="MOD021",
        ),
        pytest.param(
            "MOD038",
            block(READ, INPUTS + STRENGTH.format(", required=True, default=0.5")),
            [STRENGTH.format(", required=True, default=0.5")],
            [STRENGTH.format(", default=0.5")],
            id="MOD038",
        ),
        pytest.param(
            "MOD042",
            block("block_state.noise = components.vae(block_state.generator)\n\ncomponents.maybe_free_model_hooks()"),
            ["", "components.maybe_free_model_hooks()"],
            [],
            id="MOD042",
        ),
        pytest.param(
            "MOD010",
            block(
                "block_state.noise = block_state.latents = components.vae(block_state.generator)",
            ).replace(
                'return [OutputParam("noise",',
                'return [OutputParam.template("latents"), OutputParam("noise",',
            ),
            [
                'return [OutputParam.template("latents"), '
                'OutputParam("noise", type_hint=torch.Tensor, description="Noise.")]'
            ],
            [
                'return [OutputParam("latents", type_hint=torch.Tensor, description="Latents before denoising."), '
                'OutputParam("noise", type_hint=torch.Tensor, description="Noise.")]'
            ],
            id="MOD010",
        ),
    ],
)
def test_a_fix(code: str, text: str, gone: list[str], came: list[str], tmp_path: Path) -> None:
    text = text.replace("class ToyStep", "class ToyPrepareLatentsStep") if code == "MOD010" else text
    found = [finding for finding in findings_in(tmp_path, text) if finding.code == code]
    assert any(finding.fixable for finding in found), f"{code} reports nothing fixable: {found}"
    after, fixed = fix(tmp_path, text, code)
    assert changed(text, after) == (gone, came), fixed.notes
    assert not [finding for finding in findings_in(tmp_path, after) if finding.code == code]
    assert fixed.notes == []


PRESET = '''\
from ..modular_pipeline import SequentialPipelineBlocks
from .decoders import ToyDecodeStep


class ToyBlocks(SequentialPipelineBlocks):
    """All of it."""

    model_name = "toy"
    block_classes = [ToyDecodeStep]
    block_names = ["decode"]
'''


@pytest.mark.parametrize("above", ["", "# first\n"])
def test_auto_docstring_is_put_right_above_the_class(above: str, tmp_path: Path) -> None:
    before = PRESET.replace("class ToyBlocks", f"{above}class ToyBlocks")
    after, fixed = fix(tmp_path, before, "MOD022", name="modular_blocks_toy.py")
    assert after == before.replace("class ToyBlocks", "# auto_docstring\nclass ToyBlocks"), fixed.notes


@pytest.mark.parametrize(
    ("text", "code"),
    [
        # A helper receives the block state and may read the name there.
        (
            block("block_state.device = 1\nhelp(block_state)\nblock_state.noise = components.vae(block_state.device)"),
            "MOD013",
        ),
        # The value is read before it is there.
        (
            block("block_state.seed = block_state.seed + 1\nblock_state.noise = components.vae(block_state.seed)"),
            "MOD013",
        ),
        # The name is taken.
        (
            block(
                "device = 2\nblock_state.device = 1\nblock_state.noise = components.vae(block_state.device, device)"
            ),
            "MOD013",
        ),
        # The value is used before.
        (
            block(
                "print(block_state.strength)\n"
                f"if block_state.strength is None:\n    block_state.strength = 0.5\n{READ}",
                INPUTS + STRENGTH.format(""),
            ),
            "MOD019",
        ),
        # `0 or 1` and `None or 1` are not the same.
        (
            block(f"block_state.strength = block_state.strength or 0.5\n{READ}", INPUTS + STRENGTH.format("")),
            "MOD019",
        ),
        # A size that may be a number.
        (
            block(
                "block_state.noise = torch.randn(4, generator=block_state.generator, device='cuda', pin_memory=True)"
            ),
            "MOD017",
        ),
        # A comment would be lost.
        (
            block(
                "block_state.noise = components.vae(block_state.generator)\n# why\ncomponents.maybe_free_model_hooks()"
            ),
            "MOD042",
        ),
    ],
)
def test_what_is_left_alone(text: str, code: str, tmp_path: Path) -> None:
    after, _ = fix(tmp_path, text, code)
    assert after == text


@pytest.mark.parametrize(
    ("fixer", "code", "text", "reason"),
    [
        (
            statements.undeclared_write,
            "MOD013",
            block("block_state.device = 1\nhelp(block_state)\nblock_state.noise = components.vae(block_state.device)"),
            "`block_state` is passed on as a whole, so that other code may read `device`",
        ),
        (
            statements.undeclared_write,
            "MOD013",
            block(
                "device = 2\nblock_state.device = 1\nblock_state.noise = components.vae(block_state.device, device)"
            ),
            "`device` already has another meaning in __call__",
        ),
        (
            statements.undeclared_write,
            "MOD013",
            block("block_state.device = 1\nblock_state.noise = (lambda: getattr(block_state, 'device'))()"),
            "`block_state` is passed on as a whole",
        ),
        (
            statements.undeclared_write,
            "MOD013",
            block("block_state.seed += 1\nblock_state.noise = components.vae(block_state.seed)"),
            "`seed` is read before it is written",
        ),
        (
            statements.default_in_call,
            "MOD019",
            block(
                "print(block_state.strength)\n"
                f"if block_state.strength is None:\n    block_state.strength = 0.5\n{READ}",
                INPUTS + STRENGTH.format(""),
            ),
            "`strength` is used before it gets its default",
        ),
        (
            statements.default_in_call,
            "MOD019",
            block(
                f"# as in the paper\nif block_state.strength is None:\n    block_state.strength = 0.5\n{READ}",
                INPUTS + STRENGTH.format(""),
            ),
            "a comment there",
        ),
        (
            calls.raw_noise,
            "MOD017",
            block("block_state.noise = torch.randn(size, generator=block_state.generator, device='cuda', out=x)"),
            "randn_tensor has no argument out",
        ),
        (
            calls.raw_noise,
            "MOD017",
            block("n = 4\nblock_state.noise = torch.randn(n, generator=block_state.generator, device='cuda')"),
            "the size may be a single number",
        ),
    ],
)
def test_a_fixer_refuses_by_itself(
    fixer: Callable[[Edits, Finding], None], code: str, text: str, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / FAMILY / "before_denoise.py"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    outcome = examine(request(tmp_path))
    finding = next(finding for finding in outcome.findings if finding.code == code)
    project = outcome.analysis.project
    with pytest.raises(CannotFix) as raised:
        fixer(Edits(project, project.sources[0], Tree(text)), finding)
    assert reason in str(raised.value)


def test_the_last_argument_goes_with_its_comma_and_the_lines_stay(tmp_path: Path) -> None:
    declared = 'InputParam(\n    "strength",\n    default=0.5,\n    description="How much.",{}\n),'
    before = block(READ, INPUTS + declared.format("\n    required=True"))
    after, fixed = fix(tmp_path, before, "MOD038")
    assert after == block(READ, INPUTS + declared.format("")).replace('much.",\n', 'much."\n'), fixed.notes


@pytest.mark.parametrize(
    ("imports", "expected"),
    [
        (
            "import torch\n\nfrom ...models import A\nfrom ..modular_pipeline import B\n",
            "import torch\n\nfrom ...models import A\nfrom ...utils.torch_utils import x\n"
            "from ..modular_pipeline import B\n",
        ),
        (
            "import torch\n\nfrom ..modular_pipeline import B\n",
            "import torch\n\nfrom ...utils.torch_utils import x\nfrom ..modular_pipeline import B\n",
        ),
        ("import torch\n", "import torch\n\nfrom ...utils.torch_utils import x\n"),
        (
            "import torch\n\nfrom ...zoo import A\n",
            "import torch\n\nfrom ...utils.torch_utils import x\nfrom ...zoo import A\n",
        ),
        ('"""Doc."""\n\ny = 1\n', '"""Doc."""\n\nfrom ...utils.torch_utils import x\n\ny = 1\n'),
    ],
)
def test_an_import_goes_where_sorted_imports_have_it(imports: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / FAMILY / "before_denoise.py"
    path.parent.mkdir(parents=True)
    path.write_text(imports)
    project = examine(request(tmp_path)).analysis.project
    edits = Edits(project, project.sources[0], Tree(imports))
    edits.require_import("diffusers.utils.torch_utils", "x")
    assert edits.code() == expected
