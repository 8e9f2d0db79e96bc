"""What the demonstration shows: its terminal, and the figures as tables and lines of text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from ..offload.formatting import format_bytes, table
from .faults import FaultResult
from .measure import tells_host_memory
from .options import DemoOptions
from .scenarios import Method, ScenarioResult

__all__ = ["fault_lines", "progress_bar", "results_lines", "say", "terminal"]

NOT_KNOWN = "n/a"


def terminal() -> Console:
    """Standard output; what is said there is recorded."""
    return Console(record=True, soft_wrap=True, markup=False, highlight=False, emoji=False)


def say(console: Console, *lines: str) -> None:
    """Write lines of text, verdicts on images in colour."""
    for line in lines:
        text = Text(line)
        text.highlight_regex(r"  equal  ", "green")
        text.highlight_regex(r"DIFFERENT|raised \w+", "red")
        console.print(text)


def progress_bar(console: Console) -> Progress:
    """How many steps are done, where ``console`` is a terminal; gone when all are, and not recorded."""
    return Progress(console=Console(file=console.file), transient=True, disable=not console.is_terminal)


def results_lines(results: Sequence[ScenarioResult], options: DemoOptions) -> list[str]:
    """The measurements and what they mean. On the CPU, where nothing moves, there are no columns for the device."""
    weights = {
        result.dtype: f"{format_bytes(result.weights)} in {result.dtype}" for result in results if result.weights
    }
    host_peak = "not known: the memory of this device is part of the process's own"
    if tells_host_memory(options.device):
        host_peak = "most anonymous memory of this process beyond what it held before, sampled each 20 ms"
    columns: list[tuple[str, Callable[[ScenarioResult], str], str]] = [
        ("weights", lambda result: result.dtype, ", ".join(weights.values())),
        ("offloading", lambda result: result.method, ""),
        ("image", _image, "'equal' is bit for bit, to that of the un-offloaded pipeline in the same dtype"),
        (
            "s/step",
            lambda result: NOT_KNOWN if result.seconds is None else f"{result.seconds:.3f}",
            f"median of the {options.steps - 1} steps of the measured run after its first",
        ),
        (
            "device peak",
            lambda result: _size(result.device_peak),
            "most bytes of tensors on the device, by its allocator's count",
        ),
        (
            "to device/step",
            lambda result: _size(result.to_device),
            "bytes that one step copies from host to device, counted copy by copy; to host: back",
        ),
        ("to host/step", lambda result: _size(result.to_host), ""),
        ("host peak", lambda result: _size(result.host_peak.anonymous if result.host_peak else None), host_peak),
    ]
    if not options.moves:
        columns = [column for column in columns if "device" not in column[0] and "to host" not in column[0]]
    rows = [[name for name, _, _ in columns], *([cell(result) for _, cell, _ in columns] for result in results)]
    notes = [f"{name + ':':<16}{note}" for name, _, note in columns if note]
    return [*table(rows, text_columns=3), "", *notes]


def fault_lines(faults: Sequence[FaultResult]) -> list[str]:
    """Each fault as a paragraph."""
    lines: list[str] = []
    for fault in faults:
        lines += ["", f"{fault.name}: {fault.action} (on {fault.device})"]
        lines += [f"  {f'{outcome.who}, {outcome.tier}':<23}{outcome.text}" for outcome in fault.outcomes]
    return lines


def _size(nbytes: int | None) -> str:
    return NOT_KNOWN if nbytes is None else format_bytes(nbytes)


def _image(result: ScenarioResult) -> str:
    if result.error is not None:
        return f"raised {result.error}"
    if result.method is Method.UNOFFLOADED:
        return "reference"
    return {True: "equal", False: "DIFFERENT", None: "nothing to compare with"}[result.same_image]
