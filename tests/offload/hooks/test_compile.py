"""Blocks compiled before or after enabling: one graph each, no breaks, compiled once, and the same output."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.model.partition import COMPILED_BENEATH, compiled_call
from tests.support.meter import Meter
from tests.support.models import WIDTH, Block, Stack, assert_plain, assert_same, nbytes, noise, seeded
from tests.support.policies import settings
from tests.zoo.denoisers import flux
from tests.zoo.models import MODELS
from tests.zoo.quantized import QUANTISERS

pytestmark = [
    pytest.mark.usefixtures("meter"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
some_policies = pytest.mark.parametrize("policy", ["block-stream", "leaf-stream"])
order = pytest.mark.parametrize("first", ["compile first", "enable first"])

KINDS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "float": lambda model: model,
    "int8": QUANTISERS["int8_weight_only"],
}
PASSES = 5


@pytest.fixture(autouse=True)
def fresh(meter: Meter) -> Iterator[None]:
    """No graph of another test, and none left when ``meter`` looks for leaks."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    counters.clear()


def small(kind: str) -> Any:
    """A Flux with three blocks of two classes."""
    return KINDS[kind](flux(num_layers=1, num_single_layers=2))


class Repeating(Stack):
    """Compiles its blocks as diffusers' models do."""

    def compile_repeated_blocks(self, **options: Any) -> None:
        for block in self.blocks:
            block.compile(**options)


class Nested(nn.Module):
    """Blocks in blocks, of which only the inner ones are compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(Block(), Block(), nn.Linear(WIDTH, WIDTH)) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x

    def compile_repeated_blocks(self, **options: Any) -> None:
        for block in self.blocks:
            block[1].compile(**options)


def run(model: nn.Module, device: torch.device) -> list[torch.Tensor]:
    with torch.no_grad():
        if isinstance(model, Stack):
            return [model(noise(device))]
        return MODELS["flux"].run(model, "forward", device)


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@functools.cache
def expected(kind: str, backend: str, device: torch.device) -> tuple[list[torch.Tensor], int]:
    """What the un-offloaded compiled Flux gives, and how many graphs that takes."""
    torch._dynamo.reset()
    counters.clear()
    model = small(kind).to(device)
    model.compile_repeated_blocks(fullgraph=True, backend=backend)
    for _ in range(2):
        output = run(model, device)
    taken = graphs()
    torch._dynamo.reset()
    counters.clear()
    return output, taken


def prepared(model: Any, first: str, policy: str, device: torch.device, **options: Any) -> Any:
    """The model offloaded and its blocks compiled, in that order or the other."""
    steps = [
        lambda: model.compile_repeated_blocks(**options),
        lambda: dop.enable_group_offload(model, device, **settings(policy, model, device)),
    ]
    for step in steps if first == "compile first" else reversed(steps):
        step()
    return model


@order
@pytest.mark.parametrize(("kind", "policy"), [("int8", "block-stream")])
def test_repeated_blocks_are_compiled_once(kind: str, policy: str, first: str, device: torch.device) -> None:
    want, taken = expected(kind, "eager", device)
    assert taken > 0
    model = prepared(small(kind), first, policy, device, fullgraph=True, backend="eager")
    for number in range(PASSES):
        assert_same(run(model, device), want, f"in pass {number}")
        assert graphs() == taken, f"in pass {number}"
    assert not counters["graph_break"]
    assert dop.offload_report(model).components[0].transferred_bytes > 0
    dop.disable_group_offload(model)
    assert_plain(model)
    assert_same(run(model.to(device), device), want)


@order
@some_policies
@pytest.mark.parametrize("kind", KINDS)
def test_traced_by_aot_autograd(kind: str, policy: str, first: str, device: torch.device) -> None:
    plain = KINDS[kind](seeded(Repeating)).to(device)
    plain.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    want = run(plain, device)
    taken = graphs()
    torch._dynamo.reset()
    counters.clear()
    model = prepared(KINDS[kind](seeded(Repeating)), first, policy, device, fullgraph=True, backend="aot_eager")
    for _ in range(PASSES):
        assert_same(run(model, device), want)
    assert graphs() == taken > 0
    dop.disable_group_offload(model)


@order
@some_policies
def test_the_blocks_really_run_compiled(policy: str, first: str, device: torch.device) -> None:
    ran: list[int] = []

    def counting(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            assert {a.device.type for a in args if isinstance(a, torch.Tensor)} <= {device.type}
            ran.append(1)
            return graph(*args)

        return call

    model = prepared(seeded(Repeating), first, policy, device, fullgraph=True, backend=counting)
    for _ in range(3):
        run(model, device)
    assert len(ran) == 3 * 6
    dop.disable_group_offload(model)
    run(model.to(device), device)
    assert len(ran) == 4 * 6, "still compiled"


@order
@some_policies
def test_disabling_gives_the_compiled_call_back(policy: str, first: str, device: torch.device) -> None:
    model, x = seeded(Stack), noise(device)
    want = seeded(Stack).to(device)(x)
    if first == "enable first":
        dop.enable_group_offload(model, device, **settings(policy, model, device))
        model(x)
    for block in model.blocks:
        block.compile(backend="eager", fullgraph=True)
    calls = [compiled_call(block) for block in model.blocks]
    assert all(calls)
    if first == "compile first":
        dop.enable_group_offload(model, device, **settings(policy, model, device))
    for _ in range(2):
        assert_same(model(x), want)
    dop.disable_group_offload(model)
    assert [block._compiled_call_impl for block in model.blocks] == calls
    assert not any(COMPILED_BENEATH in vars(module) for module in model.modules())
    assert_plain(model)
    assert_same(model.to(device)(x), want)


@some_policies
def test_block_compiled_while_offloaded_is_called_alone(policy: str, device: torch.device) -> None:
    model, x = seeded(Stack), noise(device)
    plain = seeded(Stack).to(device)
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    model(x)
    model.blocks[2].compile(backend="eager", fullgraph=True)
    with torch.no_grad():
        for _ in range(2):
            assert_same(model.blocks[2](x), plain.blocks[2](x))
            assert_same(model(x), plain(x))
    assert graphs() == 1
    dop.disable_group_offload(model)
    assert_plain(model)


def test_the_whole_model_is_not_compiled(device: torch.device) -> None:
    model, x = seeded(Stack), noise(device)
    want = seeded(Stack).to(device)(x)
    dop.enable_group_offload(model, device, offload_type="leaf_level")
    before = dict(vars(model))
    with pytest.raises(dop.CompileOrderError, match="compile_repeated_blocks"):
        model.compile(backend="eager")
    assert dict(vars(model)) == before
    assert_same(model(x), want)
    dop.disable_group_offload(model)
    model.to(device).compile(backend="eager")
    assert_same(model(x), want)


@some_policies
def test_weights_changed_under_a_compiled_block(policy: str, device: torch.device) -> None:
    model = prepared(seeded(Repeating), "compile first", policy, device, fullgraph=True, backend="eager")
    plain = seeded(Stack)
    run(model, device)
    taken = graphs()
    with torch.no_grad():
        for one in (model, plain):
            one.blocks[0].up.weight.mul_(2)
            one.blocks[3].down.weight.data = one.blocks[2].down.weight.data * 0.5
    want = run(plain.to(device), device)
    for _ in range(2):
        assert_same(run(model, device), want)
    assert graphs() == taken
    dop.disable_group_offload(model)


@some_policies
def test_compiled_blocks_with_gradients(policy: str, device: torch.device) -> None:
    """Whatever records saved weights must not be traced into the graph."""
    plain = seeded(Repeating).to(device)
    model = prepared(seeded(Repeating), "compile first", policy, device, fullgraph=True, backend="aot_eager")
    plain.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    for _ in range(2):
        for one in (plain, model):
            one.zero_grad()
            one(noise(device)).square().mean().backward()
        for (name, mine), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
            assert torch.equal(mine.grad.cpu(), theirs.grad.cpu()), name
    dop.disable_group_offload(model)


@order
@some_policies
@pytest.mark.parametrize("grad", [False, True])
def test_compiled_part_of_a_block(grad: bool, policy: str, first: str, device: torch.device, meter: Meter) -> None:
    """What is compiled deep in a block moves whole, is traced once, and its graph holds no device weights."""
    plain = seeded(Nested).to(device)
    plain.compile_repeated_blocks(fullgraph=True, backend="aot_eager")

    def step(model: nn.Module) -> list[torch.Tensor]:
        with torch.set_grad_enabled(grad):
            output = model(noise(device))
            if grad:
                model.zero_grad()
                output.square().mean().backward()
        return [output.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    want = step(plain)
    taken = graphs()
    torch._dynamo.reset()
    counters.clear()
    model = prepared(seeded(Nested), first, policy, device, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        assert_same([t.to(device) for t in step(model)], want)
    assert graphs() == taken == 1
    report = dop.offload_report(model).components[0]
    assert 0 < report.peak_device_bytes < nbytes(model)
    dop.disable_group_offload(model)


@some_policies
def test_copy_of_an_offloaded_compiled_model_is_plain(policy: str, device: torch.device) -> None:
    model = prepared(seeded(Repeating), "compile first", policy, device, fullgraph=True, backend="eager")
    want = run(model, device)
    twin = copy.deepcopy(model)
    assert_plain(twin)
    assert_same(run(twin.to(device), device), want)
    assert_same(run(model, device), want)
    dop.disable_group_offload(model)
