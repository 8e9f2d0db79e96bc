"""Training with offloaded weights: the gradients, the steps and the memory are what they should be."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.hooks.attachment import attachment_of
from diffusers_offload_plus.offload.model.tensors import same_bits
from tests.support.meter import Meter
from tests.support.models import (
    BUDGETED,
    CHOSEN,
    WIDTH,
    Block,
    Language,
    Pair,
    Stack,
    assert_same,
    noise,
    seeded,
    tokens,
)
from tests.support.policies import settings
from tests.support.subclasses import box_linears
from tests.zoo.models import MODELS
from tests.zoo.quantized import QUANTISERS

pytestmark = pytest.mark.usefixtures("meter")
every_policy = pytest.mark.parametrize("policy", BUDGETED)
some_policies = pytest.mark.parametrize("policy", ["block-2-stream", "leaf-lean"])

Loss = Callable[[nn.Module], torch.Tensor]


class Pictures(nn.Module):
    """Convolutions, norms of three kinds, an embedding, a layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 8)
        self.inlet = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1)) for _ in range(4)]
        )
        self.norm = nn.LayerNorm(8)
        self.outlet = nn.ConvTranspose2d(8, 3, 2, stride=2)

    def forward(self, x: torch.Tensor, word: torch.Tensor) -> torch.Tensor:
        x = self.inlet(x) + self.words(word)[:, :, None, None]
        for block in self.blocks:
            x = x + block(x)
        return self.outlet(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


class Checkpointed(Stack):
    """Recomputes each block in backward."""

    reentrant = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inlet(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        return self.outlet(x)


class Reentrant(Checkpointed):
    """The older way."""

    reentrant = True


class Twice(Stack):
    """Uses each block twice."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(super().forward(x))


class Adapted(nn.Module):
    """A frozen layer with a trainable adapter of rank two."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x))


def mean_square(output: Any) -> torch.Tensor:
    return (output if isinstance(output, torch.Tensor) else output[0]).square().mean()


def picture_loss(model: nn.Module) -> torch.Tensor:
    device = next(p for p in (*model.buffers(), *model.parameters())).device
    return mean_square(model(noise(device, 2, 3, 8, 8), torch.tensor([3, 7], device=device)))


def grads_equal(pair: Pair, *, exact: bool = True) -> int:
    """Each parameter has the twin's gradient, beside its weight; returns how many have one."""
    found = 0
    for (name, mine), theirs in zip(pair.model.named_parameters(), pair.plain.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None), name
        if mine.grad is None:
            continue
        found += 1
        assert mine.grad.device == mine.device, name
        assert mine.grad.device.type == "cpu" or mine.device != torch.device("cpu"), name
        if exact:
            assert torch.equal(mine.grad.cpu(), theirs.grad.cpu()), name
        else:
            torch.testing.assert_close(mine.grad.cpu(), theirs.grad.cpu(), msg=name)
    return found


def backward_both(pair: Pair, call: Callable[[nn.Module], Any]) -> None:
    for model in (pair.model, pair.plain):
        mean_square(call(model)).backward()


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, torch.device], Any], bool]] = {
    "linear": (Stack, lambda m, d: m(noise(d)), True),
    "pictures": (Pictures, lambda m, d: m(noise(d, 2, 3, 8, 8), torch.tensor([3, 7]).to(d)), True),
    "checkpoint": (Checkpointed, lambda m, d: m(noise(d).requires_grad_()), True),
    "reentrant checkpoint": (Reentrant, lambda m, d: m(noise(d).requires_grad_()), True),
    "twice": (Twice, lambda m, d: m(noise(d)), False),
    "tied": (Language, lambda m, d: m(tokens(d)), False),
}


@every_policy
@pytest.mark.parametrize("name", CASES)
def test_gradients(name: str, policy: str, device: torch.device) -> None:
    build, call, exact = CASES[name]
    pair = Pair(seeded(build), device, policy)
    for number in range(2):
        backward_both(pair, lambda m: call(m, device))
        assert grads_equal(pair, exact=exact) == len(list(pair.model.parameters())), f"pass {number}"
        for model in (pair.model, pair.plain):
            model.zero_grad()
    pair.finish(saves=False)


@every_policy
def test_gradients_of_a_real_model(policy: str, device: torch.device) -> None:
    case = MODELS["flux"]
    pair = Pair(case.build(), device, policy)
    for model in (pair.model, pair.plain):
        mean_square(case.calls["forward"](model, device, 0)).backward()
    assert grads_equal(pair) > 100
    pair.finish(saves=False)


@every_policy
def test_gradients_accumulate_over_two_backwards(policy: str, device: torch.device) -> None:
    pair = Pair(seeded(Stack), device, policy)
    for seed in (1, 2, 3):
        backward_both(pair, lambda m, seed=seed: m(noise(device, seed=seed)))
        grads_equal(pair)
    before = [p.grad.clone() for p in pair.model.parameters() if p.grad is not None]
    # Two graphs at once, backward in the other order.
    losses = [[mean_square(m(noise(device, seed=seed))) for seed in (4, 5)] for m in (pair.model, pair.plain)]
    for one in losses:
        one[1].backward()
        one[0].backward()
    grads_equal(pair, exact=False)
    now = [p.grad for p in pair.model.parameters()]
    assert not any(torch.equal(a, b) for a, b in zip(before, now, strict=True))
    pair.finish(saves=False)


@pytest.mark.parametrize("policy", CHOSEN)
def test_forward_with_gradients_stays_within_the_bound(policy: str, device: torch.device, meter: Meter) -> None:
    model = seeded(lambda: Stack(depth=10))
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    x = noise(device, 1, WIDTH)
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    model(x)
    before = meter.live
    loss = mean_square(model(x))
    if meter.exact:
        assert meter.live - before < 0.3 * size, "what the graph keeps is activations"
    report = dop.offload_report(model).components[0]
    assert report.peak_device_bytes <= report.device_bound < size
    loss.backward()
    assert dop.offload_report(model).components[0].peak_device_bytes < size
    del loss
    if meter.exact:
        assert meter.live == before, "nothing of backward stays"
    dop.disable_group_offload(model)


OPTIMISERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "fused AdamW": lambda p: torch.optim.AdamW(p, lr=0.05, fused=True),
    "foreach AdamW": lambda p: torch.optim.AdamW(p, lr=0.05, foreach=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
}


@every_policy
@pytest.mark.parametrize("name", OPTIMISERS)
def test_training_run(name: str, policy: str, device: torch.device) -> None:
    """Four steps beside an un-offloaded model trained on the device with its optimiser's state on the host."""
    pair = Pair(seeded(Pictures), device, policy)
    ours, theirs = OPTIMISERS[name](pair.model.parameters()), OPTIMISERS[name](pair.reference.parameters())
    losses = []
    for _ in range(4):
        pair.plain = copy.deepcopy(pair.reference).to(device)
        got, want = (mean_square(CASES["pictures"][1](m, device)) for m in (pair.model, pair.plain))
        assert_same(got, want)
        losses.append(got.item())
        got.backward()
        want.backward()
        grads_equal(pair)
        for host, there in zip(pair.reference.parameters(), pair.plain.parameters(), strict=True):
            host.grad = there.grad.cpu()
        for optimiser in (ours, theirs):
            optimiser.step()
            optimiser.zero_grad()
    assert losses[-1] < losses[0]
    state = ours.state_dict()["state"]
    assert all(
        value.device.type == "cpu" for entry in state.values() for value in entry.values() if torch.is_tensor(value)
    )
    pair.plain = copy.deepcopy(pair.reference).to(device)
    pair.agree(lambda m: CASES["pictures"][1](m, device), passes=1)
    pair.finish(saves=False)


def step(model: nn.Module) -> None:
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def load(model: nn.Module) -> None:
    model.load_state_dict(seeded(Stack, seed=3).state_dict())


@torch.no_grad()
def scale(model: Any) -> None:
    model.blocks[2].up.weight.mul_(2)


@every_policy
@pytest.mark.parametrize("change", [scale, load, step])
def test_weights_changed_between_forward_and_backward(
    change: Callable[[nn.Module], None], policy: str, device: torch.device
) -> None:
    model = seeded(Stack)
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    mean_square(model(noise(device))).backward()
    loss = mean_square(model(noise(device)))
    change(model)
    with pytest.raises(
        dop.OffloadPlusError, match=r"changed in place between forward and backward.*before changing them"
    ) as caught:
        loss.backward()
    assert type(caught.value).__name__ == "WeightsChangedError"
    assert isinstance(caught.value, RuntimeError)
    model.zero_grad()
    mean_square(model(noise(device))).backward()  # and then all is well again
    del loss, caught
    dop.disable_group_offload(model)


def test_training_leaves_nothing_on_the_device(device: torch.device) -> None:
    """An optimiser that holds the parameters would find some on the device and their gradients on the host."""
    model = seeded(Stack)
    dop.enable_group_offload(model, device, **settings("half", model, device))
    attachment = attachment_of(model)
    assert attachment is not None
    with torch.no_grad():
        model(noise(device))
    assert attachment.engine.forward_pass.caches
    mean_square(model.blocks[0](noise(device))).backward()  # the others are not touched
    assert not attachment.engine.forward_pass.caches
    dop.disable_group_offload(model)


BASES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda model: model,
    "int8": QUANTISERS["int8_weight_only"],
    "wrappers": box_linears,
}


@some_policies
@pytest.mark.parametrize("base", BASES)
def test_adapters_over_a_frozen_base(base: str, policy: str, device: torch.device, meter: Meter) -> None:
    def build() -> nn.Module:
        model = BASES[base](seeded(Stack)).requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            for block in model.blocks:
                block.up, block.down = Adapted(block.up), Adapted(block.down)
        return model

    pair = Pair(build(), device, policy)
    trainable = [p for p in pair.model.parameters() if p.requires_grad]
    beside = [p for p in pair.reference.parameters() if p.requires_grad]
    ours, theirs = torch.optim.AdamW(trainable, lr=0.05), torch.optim.AdamW(beside, lr=0.05)
    for _ in range(3):
        backward_both(pair, lambda m: m(noise(device)))
        assert grads_equal(pair) == len(trainable)
        for host, there in zip(pair.reference.parameters(), pair.plain.parameters(), strict=True):
            host.grad = None if there.grad is None else there.grad.cpu()
        for optimiser in (ours, theirs):
            optimiser.step()
            optimiser.zero_grad()
        pair.plain = copy.deepcopy(pair.reference).to(device)
        pair.agree(lambda m: m(noise(device)), passes=1)
    assert pair.component().written_back_bytes == 0
    dop.disable_group_offload(pair.model)
    for mine, host in zip(pair.model.parameters(), pair.reference.parameters(), strict=True):
        assert same_bits(mine.detach(), host.detach())


@some_policies
def test_input_gradient_through_frozen_weights(policy: str, device: torch.device) -> None:
    pair = Pair(seeded(Stack).requires_grad_(False), device, policy)
    found = []
    for model in (pair.model, pair.plain):
        x = noise(device).requires_grad_()
        mean_square(model(x)).backward()
        found.append(x.grad)
    assert_same(*found)
    assert grads_equal(pair) == 0
    pair.finish(saves=False)


@some_policies
def test_second_derivative(policy: str, device: torch.device) -> None:
    pair = Pair(seeded(Stack), device, policy)
    found = []
    for model in (pair.model, pair.plain):
        x = noise(device).requires_grad_()
        (first,) = torch.autograd.grad(mean_square(model(x)), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        found.append((first.detach(), second))
    assert_same(*found)
    pair.finish(saves=False)


@some_policies
def test_weight_of_a_block_read_for_a_penalty(policy: str, device: torch.device) -> None:
    """A loss term on a host weight and one through the model meet in one gradient."""

    class Decayed(Stack):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + F.linear(x, self.blocks[1].up.weight).mean()

    pair = Pair(seeded(lambda: Decayed(block=Block)), device, policy)
    backward_both(pair, lambda m: m(noise(device)))
    assert grads_equal(pair, exact=False) == len(list(pair.model.parameters()))
    pair.finish(saves=False)


@pytest.mark.parametrize("policy", CHOSEN)
@pytest.mark.parametrize("steps", [0, 1])
def test_a_model_that_is_dropped_is_freed(steps: int, policy: str, device: torch.device, meter: Meter) -> None:
    """Without being disabled first; what autograd has registered on its weights does not keep it alive."""
    model = seeded(Stack)
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    for _ in range(steps):
        model(noise(device)).square().mean().backward()
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert meter.pinned <= 0


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("policy", ["half", "whole"])
def test_validation_between_backward_and_the_step(
    policy: str, fused: bool, device: torch.device, meter: Meter
) -> None:
    """A pass without gradients caches nothing whose gradients wait on the host for an optimizer."""
    model, reference = seeded(Stack), seeded(Stack).to(device)
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2, fused=fused) for m in (model, reference)]
    for _ in range(3):
        for one, optimizer in zip((model, reference), optimizers, strict=True):
            one(noise(device)).sum().backward()
            with torch.no_grad():
                one(noise(device))
            optimizer.step()
            optimizer.zero_grad()
    dop.disable_group_offload(model)
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(ours, theirs.cpu(), atol=1e-5)
