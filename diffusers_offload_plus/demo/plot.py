"""The picture files of the demonstration: the images, and a plot of memory over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .scenarios import Method, ScenarioResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["save_image", "save_timelines"]

MIB = 1 << 20
DEVICE_COLOUR, HOST_COLOUR, MARK_COLOUR = "#1f5fa8", "#c8641e", "#9a9a9a"


def save_image(result: ScenarioResult, directory: Path) -> Path | None:
    """Write the image of a scenario. Returns its path; None if the scenario made no image."""
    if result.image is None:
        return None
    import PIL.Image

    path = directory / f"{result.name}.png"
    levels = (np.nan_to_num(result.image).clip(0, 1) * 255).round().astype(np.uint8)
    PIL.Image.fromarray(levels.squeeze()).save(path)
    return path


def save_timelines(results: Sequence[ScenarioResult], directory: Path) -> Path:
    """Write ``memory.png``: a row for each dtype, a column for each method of offloading.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    dtypes = list(dict.fromkeys(result.dtype for result in results))
    methods = list(Method)
    figure = Figure(figsize=(4.2 * len(methods), 0.8 + 2.8 * len(dtypes)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(dtypes), len(methods), sharex=True, squeeze=False)
    for result in results:
        _draw(panels[dtypes.index(result.dtype), methods.index(result.method)], result)
    panels[0, 0].set_xlim(0, max((moment for result in results for moment in _moments(result)), default=1.0))
    for row, dtype in zip(panels, dtypes, strict=True):
        row[0].set_ylabel("MiB")
        of_dtype = [result for result in results if result.dtype == dtype]
        # Both kinds of offloading have one scale. On the scale of un-offloaded weights their lines would be flat.
        offloaded = _top([result for result in of_dtype if result.method is not Method.UNOFFLOADED])
        for axes, method in zip(row, methods, strict=True):
            axes.set_ylim(0, _top(of_dtype) if method is Method.UNOFFLOADED else offloaded)
    for axes in panels[-1, :]:
        axes.set_xlabel("seconds")
    handles = {
        label: handle for axes in panels.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)
    figure.suptitle("Memory while weights are placed, and during the two steps of the warm-up", fontsize=11)
    path = directory / "memory.png"
    figure.savefig(path, dpi=110)
    return path


def _draw(axes: Axes, result: ScenarioResult) -> None:
    axes.set_title(f"{result.dtype}, {result.method.value}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    if result.error is not None:
        axes.text(0.5, 0.5, "raised an error", transform=axes.transAxes, ha="center")
        return
    timeline = result.timeline
    if timeline.device:
        moments, sizes = zip(*timeline.device, strict=True)
        axes.plot(
            moments,
            [value / MIB for value in sizes],
            color=DEVICE_COLOUR,
            linewidth=1.0,
            label="device memory: tensors",
        )
    if result.host_peak is not None:
        moments, sizes = zip(*timeline.host, strict=True)
        axes.plot(
            moments, [value / MIB for value in sizes], color=HOST_COLOUR, linewidth=1.4, label="host memory: anonymous"
        )
    for moment, name in timeline.marks:
        style = "-" if name == "placed" else ":"
        label = "weights placed" if name == "placed" else "end of a step"
        axes.axvline(moment, color=MARK_COLOUR, linewidth=0.9, linestyle=style, label=label)


def _moments(result: ScenarioResult) -> list[float]:
    timeline = result.timeline
    return [moment for moment, _ in (*timeline.host, *timeline.device, *timeline.marks)]


def _top(results: Sequence[ScenarioResult]) -> float:
    sizes = [nbytes for result in results for _, nbytes in result.timeline.device]
    sizes += [nbytes for result in results if result.host_peak is not None for _, nbytes in result.timeline.host]
    return max(0.1, 1.1 * max(sizes, default=0) / MIB)
