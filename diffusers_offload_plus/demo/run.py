"""The demonstration from beginning to end."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import itertools
import json
import os
import platform
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from .. import __version__
from . import DemoError
from .faults import FaultResult, run_faults
from .measure import tells_host_memory
from .models import describe
from .options import DemoOptions, device_name
from .plot import save_image, save_timelines
from .scenarios import WARM_UP_STEPS, Method, ScenarioResult, load_libraries, run_scenario
from .table import fault_lines, progress_bar, results_lines, say, terminal

__all__ = ["run_demo"]

EXIT_RIGHT, EXIT_WRONG = 0, 1
UNTOLD = ("image", "host_samples", "device_samples", "marks", "report")  # in results.json
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
    console = terminal()
    say(console, *_introduction(options), "")
    tells_host_memory(options.device)  # remembered: later there is memory to take again, and it would not grow
    load_libraries(options)
    results = _run_all(options, console)
    say(console, "", *results_lines(results, options))
    faults = run_faults(options)
    heading = "Two faults of the disk offloading of diffusers, reproduced on a small transformer:"
    say(console, "", heading, *fault_lines(faults))
    say(console, "", *_write_files(options, results, faults, console.export_text()))
    return EXIT_RIGHT if _all_right(results, faults) else EXIT_WRONG


def _run_all(options: DemoOptions, console: Console) -> list[ScenarioResult]:
    results: list[ScenarioResult] = []
    with progress_bar(console) as bar:
        task = bar.add_task("", total=len(options.dtypes) * len(Method) * (WARM_UP_STEPS + options.steps))
        for dtype, method in itertools.product(options.dtypes, Method):
            bar.update(task, description=f"{dtype}, {method}")
            if not console.is_terminal:
                console.file.write(f"  running: {dtype}, {method}\n")
                console.file.flush()
            reference = next((r.image for r in results if (r.dtype, r.method) == (dtype, Method.UNOFFLOADED)), None)
            results.append(run_scenario(options, dtype, method, reference, lambda: bar.advance(task)))
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


def _write_files(
    options: DemoOptions, results: Sequence[ScenarioResult], faults: Sequence[FaultResult], shown: str
) -> list[str]:
    folder = options.output
    images = [path.name for path in (save_image(result, folder) for result in results) if path is not None]
    (folder / "results.json").write_text(json.dumps(_as_json(options, results, faults), indent=2, default=vars) + "\n")
    reports = [f"{result.name}\n\n{result.report}\n" for result in results if result.report]
    (folder / "report.txt").write_text("\n".join([shown, "What offload_report says", "", *reports]))
    save_timelines(results, folder)
    return [
        f"files in {folder}:",
        f"  {', '.join(images)}",
        "  results.json: all of the above as data",
        "  report.txt:   all of the above as text, and what offload_report says of each component",
        "  memory.png:   memory over time",
    ]


def _as_json(options: DemoOptions, results: Sequence[ScenarioResult], faults: Sequence[FaultResult]) -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": _versions(),
        "device": {"name": str(options.device), "description": device_name(options.device), "cores": os.cpu_count()},
        "options": {
            "pipeline": describe(options),
            **{name: getattr(options, name) for name in ("steps", "height", "width", "prompt", "seed", "use_stream")},
        },
        "scenarios": [_scenario_as_json(result) for result in results],
        "faults": faults,
    }


def _scenario_as_json(result: ScenarioResult) -> dict[str, Any]:
    values = {name: value for name, value in vars(result).items() if name not in UNTOLD}
    return {**values, "median_step_seconds": result.seconds}


def _versions() -> dict[str, str]:
    versions = {"offload-plus": __version__}
    for library in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[library] = importlib.metadata.version(library)
    return versions


def _all_right(results: Sequence[ScenarioResult], faults: Sequence[FaultResult]) -> bool:
    # If the un-offloaded pipeline does not fit on the device, there is no image to compare with.
    images = all(
        result.error is None and result.same_image is not False for result in results if result.method is Method.OURS
    )
    ours = [outcome for fault in faults for outcome in fault.outcomes if outcome.who == "offload-plus"]
    return images and all(outcome.error in (None, 0.0) for outcome in ours)
