"""The pieces random models are made of. Each maps a ``(rows, WIDTH)`` tensor to one of the same shape, without
blowing it up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

WIDTH = 16
ROWS = 3


class Failure(Exception):
    """Raised inside a forward on purpose."""


class Conditions:
    """What the caller decides for one pass: which branches run, and where it fails."""

    def __init__(self) -> None:
        self.skip: frozenset[int] = frozenset()
        self.fail_at: int | None = None
        self.error: type[BaseException] = Failure
        self.calls = 0

    @contextmanager
    def set(
        self, *, skip: frozenset[int] = frozenset(), fail_at: int | None = None, error: type[BaseException] = Failure
    ) -> Iterator[None]:
        """Hold for one pass."""
        self.skip, self.fail_at, self.error, self.calls = skip, fail_at, error, 0
        try:
            yield
        finally:
            self.skip, self.fail_at, self.calls = frozenset(), None, 0

    def step(self) -> None:
        """Every leaf passes here before it computes."""
        self.calls += 1
        if self.calls == self.fail_at:
            raise self.error("on purpose")

    def __deepcopy__(self, memo: dict[int, object]) -> Conditions:
        return self  # model and twin live under the same conditions


CONDITIONS = Conditions()


class Piece(nn.Module):
    """Base: bounded residual update."""

    def update(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        CONDITIONS.step()
        return x + 0.1 * torch.tanh(self.update(x))


class Dense(Piece):
    """A linear layer and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.linear = nn.Linear(WIDTH, WIDTH)

    def update(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(x))


class Scale(Piece):
    """Parameters of its own beside a child."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(WIDTH))
        self.shift = nn.Parameter(torch.rand(()))
        self.linear = nn.Linear(WIDTH, WIDTH, bias=False)

    def update(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * self.scale + self.shift


class Lists(Piece):
    """Parameters in containers that never run."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.rand(WIDTH)) for _ in range(2))
        self.named = nn.ParameterDict({"a": nn.Parameter(torch.rand(WIDTH))})

    def update(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weights[0] + self.weights[1] * self.named["a"]


class Counting(Piece):
    """Buffers written by forward: in place, behind autograd's back, and by reassignment."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("quiet", torch.zeros(2))
        self.register_buffer("step", torch.zeros((), dtype=torch.long), persistent=False)

    def update(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        self.quiet.data.add_(0.5)
        self.step = self.step + 1
        return self.linear(x) * (1 + 0.01 * self.count) + self.quiet.sum() * 0.01 + self.step * 0.001


class Normed(Piece):
    """Batch statistics, which do not move the version counter."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)

    def update(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)


class Attending(Piece):
    """Its output projection is used without being called."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def update(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.attention(x[None], x[None], x[None], need_weights=False)[0]
        return y[0]


class Reading(Piece):
    """Uses another module's weight without calling it."""

    def __init__(self, other: nn.Linear) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.rand(WIDTH))
        self.other = [other]  # in a list: known, but no child

    def update(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.other[0].weight) * self.gate


class Strided(Piece):
    """Parameters that are not laid out plainly."""

    def __init__(self) -> None:
        super().__init__()
        self.turned = nn.Parameter(torch.rand(WIDTH, WIDTH).t())
        self.spread = nn.Parameter(torch.rand(2 * WIDTH)[::2])
        self.wide = nn.Parameter(torch.rand(1).expand(WIDTH), requires_grad=False)
        self.none = nn.Parameter(torch.empty(0, 3))
        self.brief = nn.Parameter(torch.rand(WIDTH).to(torch.bfloat16))

    def update(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.turned.to(x.dtype) + self.spread.to(x.dtype) * self.wide + self.brief.to(x.dtype)


class Group(nn.Module):
    """Children in order; a child may be skipped, and all may run twice."""

    def __init__(self, children: list[nn.Module], number: int, times: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(children)
        self.number = number
        self.times = times

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.times):
            for index, part in enumerate(self.parts):
                if (self.number + index) % 5 not in CONDITIONS.skip:
                    x = part(x)
        return x


class Model(nn.Module):
    """The root: blocks in a list, a sequential tail, parameters of its own, and a second door."""

    def __init__(self, blocks: list[nn.Module], tail: list[nn.Module]) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.rand(WIDTH))
        self.entry = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(blocks)
        self.tail = nn.Sequential(*tail)
        self.head = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("mean", torch.rand(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.entry(x)) + self.position
        for index, block in enumerate(self.blocks):
            if index not in CONDITIONS.skip:
                x = block(x)
        return torch.tanh(self.head(self.tail(x))) - self.mean

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """A door that is not forward: reads a child's weight and the root's own, and calls a block."""
        x = F.linear(x, self.head.weight) + self.position
        return self.blocks[0](torch.tanh(x))
