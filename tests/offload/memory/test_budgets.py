"""Budgets of device memory as promises, byte for byte, and what they buy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.hooks.attachment import attachment_of
from diffusers_offload_plus.offload.planning.plan import OffloadPlan
from tests.offload.api.test_pipelines import expected
from tests.offload.api.test_real_models import forget_caches
from tests.support.meter import Meter, meter_for
from tests.support.models import WIDTH, Block, Pair, Stack, assert_same, attributes, nbytes, noise, seeded
from tests.support.policies import DIRECTORY, POLICIES, settings
from tests.zoo.models import MODELS
from tests.zoo.pipelines import PIPELINES, PROMPT, models_of

PARTS = (0.0, 0.25, 0.5, 0.75, 1.0)
LEVELS = ("block_level", "leaf_level")


def engine_of(model: nn.Module) -> Any:
    attachment = attachment_of(model)
    assert attachment is not None
    return attachment.engine


def plan_of(model: nn.Module) -> OffloadPlan:
    plan: OffloadPlan = engine_of(model).plan
    return plan


def limit_for(model: Any, part: float, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setitem(POLICIES, "part", {"vram_budget": part})
    limit: int = settings("part", model, device)["vram_budget"]
    return limit


def computed(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(x)
    return output


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("part", PARTS)
def test_weights_on_the_device_never_exceed_the_budget(
    part: float, level: str, device: torch.device, meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = noise(device, 1, WIDTH)
    model = seeded(lambda: Stack(depth=12))
    plain = copy.deepcopy(model).to(device)
    want = computed(plain, x)
    counter = meter_for(device)
    counter.reset()
    computed(plain, x)
    activations = counter.peak
    del plain
    limit = limit_for(model, part, device, monkeypatch)
    counter.reset()
    dop.enable_group_offload(model, device, vram_budget=limit, offload_type=level)
    for _ in range(4):
        assert torch.equal(computed(model, x), want)
    assert counter.peak <= limit + activations
    report = dop.offload_report(model).components[0]
    assert report.peak_device_bytes <= engine_of(model).budget.peak <= limit
    assert report.cached_bytes + report.streamed_bytes + report.resident_bytes >= sum(
        p.nbytes for p in model.parameters()
    )
    if part == 1.0:
        assert plan_of(model).streamed_bytes == 0
    elif part == 0.0:
        assert plan_of(model).streamed_bytes > 0.7 * sum(p.nbytes for p in model.parameters())


@pytest.mark.parametrize("weights", ["plain", "int8_weight_only"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.8])
def test_a_steady_pass_moves_what_streams_once_and_the_host_waits_for_nothing(
    part: float, weights: str, device: torch.device, meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device.type != "sim":
        pytest.skip("copies and waits are counted on the simulated accelerator")
    from tests.simulated import logged_copies, reset_stats, stats
    from tests.zoo.quantized import QUANTISERS

    x = noise(device, 2, 64)
    model = seeded(lambda: nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.GELU()) for _ in range(16))))
    if weights != "plain":
        QUANTISERS[weights](model)
    dop.enable_group_offload(model, device, vram_budget=limit_for(model, part, device, monkeypatch))
    for _ in range(3):
        computed(model, x)
    for _ in range(2):
        reset_stats()
        with logged_copies() as log:
            computed(model, x)
        plan = plan_of(model)
        streamed = [group for group in plan.groups if group.residency.value == "streamed"]
        assert stats().h2d == plan.streamed_bytes > 0
        assert [copy.nbytes for copy in log if copy.kind == "h2d"].count(streamed[0].nbytes) == len(streamed)
        assert sum(copy.kind == "h2d" for copy in log) == len(streamed)
        assert stats().d2h == 0
        assert stats().host_syncs == 0
        assert engine_of(model).budget.peak <= plan.device_bound


def test_memory_repeats(device: torch.device, meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    model = seeded(lambda: nn.Sequential(*(nn.Linear(64, 64) for _ in range(10))))
    dop.enable_group_offload(model, device, vram_budget=limit_for(model, 0.3, device, monkeypatch))
    seen: list[set[int]] = []

    def note(layer: nn.Module, args: object) -> None:
        seen[-1].add(layer.weight.data_ptr())

    for layer in model:
        layer.register_forward_pre_hook(note)
    for _ in range(4):
        seen.append(set())
        computed(model, noise(device, 2, 64))
    assert seen[2] == seen[3]
    assert engine_of(model).budget.slabs.reused > 0


def test_the_next_step_begins_while_the_last_one_ends(
    device: torch.device, meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = seeded(lambda: nn.Sequential(*(Block() for _ in range(10))))
    dop.enable_group_offload(model, device, vram_budget=limit_for(model, 0.2, device, monkeypatch))
    x = noise(device)
    for _ in range(2):
        computed(model, x)
    first = next(group for group in engine_of(model).groups if not group.cached)
    before = engine_of(model).copy_engine.copies
    assert first.device_bytes == first.nbytes, "the first group that streams is there when the pass begins"
    held: list[int] = []
    handle = model[0].register_forward_pre_hook(lambda *_: held.append(engine_of(model).copy_engine.copies - before))
    computed(model, x)
    handle.remove()
    assert held[0] <= 2


class Giving(nn.Module):
    """Returns a view of its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.inner(x)
        return self.inner.weight[:2]


def test_memory_that_somebody_holds_is_not_reused(
    device: torch.device, meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = seeded(lambda: nn.Sequential(*(Giving() for _ in range(8))))
    want = [block.inner.weight[:2].detach().clone() for block in model]
    dop.enable_group_offload(model, device, vram_budget=limit_for(model, 0.0, device, monkeypatch))
    x = noise(device, 2, WIDTH)
    for _ in range(3):
        held = []
        with torch.no_grad():
            for block in model:
                held.append(block(x))
        assert_same([t.cpu() for t in held], want)
    assert engine_of(model).copy_engine.externally_held > 0
    del held


@pytest.mark.parametrize("level", LEVELS)
def test_the_smallest_budget_is_named_and_works(level: str, device: torch.device, meter: Meter) -> None:
    model = seeded(lambda: Stack(depth=4, block=lambda: Block(WIDTH)))
    before = attributes(model)
    with pytest.raises(dop.InvalidPolicyError, match=r"`vram_budget`.*largest group.*smallest budget") as caught:
        dop.enable_group_offload(model, device, vram_budget=2048, offload_type=level)
    smallest = int(str(caught.value).split("smallest budget that works is ")[1].split()[0])
    with pytest.raises(dop.InvalidPolicyError):
        dop.enable_group_offload(model, device, vram_budget=smallest - 1, offload_type=level)
    assert attributes(model) == before
    assert attachment_of(model) is None
    pair = Pair(model, device, "block")
    dop.enable_group_offload(pair.model, device, vram_budget=smallest, offload_type=level)
    pair.limit = smallest
    pair.agree(lambda m: m(noise(device)), passes=3)
    pair.finish()


@pytest.mark.parametrize("how", ["a larger buffer", "a cast"])
def test_what_never_leaves_the_device_may_grow(how: str, device: torch.device, meter: Meter) -> None:
    """Groups that were kept make room for it before it comes."""

    class Buffered(Stack):
        def __init__(self) -> None:
            super().__init__(depth=6)
            self.register_buffer("table", torch.ones(4096, dtype=torch.float32))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + self.table[:1].to(x.dtype)

    model: Any = seeded(Buffered)
    limit = nbytes(model) + 4096
    twin = copy.deepcopy(model).to(device)
    dop.enable_group_offload(model, device, vram_budget=limit)
    x = noise(device)
    budget = engine_of(model).budget
    assert_same(computed(model, x), computed(twin, x))
    assert budget.used > limit - 8192, "nearly all of it is on the device"
    for tree in (model, twin):
        if how == "a cast":
            tree.table = tree.table.double()
        else:
            tree.table = torch.ones(8192, device=tree.table.device)
    for _ in range(2):
        assert_same(computed(model, x), computed(twin, x))
        assert budget.used <= budget.peak <= limit
    dop.disable_group_offload(model)


@pytest.mark.parametrize("value", [-1, "ten", 1.5, "10 parsecs", True])
def test_a_budget_that_is_none(value: Any, device: torch.device) -> None:
    with pytest.raises(dop.InvalidPolicyError, match="vram_budget"):
        dop.enable_group_offload(seeded(Stack), device, vram_budget=value)


def test_a_budget_for_the_cpu() -> None:
    with pytest.raises(dop.InvalidPolicyError, match="nothing has to move"):
        dop.enable_group_offload(seeded(Stack), "cpu", vram_budget="1GiB")


def test_a_budget_of_host_memory_without_a_disk(device: torch.device, meter: Meter) -> None:
    model = seeded(Stack)
    with pytest.raises(dop.InvalidPolicyError, match=r"`host_budget`.*at least") as caught:
        dop.enable_group_offload(model, device, host_budget=50_000)
    assert attachment_of(model) is None
    needed = int(str(caught.value).rsplit("at least ", 1)[1].split()[0])
    dop.enable_group_offload(model, device, host_budget=needed)
    report = dop.offload_report(model).components[0]
    assert report.host_bytes <= needed
    dop.disable_group_offload(model)


@pytest.mark.parametrize("writes", ["held", "data", "repointed", "attribute", "iterated"])
def test_writes_to_what_is_kept_count(
    writes: str, device: torch.device, meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Pair(seeded(Stack), device, "whole")
    weights = {name: dict(m.named_parameters())["blocks.1.up.weight"] for name, m in pair_of(pair).items()}
    pair.agree(lambda m: m(noise(device)))
    assert engine_of(pair.model).forward_pass.caches

    def write(model: nn.Module, weight: torch.Tensor) -> None:
        if writes == "held":
            with torch.no_grad():
                weight.mul_(0.5)
        elif writes == "data":
            weight.data.mul_(0.5)
        elif writes == "repointed":
            weight.data = weight.data.cpu() * 0.5
        elif writes == "attribute":
            model.blocks[1].up.weight.data.mul_(0.5)
        else:
            for parameter in model.parameters():
                parameter.data.mul_(0.5)

    write(pair.model, weights["model"])
    write(pair.reference, weights["reference"])
    pair.plain = copy.deepcopy(pair.reference).to(device)
    pair.agree(lambda m: m(noise(device)))
    pair.finish()


def pair_of(pair: Pair) -> dict[str, nn.Module]:
    return {"model": pair.model, "reference": pair.reference}


def test_who_looks_at_weights_sees_the_host_and_who_asks_for_a_dtype_moves_nothing(
    device: torch.device, meter: Meter
) -> None:
    model = MODELS["flux"].build().eval()
    dop.enable_group_offload(model, device, **settings("whole", model, device))
    with torch.no_grad():
        MODELS["flux"].run(model, "forward", device)
    passes = engine_of(model).forward_pass
    assert model.dtype is torch.float32
    assert passes.caches
    look: Callable[[], Any]
    for look in (
        model.state_dict,
        lambda: dict(model.named_parameters()),
        lambda: {"one": model.transformer_blocks[0].attn.to_q.weight},
    ):
        with torch.no_grad():
            MODELS["flux"].run(model, "forward", device)
        assert passes.caches
        assert all(value.device.type == "cpu" for value in look().values())
    dop.disable_group_offload(model)


@pytest.mark.parametrize("part", [0.0, 0.4])
@pytest.mark.parametrize("name", PIPELINES)
def test_components_share_one_budget(
    name: str, part: float, device: torch.device, meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = PIPELINES[name]
    want = expected(name, device)
    pipeline = case.build()
    limit = limit_for(pipeline, part, device, monkeypatch)
    dop.enable_group_offload(pipeline, device, vram_budget=limit)
    budgets = {id(engine_of(model).budget): engine_of(model).budget for model in models_of(pipeline).values()}
    (budget,) = budgets.values()
    for _ in range(3):
        assert np.array_equal(case.run(pipeline, PROMPT, 0), want)
        assert budget.used <= budget.peak <= limit
    dop.disable_group_offload(pipeline)
    assert budget.used == 0
    for model in models_of(pipeline).values():
        forget_caches(model)


def test_one_that_comes_once_takes_no_more_than_it_streams_through(
    device: torch.device, meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Two:
        def __init__(self) -> None:
            self.components = {"often": seeded(lambda: Stack(depth=10)), "once": seeded(lambda: Stack(depth=10), 1)}

    two, x = Two(), noise(device)
    often, once = two.components.values()
    whole = limit_for(often, 1.0, device, monkeypatch)
    dop.enable_group_offload(two, device, vram_budget=whole + whole // 10)
    copies = []
    for _ in range(4):
        start = engine_of(often).copy_engine.copies
        computed(once, x)
        for _ in range(5):
            computed(often, x)
        copies.append(engine_of(often).copy_engine.copies - start)
    groups = len(plan_of(often).groups)
    assert copies[0] >= groups - 1
    assert copies[-1] < groups / 2, "the other one has come back for one pass, and pushed everything out"
    dop.disable_group_offload(two)


def test_a_new_component_joins_the_budget(device: torch.device, meter: Meter) -> None:
    class Two:
        def __init__(self) -> None:
            self.components: dict[str, nn.Module] = {"a": seeded(Stack), "b": seeded(Stack, 1)}

    two = Two()
    dop.enable_group_offload(two, device, vram_budget=150_000)
    old = two.components["b"]
    two.components["b"] = seeded(Stack, 2)
    dop.enable_group_offload(two, device, vram_budget=150_000)
    a, b = (engine_of(model) for model in two.components.values())
    assert a.budget is b.budget
    for _ in range(3):
        for model in two.components.values():
            computed(model, noise(device))
    assert a.budget.peak <= 150_000
    dop.disable_group_offload(two)
    dop.disable_group_offload(old)


@pytest.mark.parametrize("part", [0.0, 0.5, 1.0])
def test_device_host_and_disk_in_one_plan(
    part: float, device: torch.device, meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = noise(device)
    model = seeded(lambda: Stack(depth=10))
    want = computed(copy.deepcopy(model).to(device), x)
    limit = limit_for(model, part, device, monkeypatch)
    dop.enable_group_offload(model, device, vram_budget=limit, offload_to_disk_path=DIRECTORY, host_budget=100_000)
    for _ in range(4):
        assert torch.equal(computed(model, x), want)
    report = dop.offload_report(model).components[0]
    assert engine_of(model).budget.peak <= limit
    assert report.disk_bytes > 0
    assert report.host_bytes <= 100_000
    dop.disable_group_offload(model)


class FrameByFrame(nn.Module):
    """Runs its blocks once a frame, as decoders with a feature cache do."""

    def __init__(self, depth: int = 6) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(depth))

    def forward(self, frames: list[torch.Tensor]) -> list[torch.Tensor]:
        found = []
        for x in frames:
            for block in self.blocks:
                x = block(x)
            found.append(x)
        return found


class Pipeline:
    def __init__(self) -> None:
        self.components = {"often": seeded(lambda: Stack(depth=10)), "once": seeded(FrameByFrame)}


def test_what_a_pass_uses_often_takes_the_memory_of_what_rests(device: torch.device, meter: Meter) -> None:
    """A decoder that comes for one pass, in which each block runs many times, does not stream each of these times."""
    two = Pipeline()
    often, once = two.components.values()
    limit = sum(p.nbytes for p in often.parameters()) * 7 // 8
    want = [[t.cpu() for t in copy.deepcopy(once).to(device)([noise(device, seed=s) for s in range(8)])]]
    dop.enable_group_offload(two, device, vram_budget=limit)
    copies = []
    with torch.no_grad():
        for _ in range(4):
            for _ in range(4):
                often(noise(device))
            before = engine_of(once).copy_engine.copies
            assert_same([[t.cpu() for t in once([noise(device, seed=s) for s in range(8)])]], want)
            copies.append(engine_of(once).copy_engine.copies - before)
    groups = len(plan_of(once).groups)
    assert copies[-1] <= 1.5 * groups, f"{copies} copies of {groups} groups"
    assert engine_of(once).budget.peak <= limit
    dop.disable_group_offload(two)


@pytest.mark.parametrize("budget", [None, 0.0, 0.6])
def test_memory_that_others_held_goes_when_they_let_go(
    budget: float | None, device: torch.device, meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modules that return views of their weights, pass after pass: nothing piles up."""
    model = seeded(lambda: nn.Sequential(*(Giving() for _ in range(8))))
    limit = {} if budget is None else {"vram_budget": limit_for(model, budget, device, monkeypatch)}
    dop.enable_group_offload(model, device, use_stream=True, **limit)
    counter, x = meter_for(device), noise(device, 2, WIDTH)
    counter.reset()
    live = []
    for _ in range(6):
        with torch.no_grad():
            held = [block(x) for block in model]
        del held
        live.append(counter.live)
    assert live[-1] <= live[1], f"{live} device bytes after each pass"
    dop.disable_group_offload(model)
