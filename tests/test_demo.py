"""The demonstration: end to end at its small size, and its instruments beside the device's own counts."""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from diffusers_offload_plus.cli import main
from diffusers_offload_plus.demo import models, table
from diffusers_offload_plus.demo.faults import FaultResult, Outcome
from diffusers_offload_plus.demo.measure import Inspector, device_memory, host_memory, sampled_host_memory
from diffusers_offload_plus.demo.options import DemoOptions
from diffusers_offload_plus.demo.run import _all_right
from diffusers_offload_plus.demo.scenarios import Method, ScenarioResult, run_scenario
from diffusers_offload_plus.offload.model.tensors import plain_tensors
from diffusers_offload_plus.offload.stores.layout import ALIGNMENT

ROOT = Path(__file__).parents[1]
METHODS = [method.value for method in Method]
MIB = 1 << 20


def small_options(**changes: Any) -> DemoOptions:
    values = dict(
        device="cpu",
        model=None,
        small=True,
        steps=None,
        height=None,
        width=None,
        prompt="a lighthouse in a storm",
        seed=0,
        dtypes=("bf16",),
        output=Path("unused"),
    )
    return DemoOptions.of(argparse.Namespace(**{**values, **changes}))


def run_in_process_of_its_own(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "diffusers_offload_plus", "demo", "--small", "--output", str(folder), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("demo") / "output"
    return folder, run_in_process_of_its_own(folder, "--device", "cpu")


def data(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return read


def outcomes(folder: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    return {
        (fault["name"], outcome["who"], outcome["tier"]): outcome
        for fault in data(folder)["faults"]
        for outcome in fault["outcomes"]
    }


def test_it_succeeds_and_is_quiet_on_stderr(on_cpu: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    _, done = on_cpu
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""


def test_it_says_that_nothing_moves_on_the_cpu(on_cpu: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = on_cpu
    assert "The onload device is the CPU: weights are used in place and nothing moves." in done.stdout
    assert "to device" not in done.stdout
    for scenario in data(folder)["scenarios"]:
        assert (scenario["device_peak"], scenario["to_device"], scenario["to_host"]) == (None, 0, 0)


def test_all_images_are_equal_to_the_reference(on_cpu: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = on_cpu
    found = {(s["dtype"], s["method"]): s["same_image"] for s in data(folder)["scenarios"]}
    assert found == {
        (dtype, method): None if method == Method.UNOFFLOADED.value else True
        for dtype in ("bf16", "int8")
        for method in METHODS
    }
    assert done.stdout.count("equal   ") == 4
    for dtype in ("bf16", "int8"):
        images = [np.asarray(PIL.Image.open(folder / f"{dtype}-{method}.png")) for method in METHODS]
        assert images[0].shape == (32, 32, 3)
        assert images[0].std() > 20, "the image shows nothing"
        assert all(np.array_equal(image, images[0]) for image in images)


def test_the_stock_faults_show_an_error_and_ours_none(
    on_cpu: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    found = outcomes(on_cpu[0])
    for fault in ("mixed-up weights", "lost weights"):
        assert found[fault, "diffusers", "disk"]["error"] > 0
        assert found[fault, "offload-plus", "memory"]["error"] == 0
        assert found[fault, "offload-plus", "disk"]["error"] == 0


def test_the_files_say_what_the_terminal_said(on_cpu: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = on_cpu
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *(f"{dtype}-{method}.png" for dtype in ("bf16", "int8") for method in METHODS),
        "memory.png",
        "report.txt",
        "results.json",
    }
    with PIL.Image.open(folder / "memory.png") as plot:
        assert min(plot.size) > 300
        assert len(set(plot.convert("RGB").get_flattened_data())) > 5
    written = (folder / "report.txt").read_text()
    table_rows = [line for line in done.stdout.splitlines() if line.startswith(("bf16 ", "int8 "))]
    assert len(table_rows) == 6
    assert all(row in written for row in table_rows)
    assert "component" in written
    assert "FluxTransformer2DModel" in written
    assert all(len(scenario["step_seconds"]) == 2 for scenario in data(folder)["scenarios"])


def test_on_an_accelerator_it_reports_peaks_and_bytes(tmp_path: Path) -> None:
    done = run_in_process_of_its_own(
        tmp_path, "--device", "sim", "--import", "tests.simulated:register", "--dtypes", "bf16"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "s/step  device peak  to device/step  to host/step" in done.stdout
    none, stock, ours = data(tmp_path)["scenarios"]
    assert stock["same_image"] is ours["same_image"] is True
    assert none["device_peak"] > none["weights"]
    assert max(stock["device_peak"], ours["device_peak"]) < none["device_peak"] / 4
    assert none["to_device"] == 0
    transformer = models.build_pipeline(small_options(), "bf16").transformer
    gaps = sum(-parameter.nbytes % ALIGNMENT for parameter in transformer.parameters())
    assert ours["to_device"] == stock["to_device"] + gaps > MIB
    assert ours["to_host"] == 0
    # Beyond what the report counts: inputs, buffers, and weights that are lent.
    assert 0.9 * ours["copied_to_device"] < ours["reported_to_device"] <= ours["copied_to_device"]
    assert none["host_peak"] is None
    assert "host peak:      not known" in done.stdout


def test_a_checkpoint_from_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models.build_pipeline(small_options(seed=3), "bf16").save_pretrained(str(tmp_path / "model"))
    arguments = ["--model", str(tmp_path / "model"), "--output", str(tmp_path / "output"), "--device", "cpu"]
    size = ["--height", "32", "--width", "48", "--steps", "2", "--dtypes", "bf16"]
    assert main(["demo", *arguments, *size]) == 0
    scenarios = data(tmp_path / "output")["scenarios"]
    assert [scenario["same_image"] for scenario in scenarios] == [None, True, True]
    assert np.asarray(PIL.Image.open(tmp_path / "output" / "bf16-offload-plus.png")).shape == (32, 48, 3)
    assert "the checkpoint in" in capsys.readouterr().out


def parameters_of(pipeline: Any) -> list[torch.nn.Parameter]:
    return [parameter for model in models.models_of(pipeline).values() for parameter in model.parameters()]


def test_pipelines_of_one_seed_are_equal_and_of_two_are_not() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    states = [parameters_of(models.build_pipeline(small_options(seed=seed), "bf16")) for seed in (0, 0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(states[0], states[1], strict=True))
    assert any(not torch.equal(a, c) for a, c in zip(states[0], states[2], strict=True))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_default_dtype() is torch.float32


def test_every_step_changes_the_image() -> None:
    pipeline = models.build_pipeline(small_options(), "bf16")
    images = [models.run_pipeline(pipeline, small_options(), steps, lambda: None) for steps in (2, 3, 4)]
    assert all(np.abs(a - b).mean() > 0.005 for a, b in itertools.pairwise(images))
    assert all(np.isfinite(image).all() for image in images)


def test_a_scenario_that_fails_becomes_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("no room\nfor this")

    monkeypatch.setattr("diffusers_offload_plus.demo.scenarios.build_pipeline", fail)
    result = run_scenario(small_options(), "bf16", Method.STOCK, None, lambda: None)
    assert result.error == "OutOfMemoryError: no room"
    row = table.results_lines([result], small_options())[2]
    assert re.split(" {2,}", row) == ["bf16", "diffusers", "raised OutOfMemoryError: no room", "n/a", "n/a"]


@pytest.mark.parametrize(
    ("method", "changes", "right"),
    [
        (Method.OURS, dict(same_image=True), True),
        (Method.OURS, dict(same_image=False), False),
        (Method.OURS, dict(error="RuntimeError: x"), False),
        (Method.OURS, dict(same_image=None), True),  # the un-offloaded pipeline did not fit
        (Method.STOCK, dict(same_image=False), True),
        (Method.UNOFFLOADED, dict(error="OutOfMemoryError: x"), True),
    ],
)
def test_only_what_is_ours_decides_the_exit_code(method: Method, changes: dict[str, Any], right: bool) -> None:
    assert _all_right([ScenarioResult(dtype="bf16", method=method, **changes)], []) is right


@pytest.mark.parametrize(
    ("who", "error", "right"), [("diffusers", 1.0, True), ("offload-plus", 1.0, False), ("offload-plus", None, True)]
)
def test_a_fault_of_ours_decides_the_exit_code(who: str, error: float | None, right: bool) -> None:
    outcome = Outcome(who=who, tier="memory", error=error, text="")
    assert _all_right([], [FaultResult(name="", action="", device="cpu", outcomes=(outcome,))]) is right


def test_the_inspector_counts_what_the_device_counts(device: torch.device) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    layer = torch.nn.Linear(64, 32)
    quantized = torch.nn.Sequential(torch.nn.Linear(64, 32, bias=False))
    quantize_(quantized, Int8WeightOnlyConfig(set_inductor_config=False))
    inner = sum(plain.nbytes for _, plain in plain_tensors(quantized[0].weight))
    assert inner < layer.weight.nbytes
    held = torch.empty(100, device=device)
    inspector = Inspector(device_memory(device), interval=0)
    simulated = None
    if device.type == "sim":
        from tests import simulated

        simulated.reset_stats()
    with inspector:
        layer.to(device)
        quantized.to(device)
        held.copy_(torch.ones(100))
        back = held.to("cpu")
        torch.ones(5).copy_(torch.zeros(5))
        held + 1
    assert float(back.sum()) == 100
    assert inspector.to_device == layer.weight.nbytes + layer.bias.nbytes + inner + 400
    assert inspector.to_host == 400
    assert max(nbytes for _, nbytes in inspector.samples) >= layer.weight.nbytes
    if simulated is not None:
        assert (simulated.stats().h2d, simulated.stats().d2h) == (inspector.to_device, inspector.to_host)


def test_the_host_sampler_sees_memory_that_comes_and_goes() -> None:
    with sampled_host_memory(host_memory(), interval=0.001) as samples:
        block = torch.ones(64 * MIB, dtype=torch.uint8)
        assert int(block[0]) == 1
        del block
    assert 60 * MIB < max(held.anonymous for _, held in samples) < 200 * MIB
    assert [moment for moment, _ in samples] == sorted(moment for moment, _ in samples)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


ROWS = ["weights  image      s/step", "bf16     equal       1.000", "int8     DIFFERENT  12.000"]


def test_what_is_said_is_recorded_as_it_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    console = table.terminal()
    with table.progress_bar(console) as bar:
        bar.advance(bar.add_task("bf16", total=2))
    table.say(console, *ROWS, "x" * 200)
    assert stream.getvalue() == "\n".join([*ROWS, "x" * 200]) + "\n" == console.export_text()


def test_a_terminal_gets_a_bar_and_colours_and_the_record_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    for name, value in {"TERM": "xterm", "COLORTERM": "", "NO_COLOR": ""}.items():
        monkeypatch.setenv(name, value)
    console = table.terminal()
    with table.progress_bar(console) as bar:
        bar.advance(bar.add_task("bf16", total=2))
    table.say(console, *ROWS)
    written = stream.getvalue()
    assert "50%" in written
    assert "bf16   \x1b[32m  equal  \x1b[0m     1.000" in written
    assert "\x1b[31mDIFFERENT\x1b[0m" in written
    assert console.export_text() == "\n".join(ROWS) + "\n"
