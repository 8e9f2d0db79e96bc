"""``offload-plus plan``: from the files of a checkpoint alone, as if it had been loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import diffusers_offload_plus as dop
from diffusers_offload_plus.cli import main
from diffusers_offload_plus.offload.api.blueprint import read_blueprint
from tests.zoo.models import MODELS
from tests.zoo.pipelines import PIPELINES, models_of

SAVED = [name for name in PIPELINES if not name.startswith("modular")]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a saved pipeline, by name."""
    found: dict[str, Path] = {}

    def save(name: str) -> Path:
        if name not in found:
            found[name] = tmp_path_factory.mktemp(name)
            PIPELINES[name].build().save_pretrained(found[name])
        return found[name]

    return save


def sizes_of(target: Any) -> dict[str, int]:
    return {c.name: c.total_bytes for c in dop.plan_group_offload(target, vram_budget="1GiB").components}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SAVED)
def test_a_blueprint_is_planned_like_the_model(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    pipeline = PIPELINES[name].build().to(dtype)
    pipeline.save_pretrained(tmp_path)
    stored = dict.fromkeys(models_of(pipeline), dtype)
    loaded = type(pipeline).from_pretrained(tmp_path, torch_dtype={**stored, "default": dtype})
    blueprint = read_blueprint(tmp_path)
    assert all(p.is_meta for model in blueprint.components.values() for p in model.parameters())
    assert blueprint.assumed == ()
    for budget in ("150KiB", "300KiB"):
        plans = [dop.plan_group_offload(target, vram_budget=budget) for target in (loaded, blueprint)]
        assert {c.name: c for c in plans[0].components} == {c.name: c for c in plans[1].components}


@pytest.mark.parametrize("name", ["flux", "sdxl_unet", "autoencoder_kl_wan", "t5", "clip"])
def test_a_single_model(name: str, tmp_path: Path) -> None:
    model = MODELS[name].build()
    model.save_pretrained(tmp_path)
    assert sizes_of(read_blueprint(tmp_path)) == sizes_of(model)


def test_headers_alone_are_read(saved: Callable[[str], Path], tmp_path: Path) -> None:
    """The weights may be missing, as long as the files have their size: a sparse file has no values."""
    source = saved("flux") / "vae"
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    whole = (source / "diffusion_pytorch_model.safetensors").read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    with open(tmp_path / "diffusion_pytorch_model.safetensors", "wb") as file:
        file.write(whole[:header])
        file.truncate(len(whole))
    assert sizes_of(read_blueprint(tmp_path)) == sizes_of(read_blueprint(source))


def test_plans_for_several_budgets(saved: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(saved("flux")), "--vram", "20KiB,150KiB,1GiB", "--ram", "32GiB", "--bandwidth", "25GB"]
    assert main(["plan", *arguments]) == 0
    written = capsys.readouterr()
    lines = written.out.splitlines()
    for name in ("vae", "transformer", "text_encoder", "text_encoder_2"):
        assert sum(line.startswith("150.0 KiB") and f" {name} " in line for line in lines) == 1
        assert sum(line.startswith("1.0 GiB") and f" {name} " in line for line in lines) == 1
    assert "25.0 GB/s (given), transfers only" in written.out
    (refused,) = [line for line in lines if line.startswith("--vram 20.0 KiB does not work")]
    smallest = int(refused.split("smallest budget that works is ")[1].split()[0])
    assert main(["plan", str(saved("flux")), "--vram", str(smallest)]) == 0
    assert main(["plan", str(saved("flux")), "--vram", str(smallest - 1)]) == 1
    assert "too little" not in written.out.replace(refused, "")


def test_figures_are_those_of_the_plan(saved: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", str(saved("wan")), "--vram", "200KiB"])
    lines = capsys.readouterr().out.splitlines()
    from diffusers_offload_plus.offload.formatting import format_bytes

    for c in dop.plan_group_offload(read_blueprint(saved("wan")), vram_budget="200KiB").components:
        (line,) = [line for line in lines if line.startswith("200.0 KiB") and line.split()[2] == c.name]
        for figure in (format_bytes(c.cached_bytes), format_bytes(c.streamed_bytes), f"{c.seconds:.4f}"):
            assert f" {figure}" in line


def test_components_that_are_left_out(saved: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    names = ["transformer", "vae"]
    excluded = ["text_encoder", "text_encoder_2"]
    blueprint = read_blueprint(saved("flux"))
    plan = dop.plan_group_offload(blueprint, vram_budget="150KiB", exclude_modules=excluded)
    assert sorted(c.name for c in plan.components) == names
    kept = {name: model for name, model in blueprint.components.items() if name in names}
    alone = dop.plan_group_offload(type(blueprint)(kept, ()), vram_budget="150KiB")
    assert plan.components == alone.components
    assert main(["plan", str(saved("flux")), "--vram", "150KiB", "--exclude", ",".join(excluded)]) == 0
    assert "text_encoder" not in capsys.readouterr().out
    assert main(["plan", str(saved("flux")), "--vram", "150KiB", "--exclude", "unet"]) == 2
    assert "`exclude_modules` names 'unet'" in capsys.readouterr().err


def test_too_little_host_memory(saved: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(saved("flux")), "--vram", "1GiB", "--ram", "100KiB"]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("--ram")]
    assert "--ram 100.0 KiB is too little" in line
    needed = line.split("the weights take ")[1].split()[0]
    assert main(["plan", str(saved("flux")), "--vram", "1GiB", "--ram", needed]) == 0
    assert main(["plan", str(saved("flux")), "--vram", "1GiB", "--ram", str(int(needed) - 1)]) == 1


def test_without_safetensors_files_the_dtype_is_that_of_the_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    MODELS["flux"].build().save_pretrained(tmp_path)
    next(tmp_path.glob("*.safetensors")).unlink()
    whole = sizes_of(read_blueprint(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "torch_dtype": "bfloat16"}))
    half = sizes_of(read_blueprint(tmp_path))
    (name,) = whole
    assert half[name] < 0.7 * whole[name]
    assert main(["plan", str(tmp_path), "--vram", "1GiB"]) == 0
    assert f"no safetensors files, dtype by config: {name}" in capsys.readouterr().out


def config(**values: Any) -> dict[str, str]:
    return {"config.json": json.dumps(values)}


def index(**values: Any) -> dict[str, str]:
    return {"model_index.json": json.dumps({"_class_name": "FluxPipeline", **values})}


@pytest.mark.parametrize(
    ("files", "arguments", "message"),
    [
        (None, [], "is no directory"),
        ({}, [], "neither a model_index.json nor a config.json"),
        ({"config.json": "{"}, [], "cannot be read as JSON"),
        ({"config.json": "[]"}, [], "must contain one JSON object"),
        (config(), [], "names no class"),
        (config(_class_name="NoSuchModel"), [], "names the class 'NoSuchModel' of 'diffusers'"),
        (config(architectures=["NoSuchModel"]), [], "names the class 'NoSuchModel' of 'transformers'"),
        (config(_class_name="AutoencoderKL", down_block_types=["No"]), [], "cannot be built from"),
        (config(_class_name="AutoencoderKL", quantization_config={"a": 1}), [], "is quantized"),
        (index(), [], "lists no component that has weights"),
        (index(vae=["diffusers", "AutoencoderKL"]), [], "'vae' has no config"),
        (index(vae=["elsewhere", "Model"]), [], "names the class 'Model' of 'elsewhere'"),
        (config(_class_name="AutoencoderKL"), ["--bandwidth", "fast"], "`bandwidth` must be"),
        (config(_class_name="AutoencoderKL"), ["--onload-device", "cpu"], "nothing has to move"),
    ],
)
def test_what_cannot_be_planned_is_one_message_and_exit_code_2(
    files: dict[str, str] | None,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    directory = tmp_path / "missing" if files is None else tmp_path
    for name, text in (files or {}).items():
        (tmp_path / name).write_text(text)
    assert main(["plan", str(directory), "--vram", "1GiB", *arguments]) == 2
    written = capsys.readouterr()
    last = written.err.splitlines()[-1]
    assert last.startswith("offload-plus plan: error: ")
    assert message in last
    assert written.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "MODEL_DIR, --vram"),
        (["here"], "required: --vram"),
        (["here", "--vram", "ten"], "expected a size such as 12GiB, got 'ten'"),
        (["here", "--vram", "1GiB,"], "expected a size such as 12GiB, got ''"),
        (["here", "--vram", "1GiB", "--ram", "much"], "expected a size such as 12GiB, got 'much'"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["plan", *arguments])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_a_file_that_is_not_whole_is_named(
    saved: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text((saved("flux") / "vae" / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"none")
    assert main(["plan", str(tmp_path), "--vram", "1GiB"]) == 2
    assert "not a whole safetensors file" in capsys.readouterr().err
