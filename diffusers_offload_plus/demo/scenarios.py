"""One pipeline, three ways to hold its weights: each is built anew from the same seed, warmed up, run and measured."""

from __future__ import annotations

import dataclasses
import enum
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from . import DemoError
from ..offload.enabling import enable_group_offload
from ..offload.report import OffloadReport, offload_report
from .measure import CopyCounter, DeviceMemory, HostMemory, MemorySampler, Sample, StepClock, host_memory, release_memory
from .models import Image, build_pipeline, run_pipeline, weight_bytes
from .options import DemoOptions

__all__ = ["WARM_UP_STEPS", "Method", "ScenarioResult", "run_scenario", "scenarios"]

WARM_UP_STEPS = 2
OFFLOAD_TYPE = "leaf_level"


class Method(enum.Enum):
    """How the weights are held; the values are what tables call it."""

    UNOFFLOADED = "un-offloaded"
    STOCK = "stock"
    OURS = "offload-plus"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenarioResult:
    """What was seen. Sizes are bytes, beyond what was held before the pipeline was built; ``None``: cannot be told.

    Attributes:
        error: what it raised, if it did; all else is then empty.
        same_image: whether the image is bit for bit that of the un-offloaded pipeline in the same dtype.
        step_seconds: times of the steps of the measured run, without the first.
        device_peak: most bytes of tensors on the device, from enabling to the end of the measured run.
        host_peak: the most host memory sampled in that time.
        to_device, to_host: bytes that a step copies, counted during the warm-up.
        samples, marks: the memory over time.
        report: what our own report says, in text.
        reported_to_device: bytes that our own report counted over both runs.
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
    counted_to_device: int | None = None
    samples: tuple[Sample, ...] = ()
    marks: tuple[tuple[float, str], ...] = ()
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


def steps_of(options: DemoOptions) -> int:
    """How many steps one scenario takes."""
    return WARM_UP_STEPS + options.steps


def run_scenario(
    options: DemoOptions, dtype: str, method: Method, reference: Image | None, advance: Callable[[], None]
) -> ScenarioResult:
    """Build, place, warm up, run. ``advance`` is called after every step.

    An exception becomes the result's ``error``: a scenario that fails must not hide the others.
    """
    release_memory()
    try:
        return _run(options, dtype, method, reference, advance)
    except DemoError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines() or [""]
        return ScenarioResult(dtype=dtype, method=method, error=f"{type(error).__name__}: {reason[0]}")
    finally:
        release_memory()


def _run(
    options: DemoOptions, dtype: str, method: Method, reference: Image | None, advance: Callable[[], None]
) -> ScenarioResult:
    device = DeviceMemory(options.device)
    baseline, device_baseline = host_memory(), device.allocated()
    pipeline = build_pipeline(options, dtype)
    weights = weight_bytes(pipeline)
    release_memory()
    device.reset_peak()
    with MemorySampler(device, baseline) as sampler:
        sampler.mark("place" if method is Method.UNOFFLOADED else "enable")
        _place(pipeline, options, method)

        sampler.mark("warm-up")
        counter = CopyCounter()
        warm_up = StepClock(device.synchronize, lambda: (counter.to_device, counter.to_host))
        with counter:
            run_pipeline(pipeline, options, WARM_UP_STEPS, _both(warm_up, advance))

        sampler.mark("run")
        clock = StepClock(device.synchronize)
        image = run_pipeline(pipeline, options, options.steps, _both(clock, advance))
        device.synchronize()
    device_peak = device.peak()
    report = offload_report(pipeline) if method is Method.OURS else None
    to_device, to_host = warm_up.differences[-1]
    return ScenarioResult(
        dtype=dtype,
        method=method,
        weights=weights,
        image=image,
        same_image=None if reference is None else bool(np.array_equal(image, reference)),
        step_seconds=clock.seconds,
        device_peak=None if device_peak is None or device_baseline is None else device_peak - device_baseline,
        host_peak=sampler.peak_host(),
        to_device=to_device,
        to_host=to_host,
        counted_to_device=counter.to_device,
        samples=tuple(sampler.samples),
        marks=tuple(sampler.marks),
        report="" if report is None else str(report),
        reported_to_device=None if report is None else _reported(report),
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
