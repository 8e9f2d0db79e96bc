"""``plan_group_offload``: what a budget of device memory would cache and stream, without changing the model.

A plan is made by the code that enabling uses, and needs neither the device nor the values of the weights. Sizes are
those of packed groups. Each of several views of the same memory counts, so a model with such views may move a little
less than planned.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from ...errors import InvalidPolicyError
from ..formatting import format_bytes, parse_bytes, table
from ..memory.auto_limit import DeviceMemory
from ..memory.device_budget import bytes_for_groups
from ..planning.fitting import SizeSummary, check_host, fit_summaries, size_summaries
from ..planning.residency import CacheChoice, choose_cached
from ..planning.step_time import Bandwidth, GroupCost, copies_ahead, step_seconds
from ..policy import supports_streams
from ..runtime.prefetch import FARTHEST
from .checks import check_model, existing_device, policy_for
from .components import components_of, split_excluded

__all__ = ["ComponentPlan", "PipelinePlan", "plan_group_offload"]

ASSUMED_BANDWIDTH = Bandwidth(bytes_per_second=20e9, seconds_per_copy=10e-6)
NEXT = 1 << 30  # bytes of a larger budget; a plan says how many seconds they would save
PROBE = 64 << 20  # bytes of the copy that is timed
PROBES = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComponentPlan:
    """The plan of one component, as if it had the budget to itself. Sizes are bytes.

    Attributes:
        model: name of the model's class.
        cut: ``block_level`` or ``leaf_level``: what the groups are.
        total_bytes: all weights; ``fixed_bytes``: weights that never leave the device, whichever component runs.
        cached_bytes: weights that are cached on the device between passes; ``cached``: names of their groups.
        streamed_bytes: weights that are copied to the device in each pass.
        groups: number of groups, cached and streamed.
        stream_bytes: device memory that streamed groups pass through.
        depth: most groups copied ahead of the one that computes.
        tier: where weights are stored.
        seconds: duration of a steady pass, as the step model predicts it.
        bound: most bytes of weights on the device at once.
        next_gain: seconds of each pass that another GiB of budget would save.
    """

    name: str
    model: str
    cut: str
    total_bytes: int
    cached_bytes: int
    streamed_bytes: int
    fixed_bytes: int
    groups: int
    cached: tuple[str, ...]
    stream_bytes: int
    depth: int
    tier: str
    seconds: float
    bound: int
    next_gain: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelinePlan:
    """The plans of all components under one budget; ``print`` shows them as a table.

    Attributes:
        onload_device: where the models would compute.
        vram_budget: most bytes of weights on the device.
        bandwidth: bytes a second from host to device that ``seconds`` are computed with; ``source``: whether it is
            ``assumed``, ``given`` or ``measured``.
        untimed: components without a compute time: their ``seconds`` are those of transfers alone.
    """

    components: tuple[ComponentPlan, ...]
    onload_device: str
    vram_budget: int
    bandwidth: float
    source: str
    untimed: tuple[str, ...]

    def __getitem__(self, name: str) -> ComponentPlan:
        for component in self.components:
            if component.name == name:
                return component
        raise KeyError(name)

    @property
    def host_bytes(self) -> int:
        """Bytes of host memory that all weights are stored in."""
        return sum(component.total_bytes for component in self.components)

    def __str__(self) -> str:
        head = (
            *("component", "model", "level", "tier", "weights", "cached", "streamed", "fixed", "bound"),
            *("groups cached", "ahead", "s a pass", "next GiB saves"),
        )
        lines = table([head, *(_row(component) for component in self.components)], text_columns=4)
        return "\n".join([self.summary, "", *lines])

    @property
    def summary(self) -> str:
        """The budget, the bandwidth, and what the times include, in one line."""
        timed = "computing and transfers"
        if self.untimed:
            timed = "transfers only"
            if len(self.untimed) < len(self.components):
                timed = f"computing and transfers, but transfers only for {', '.join(self.untimed)}"
        return (
            f"vram_budget {format_bytes(self.vram_budget)} on {self.onload_device}, "
            f"{self.bandwidth / 1e9:.1f} GB/s ({self.source}); times: {timed}"
        )


def plan_group_offload(
    target: Any,
    *,
    onload_device: str | torch.device = "cuda",
    vram_budget: int | str,
    host_budget: int | str | None = None,
    bandwidth: float | str | None = None,
    compute_seconds: Mapping[str, float] | None = None,
    offload_type: str = "block_level",
    exclude_modules: str | Iterable[str] | None = None,
) -> PipelinePlan:
    """What ``enable_group_offload`` with these budgets would cache and stream, and how long a pass would take.

    Changes nothing. This machine need not have the device, and models may be on the meta device.

    Args:
        target: a pipeline, a components manager, or any ``torch.nn.Module``.
        onload_device: where the models would compute.
        vram_budget: bytes (or ``"10GiB"``) of weights on the device at most. ``"auto"``: the memory that is free there
            now; enabling gives weights less, by what it measures that activations take.
        host_budget: bytes of host memory for the weights.
        bandwidth: from host to device, in bytes a second or as ``"25GB"``; ``"auto"`` times a copy to the device; None
            assumes 20 GB/s.
        compute_seconds: for each component the seconds of a pass with all weights on the device. Times of components
            that are not named are those of transfers alone.
        offload_type: ``"block_level"`` or ``"leaf_level"``.
        exclude_modules: components of a pipeline that would be on the device whole, and do not count in the budget.

    Raises:
        InvalidPolicyError: an argument has a wrong value, or a budget is too small.
        UnsupportedModelError, HookConflictError, CompileOrderError: a component cannot be offloaded.
    """
    limit = _limit(vram_budget, onload_device)
    policy = policy_for(
        onload_device=onload_device,
        offload_type=offload_type,
        vram_budget=limit,
        host_budget=host_budget,
        must_exist=False,
    )
    components, _ = split_excluded(target, components_of(target), exclude_modules)
    computing = _computing(compute_seconds, components)
    speed, source = _bandwidth(bandwidth, policy.onload_device)
    for name, module in components.items():
        check_model(module, policy, name, values=False)
    summaries = size_summaries(components, dict.fromkeys(components, policy), values=False)
    check_host(summaries)
    now, later = (_passes(summaries, nbytes, speed, computing) for nbytes in (limit, limit + NEXT))
    return PipelinePlan(
        components=tuple(
            now[name].described(name, type(module).__name__, later[name].seconds)
            for name, module in components.items()
        ),
        onload_device=str(policy.onload_device),
        vram_budget=limit,
        bandwidth=speed.bytes_per_second,
        source=source,
        untimed=tuple(name for name in components if name not in computing),
    )


def _limit(vram_budget: int | str, onload_device: str | torch.device) -> int:
    if vram_budget != "auto":
        return parse_bytes("vram_budget", vram_budget)
    device = existing_device(onload_device)
    policy_for(onload_device=device, vram_budget="auto")  # refuses a device that does not tell its free memory
    return DeviceMemory(device).capacity()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pass:
    """One steady pass of one component, in the cut that was chosen."""

    summary: SizeSummary
    choice: CacheChoice
    depth: int
    seconds: float

    def described(self, name: str, model: str, later: float) -> ComponentPlan:
        """The component's plan. ``later`` is the seconds of a pass with more memory."""
        summary, policy = self.summary, self.summary.policy
        cached, stream_bytes = self.choice
        cached_bytes = sum(summary.sizes[index] for index in cached)
        streamed_bytes = sum(summary.sizes) - cached_bytes
        return ComponentPlan(
            name=name,
            model=model,
            cut=policy.offload_type.value,
            total_bytes=summary.total,
            cached_bytes=cached_bytes,
            streamed_bytes=streamed_bytes,
            fixed_bytes=summary.fixed,
            groups=len(summary.sizes),
            cached=tuple(summary.names[index] for index in sorted(cached)),
            stream_bytes=stream_bytes,
            depth=self.depth,
            tier=policy.tier,
            seconds=self.seconds,
            bound=summary.fixed + cached_bytes + min(stream_bytes, streamed_bytes),
            next_gain=self.seconds - later,
        )


def _passes(
    summaries: Mapping[str, list[SizeSummary]], limit: int, bandwidth: Bandwidth, computing: Mapping[str, float]
) -> dict[str, _Pass]:
    chosen = fit_summaries(summaries, limit)
    budget = bytes_for_groups(limit, sum(summary.fixed for summary in chosen.values()))
    return {name: _pass(summary, budget, bandwidth, computing.get(name, 0.0)) for name, summary in chosen.items()}


def _pass(summary: SizeSummary, budget: int, bandwidth: Bandwidth, computing: float) -> _Pass:
    choice = choose_cached(summary.sizes, summary.nests, budget)
    costs = _costs(summary.sizes, computing)
    if not summary.policy.use_stream:
        copies = (cost.nbytes for index, cost in enumerate(costs) if index not in choice.cached)
        return _Pass(summary=summary, choice=choice, depth=0, seconds=computing + sum(map(bandwidth.seconds, copies)))
    # Without groups there is nothing to spread the computing over.
    seconds = step_seconds(costs, *choice, bandwidth) if costs else computing
    depth = min(FARTHEST, copies_ahead(costs, *choice))
    return _Pass(summary=summary, choice=choice, depth=depth, seconds=seconds)


def _costs(sizes: Sequence[int], computing: float) -> list[GroupCost]:
    whole = sum(sizes) or 1
    return [GroupCost(nbytes=nbytes, compute_seconds=computing * nbytes / whole) for nbytes in sizes]


def _computing(given: Mapping[str, float] | None, components: Mapping[str, Any]) -> dict[str, float]:
    for name, seconds in (given or {}).items():
        if name not in components:
            raise InvalidPolicyError(
                f"`compute_seconds` names '{name}', which is no component of the plan. "
                f"There are: {', '.join(components)}."
            )
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < math.inf:
            raise InvalidPolicyError(
                f"`compute_seconds` must hold the seconds of a pass, got {seconds!r} for '{name}'. "
                "Leave out what is not known."
            )
    return {name: float(seconds) for name, seconds in (given or {}).items()}


def _bandwidth(bandwidth: float | str | None, device: torch.device) -> tuple[Bandwidth, str]:
    if bandwidth is None:
        return ASSUMED_BANDWIDTH, "assumed"
    if bandwidth == "auto":
        return _speed(_measured(device)), "measured"
    speed: float
    if isinstance(bandwidth, str):
        speed = parse_bytes("bandwidth", bandwidth.removesuffix("/s"))
    else:
        speed = bandwidth
    if isinstance(speed, bool) or not isinstance(speed, (int, float)) or not 0 < speed < math.inf:
        raise InvalidPolicyError(
            f"`bandwidth` must be a number of bytes a second, a size such as '25GB', or 'auto', got {bandwidth!r}."
        )
    return _speed(speed), "given"


def _speed(bytes_per_second: float) -> Bandwidth:
    return Bandwidth(float(bytes_per_second), ASSUMED_BANDWIDTH.seconds_per_copy)


def _measured(device: torch.device) -> float:
    """Bytes a second from host to ``device``, of the fastest of a few copies from pinned memory."""
    try:
        existing_device(device)
    except InvalidPolicyError as error:
        raise InvalidPolicyError(
            f"`bandwidth='auto'` times a copy to the device, so this machine has to have it: {error} "
            "Or give a figure, such as '25GB'."
        ) from None
    module = torch.get_device_module(device.type)
    source = torch.empty(PROBE, dtype=torch.uint8, device="cpu", pin_memory=supports_streams(device))
    target = torch.empty(PROBE, dtype=torch.uint8, device=device)
    fastest = math.inf
    for _ in range(PROBES):
        module.synchronize()
        start = time.perf_counter()
        target.copy_(source, non_blocking=True)
        module.synchronize()
        fastest = min(fastest, time.perf_counter() - start)
    return PROBE / fastest


def _row(c: ComponentPlan) -> tuple[str, ...]:
    sizes = (c.total_bytes, c.cached_bytes, c.streamed_bytes, c.fixed_bytes, c.bound)
    return (
        *(c.name, c.model, c.cut.removesuffix("_level"), c.tier),
        *map(format_bytes, sizes),
        *(f"{len(c.cached)} of {c.groups}", str(c.depth), f"{c.seconds:.4f}", f"{c.next_gain:.4f} s"),
    )
