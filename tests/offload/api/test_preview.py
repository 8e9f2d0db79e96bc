"""Plans: what is printed is what happens, whether or not weights and device are there."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.api.preview import ASSUMED_BANDWIDTH, ComponentPlan
from diffusers_offload_plus.offload.hooks.attachment import attachment_of
from diffusers_offload_plus.offload.memory.device_budget import bytes_for_groups
from diffusers_offload_plus.offload.planning.plan import OffloadPlan
from tests.support.meter import Meter
from tests.support.models import Block, Stack, attributes, seeded
from tests.support.policies import POLICIES, settings
from tests.zoo.models import MODELS
from tests.zoo.pipelines import PIPELINES, models_of

PARTS = (0.0, 0.5)
ABSENT = "xpu"  # no machine that runs these tests has one


def limit_for(target: Any, part: float, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setitem(POLICIES, "part", {"vram_budget": part})
    limit: int = settings("part", target, device)["vram_budget"]
    return limit


def on_meta(model: nn.Module) -> nn.Module:
    """The model without values; what is shared stays shared, which `model.to("meta")` would undo."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = tensor.detach().to("meta")
        memo[id(tensor)] = nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(model, memo)


def agree(planned: ComponentPlan, engine: Any) -> None:
    """What the engine holds is what was planned."""
    plan: OffloadPlan = engine.plan
    assert planned.cached == tuple(group.name for group in plan.groups if group.residency.value == "cached")
    assert planned.cut == engine.policy.offload_type.value
    assert (planned.cached_bytes, planned.streamed_bytes) == (plan.cached_bytes, plan.streamed_bytes)
    assert planned.fixed_bytes == plan.resident_bytes
    assert planned.stream_bytes == plan.stream_bytes
    assert planned.bound == plan.device_bound
    assert {planned.tier} == {group.tier for group in plan.groups}
    assert planned.groups == sum(group.residency.value != "resident" for group in plan.groups)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", PIPELINES)
def test_a_plan_is_what_enabling_does(
    name: str, part: float, device: torch.device, meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = PIPELINES[name].build()
    limit = limit_for(pipeline, part, device, monkeypatch)
    before = {name: attributes(model) for name, model in models_of(pipeline).items()}
    plan = dop.plan_group_offload(pipeline, onload_device=device, vram_budget=limit)
    assert before == {name: attributes(model) for name, model in models_of(pipeline).items()}
    dop.enable_group_offload(pipeline, device, vram_budget=limit)
    for component in plan.components:
        attachment = attachment_of(pipeline.components[component.name])
        assert attachment is not None
        agree(component, attachment.engine)
    assert len(plan.components) == len(models_of(pipeline))
    dop.disable_group_offload(pipeline)


@pytest.mark.parametrize("level", ["block_level", "leaf_level"])
@pytest.mark.parametrize("name", MODELS)
def test_values_and_device_are_not_needed(
    name: str, level: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MODELS[name].build()
    limit = limit_for(model, 0.5, device, monkeypatch)
    here = dop.plan_group_offload(model, onload_device=device, vram_budget=limit, offload_type=level)
    there = dop.plan_group_offload(on_meta(model), onload_device=ABSENT, vram_budget=limit, offload_type=level)
    assert there.components == here.components


def test_what_is_shared_on_the_meta_device_is_the_same_tensor() -> None:
    tied = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(4)))
    tied[3].weight = tied[0].weight
    apart = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(4)))
    plans = [dop.plan_group_offload(on_meta(m), vram_budget="1MiB")["Sequential"] for m in (tied, apart)]
    assert [plan.total_bytes for plan in plans] == [3 * 64 * 64 * 4, 4 * 64 * 64 * 4]
    assert [plan.groups for plan in plans] == [3, 4]


def test_what_is_not_initialised_has_no_size() -> None:
    with pytest.raises(dop.UnsupportedModelError, match="has no values"):
        dop.plan_group_offload(nn.Sequential(nn.LazyLinear(4)), vram_budget="1MiB")
    with pytest.raises(dop.UnsupportedModelError, match="has no values"):
        dop.enable_group_offload(on_meta(seeded(Stack)), "cpu")


def test_what_cannot_be_kept_is_refused_as_by_enabling(device: torch.device) -> None:
    pipeline = PIPELINES["flux"].build()
    for arguments in ({"vram_budget": 20_000}, {"vram_budget": "1GiB", "host_budget": 50_000}):
        raised = []
        for call in (
            lambda given: dop.enable_group_offload(pipeline, device, **given),
            lambda given: dop.plan_group_offload(pipeline, onload_device=device, **given),
        ):
            with pytest.raises(dop.InvalidPolicyError) as caught:
                call(arguments)
            raised.append(str(caught.value))
        assert raised[0] == raised[1]


def test_the_smallest_budget_named_works_for_all_components(device: torch.device) -> None:
    pipeline = PIPELINES["sd3"].build()
    with pytest.raises(dop.InvalidPolicyError) as caught:
        dop.plan_group_offload(pipeline, onload_device=device, vram_budget=2048)
    smallest = int(str(caught.value).split("smallest budget that works is ")[1].split()[0])
    dop.plan_group_offload(pipeline, onload_device=device, vram_budget=smallest)
    with pytest.raises(dop.InvalidPolicyError):
        dop.plan_group_offload(pipeline, onload_device=device, vram_budget=smallest - 1)


def blocks(count: int = 8) -> nn.Module:
    """Equal groups of 64 KiB and nothing else."""
    return nn.Sequential(*(nn.Linear(128, 128, bias=False) for _ in range(count))).to("meta")


def test_times_are_those_of_the_copies_and_with_compute_times_of_both() -> None:
    arguments: dict[str, Any] = {"vram_budget": 3 * 65536 + 10_000, "bandwidth": 65536e3}
    plan = dop.plan_group_offload(blocks(), **arguments)
    one = plan["Sequential"]
    assert one.total_bytes == 8 * 65536
    copies = one.streamed_bytes // 65536
    assert copies >= 6
    transfers = copies * (1e-3 + ASSUMED_BANDWIDTH.seconds_per_copy)
    assert one.seconds == pytest.approx(transfers)
    assert one.next_gain == pytest.approx(transfers), "another GiB holds all of it"
    assert (plan.untimed, plan.source) == (("Sequential",), "given")

    slow = dop.plan_group_offload(blocks(), **arguments, compute_seconds={"Sequential": 8.0})
    assert slow["Sequential"].seconds == pytest.approx(8.0, rel=1e-3), "transfers hide behind so much computing"
    assert slow["Sequential"].next_gain == pytest.approx(0.0, abs=2e-3)
    assert slow.untimed == ()
    whole = dop.plan_group_offload(blocks(), vram_budget="1GiB", compute_seconds={"Sequential": 8.0})["Sequential"]
    assert (whole.seconds, whole.depth, whole.streamed_bytes) == (pytest.approx(8.0), 0, 0)


def test_a_plan_is_within_its_budget() -> None:
    model = seeded(lambda: Stack(depth=12))
    for limit in range(60_000, 200_000, 20_000):
        one = dop.plan_group_offload(model, vram_budget=limit)["Stack"]
        assert one.bound <= one.fixed_bytes + bytes_for_groups(limit, one.fixed_bytes)
        assert one.cached_bytes + one.streamed_bytes + one.fixed_bytes == one.total_bytes


def test_a_plan_prints_as_a_table_that_says_what_it_rests_on() -> None:
    pipeline = PIPELINES["flux"].build()
    plan = dop.plan_group_offload(pipeline, vram_budget="200KiB")
    text = str(plan)
    assert "vram_budget 200.0 KiB on cuda, 20.0 GB/s (assumed); times: transfers only" in text
    for name in models_of(pipeline):
        assert sum(line.startswith(f"{name} ") for line in text.splitlines()) == 1
    timed = dop.plan_group_offload(pipeline, vram_budget="200KiB", compute_seconds={"transformer": 0.1})
    assert "transfers only for vae, text_encoder, text_encoder_2" in str(timed)
    assert plan.host_bytes == sum(component.total_bytes for component in plan.components)
    with pytest.raises(KeyError):
        plan["nonsense"]


@pytest.mark.parametrize("bandwidth", ["25GB", "25GB/s", 25e9, 25_000_000_000])
def test_a_bandwidth_is_a_number_or_text(bandwidth: float | str) -> None:
    plan = dop.plan_group_offload(blocks(), vram_budget="1GiB", bandwidth=bandwidth)
    assert (plan.bandwidth, plan.source) == (25e9, "given")


def test_the_bandwidth_of_the_device_is_measured(device: torch.device, meter: Meter) -> None:
    plan = dop.plan_group_offload(blocks(), onload_device=device, vram_budget="1GiB", bandwidth="auto")
    assert plan.source == "measured"
    assert 1e6 < plan.bandwidth < 1e15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bandwidth": "auto"}, r"`bandwidth='auto'`.*no usable 'xpu'"),
        ({"bandwidth": 0}, "`bandwidth` must be"),
        ({"bandwidth": "0GB"}, "`bandwidth` must be"),
        ({"bandwidth": float("nan")}, "`bandwidth` must be"),
        ({"bandwidth": True}, "`bandwidth` must be"),
        ({"bandwidth": "fast"}, "`bandwidth` must be"),
        ({"vram_budget": None}, "`vram_budget` must be"),
        ({"vram_budget": "ten"}, "`vram_budget` must be"),
        ({"onload_device": "cpu"}, "nothing has to move"),
        ({"onload_device": "meta"}, "a device that computes"),
        ({"onload_device": "nonsense"}, "must name a torch device"),
        ({"offload_type": "whole"}, "`offload_type` must be"),
        ({"compute_seconds": {"unet": 1.0}}, "`compute_seconds` names 'unet'"),
        ({"compute_seconds": {"Sequential": -1.0}}, "`compute_seconds` must hold"),
        ({"compute_seconds": {"Sequential": "1 s"}}, "`compute_seconds` must hold"),
    ],
)
def test_arguments_that_cannot_be_used(arguments: dict[str, Any], message: str) -> None:
    given = {"onload_device": ABSENT, "vram_budget": "1MiB", **arguments}
    with pytest.raises(dop.InvalidPolicyError, match=message):
        dop.plan_group_offload(blocks(), **given)


def test_what_cannot_be_offloaded_cannot_be_planned() -> None:
    class Whole(Block):
        _supports_group_offloading = False

    with pytest.raises(dop.UnsupportedModelError, match="_supports_group_offloading"):
        dop.plan_group_offload(Whole(), vram_budget="1MiB")


def test_a_model_that_is_offloaded_already_can_be_planned_again(device: torch.device, meter: Meter) -> None:
    model = seeded(lambda: Stack(depth=6))
    before = dop.plan_group_offload(model, onload_device=device, vram_budget=90_000)
    dop.enable_group_offload(model, device, vram_budget=120_000)
    assert dop.plan_group_offload(model, onload_device=device, vram_budget=90_000) == before
    dop.disable_group_offload(model)
