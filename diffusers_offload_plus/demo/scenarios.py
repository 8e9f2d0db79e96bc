"""One pipeline under three methods: un-offloaded, offloaded by diffusers, offloaded by this package.

For each the pipeline is built anew from the same seed, warmed up, run and measured.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ..offload.api.enable import enable_group_offload
from ..offload.api.report import offload_report
from ..offload.formatting import first_line
from . import DemoError
from .measure import (
    HostMemory,
    Inspector,
    device_memory,
    host_memory,
    release_memory,
    sampled_host_memory,
    synchronize,
    tells_host_memory,
)
from .models import Image, build_pipeline, run_pipeline, weight_bytes
from .options import DemoOptions

__all__ = ["WARM_UP_STEPS", "Method", "ScenarioResult", "load_libraries", "offload", "run_scenario"]

WARM_UP_STEPS = 2

Samples = tuple[tuple[float, int], ...]


class Method(enum.StrEnum):
    """How the weights are held; the values are what tables call it."""

    UNOFFLOADED = "un-offloaded"
    STOCK = "diffusers"
    OURS = "offload-plus"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenarioResult:
    """The measurements of one scenario.

    Sizes are bytes beyond those in use before the pipeline was built. ``None``: not known.

    Attributes:
        error: the error, if the scenario raised one; all else is then empty.
        same_image: whether the image is bit for bit that of the un-offloaded pipeline in the same dtype.
        step_seconds: times of the steps of the measured run, without the first.
        device_peak: most bytes of tensors on the device, from placing the weights to the end of the measured run.
        host_peak: most host memory, sampled from placing the weights to the end of the warm-up.
        to_device, to_host: bytes that one step copies, counted during the warm-up.
        copied_to_device: bytes that the whole warm-up copied.
        host_samples, device_samples: seconds and bytes, while the weights are placed and during the warm-up; empty
            where it cannot be told.
        marks: moments in that time that have a name.
        report: what our own report says, in text.
        reported_to_device: bytes that our own report had counted by the end of the warm-up.
    """

    dtype: str
    method: Method
    weights: int = 0
    error: str | None = None
    image: Image | None = None
    same_image: bool | None = None
    step_seconds: tuple[float, ...] = ()
    device_peak: int | None = None
    host_peak: HostMemory | None = None
    to_device: int | None = None
    to_host: int | None = None
    copied_to_device: int | None = None
    host_samples: Samples = ()
    device_samples: Samples = ()
    marks: tuple[tuple[float, str], ...] = ()
    report: str = ""
    reported_to_device: int | None = None

    @property
    def name(self) -> str:
        """Fit for a file name."""
        return f"{self.dtype}-{self.method}"

    @property
    def seconds(self) -> float | None:
        """The median duration of a step; None without steps."""
        return statistics.median(self.step_seconds) if self.step_seconds else None


def offload(method: Method, target: Any, options: DemoOptions, **more: Any) -> None:
    """Group offload a model or a pipeline, ``STOCK`` or ``OURS``, at leaf level."""
    settings = dict(onload_device=options.device, offload_type="leaf_level", use_stream=options.use_stream, **more)
    if method is Method.STOCK:
        target.enable_group_offload(**settings)
    else:
        enable_group_offload(target, **settings)


def load_libraries(options: DemoOptions) -> None:
    """Run a tiny pipeline, so that memory which libraries allocate at their first use is not measured."""
    side = 32
    tiny = dataclasses.replace(options, model=None, small=True, height=side, width=side)
    for dtype in options.dtypes:
        pipeline = build_pipeline(tiny, dtype)
        pipeline.to(options.device)
        run_pipeline(pipeline, tiny, WARM_UP_STEPS, lambda: None)


def run_scenario(
    options: DemoOptions, dtype: str, method: Method, reference: Image | None, advance: Callable[[], None]
) -> ScenarioResult:
    """Build the pipeline, place its weights, warm up, run.

    An exception becomes the result's ``error``: a scenario that fails must not hide the others.
    """
    release_memory()
    try:
        return _run(options, dtype, method, reference, advance)
    except DemoError:
        raise
    except Exception as error:
        return ScenarioResult(dtype=dtype, method=method, error=f"{type(error).__name__}: {first_line(error)}")
    finally:
        release_memory()


def _run(
    options: DemoOptions, dtype: str, method: Method, reference: Image | None, advance: Callable[[], None]
) -> ScenarioResult:
    memory = device_memory(options.device)
    baseline, device_baseline = host_memory(), memory.taken() if memory else 0
    pipeline = build_pipeline(options, dtype)
    weights = weight_bytes(pipeline)
    release_memory()
    if memory:
        memory.restart()
    inspector = Inspector(memory)
    ends: list[tuple[float, int, int]] = []

    def ended() -> None:
        synchronize(options.device)
        ends.append((time.perf_counter(), inspector.to_device, inspector.to_host))
        advance()

    with sampled_host_memory(baseline) as host:
        if method is Method.UNOFFLOADED:
            pipeline.to(options.device)
        else:
            offload(method, pipeline, options)
        marks = [(time.perf_counter(), "placed")]
        with inspector:
            run_pipeline(pipeline, options, WARM_UP_STEPS, ended)
    (_, *before), (_, *after) = ends[-2:]
    marks += [(moment, "step") for moment, _, _ in ends]
    ours = method is Method.OURS
    reported = sum(c.transferred_bytes for c in offload_report(pipeline).components) if ours else None
    # The instruments are off by now.
    ends.clear()
    image = run_pipeline(pipeline, options, options.steps, ended)
    synchronize(options.device)
    begin, tells_host = host[0][0], tells_host_memory(options.device)
    most = HostMemory(max(held.anonymous for _, held in host), max(held.file for _, held in host))
    return ScenarioResult(
        dtype=dtype,
        method=method,
        weights=weights,
        image=image,
        same_image=None if reference is None else bool(np.array_equal(image, reference)),
        step_seconds=tuple(later[0] - earlier[0] for earlier, later in itertools.pairwise(ends)),
        device_peak=memory.peak() - device_baseline if memory else None,
        host_peak=most if tells_host else None,
        to_device=after[0] - before[0],
        to_host=after[1] - before[1],
        copied_to_device=inspector.to_device,
        host_samples=tuple((moment - begin, held.anonymous) for moment, held in host if tells_host),
        device_samples=tuple((moment - begin, held - device_baseline) for moment, held in inspector.samples),
        marks=tuple((moment - begin, name) for moment, name in marks),
        report=str(offload_report(pipeline)) if ours else "",
        reported_to_device=reported,
    )
