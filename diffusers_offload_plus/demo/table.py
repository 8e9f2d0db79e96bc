"""The demonstration's output: text, a progress bar, one table. It is plain text if rich is not installed."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from .faults import FaultResult
from .options import DemoOptions
from .scenarios import Method, ScenarioResult

__all__ = ["Grid", "Screen", "fault_lines", "results_grid", "size"]

NOT_KNOWN = "n/a"


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table: a head, rows, and the columns of numbers, which are flush right."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[str]

    def lines(self) -> list[str]:
        """The table in plain text."""
        widths = [max(len(row[column]) for row in (self.head, *self.rows)) for column in range(len(self.head))]
        lines = [self._line(row, widths) for row in (self.head, tuple("-" * width for width in widths), *self.rows)]
        return [line.rstrip() for line in lines]

    def _line(self, row: Sequence[str], widths: Sequence[int]) -> str:
        cells = zip(self.head, row, widths, strict=True)
        return "  ".join(
            cell.rjust(width) if name in self.numbers else cell.ljust(width) for name, cell, width in cells
        )


class Screen:
    """Writes to ``stream``, with rich if it is installed and the stream is a terminal.

    Attributes:
        transcript: all lines written so far, without the progress bars.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._rich = self._stream.isatty() and importlib.util.find_spec("rich") is not None
        self.transcript: list[str] = []

    def say(self, *lines: str) -> None:
        """Write lines of text."""
        for line in lines:
            self.transcript.append(line)
            self._stream.write(f"{line}\n")
        self._stream.flush()

    def show(self, grid: Grid) -> None:
        """Write a table."""
        if not self._rich:
            self.say(*grid.lines())
            return
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        self.transcript.extend(grid.lines())
        table = Table()
        for name in grid.head:
            table.add_column(name, justify="right" if name in grid.numbers else "left")
        for row in grid.rows:
            table.add_row(*(Text(cell, style=_style(cell)) for cell in row))
        Console(file=self._stream).print(table)

    @contextlib.contextmanager
    def progress(self, total: int) -> Iterator[Progress]:
        """Within the block, show how many of ``total`` steps are done."""
        if not self._rich:
            yield Progress(self._plain_label, lambda: None)
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description:<22}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
        )
        with Bars(*columns, console=Console(file=self._stream), transient=True) as bars:
            task = bars.add_task("", total=total)
            yield Progress(lambda text: bars.update(task, description=text), lambda: bars.advance(task))

    def _plain_label(self, text: str) -> None:
        self._stream.write(f"  running: {text}\n")
        self._stream.flush()


@dataclasses.dataclass(frozen=True)
class Progress:
    """The progress of the scenarios.

    Attributes:
        label: called with the name of what runs now.
        advance: called after each step.
    """

    label: Callable[[str], None]
    advance: Callable[[], None]


def results_grid(results: Sequence[ScenarioResult], options: DemoOptions) -> Grid:
    """The table of measurements. On the CPU, where nothing moves, it has no columns for the device."""
    columns: dict[str, Callable[[ScenarioResult], str]] = {
        "weights": lambda result: result.dtype,
        "offloading": lambda result: result.method.value,
        "image": _image,
        "s/step": lambda result: NOT_KNOWN if result.seconds is None else f"{result.seconds:.3f}",
    }
    if options.moves:
        columns |= {
            "device peak": lambda result: size(result.device_peak),
            "to device/step": lambda result: size(result.to_device),
            "to host/step": lambda result: size(result.to_host),
        }
    columns["host peak"] = lambda result: size(None if result.host_peak is None else result.host_peak.anonymous)
    numbers = frozenset(columns) - {"weights", "offloading", "image"}
    rows = tuple(tuple(cell(result) for cell in columns.values()) for result in results)
    return Grid(tuple(columns), rows, numbers)


def fault_lines(faults: Sequence[FaultResult]) -> list[str]:
    """Each fault as a paragraph."""
    lines: list[str] = []
    for fault in faults:
        lines += ["", f"{fault.name}: {fault.action} (on {fault.device})"]
        lines += [f"  {f'{outcome.who}, {outcome.tier}':<23}{outcome.text}" for outcome in fault.outcomes]
    return lines


def size(nbytes: int | None) -> str:
    """``nbytes`` as text, in the largest unit that gives at least 1."""
    if nbytes is None:
        return NOT_KNOWN
    value, units = float(nbytes), ["B", "KiB", "MiB", "GiB"]
    while abs(value) >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{nbytes} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


def _image(result: ScenarioResult) -> str:
    if result.error is not None:
        return f"raised {result.error}"
    if result.method is Method.UNOFFLOADED:
        return "reference"
    return {True: "equal", False: "DIFFERENT", None: "nothing to compare with"}[result.same_image]


def _style(cell: str) -> str:
    if cell == "equal":
        return "green"
    return "red" if cell == "DIFFERENT" or cell.startswith("raised") else ""
