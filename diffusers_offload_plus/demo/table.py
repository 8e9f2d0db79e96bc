"""What the demonstration shows: its terminal, and the figures as tables and lines of text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from ..offload.formatting import format_bytes, table
from .faults import FaultResult
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
    return Progress(
        TextColumn("{task.description:<22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeElapsedColumn(),
        console=Console(file=console.file),
        transient=True,
        disable=not console.is_terminal,
    )


def results_lines(results: Sequence[ScenarioResult], options: DemoOptions) -> list[str]:
    """The measurements. On the CPU, where nothing moves, there are no columns for the device."""
    columns: dict[str, Callable[[ScenarioResult], str]] = {
        "weights": lambda result: result.dtype,
        "offloading": lambda result: result.method,
        "image": _image,
        "s/step": lambda result: NOT_KNOWN if result.seconds is None else f"{result.seconds:.3f}",
    }
    if options.moves:
        columns |= {
            "device peak": lambda result: _size(result.device_peak),
            "to device/step": lambda result: _size(result.to_device),
            "to host/step": lambda result: _size(result.to_host),
        }
    columns["host peak"] = lambda result: _size(result.host_peak.anonymous if result.host_peak else None)
    rows = [[cell(result) for cell in columns.values()] for result in results]
    return table([[*columns], *rows], text_columns=3)


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
