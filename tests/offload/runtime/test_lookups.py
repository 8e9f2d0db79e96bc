"""A model may be entered anywhere and may read weights it never calls; what it returns stays right."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers.utils import BaseOutput
from torch import nn
from torch.nn import functional as F

import diffusers_offload_plus as dop
from tests.support.models import (
    CHOSEN,
    WIDTH,
    Block,
    Coder,
    Pair,
    Stack,
    Steps,
    assert_same,
    fused_cells,
    noise,
    seeded,
)

pytestmark = [pytest.mark.usefixtures("meter"), pytest.mark.parametrize("policy", CHOSEN)]


# Doors


def test_block_layer_and_whole_model_called_in_turn(policy: str, device: torch.device) -> None:
    pair = Pair(seeded(Stack), device, policy)
    x = noise(device)
    for call in (
        lambda m: m.blocks[3](x),
        lambda m: m.blocks[1].up(x),
        lambda m: m(x),
        lambda m: m.blocks[2].norm(m.outlet(x)),
        lambda m: m.blocks[1](m.blocks[4](x)),
        lambda m: m(x),
    ):
        pair.agree(call)
    pair.finish()


def test_encode_decode_and_forward_alternate(policy: str, device: torch.device) -> None:
    pair = Pair(seeded(Coder), device, policy)
    x = noise(device)
    for _ in range(2):
        pair.agree(lambda m: m.encode(x), passes=1)
        pair.agree(lambda m: m.decode(x))
        pair.agree(lambda m: m(x), passes=1)
    pair.finish()


@pytest.mark.parametrize("width", [1, 200], ids=["small", "large"])
def test_encode_reads_parameters_of_the_root(policy: str, width: int, device: torch.device) -> None:
    class Rooted(Stack):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(width, WIDTH))

        def encode(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, self.table)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) @ self.table.t()

    pair = Pair(seeded(Rooted), device, policy)
    for call in (lambda m: m.encode(noise(device)), lambda m: m(noise(device)), lambda m: m.encode(noise(device))):
        pair.agree(call)
    pair.finish()


def test_method_reads_weights_deep_below(policy: str, device: torch.device) -> None:
    class Reader(Stack):
        def features(self, x: torch.Tensor) -> torch.Tensor:
            block = self.blocks[2]
            return F.linear(x, block.up.weight, block.up.bias) @ block.down.weight.t()

        def gain(self, x: torch.Tensor) -> torch.Tensor:
            return self.features(x).sum() * self.blocks[0].norm.weight

    pair = Pair(seeded(Reader), device, policy)
    pair.agree(lambda m: m.features(noise(device)))
    pair.agree(lambda m: m.gain(noise(device)))
    pair.agree(lambda m: m(noise(device)))
    pair.finish()


# Modules whose weights are used without being called


class Borrowing(Block):
    """Uses its layers' weights without calling the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.ParameterList([torch.randn(WIDTH) for _ in range(2)])
        self.named = nn.ParameterDict({"a": torch.randn(WIDTH), "b": torch.randn(WIDTH)})
        self.choice = nn.ModuleDict({"one": nn.Linear(WIDTH, WIDTH), "two": nn.Linear(WIDTH, WIDTH)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x @ self.up.weight.t() + self.up.bias
        y = F.linear(y, self.down.weight, bias=self.down.bias)
        for vector in self.extra:
            y = y * vector
        y = y + self.named["a"] * self.named["b"]
        return x + self.choice["two"](y)


class Attending(nn.Module):
    """torch's own attention, which never calls its output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.attention(x[None], x[None], x[None], need_weights=False)[0][0]


class Encoding(nn.Module):
    """torch's own encoder layer; in eval mode without gradients it takes a fused path."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, batch_first=True, dropout=0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x[None])[0]


class Peeking(Block):
    """A sibling's weights, reached through a plain Python list, and a weight taken before anything runs."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.hidden = [nn.Linear(WIDTH, WIDTH)]
        self.add_module("listed", self.hidden[0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.pair[2].weight
        x = self.pair(super().forward(x)) @ weight
        return self.hidden[0](x) + self.pair[0].bias


KINDS: dict[str, Callable[[], nn.Module]] = {
    "borrowing": Borrowing,
    "multihead_attention": Attending,
    "encoder_layer": Encoding,
    "encoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 4, 64, batch_first=True), 2).eval(),
    "peeking": Peeking,
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_used_without_their_layer_being_called(
    policy: str, kind: str, grad: bool, device: torch.device
) -> None:
    pair = Pair(seeded(lambda: Stack(block=KINDS[kind])), device, policy)
    pair.agree(lambda m: m(noise(device)), grad=grad)
    pair.agree(lambda m: m.blocks[1](noise(device)), grad=grad)
    pair.finish()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers(policy: str, kind: type[nn.RNNBase], device: torch.device) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = kind(WIDTH, WIDTH // 2, num_layers=2, bidirectional=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.layer(x)[0]

    with fused_cells(device):
        pair = Pair(seeded(lambda: Stack(block=Recurrent)), device, policy)
        pair.agree(lambda m: m(noise(device)))
        pair.agree(lambda m: m.blocks[1].layer(noise(device)))
        pair.change(lambda m: m.blocks[1].layer.weight_ih_l1.data.mul_(2))
        pair.agree(lambda m: m(noise(device)))
        pair.finish()


# Orders


def test_blocks_skipped_reordered_and_repeated(policy: str, device: torch.device) -> None:
    pair = Pair(seeded(Steps), device, policy)
    x = noise(device)
    for order in ((0, 1, 2, 3, 4, 5), (0, 2, 4), (5, 4, 3, 2, 1, 0), (1, 1, 1, 4, 1, 4), (), (3,), (0, 1, 2, 3, 4, 5)):
        pair.agree(lambda m, order=order: m(x, order=order))
    pair.finish()


def test_block_that_the_first_pass_does_not_reach(policy: str, device: torch.device) -> None:
    class Conditional(Stack):
        def __init__(self) -> None:
            super().__init__()
            self.condition = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: torch.Tensor, extra: torch.Tensor | None = None) -> torch.Tensor:  # type: ignore[override]
            if extra is not None:
                x = x + self.condition(extra)
            return super().forward(x)

    pair = Pair(seeded(Conditional), device, policy)
    x = noise(device)
    for extra in (None, x, None, x):
        pair.agree(lambda m, extra=extra: m(x, extra=extra))
    pair.finish()


def test_module_that_calls_itself(policy: str, device: torch.device) -> None:
    class Recursive(Stack):
        def forward(self, x: torch.Tensor, depth: int = 2) -> torch.Tensor:  # type: ignore[override]
            x = self.blocks[depth](x)
            if depth:
                x = self(x, depth - 1)
            return self.blocks[depth + 3](x) * self.inlet.bias

    pair = Pair(seeded(Recursive), device, policy)
    pair.agree(lambda m: m(noise(device)))
    pair.finish()


def test_block_that_calls_the_root(policy: str, device: torch.device) -> None:
    class Calling(Block):
        root: list[nn.Module]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            if x.shape[0] > 2:  # once
                y = y + self.root[0](x[:2]).repeat(x.shape[0] // 2, 1)
            return y + self.up(x).mean()

    def rooted(model: nn.Module) -> nn.Module:
        for block in model.blocks:
            block.root = [model]
        return model

    model = rooted(seeded(lambda: Stack(block=Calling)))
    pair = Pair(model, device, policy, plain=rooted(seeded(lambda: Stack(block=Calling))))
    pair.agree(lambda m: m(noise(device)))
    pair.finish()


def test_generator_that_is_left_midway(policy: str, device: torch.device) -> None:
    class Streaming(Stack):
        def steps(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
            for block in self.blocks:
                x = block(x)
                yield x * self.inlet.bias

    pair = Pair(seeded(Streaming), device, policy)
    pair.agree(lambda m: list(m.steps(noise(device))))
    pair.agree(lambda m: next(iter(m.steps(noise(device)))))
    pair.agree(lambda m: m(noise(device)))
    pair.finish()


def test_two_generators_in_turn(policy: str, device: torch.device) -> None:
    class Streaming(Stack):
        def forward(self, x: torch.Tensor) -> Iterator[torch.Tensor]:  # type: ignore[override]
            for block in self.blocks:
                x = block(x)
                yield x * self.inlet.bias

    pair = Pair(seeded(Streaming), device, policy)
    pair.agree(lambda m: [t for two in zip(m(noise(device)), m(noise(device, seed=1)), strict=True) for t in two])
    pair.agree(lambda m: next(m(noise(device))))
    pair.finish()


# Other ways of calling


def test_forward_hooks_that_compute_with_weights(policy: str, device: torch.device) -> None:
    pair = Pair(seeded(Stack), device, policy)
    for model in (pair.model, pair.plain):
        model.blocks[1].register_forward_pre_hook(lambda block, args: (args[0] * block.norm.weight,))
        model.blocks[1].register_forward_hook(
            lambda block, args, output: F.linear(output, block.down.weight.t()[:WIDTH])
        )
        model.register_forward_hook(lambda root, args, output: output + root.blocks[5](output) * root.inlet.bias)
        model.register_forward_pre_hook(lambda root, args: (root.outlet(args[0]),))
    pair.agree(lambda m: m(noise(device)))
    pair.finish(tidy=False)


@pytest.mark.parametrize("whole", [True, False], ids=["all", "some"])
def test_functional_call(policy: str, whole: bool, device: torch.device) -> None:
    pair = Pair(seeded(Stack), device, policy)
    given = {
        name: p.detach().to(device) * 1.5 for name, p in pair.reference.named_parameters() if whole or "up" in name
    }
    addresses = {name: tensor.data_ptr() for name, tensor in given.items()}
    x = noise(device)
    pair.agree(lambda m: m(x))
    pair.agree(lambda m: torch.func.functional_call(m, given, (x,)))
    assert addresses == {name: tensor.data_ptr() for name, tensor in given.items()}
    assert all(tensor.device == device for tensor in given.values())
    pair.agree(lambda m: m(x))
    pair.finish(saves=False)


def test_checkpointed_blocks(policy: str, device: torch.device) -> None:
    class Checkpointed(Stack):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.inlet(x)
            for block in self.blocks:
                x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
            return self.outlet(x)

    pair = Pair(seeded(Checkpointed), device, policy)
    for _ in range(2):
        for model in (pair.model, pair.plain):
            model(noise(device)).square().sum().backward()
    for (name, mine), theirs in zip(pair.model.named_parameters(), pair.plain.parameters(), strict=True):
        assert torch.equal(mine.grad.cpu(), theirs.grad.cpu()), name
    pair.finish()


# What is returned


@dataclasses.dataclass
class Result(BaseOutput):
    sample: torch.Tensor
    table: torch.Tensor


RETURNS: dict[str, Callable[[nn.Module, torch.Tensor], Any]] = {
    "parameter": lambda m, x: m.table,
    "view": lambda m, x: m.table[1:3],
    "transposed": lambda m, x: m.table.t(),
    "buffer": lambda m, x: m.seen,
    "list": lambda m, x: [x, (m.table, m.seen[1:])],
    "dict": lambda m, x: {"x": x, "inner": {"table": m.table}},
    "output": lambda m, x: Result(sample=x, table=m.table),
    "detached": lambda m, x: m.table.detach(),
    "data": lambda m, x: m.table.data,
}


class Returning(Block):
    """Gives out its own tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, WIDTH))
        self.register_buffer("seen", torch.randn(4, WIDTH))
        self.kind = ""

    def forward(self, x: torch.Tensor) -> Any:
        return RETURNS[self.kind](self, super().forward(x))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("kind", RETURNS)
def test_returned_weights_outlive_the_pass(policy: str, kind: str, grad: bool, device: torch.device) -> None:
    class Gathering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Returning() for _ in range(6)])

        def forward(self, x: torch.Tensor) -> list[Any]:
            return [block(x) for block in self.blocks]

    model = seeded(Gathering)
    for block in model.blocks:
        block.kind = kind
    pair = Pair(model, device, policy)
    x = noise(device)
    with torch.set_grad_enabled(grad):
        want, kept, alone = pair.plain(x), pair.model(x), pair.model.blocks[2](x)
    pair.agree(lambda m: m(noise(device, seed=8)), passes=3)
    assert_same(kept, want)
    assert_same(alone, want[2])
    assert all(
        t.device == device
        for t in torch.utils._pytree.tree_leaves([dict(v) if isinstance(v, Result) else v for v in kept])
    )
    del want, alone
    dop.disable_group_offload(model)
    assert_same(kept, pair.plain(x))
