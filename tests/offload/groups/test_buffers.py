"""What forward writes to buffers is kept, however it writes, at whatever size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.model import inventory
from tests.support.models import CHOSEN, WIDTH, Block, Pair, Stack, noise, seeded

pytestmark = [pytest.mark.usefixtures("meter"), pytest.mark.parametrize("policy", CHOSEN)]


class InPlace(Block):
    """Sums its inputs up with `+=`."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.total += x.sum(0)
        return super().forward(x) + self.total


class ByData(InPlace):
    """Sums its inputs up behind autograd's back, and that of version counters."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.total.data.add_(x.sum(0))
        return Block.forward(self, x) + self.total


class BySlice(InPlace):
    """A cache, one row for each step."""

    def __init__(self) -> None:
        super().__init__()
        self.total = torch.zeros(WIDTH)
        self.register_buffer("rows", torch.zeros(5, WIDTH))
        self.register_buffer("filled", torch.tensor(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.rows[self.filled.item() % 5].copy_(x[0])
        self.filled.add_(1)
        return Block.forward(self, x) + self.rows.sum(0)


class Reassigned(Block):
    """Puts a new tensor in each buffer's place at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("step", torch.tensor(0))
        self.register_buffer("last", torch.zeros(4, WIDTH), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.step = self.step + 1
        x = super().forward(x) + self.last * self.step
        self.last = x * 0.5
        return x


class Late(Block):
    """Registers a buffer when it first runs, and writes to it from then on."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if "late" in self._buffers:
            self.late += x
        else:
            self.register_buffer("late", x * 0.5)
        return super().forward(x) + self.late


class Cleared(Block):
    """A buffer that is None, then a tensor, then None again."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", None)
        self.register_buffer("never", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.cache is None:
            self.cache = x.clone()
            return super().forward(x)
        x = super().forward(x) + self.cache
        self.cache = None
        return x


class Normed(Block):
    """Running statistics and their counter, in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.statistics = nn.BatchNorm1d(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.statistics.train()
        return self.statistics(super().forward(x))


class Helper(Block):
    """Writes a buffer of a module it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.book = nn.Module()
        self.book.register_buffer("count", torch.zeros(()))
        self.book.register_buffer("seen", torch.zeros(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.book.count += 1
        self.book.seen.data += x[0]
        return super().forward(x) + self.book.count * self.book.seen


WRITERS = {kind.__name__: kind for kind in (InPlace, ByData, BySlice, Reassigned, Late, Cleared, Normed, Helper)}


@pytest.mark.parametrize("size", ["small", "big"])
@pytest.mark.parametrize("writer", WRITERS)
def test_writes_of_forward_are_kept(
    policy: str, writer: str, size: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if size == "big":
        monkeypatch.setattr(inventory, "SMALL_BUFFER_BYTES", -1)
    pair = Pair(seeded(lambda: Stack(block=WRITERS[writer])), device, policy)
    pair.agree(lambda m: m(noise(device)), passes=3)
    pair.same_state()
    pair.agree(lambda m: m(noise(device)), passes=2)
    pair.finish(tidy=writer != "Reassigned")


@pytest.mark.parametrize("size", ["small", "big"])
def test_statistics_of_training_with_gradients(
    policy: str, size: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if size == "big":
        monkeypatch.setattr(inventory, "SMALL_BUFFER_BYTES", -1)
    pair = Pair(seeded(lambda: Stack(block=Normed)), device, policy)
    pair.model.train()
    pair.plain.train()
    pair.agree(lambda m: m(noise(device)), passes=2, grad=True)
    pair.finish()


def test_big_buffers_leave_the_device(policy: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    class Table(Block):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.randn(256, WIDTH))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + self.table[:4]

    monkeypatch.setattr(inventory, "SMALL_BUFFER_BYTES", 4096)
    pair = Pair(seeded(lambda: Stack(block=Table)), device, policy)
    pair.agree(lambda m: m(noise(device)))
    assert pair.component().resident_bytes == 0
    assert all(buffer.device.type == "cpu" for buffer in pair.model.buffers())
    pair.finish()


@pytest.mark.parametrize("size", ["small", "big"])
def test_user_edits_a_buffer_between_passes(
    policy: str, size: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if size == "big":
        monkeypatch.setattr(inventory, "SMALL_BUFFER_BYTES", -1)
    pair = Pair(seeded(lambda: Stack(block=InPlace)), device, policy)
    pair.agree(lambda m: m(noise(device)))
    for edit in (
        lambda b: b.total.zero_(),
        lambda b: b.total.data.add_(1.0),
        lambda b: setattr(b.total, "data", torch.full_like(b.total, 2.0)),
        lambda b: setattr(b, "total", torch.full_like(b.total, 3.0)),
    ):
        for model in (pair.model, pair.plain):
            edit(model.blocks[2])
        pair.agree(lambda m: m(noise(device)))
        pair.same_state()
    pair.finish()


@pytest.mark.parametrize("size", ["small", "big"])
def test_buffer_without_gradient_tracking_written_in_inference_mode(
    policy: str, size: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if size == "big":
        monkeypatch.setattr(inventory, "SMALL_BUFFER_BYTES", -1)
    pair = Pair(seeded(lambda: Stack(block=ByData)), device, policy)
    for _ in range(3):
        with torch.inference_mode():
            want, got = pair.plain(noise(device)), pair.model(noise(device))
        assert torch.equal(got, want)
    pair.finish()


@pytest.mark.parametrize("size", ["small", "big"])
def test_buffer_replaced_within_onloaded(
    policy: str, size: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if size == "big":
        monkeypatch.setattr(inventory, "SMALL_BUFFER_BYTES", -1)
    pair = Pair(seeded(lambda: Stack(block=InPlace)), device, policy)
    pair.agree(lambda m: m(noise(device)))
    with dop.onloaded(pair.model):
        for model in (pair.model, pair.plain):
            model.blocks[0].total.data.add_(1.0)
            model.blocks[1].total = model.blocks[1].total * 2
            model.blocks[2].total.data = torch.ones(WIDTH, device=device)
    pair.same_state()
    pair.agree(lambda m: m(noise(device)))
    pair.finish(saves=False)


def test_buffer_registered_by_one_pass_is_in_the_next_state_dict(policy: str, device: torch.device) -> None:
    pair = Pair(seeded(lambda: Stack(block=Late)), device, policy)
    assert "blocks.0.late" not in pair.model.state_dict()
    pair.agree(lambda m: m(noise(device)), passes=1)
    assert torch.equal(pair.model.state_dict()["blocks.0.late"].cpu(), pair.plain.blocks[0].late.cpu())
    pair.finish()
