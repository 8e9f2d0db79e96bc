"""The picture files of the demonstration: the images, and a plot of memory over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from diffusers.utils import numpy_to_pil
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .scenarios import Method, ScenarioResult

__all__ = ["save_image", "save_timelines"]

MIB = 1 << 20
LINES = (("device memory: tensors", "#1f5fa8", 1.0), ("host memory: anonymous", "#c8641e", 1.4))
MARKS = {"placed": ("weights placed", "-"), "step": ("end of a step", ":")}


def save_image(result: ScenarioResult, directory: Path) -> Path | None:
    """Write the image of a scenario. Returns its path; None if the scenario made no image."""
    if result.image is None:
        return None
    path = directory / f"{result.name}.png"
    numpy_to_pil(np.nan_to_num(result.image).clip(0, 1))[0].save(path)
    return path


def save_timelines(results: Sequence[ScenarioResult], directory: Path) -> Path:
    """Write ``memory.png``: a row for each dtype, a column for each way to hold the weights."""
    dtypes = list(dict.fromkeys(result.dtype for result in results))
    methods = list(Method)
    figure = Figure(figsize=(4.2 * len(methods), 0.8 + 2.8 * len(dtypes)), layout="constrained")
    panels = figure.subplots(len(dtypes), len(methods), sharex=True, squeeze=False)
    for result in results:
        _draw(panels[dtypes.index(result.dtype), methods.index(result.method)], result)
    parts = [part for result in results for part in (result.host_samples, result.device_samples, result.marks)]
    panels[0, 0].set_xlim(0, max((moment for part in parts for moment, _ in part), default=1.0))
    for row, dtype in zip(panels, dtypes, strict=True):
        row[0].set_ylabel("MiB")
        tops = {result.method: _top(result) for result in results if result.dtype == dtype}
        # Both kinds of offloading on one scale, on which un-offloaded weights would leave no room for them.
        offloaded = max(tops.get(Method.STOCK, 0.1), tops.get(Method.OURS, 0.1))
        row[0].set_ylim(0, max(tops.values()))
        for axes in row[1:]:
            axes.set_ylim(0, offloaded)
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
    axes.set_title(f"{result.dtype}, {result.method}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    if result.error is not None:
        axes.text(0.5, 0.5, "raised an error", transform=axes.transAxes, ha="center")
    for (label, colour, width), samples in zip(LINES, (result.device_samples, result.host_samples), strict=True):
        if samples:
            moments, held = zip(*samples, strict=True)
            axes.plot(moments, [value / MIB for value in held], color=colour, linewidth=width, label=label)
    for moment, name in result.marks:
        label, style = MARKS[name]
        axes.axvline(moment, color="#9a9a9a", linewidth=0.9, linestyle=style, label=label)


def _top(result: ScenarioResult) -> float:
    held = [nbytes for _, nbytes in (*result.device_samples, *result.host_samples)]
    return max(0.1, 1.1 * max(held, default=0) / MIB)
