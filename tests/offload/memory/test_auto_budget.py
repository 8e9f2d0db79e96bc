"""``vram_budget="auto"``: what passes need is measured, and weights have the rest."""

from __future__ import annotations

import contextlib
import copy
import itertools
import re
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.memory.auto_limit import MARGIN, AutoLimit, DeviceMemory
from tests.offload.api.test_pipelines import expected
from tests.offload.api.test_real_models import forget_caches
from tests.offload.memory.test_budgets import computed, engine_of
from tests.support.meter import Meter
from tests.support.models import WIDTH, Stack, nbytes, noise, seeded
from tests.zoo.pipelines import PIPELINES, PROMPT, models_of

ROWS = 200


def deep() -> Any:
    return seeded(lambda: Stack(depth=12))


def inputs(device: torch.device, rows: int = ROWS) -> torch.Tensor:
    return noise(device, rows, WIDTH)


def beside(model: nn.Module, x: torch.Tensor, device: torch.device) -> tuple[int, torch.Tensor]:
    """What a pass takes beside weights, and what comes of it."""
    module: Any = torch.get_device_module(device.type)
    plain = copy.deepcopy(model).to(device)
    module.reset_peak_memory_stats(device)
    before = module.memory_allocated(device)
    output = computed(plain, x)
    return module.max_memory_allocated(device) - before, output.cpu()


@contextlib.contextmanager
def device_with(nbytes: int, device: torch.device) -> Iterator[None]:
    """The device has so much memory; a real one is only said to have."""
    if device.type == "sim":
        from tests.simulated import capacity

        with capacity(nbytes):
            yield
    else:
        with mock.patch.object(DeviceMemory, "capacity", return_value=nbytes):
            yield


class Several:
    """Something like a pipeline that is nothing but its components."""

    def __init__(self, **components: nn.Module) -> None:
        self.components = components


def auto_of(model: nn.Module) -> AutoLimit:
    auto: AutoLimit = engine_of(model).budget.auto
    return auto


class Uneven(nn.Module):
    """Layers of many sizes, so that memory of one is of no use to another."""

    def __init__(self) -> None:
        super().__init__()
        widths = [8, 40, 16, 64, 8, 24, 56, 8]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in itertools.pairwise(widths))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


@pytest.mark.parametrize("record_stream", [False, True])
def test_what_is_measured_is_free_of_weights(record_stream: bool, device: torch.device, meter: Meter) -> None:
    model, x = seeded(Uneven), noise(device, 50, 8)
    need, want = beside(model, x, device)
    dop.enable_group_offload(
        model, device, vram_budget="auto", offload_type="leaf_level", use_stream=True, record_stream=record_stream
    )
    assert torch.equal(computed(model, x).cpu(), want)
    assert dop.offload_report(model).components[0].activation_bytes == need
    dop.disable_group_offload(model)


@pytest.mark.parametrize("level", ["block_level", "leaf_level"])
@pytest.mark.parametrize("part", [0.3, 0.6, 1.0, 20.0])
def test_weights_take_what_passes_leave(part: float, level: str, device: torch.device, meter: Meter) -> None:
    model, x = deep(), inputs(device)
    need, want = beside(model, x, device)
    weights = nbytes(model)
    total = x.nbytes + int(1.1 * need) + int(part * 1.1 * weights)
    with device_with(total, device):
        dop.enable_group_offload(model, device, vram_budget="auto", offload_type=level)
        for number in range(4):
            assert torch.equal(computed(model, x).cpu(), want)
            report = dop.offload_report(model).components[0]
            assert report.activation_bytes == need
            assert auto_of(model).passes_measured == 1
            if not number:
                assert report.peak_device_bytes <= auto_of(model).least
        limit = total - x.nbytes - int(MARGIN * need) - auto_of(model).slack
        assert report.budget_bytes == max(auto_of(model).least, limit)
        assert report.peak_device_bytes <= limit
        kept = report.cached_bytes + report.resident_bytes
        assert kept == report.peak_device_bytes if part >= 1.0 else 0.3 * limit < kept < limit
        assert (report.streamed_bytes == 0) == (part >= 1.0)
        dop.disable_group_offload(model)


def test_garbage_is_no_need_of_a_pass(device: torch.device, meter: Meter) -> None:
    model, x = deep(), inputs(device)
    need, want = beside(model, x, device)
    dop.enable_group_offload(model, device, vram_budget="auto")
    garbage: list[Any] = [torch.empty(10 * need, dtype=torch.uint8, device=device)]
    garbage.append(garbage)
    del garbage
    rest: list[Any] = [torch.empty(need // 2, dtype=torch.uint8, device=device)]
    handle = model.blocks[0].up.register_forward_pre_hook(lambda *_: rest.clear())
    assert torch.equal(computed(model, x).cpu(), want)
    handle.remove()
    assert auto_of(model).passes_measured == 0, "what was freed meanwhile may have hidden some of the need"
    computed(model, x)
    assert auto_of(model).passes_measured == 1
    assert dop.offload_report(model).components[0].activation_bytes == need
    dop.disable_group_offload(model)


def test_larger_inputs_are_measured_before_they_fail(device: torch.device, meter: Meter) -> None:
    model, x, large = deep(), inputs(device), inputs(device, 2 * ROWS)
    (need, _), (much, want) = beside(model, x, device), beside(model, large, device)
    assert much > 1.5 * need
    total = x.nbytes + large.nbytes + int(1.1 * much) + 2 * 20_000
    with device_with(total, device):
        dop.enable_group_offload(model, device, vram_budget="auto")
        computed(model, x)
        computed(model, x)
        before = dop.offload_report(model).components[0].cached_bytes
        assert before + much > total - x.nbytes - large.nbytes, "the larger inputs do not fit beside what is kept"
        for _ in range(2):
            assert torch.equal(computed(model, large).cpu(), want)
        assert auto_of(model).passes_measured == 2
        computed(model, x)
        assert auto_of(model).passes_measured == 2
        after = dop.offload_report(model).components[0]
        assert (after.activation_bytes, after.cached_bytes < before) == (much, True)
        dop.disable_group_offload(model)


def test_what_others_put_on_the_device_comes_off(device: torch.device, meter: Meter) -> None:
    model, x = deep(), inputs(device)
    need, want = beside(model, x, device)
    total = x.nbytes + int(1.2 * need) + int(1.2 * nbytes(model))
    with device_with(total, device):
        dop.enable_group_offload(model, device, vram_budget="auto")
        for _ in range(2):
            computed(model, x)
        assert dop.offload_report(model).components[0].streamed_bytes == 0
        free = total - torch.get_device_module(device.type).memory_allocated(device)
        other = torch.empty(free - need // 2, dtype=torch.uint8, device=device)
        for _ in range(2):
            assert torch.equal(computed(model, x).cpu(), want)
        assert dop.offload_report(model).components[0].streamed_bytes > 0
        del other
        for _ in range(2):
            assert torch.equal(computed(model, x).cpu(), want)
        assert dop.offload_report(model).components[0].streamed_bytes == 0
        assert auto_of(model).passes_measured == 1
        dop.disable_group_offload(model)


def test_a_pass_that_failed_is_measured_anew(device: torch.device, meter: Meter) -> None:
    model, x = deep(), inputs(device)
    need, want = beside(model, x, device)
    with device_with(2 * x.nbytes + 2 * need + 2 * nbytes(model), device):
        dop.enable_group_offload(model, device, vram_budget="auto")
        computed(model, x)

        def fail(*args: object) -> None:
            raise torch.OutOfMemoryError

        handle = model.blocks[5].register_forward_pre_hook(fail)
        with pytest.raises(torch.OutOfMemoryError):
            computed(model, x)
        handle.remove()
        assert torch.equal(computed(model, x).cpu(), want)
        assert auto_of(model).passes_measured == 2
        dop.disable_group_offload(model)


def test_each_component_has_the_device_while_it_works(device: torch.device, meter: Meter) -> None:
    pipe = PIPELINES["flux"].build()
    want = expected("flux", device)
    with device_with(8 << 20, device):
        dop.enable_group_offload(pipe, device, vram_budget="auto")
        for _ in range(2):
            for model in models_of(pipe).values():
                forget_caches(model)
            np.testing.assert_array_equal(PIPELINES["flux"].run(pipe, PROMPT, 0), want)
        needs = {c.name: c.activation_bytes for c in dop.offload_report(pipe).components}
        assert all(needs[name] for name in models_of(pipe)), needs
        assert len(set(needs.values())) == len(needs)
        dop.disable_group_offload(pipe)


def test_a_pass_inside_another_is_measured_for_itself(device: torch.device, meter: Meter) -> None:
    class Outer(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.first = nn.Linear(WIDTH, WIDTH)
            self.held = (inner,)
            self.limits: list[int] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            wide = self.first(x).repeat(4, 1)
            self.limits.append(engine_of(self).budget.limit)
            result: torch.Tensor = self.held[0](x) + wide[: len(x)]
            self.limits.append(engine_of(self).budget.limit)
            return result

    inner, x = deep(), inputs(device)
    outer = seeded(lambda: Outer(inner))
    alone, _ = beside(inner, x, device)
    pair = Several(inner=inner, outer=outer)
    dop.enable_group_offload(pair, device, vram_budget="auto")
    for _ in range(3):
        computed(outer, x)
    before, after = outer.limits[-2:]
    assert before == after
    needs = {c.name: c.activation_bytes for c in dop.offload_report(pair).components}
    inside, around = needs.values()
    assert inside == alone
    assert around is not None
    assert around >= alone + 4 * x.nbytes
    dop.disable_group_offload(pair)


def test_training_keeps_the_device_for_itself(device: torch.device, meter: Meter) -> None:
    model, x = deep(), inputs(device)
    dop.enable_group_offload(model, device, vram_budget="auto")
    computed(model, x)
    computed(model, x)
    limit = dop.offload_report(model).components[0].budget_bytes
    assert limit is not None
    assert limit > auto_of(model).least
    for _ in range(2):
        model(x).sum().backward()
        assert dop.offload_report(model).components[0].budget_bytes == auto_of(model).least
        model.zero_grad()
    assert auto_of(model).passes_measured == 1
    dop.disable_group_offload(model)


def test_the_same_settings_again_change_nothing(device: torch.device, meter: Meter) -> None:
    model = deep()
    dop.enable_group_offload(model, device, vram_budget="auto")
    before = engine_of(model)
    computed(model, inputs(device))
    dop.enable_group_offload(model, device, vram_budget="auto")
    assert engine_of(model) is before
    assert auto_of(model).passes_measured == 1
    dop.disable_group_offload(model)


def test_too_little_memory_is_refused(device: torch.device, meter: Meter) -> None:
    model = deep()
    with device_with(2_000, device), pytest.raises(dop.InvalidPolicyError, match="`vram_budget` is 'auto'") as caught:
        dop.enable_group_offload(model, device, vram_budget="auto")
    smallest = re.search(r"works is (\d+) bytes", str(caught.value))
    assert smallest is not None
    dop.enable_group_offload(model, device, vram_budget=int(smallest[1]))
    dop.disable_group_offload(model)


def test_a_device_that_tells_nothing_is_refused(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.get_device_module(device.type), "mem_get_info")
    with pytest.raises(dop.InvalidPolicyError, match="tells its free memory"):
        dop.enable_group_offload(deep(), device, vram_budget="auto")


def test_a_plan_of_what_is_free(device: torch.device) -> None:
    plan = dop.plan_group_offload(deep(), onload_device=device, vram_budget="auto")
    assert plan.vram_budget == torch.get_device_module(device.type).mem_get_info(device)[0] + (
        torch.get_device_module(device.type).memory_reserved(device)
    )
    assert plan.components[0].streamed_bytes == 0
