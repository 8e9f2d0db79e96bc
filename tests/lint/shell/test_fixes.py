"""``--fix``: each fix, what it refuses to touch, and that mending is idempotent, verified and keeps formatting."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from diffusers_offload_plus.lint.catalogue import catalogue
from diffusers_offload_plus.lint.errors import LintError
from diffusers_offload_plus.lint.finding import Finding
from diffusers_offload_plus.lint.fixes import Fixed, apply, calls, fix_files, statements
from diffusers_offload_plus.lint.fixes.edits import CannotFix, Edits, Tree
from diffusers_offload_plus.lint.run import Request, examine
from diffusers_offload_plus.lint.settings import Layer, Settings

from .test_changes import git

FAMILY = "diffusers/modular_pipelines/toy"

BLOCK = """\
import torch

from ..modular_pipeline import ModularPipelineBlocks, PipelineState
from ..modular_pipeline_utils import ComponentSpec, InputParam, OutputParam


class ToyStep(ModularPipelineBlocks):
    model_name = "toy"

    @property
    def description(self) -> str:
        return "Does a step."

    @property
    def expected_components(self):
        return [ComponentSpec("vae", torch.nn.Module), ComponentSpec("scheduler", torch.nn.Module)]

    @property
    def inputs(self):
        return [
{inputs}
        ]

    @property
    def intermediate_outputs(self):
        return [OutputParam("noise", type_hint=torch.Tensor, description="Noise.")]

    @torch.no_grad()
    def __call__(self, components, state: PipelineState):
        block_state = self.get_block_state(state)
{body}
        self.set_block_state(state, block_state)
        return components, state
"""


def block(body: str, inputs: str = 'InputParam.template("generator"),') -> str:
    return BLOCK.format(body=textwrap.indent(body, " " * 8), inputs=textwrap.indent(inputs, " " * 12))


def request(root: Path, *select: str, **more: object) -> Request:
    layer = Layer(where="test", root=root, select=select or None)
    return Request(paths=[root], settings=Settings(catalogue(), [layer]), **more)  # type: ignore[arg-type]


def mend(root: Path, text: str, *select: str, name: str = "before_denoise.py") -> tuple[str, Fixed]:
    """What ``text`` becomes, and the outcome; a second round has to find nothing to do."""
    path = root / FAMILY / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    fixed = fix_files(request(root, *select))
    for file in fixed.files:
        file.write()
    after = path.read_text()
    ast.parse(after)
    again = fix_files(request(root, *select))
    assert not again.files, "a second round changed more"
    return after, fixed


def changed(before: str, after: str) -> tuple[list[str], list[str]]:
    """Lines that went and lines that came, without their indentation."""
    lines = list(difflib.ndiff(before.splitlines(), after.splitlines()))
    gone = [line[2:].strip() for line in lines if line.startswith("- ")]
    came = [line[2:].strip() for line in lines if line.startswith("+ ")]
    return gone, came


NAMED = """

class ToyOtherStep(ModularPipelineBlocks):
    model_name = "toy"
"""
STRENGTH = 'InputParam("strength", type_hint=float{}, description="How much."),'
NOISE = "block_state.noise = components.vae(block_state.generator)"
READ = "block_state.noise = components.vae(block_state.strength, block_state.generator)"
INPUTS = 'InputParam.template("generator"),\n'


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
    found = [finding for finding in _findings(tmp_path, text) if finding.code == code]
    assert any(finding.fixable for finding in found), f"{code} reports nothing fixable: {found}"
    after, fixed = mend(tmp_path, text, code)
    assert changed(text, after) == (gone, came), fixed.notes
    assert not [finding for finding in _findings(tmp_path, after) if finding.code == code]
    assert fixed.notes == []


def _findings(root: Path, text: str, name: str = "before_denoise.py") -> list:  # type: ignore[type-arg]
    path = root / FAMILY / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return examine(request(root)).findings


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
    after, fixed = mend(tmp_path, before, "MOD022", name="modular_blocks_toy.py")
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
    after, _ = mend(tmp_path, text, code)
    assert after == text


@pytest.mark.parametrize(
    ("fixer", "code", "text", "reason"),
    [
        (
            statements.undeclared_write,
            "MOD013",
            block("block_state.device = 1\nhelp(block_state)\nblock_state.noise = components.vae(block_state.device)"),
            "`block_state` is passed on whole, and its receiver may read `device`",
        ),
        (
            statements.undeclared_write,
            "MOD013",
            block(
                "device = 2\nblock_state.device = 1\nblock_state.noise = components.vae(block_state.device, device)"
            ),
            "`device` already means something in __call__",
        ),
        (
            statements.undeclared_write,
            "MOD013",
            block("block_state.device = 1\nblock_state.noise = (lambda: getattr(block_state, 'device'))()"),
            "`block_state` is passed on whole",
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
            "a comment stands there",
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
            "the size may be a number",
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
    after, fixed = mend(tmp_path, before, "MOD038")
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


def test_encoding_newlines_mode_and_links_stay(tmp_path: Path) -> None:
    text = "# -*- coding: latin-1 -*-\n" + block(
        "vae = getattr(components, 'vae', None)  # é\nblock_state.noise = vae(1)"
    )
    path = tmp_path / FAMILY / "before_denoise.py"
    path.parent.mkdir(parents=True)
    real = tmp_path / "real.txt"
    data = text.replace("\n", "\r\n").encode("latin-1")
    real.write_bytes(data)
    real.chmod(0o640)
    path.symlink_to(real)
    fixed = fix_files(request(tmp_path, "MOD012"))
    assert [file.path for file in fixed.files] == [path.as_posix()]
    fixed.files[0].write()
    assert real.read_bytes() == data.replace(b"getattr(components, 'vae', None)", b"components.vae")
    assert real.stat().st_mode & 0o777 == 0o640
    assert path.is_symlink()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["diffusers", "real.txt"]


def test_a_file_that_changed_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / FAMILY / "before_denoise.py"
    path.parent.mkdir(parents=True)
    path.write_text(block("vae = getattr(components, 'vae', None)\nblock_state.noise = vae(1)"))
    fixed = fix_files(request(tmp_path, "MOD012"))
    path.write_text("# somebody was faster\n")
    with pytest.raises(LintError, match="has changed while it was being linted"):
        fixed.files[0].write()
    assert path.read_text() == "# somebody was faster\n"


TWO = block(
    "vae = getattr(components, 'vae', None)\n"
    "other = getattr(components, 'scheduler', None)\n"
    "block_state.noise = vae(other)"
)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (lambda edits: edits.module.code, "did not make the finding go away"),
        (lambda edits: "def f(:", "could not be parsed"),
        (lambda edits: edits.module.code + "\n\nfrom ...pipelines import x\n", "would bring MOD001"),
    ],
)
def test_a_fix_that_does_not_help_is_dropped(
    wrong: Callable[[Edits], str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = calls.defensive_read

    def sometimes(edits: Edits, finding: Finding) -> None:
        if "scheduler" in finding.message:
            monkeypatch.setattr(edits, "code", lambda: wrong(edits))
        else:
            right(edits, finding)

    monkeypatch.setattr(calls, "defensive_read", sometimes)
    after, fixed = mend(tmp_path, TWO, "MOD012")
    assert "vae = components.vae\n" in after
    assert "getattr(components, 'scheduler', None)" in after
    assert "def f(:" not in after
    assert fixed.fixed == 1
    assert reason in fixed.notes[0]


def test_only_what_is_reported_is_mended(tmp_path: Path) -> None:
    text = TWO.replace("'scheduler', None)", "'scheduler', None)  # noqa: MOD012")
    after, fixed = mend(tmp_path, text, "MOD012")
    assert fixed.fixed == 1
    assert "getattr(components, 'scheduler', None)  # noqa: MOD012" in after


STATEMENTS = st.sampled_from(
    [
        "vae = getattr(components, 'vae', None)",
        "x = getattr(getattr(components, 'vae', None), 'config', getattr(block_state, 'generator', None))",
        "block_state.device = components._execution_device",
        "block_state.device, size = components._execution_device, block_state.device",
        "block_state.seed = block_state.seed + 1",
        "if block_state.generator is None:\n    block_state.generator = 1",
        "if block_state.strength is None:\n    block_state.strength = 0.5",
        "components.maybe_free_model_hooks()",
        "for i in range(2):\n    components.maybe_free_model_hooks()",
        "if size:\n    return components, state",
        "noise = torch.randn((1, 2), generator=block_state.generator, device=block_state.device)",
        "noise = torch.randn(*size, 1, device=block_state.device, generator=block_state.generator)",
        "components.unet.to(getattr(block_state, 'device', None))",
        "self.set_block_state(state, block_state)",
    ]
)


@hypothesis_settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(st.lists(STATEMENTS, max_size=7), st.booleans())
def test_mending_twice_is_mending_once(
    tmp_path_factory: pytest.TempPathFactory, statements: list[str], ends: bool
) -> None:
    text = block("\n".join([NOISE, *statements]), INPUTS + STRENGTH.format(", required=True"))
    if not ends:
        text = text.replace("        self.set_block_state(state, block_state)\n        return", "        return")
    root = tmp_path_factory.mktemp("mend", numbered=True)
    before = Counter(finding.code for finding in _findings(root, text))
    mend(root, text)  # mends a second time and sees that nothing changes
    after = Counter(finding.code for finding in examine(request(root)).findings)
    assert after <= before


OFFLOAD = "components.maybe_free_model_hooks(block_state.strength)\n"
DEFAULT = "if block_state.strength is None:\n    block_state.strength = 0.5\n"


def test_a_diff_is_mended_until_nothing_more_can_be(tmp_path: Path) -> None:
    old = block(OFFLOAD + READ, INPUTS + STRENGTH.format(""))
    path = tmp_path / FAMILY / "before_denoise.py"
    path.parent.mkdir(parents=True)
    path.write_text(old)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "first")
    # Only without the call that reads the input can its default move to the declaration, which is above the new lines.
    new = block(OFFLOAD + DEFAULT + READ, INPUTS + STRENGTH.format("")).split("class ToyStep")[1]
    path.write_text(f"{old}\n\nclass ToyNewStep{new}")
    select = ("MOD019", "MOD042")
    fixed = fix_files(request(tmp_path, *select, diff="HEAD"))
    assert [file.after for file in fixed.files] == [
        f"{old}\n\nclass ToyNewStep" + block(READ, INPUTS + STRENGTH.format(", default=0.5")).split("class ToyStep")[1]
    ]
    assert fixed.fixed == 2


def test_every_fixable_rule_has_a_fix() -> None:
    fixable = {rule.code for rule in catalogue().rules if rule.fixable}
    assert fixable <= set(apply._FIXERS)


def test_without_libcst(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / FAMILY / "before_denoise.py"
    path.parent.mkdir(parents=True)
    path.write_text(TWO)
    monkeypatch.setitem(sys.modules, "libcst", None)
    with pytest.raises(LintError, match=r"pip install 'diffusers-offload-plus\[fix\]'"):
        fix_files(request(tmp_path))
    path.write_text("x = 1\n")
    assert fix_files(dataclasses.replace(request(tmp_path), paths=[path])).files == []
