"""Every kind of weight on disk, what users do to weights there, and that the store of the base weights stays valid."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.model.tensors import same_bits
from tests.offload.api.test_lora import adapter, latents
from tests.offload.stores.disk.setup import (
    assert_right,
    assert_state,
    assert_whole,
    disk_allocator,
    objects,
    offload,
    twin_of,
)
from tests.support.models import Language, Stack, Translator, assert_plain, assert_same, held, noise, seeded, tokens
from tests.zoo.models import MODELS
from tests.zoo.pipelines import PIPELINES
from tests.zoo.quantized import QUANTISERS


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    """A directory whose kept files are whole, and as they were written, when the test is over."""
    yield tmp_path
    assert objects(tmp_path)
    assert_whole(tmp_path)


class Odd(nn.Module):
    """Weights that stock refuses or loses on disk."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1).to(memory_format=torch.channels_last)
        self.transposed = nn.Parameter(torch.randn(8, 16).t())
        self.expanded = nn.Parameter(torch.randn(8, 1).expand(8, 16))
        self.complex = nn.Parameter(torch.randn(8, 8, dtype=torch.complex64))
        self.scalar = nn.Parameter(torch.tensor(0.7))
        self.empty = nn.Parameter(torch.empty(0, 8))
        self.nan = nn.Parameter(torch.tensor([float("nan"), -0.0, float("inf"), 1e-45, 0, 0, 0, 0]))
        self.fp8 = nn.Parameter(torch.randn(8, 8).to(torch.float8_e4m3fn), requires_grad=False)
        self.register_buffer("flags", torch.rand(8, 8) > 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x).mean((2, 3)) @ self.transposed.t() @ self.expanded.t()
        y = (y.to(torch.complex64) @ self.complex).real * self.scalar
        return y + self.nan.isfinite().float() @ (self.fp8.float() * self.flags)


class OddStack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Odd() for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return sum(block(x) for block in self.blocks)  # type: ignore[return-value]


def test_channels_last_transposed_expanded_or_complex_weights(store: Path) -> None:
    """And of no dimension, without elements, not finite, in eight bits: on the CPU, with the strides they had."""
    model, plain = seeded(OddStack), seeded(OddStack)
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    offload(model, "cpu", store, keep=True)
    for _ in range(2):
        with torch.no_grad():
            assert_same(model(x), plain(x))
    for state in ("offloaded", "disabled"):
        mine = held(model)
        for name, theirs in held(plain).items():
            assert mine[name].stride() == theirs.stride(), (state, name)
            assert same_bits(mine[name], theirs), (state, name)
        if state == "offloaded":
            dop.disable_group_offload(model)
    again = seeded(OddStack)
    offload(again, "cpu", store, keep=True)
    assert disk_allocator(again).written == 0


@pytest.mark.parametrize("make", [Language, Translator])
def test_tied_weights(make: Callable[[], nn.Module], where: torch.device, store: Path) -> None:
    model = seeded(make)
    twin = twin_of(model, where)
    ids = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    offload(model, where, store, keep=True, offload_type="leaf_level")
    x = tokens(where)
    for _ in range(2):
        with torch.no_grad():
            assert_same(model(x), twin(x))
    assert {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)} == ids
    dop.disable_group_offload(model)
    assert_state(model, twin)


@pytest.mark.parametrize("kind", QUANTISERS)
def test_torchao_on_disk(kind: str, device: torch.device, store: Path) -> None:
    """Stock refuses, after the first groups were emptied."""
    case = MODELS["flux"]
    model = QUANTISERS[kind](case.build())
    twin = copy.deepcopy(model)
    want = case.run(copy.deepcopy(model).to(device), "forward", device)
    for written in (True, False):
        offload(model, device, store, keep=True)
        assert (disk_allocator(model).written > 0) == written
        for _ in range(2):
            assert_same(case.run(model, "forward", device), want)
        dop.disable_group_offload(model)
        for (name, mine), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
            assert same_bits(mine, theirs), name


def test_lora_loaded_fused_unfused_unloaded_and_swapped(device: torch.device, store: Path) -> None:
    plain: Any = PIPELINES["flux"].build().to(device)
    ours: Any = PIPELINES["flux"].build()
    offload(ours, device, store, keep=True)
    base = {path: path.read_bytes() for path in objects(store)}
    steps: list[Callable[[Any], object]] = [
        lambda p: p.load_lora_weights(adapter(1), adapter_name="one"),
        lambda p: p.load_lora_weights(adapter(2), adapter_name="one", hotswap=True),
        lambda p: p.fuse_lora(components=["transformer"], lora_scale=0.5),
        lambda p: p.unfuse_lora(components=["transformer"]),
        lambda p: p.unload_lora_weights(),
        lambda p: p.transformer.fuse_qkv_projections(),
        lambda p: p.transformer.unfuse_qkv_projections(),
    ]
    for step in steps:
        step(plain)
        step(ours)
        for _ in range(2):
            assert torch.equal(latents(ours), latents(plain))
    assert {path: path.read_bytes() for path in base} == base
    dop.disable_group_offload(ours)
    assert_state(ours.transformer, plain.transformer)


def load(model: nn.Module) -> None:
    model.load_state_dict(seeded(Stack, 9).state_dict())


def assign(model: nn.Module) -> None:
    model.load_state_dict({k: v.clone() for k, v in seeded(Stack, 8).state_dict().items()}, assign=True)


def edit(model: nn.Module) -> None:
    with torch.no_grad():
        model.get_parameter("blocks.1.up.weight").mul_(1.25)[3] = 0


def edit_data(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data += 0.01


def new_data(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data.clone() * 0.9


def optimise(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.device, parameter.dtype)
    torch.optim.AdamW(model.parameters(), lr=0.01).step()
    model.zero_grad()


def cast(model: nn.Module) -> None:
    model.to(torch.bfloat16).to(torch.float32)


def replace(model: nn.Module) -> None:
    model.blocks[2] = seeded(lambda: nn.Linear(32, 32), 4)  # type: ignore[index]


CHANGES = (load, assign, edit, edit_data, new_data, optimise, cast, replace)


@pytest.mark.parametrize("change", CHANGES)
def test_weights_changed_while_offloaded(
    change: Callable[[nn.Module], None], where: torch.device, store: Path
) -> None:
    """They leave the mapped file; it stays as it was, and whoever comes next finds the base weights there."""
    model, reference = seeded(Stack), seeded(Stack)
    offload(model, where, store, keep=True)
    assert_right(model, twin_of(reference, where), where)
    for _ in range(2):
        change(model)
        change(reference)
        assert_right(model, twin_of(reference, where), where)
        assert_state(model, reference)
    dop.disable_group_offload(model)
    assert_plain(model)
    assert_state(model, reference)
    base = seeded(Stack)
    offload(base, where, store, keep=True)
    assert disk_allocator(base).written == 0
    assert_state(base, seeded(Stack))


class Counting(nn.Module):
    """Forward writes buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(32)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("cache", torch.zeros(4, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        self.cache += x
        return self.norm(x) + self.cache.sum() * self.steps


def test_buffers_written_by_forward(where: torch.device, store: Path) -> None:
    model = seeded(lambda: Stack(3, Counting)).train()
    twin = twin_of(model, where)
    offload(model, where, store, keep=True)
    assert_right(model, twin, where, passes=3)
    assert_state(model, twin)
    dop.disable_group_offload(model)
    assert_state(model, twin)
    assert int(model.blocks[0].steps) == 3  # type: ignore[arg-type]


@pytest.mark.parametrize("shard", ["10GB", "40KB"])
def test_state_dict_and_save_pretrained_on_disk(shard: str, where: torch.device, store: Path) -> None:
    """Stock saves garbage, without a word."""
    case = MODELS["flux"]
    plain: Any = case.build()
    model: Any = case.build()
    offload(model, where, store, keep=True)
    case.run(model, "forward", where)
    assert_state(model, plain)
    plain.save_pretrained(str(store / "plain"), max_shard_size=shard)
    model.save_pretrained(str(store / "ours"), max_shard_size=shard)
    files = sorted(path.name for path in (store / "plain").iterdir())
    assert sorted(path.name for path in (store / "ours").iterdir()) == files
    for name in files:
        assert (store / "ours" / name).read_bytes() == (store / "plain" / name).read_bytes(), name
    torch.save(model.state_dict(), store / "state.pt")
    saved = torch.load(store / "state.pt")
    assert all(torch.equal(saved[name], value) for name, value in plain.state_dict().items())


def test_hooks_removed(where: torch.device, store: Path) -> None:
    """Stock leaves NaN; ours the weights, in memory of their own."""
    model = seeded(Stack)
    twin = twin_of(model, where)
    offload(model, where, store, keep=True)
    assert_right(model, twin, where)
    dop.disable_group_offload(model)
    assert_plain(model)
    assert_state(model, twin)
    with torch.no_grad():
        assert_same(model(noise("cpu")), copy.deepcopy(twin).cpu()(noise("cpu")))


def test_a_copy_of_a_model_on_disk_is_a_plain_model(where: torch.device, store: Path) -> None:
    model = seeded(Stack)
    twin = twin_of(model, where)
    offload(model, where, store, keep=True)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert_right(model, twin, where)
    assert_state(model, twin)
