"""One pipeline, three ways to hold its weights: each is built anew from the same seed, warmed up, run and measured."""

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
    """How the weights are held; the values are what tables call it."""

    UNOFFLOADED = "un-offloaded"
    STOCK = "diffusers"
    OURS = "offload-plus"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenarioResult:
    """What was seen. Sizes are bytes, beyond what was held before the pipeline was built; ``None``: cannot be told.

    Attributes:
        error: what it raised, if it did; all else is then empty.
        same_image: whether the image is bit for bit that of the un-offloaded pipeline in the same dtype.
        step_seconds: times of the steps of the measured run, without the first.
        device_peak: most bytes of tensors on the device, from placing the weights to the end of the measured run.
        host_peak: the most host memory sampled from placing the weights to the end of the warm-up.
        to_device, to_host: bytes that one step copies, counted during the warm-up.
        copied_to_device: bytes that the whole warm-up copied.
        timeline: memory while the weights are placed and during the warm-up.
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
    timeline: Timeline = dataclasses.field(default_factory=Timeline)
    report: str = ""
    reported_to_device: int | None = None

    @property
    def name(self) -> str:
        """Fit for a file name."""
        return f"{self.dtype}-{self.method.value}"

    @property
    def seconds(self) -> float | None:
        """The median time of a step."""
        return statistics.median(self.step_seconds) if self.step_seconds else None


def scenarios(options: DemoOptions) -> list[tuple[str, Method]]:
    """What will be run, in order."""
    return [(dtype, method) for dtype in options.dtypes for method in Method]


def load_libraries(options: DemoOptions) -> None:
    """Run a tiny pipeline, so that what libraries keep from their first use on is not measured."""
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
    """Build, place, warm up, run. ``advance`` is called after every step.

    ``tells_host`` says whether host memory can be told from the device's.

    An exception becomes the result's ``error``: a scenario that fails must not hide the others.
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
    # The instruments are off by now.
    clock = StepClock(device.synchronize)
    image = run_pipeline(pipeline, options, options.steps, _both(clock, advance))
    device.synchronize()
    device_peak = device.peak()
    report = offload_report(pipeline) if method is Method.OURS else None
    to_device, to_host = inspected.differences[-1]
    timeline = Timeline(
        host=tuple((second, held.anonymous) for second, held in host.samples),
        device=tuple((moment - host.begin, held - device_baseline) for moment, held in inspector.samples),
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
