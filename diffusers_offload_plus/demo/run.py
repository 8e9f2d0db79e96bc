"""The demonstration from beginning to end."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from typing import Any

from .. import __version__
from . import DemoError
from .faults import FaultResult, run_faults
from .measure import tells_host_memory
from .models import describe
from .options import DemoOptions, device_name
from .plot import save_image, save_timelines
from .scenarios import WARM_UP_STEPS, Method, ScenarioResult, load_libraries, run_scenario, scenarios
from .table import Screen, fault_lines, results_grid, size

__all__ = ["run_demo"]

EXIT_RIGHT, EXIT_WRONG = 0, 1
LIBRARIES = ("torch", "diffusers", "transformers", "torchao")


def run_demo(options: DemoOptions) -> int:
    """Run and measure all scenarios, show the results, write the files.

    Returns:
        The exit code: 0 if all results of this package are right, else 1.
    """
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoError(f"--output {options.output}: cannot make this directory: {error.strerror}.") from error
    screen = Screen()
    screen.say(*_introduction(options), "")
    tells_host = tells_host_memory(options.device)
    load_libraries(options)
    results = _run_all(options, screen, tells_host)
    screen.say("")
    screen.show(results_grid(results, options))
    screen.say("", *_explanation(options, results, tells_host))
    faults = run_faults(options)
    screen.say(
        "", "Two faults of the disk offloading of diffusers, reproduced on a small transformer:", *fault_lines(faults)
    )
    screen.say("", *_write_files(options, results, faults, screen))
    return EXIT_RIGHT if _all_right(results, faults) else EXIT_WRONG


def _run_all(options: DemoOptions, screen: Screen, tells_host: bool) -> list[ScenarioResult]:
    results: list[ScenarioResult] = []
    todo = scenarios(options)
    with screen.progress(len(todo) * (WARM_UP_STEPS + options.steps)) as progress:
        for dtype, method in todo:
            progress.label(f"{dtype}, {method.value}")
            reference = next((r.image for r in results if (r.dtype, r.method) == (dtype, Method.UNOFFLOADED)), None)
            results.append(
                run_scenario(
                    options, dtype, method, reference=reference, tells_host=tells_host, advance=progress.advance
                )
            )
    return results


def _introduction(options: DemoOptions) -> list[str]:
    extent = "" if options.height is None else f", {options.width} x {options.height} pixels"
    streams = "copies on a stream of their own" if options.use_stream else "no streams"
    lines = [
        f"pipeline: {describe(options)}{extent}, {options.steps} steps, seed {options.seed}",
        f"device:   {options.device} ({device_name(options.device)})",
        f"host:     {platform.machine()}, {os.cpu_count()} cores",
        f"versions: {', '.join(f'{name} {version}' for name, version in _versions().items())}",
        "",
        f"Each row builds the pipeline anew from the same seed. {WARM_UP_STEPS} steps measure memory and copies,",
        f"then a run without that measures time. Both kinds of offloading: leaf level, {streams}.",
    ]
    if not options.moves:
        lines += [
            "",
            "The onload device is the CPU: weights are used in place and nothing moves.",
            "Times show only the overhead of hooks.",
        ]
    return lines


def _explanation(options: DemoOptions, results: Sequence[ScenarioResult], tells_host: bool) -> list[str]:
    weights = {result.dtype: result.weights for result in results if result.weights}
    lines = [
        "weights:        " + ", ".join(f"{size(nbytes)} in {dtype}" for dtype, nbytes in weights.items()),
        "image:          'equal' is bit for bit, to that of the un-offloaded pipeline in the same dtype",
        f"s/step:         median of the {options.steps - 1} steps of the measured run after its first",
    ]
    if options.moves:
        lines += [
            "device peak:    most bytes of tensors on the device, by its allocator's count",
            "to device/step: bytes that one step copies from host to device, counted copy by copy; to host: back",
        ]
    if tells_host:
        lines.append("host peak:      most anonymous memory of this process beyond that of before, sampled each 20 ms")
    else:
        lines.append("host peak:      not known: the memory of this device is part of the process's own")
    return lines


def _write_files(
    options: DemoOptions, results: Sequence[ScenarioResult], faults: Sequence[FaultResult], screen: Screen
) -> list[str]:
    folder = options.output
    images = [path.name for path in (save_image(result, folder) for result in results) if path is not None]
    (folder / "results.json").write_text(json.dumps(_as_json(options, results, faults), indent=2) + "\n")
    reports = [f"{result.name}\n\n{result.report}\n" for result in results if result.report]
    (folder / "report.txt").write_text("\n".join([*screen.transcript, "", "What offload_report says", "", *reports]))
    lines = [
        f"files in {folder}:",
        f"  {', '.join(images)}",
        "  results.json: all of the above as data",
        "  report.txt:   all of the above as text, and what offload_report says of each component",
    ]
    try:
        save_timelines(results, folder)
        lines.append("  memory.png:   memory over time")
    except ImportError:
        lines.append("  (no memory.png: that needs matplotlib; pip install 'diffusers-offload-plus[cli]')")
    return lines


def _as_json(options: DemoOptions, results: Sequence[ScenarioResult], faults: Sequence[FaultResult]) -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": _versions(),
        "device": {"name": str(options.device), "description": device_name(options.device), "cores": os.cpu_count()},
        "options": {
            "pipeline": describe(options),
            "steps": options.steps,
            "height": options.height,
            "width": options.width,
            "prompt": options.prompt,
            "seed": options.seed,
            "use_stream": options.use_stream,
        },
        "scenarios": [_scenario_as_json(result) for result in results],
        "faults": [dataclasses.asdict(fault) for fault in faults],
    }


def _scenario_as_json(result: ScenarioResult) -> dict[str, Any]:
    left_out = {"image", "method", "timeline", "report", "host_peak"}
    values = {
        field.name: getattr(result, field.name) for field in dataclasses.fields(result) if field.name not in left_out
    }
    host = None if result.host_peak is None else dataclasses.asdict(result.host_peak)
    return {"method": result.method.value, **values, "median_step_seconds": result.seconds, "host_peak": host}


def _versions() -> dict[str, str]:
    versions = {"offload-plus": __version__}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _all_right(results: Sequence[ScenarioResult], faults: Sequence[FaultResult]) -> bool:
    # If the un-offloaded pipeline does not fit on the device, there is no image to compare with.
    images = all(
        result.error is None and result.same_image is not False for result in results if result.method is Method.OURS
    )
    ours = [outcome for fault in faults for outcome in fault.outcomes if outcome.who == "offload-plus"]
    return images and all(outcome.error in (None, 0.0) for outcome in ours)
