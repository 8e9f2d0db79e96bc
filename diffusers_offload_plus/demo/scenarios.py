"""One pipeline under three methods: un-offloaded, offloaded by diffusers, offloaded by this package.

For each the pipeline is built anew from the same seed, warmed up, run and measured.
"""

from __future__ import annotations

import dataclasses
import enum
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..offload.api.enable import enable_group_offload
from ..offload.api.report import OffloadReport, offload_report
from . import DemoError
from .measure import DeviceMemory, HostMemory, HostSampler, Inspector, StepClock, Timeline, host_memory, release_memory
from .models import Image, build_pipeline, run_pipeline, weight_bytes
from .options import DemoOptions

__all__ = ["WARM_UP_STEPS", "Method", "ScenarioResult", "load_libraries", "run_scenario", "scenarios"]

WARM_UP_STEPS = 2
OFFLOAD_TYPE = "leaf_level"


class Method(enum.Enum):
    """How the weights are offloaded. The values are the names in tables."""

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
        timeline: memory while the weights are placed and during the warm-up.
        report: the text of ``offload_report``.
        reported_to_device: bytes copied by the end of the warm-up, as ``offload_report`` counts them.
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
    timeline: Timeline = dataclasses.field(default_factory=Timeline)
    report: str = ""
    reported_to_device: int | None = None

    @property
    def name(self) -> str:
        """The name of the scenario, for file names."""
        return f"{self.dtype}-{self.method.value}"

    @property
    def seconds(self) -> float | None:
        """The median duration of a step; None without steps."""
        return statistics.median(self.step_seconds) if self.step_seconds else None


def scenarios(options: DemoOptions) -> list[tuple[str, Method]]:
    """All scenarios, in order."""
    return [(dtype, method) for dtype in options.dtypes for method in Method]


def load_libraries(options: DemoOptions) -> None:
    """Run a tiny pipeline, so that memory which libraries allocate at their first use is not measured."""
    side = 32
    tiny = dataclasses.replace(options, model=None, small=True, height=side, width=side)
    for dtype in options.dtypes:
        pipeline = build_pipeline(tiny, dtype)
        pipeline.to(options.device)
        run_pipeline(pipeline, tiny, WARM_UP_STEPS, lambda step: None)


def run_scenario(
    options: DemoOptions,
    dtype: str,
    method: Method,
    *,
    reference: Image | None,
    tells_host: bool,
    advance: Callable[[], None],
) -> ScenarioResult:
    """Build the pipeline, place its weights, warm up, run.

    An exception becomes the result's ``error``, so that the other scenarios still run.

    Args:
        reference: image of the un-offloaded pipeline in the same dtype.
        tells_host: host memory can be measured without that of the device.
        advance: called after every step.
    """
    release_memory()
    try:
        return _run(options, dtype, method, reference, tells_host, advance)
    except DemoError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines() or [""]
        return ScenarioResult(dtype=dtype, method=method, error=f"{type(error).__name__}: {reason[0]}")
    finally:
        release_memory()


def _run(
    options: DemoOptions,
    dtype: str,
    method: Method,
    reference: Image | None,
    tells_host: bool,
    advance: Callable[[], None],
) -> ScenarioResult:
    device = DeviceMemory(options.device)
    baseline, device_baseline = host_memory(), device.allocated() or 0
    pipeline = build_pipeline(options, dtype)
    weights = weight_bytes(pipeline)
    release_memory()
    device.reset_peak()
    inspector = Inspector(device)
    inspected = StepClock(device.synchronize, lambda: (inspector.to_device, inspector.to_host))
    with HostSampler(baseline) as host:
        _place(pipeline, options, method)
        placed = time.perf_counter()
        with inspector:
            run_pipeline(pipeline, options, WARM_UP_STEPS, _both(inspected, advance))
    reported = _reported(offload_report(pipeline)) if method is Method.OURS else None
    # From here on nothing is inspected, so that times are those of the pipeline alone.
    clock = StepClock(device.synchronize)
    image = run_pipeline(pipeline, options, options.steps, _both(clock, advance))
    device.synchronize()
    device_peak = device.peak()
    report = offload_report(pipeline) if method is Method.OURS else None
    to_device, to_host = inspected.differences[-1]
    timeline = Timeline(
        host=tuple((second, memory.anonymous) for second, memory in host.samples),
        device=tuple((moment - host.begin, nbytes - device_baseline) for moment, nbytes in inspector.samples),
        marks=((placed - host.begin, "placed"), *((moment - host.begin, "step") for moment in inspected.ends)),
    )
    return ScenarioResult(
        dtype=dtype,
        method=method,
        weights=weights,
        image=image,
        same_image=None if reference is None else bool(np.array_equal(image, reference)),
        step_seconds=clock.seconds,
        device_peak=None if device_peak is None else device_peak - device_baseline,
        host_peak=host.peak() if tells_host else None,
        to_device=to_device,
        to_host=to_host,
        copied_to_device=inspector.to_device,
        timeline=timeline,
        report="" if report is None else str(report),
        reported_to_device=reported,
    )


def _place(pipeline: Any, options: DemoOptions, method: Method) -> None:
    if method is Method.UNOFFLOADED:
        pipeline.to(options.device)
    elif method is Method.STOCK:
        pipeline.enable_group_offload(
            onload_device=options.device,
            offload_device=torch.device("cpu"),
            offload_type=OFFLOAD_TYPE,
            use_stream=options.use_stream,
        )
    else:
        enable_group_offload(pipeline, options.device, offload_type=OFFLOAD_TYPE, use_stream=options.use_stream)


def _both(clock: StepClock, advance: Callable[[], None]) -> Callable[[int], None]:
    def ended(step: int) -> None:
        clock(step)
        advance()

    return ended


def _reported(report: OffloadReport) -> int:
    return sum(component.transferred_bytes for component in report.components)
