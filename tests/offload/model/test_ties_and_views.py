"""Memory that several names share stays shared, and moves once; every layout and dtype arrives as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.model import inventory
from diffusers_offload_plus.offload.stores.layout import ALIGNMENT
from tests.support.models import CHOSEN, WIDTH, Block, Language, Pair, Stack, Translator, held, noise, seeded, tokens

pytestmark = [pytest.mark.usefixtures("meter"), pytest.mark.parametrize("policy", CHOSEN)]


def bytes_of_a_pass(pair: Pair, x: torch.Tensor) -> int:
    """What a pass moves once the order is known."""
    with torch.no_grad():
        pair.model(x)
        before = pair.component().transferred_bytes
        pair.model(x)
    return int(pair.component().transferred_bytes - before)


# Ties


def test_one_parameter_in_two_blocks_moves_once_per_use_and_stays_one(policy: str, device: torch.device) -> None:
    model = seeded(Stack)
    tied = model.blocks[1].up.weight = model.blocks[4].up.weight
    pair = Pair(model, device, policy)
    x = noise(device)
    pair.agree(lambda m: m(x))
    assert model.blocks[1].up._parameters["weight"] is model.blocks[4].up._parameters["weight"]
    assert bytes_of_a_pass(pair, x) == pair.component().streamed_bytes + tied.nbytes
    pair.finish()
    assert model.blocks[1].up.weight is tied
    assert model.blocks[4].up.weight is tied


def test_two_names_in_one_layer_move_once(policy: str, device: torch.device) -> None:
    class Twice(Block):
        def __init__(self) -> None:
            super().__init__()
            self.up.register_parameter("again", self.up.weight)

    model = seeded(lambda: Stack(block=Twice))
    pair = Pair(model, device, policy)
    x = noise(device)
    pair.agree(lambda m: m(x))
    assert bytes_of_a_pass(pair, x) == pair.component().streamed_bytes <= pair.size + ALIGNMENT * len(held(model))
    pair.finish()
    assert all(block.up.again is block.up.weight for block in model.blocks)


def test_embedding_and_head_are_tied(policy: str, device: torch.device) -> None:
    model = seeded(Language)
    tied = model.embed.weight
    pair = Pair(model, device, policy)
    pair.agree(lambda m: m(tokens(device)))
    assert bytes_of_a_pass(pair, tokens(device)) == pair.component().streamed_bytes + tied.nbytes
    pair.finish()
    assert model.head.weight is model.embed.weight is tied


def test_embedding_module_shared_by_encoder_and_decoder(policy: str, device: torch.device) -> None:
    model = seeded(Translator)
    pair = Pair(model, device, policy)
    pair.agree(lambda m: m(tokens(device)))
    pair.finish()
    assert model.encoder.embed_tokens is model.decoder.embed_tokens is model.shared


def test_one_block_at_two_places(policy: str, device: torch.device) -> None:
    model = seeded(Stack)
    model.blocks[3] = model.blocks[5] = model.blocks[0]
    pair = Pair(model, device, policy)
    pair.agree(lambda m: m(noise(device)))
    pair.finish()
    assert model.blocks[3] is model.blocks[5] is model.blocks[0]


def test_parameter_of_the_root_is_tied_to_one_of_a_block(policy: str, device: torch.device) -> None:
    class Rooted(Stack):
        def __init__(self) -> None:
            super().__init__()
            self.gain = self.blocks[2].norm.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * self.gain

    model = seeded(Rooted)
    pair = Pair(model, device, policy)
    pair.agree(lambda m: m(noise(device)))
    pair.finish()
    assert model.gain is model.blocks[2].norm.weight


def test_write_to_a_tied_weight_is_seen_by_both(policy: str, device: torch.device) -> None:
    pair = Pair(seeded(Language), device, policy)
    pair.agree(lambda m: m(tokens(device)))
    with torch.no_grad():
        pair.change(lambda m: m.head.weight.mul_(1.5))
    pair.agree(lambda m: m(tokens(device)))
    pair.finish()


# Views


class Views(Stack):
    """Weights of two blocks are rows [0, 40) and [start, start + 40) of one base; a buffer is a row of the second."""

    def __init__(self, start: int) -> None:
        super().__init__()
        base = torch.randn(start + 40, WIDTH) / 6
        self.start = start
        for number in (1, 4):
            self.blocks[number].up = nn.Linear(WIDTH, 40)
            self.blocks[number].down = nn.Linear(40, WIDTH)
        self.blocks[4].register_buffer("row", None)
        self.join(base)

    def join(self, base: torch.Tensor) -> None:
        first, second = self.blocks[1], self.blocks[4]
        first.up.weight = nn.Parameter(base[:40])
        second.up.weight = nn.Parameter(base[self.start :])
        second.row = second.up.weight.data[3]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.blocks[4].row


def joined_twin(model: Views, device: torch.device) -> Views:
    """A copy on the device whose views share memory the way the original's do."""
    plain = copy.deepcopy(model).to(device)
    first, second = model.blocks[1].up.weight.data, model.blocks[4].up.weight.data
    plain.join(torch.cat([first, second[40 - model.start :]] if model.start < 40 else [first, second]).to(device))
    return plain


@pytest.mark.parametrize("start", [40, 16], ids=["adjacent", "overlapping"])
def test_slices_of_one_base_in_two_blocks(policy: str, start: int, device: torch.device) -> None:
    model = seeded(lambda: Views(start))
    pair = Pair(model, device, policy, plain=joined_twin(model, device))
    pair.agree(lambda m: m(noise(device)))
    pair.finish()


def test_write_to_a_slice_is_seen_through_the_overlapping_one(policy: str, device: torch.device) -> None:
    model = seeded(lambda: Views(16))
    pair = Pair(model, device, policy, plain=joined_twin(model, device))
    pair.agree(lambda m: m(noise(device)))
    with torch.no_grad():
        for one in (pair.model, pair.plain):
            one.blocks[1].up.weight.mul_(1.25)
    pair.agree(lambda m: m(noise(device)))
    pair.same_state()
    with torch.no_grad():
        for one in (pair.model, pair.plain):
            one.blocks[4].row.add_(1.0)
    pair.agree(lambda m: m(noise(device)))
    pair.finish()
    model.blocks[4].up.weight.data.fill_(2.0)
    assert model.blocks[1].up.weight[16:].eq(2.0).all()
    assert model.blocks[4].row.eq(2.0).all()


@pytest.mark.parametrize("by_data", [False, True], ids=["in_place", "data"])
def test_root_writes_a_buffer_that_is_a_row_of_a_parameter(policy: str, by_data: bool, device: torch.device) -> None:
    class Writing(Views):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            row = self.blocks[4].row
            (row.data if by_data else row).add_(0.5)
            return super().forward(x)

    model = seeded(lambda: Writing(16))
    pair = Pair(model, device, policy, plain=joined_twin(model, device))
    pair.agree(lambda m: m(noise(device)), passes=3)
    pair.finish()


def test_block_writes_a_buffer_that_is_a_row_of_its_parameter(policy: str, device: torch.device) -> None:
    class Writing(Block):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.randn(3, WIDTH))
            self.register_buffer("row", self.bias.data[1])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.row.data.add_(0.5)
            return super().forward(x) + self.bias[1]

    model = seeded(lambda: Stack(block=Writing))
    plain = copy.deepcopy(model).to(device)
    for block in plain.blocks:
        block.row = block.bias.data[1]
    pair = Pair(model, device, policy, plain=plain)
    pair.agree(lambda m: m(noise(device)), passes=3)
    pair.finish()


# Layouts and dtypes


class Holder(Block):
    """A block that gives out a tensor of any kind, scaled by its input where it holds numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, list[torch.Tensor]] = {}

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        seen = []
        for tensor in (*self._parameters.values(), *self._buffers.values()):
            assert tensor is not None
            assert tensor.device == x.device
            number = tensor.to(torch.complex64 if tensor.is_complex() else torch.float32)
            seen.append(number * x.sum())
        return super().forward(x), *seen


class Holders(nn.Module):
    """Blocks with one more tensor each, as a parameter or as a buffer."""

    def __init__(self, make: Callable[[], torch.Tensor], *, as_buffer: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Holder() for _ in range(6)])
        for block in self.blocks:
            if as_buffer:
                block.register_buffer("odd", make())
            else:
                block.odd = nn.Parameter(made := make(), requires_grad=made.is_floating_point())

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        seen: list[torch.Tensor] = []
        for block in self.blocks:
            x, *more = block(x)
            seen.extend(more)
        return [x, *seen]


TENSORS: dict[str, Callable[[], torch.Tensor]] = {
    "strided": lambda: torch.randn(9, 14)[:, ::2],
    "offset": lambda: torch.randn(40)[3:30],
    "transposed": lambda: torch.randn(7, 9).t(),
    "permuted": lambda: torch.randn(3, 4, 5).permute(2, 0, 1),
    "channels_last": lambda: torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last),
    "channels_last_3d": lambda: torch.randn(2, 3, 3, 2, 2).to(memory_format=torch.channels_last_3d),
    "expanded": lambda: torch.randn(1, 6).expand(5, 6),
    "scalar": lambda: torch.randn(()),
    "empty": lambda: torch.empty(0, 5),
    "complex64": lambda: torch.randn(5, 3, dtype=torch.complex64),
    "bool": lambda: torch.randn(5, 3) > 0,
    "int8": lambda: torch.randint(-128, 128, (5, 3), dtype=torch.int8),
    "int64": lambda: torch.randint(-9, 9, (5, 3)),
    "float64": lambda: torch.randn(5, 3, dtype=torch.float64),
    "float16": lambda: torch.randn(5, 3).to(torch.float16),
    "bfloat16": lambda: torch.randn(5, 3).to(torch.bfloat16),
    "float8_e4m3fn": lambda: torch.randn(5, 3).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_layout_and_dtype_of_a_parameter(policy: str, kind: str, device: torch.device) -> None:
    run_holders(seeded(lambda: Holders(TENSORS[kind], as_buffer=False)), policy, device)


@pytest.mark.parametrize("kind", ["strided", "expanded", "scalar", "empty", "complex64", "bool", "float8_e4m3fn"])
@pytest.mark.parametrize("size", ["carried", "streamed"])
def test_layout_and_dtype_of_a_buffer(
    policy: str, kind: str, size: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if size == "streamed":
        monkeypatch.setattr(inventory, "SMALL_BUFFER_BYTES", -1)
    run_holders(seeded(lambda: Holders(TENSORS[kind], as_buffer=True)), policy, device)


def run_holders(model: nn.Module, policy: str, device: torch.device) -> None:
    layouts = {name: (t.dtype, t.shape, t.stride(), t.requires_grad) for name, t in held(model).items()}
    pair = Pair(model, device, policy)
    pair.agree(lambda m: m(noise(device)))
    assert layouts == {name: (t.dtype, t.shape, t.stride(), t.requires_grad) for name, t in held(model).items()}
    pair.finish()
    assert layouts == {name: (t.dtype, t.shape, t.stride(), t.requires_grad) for name, t in held(model).items()}


def test_one_memory_seen_as_two_dtypes(policy: str, device: torch.device) -> None:
    class Bits(Holder):
        def __init__(self) -> None:
            super().__init__()
            self.odd = nn.Parameter(torch.randn(8, 4))
            self.register_buffer("bits", self.odd.data.view(torch.int32))
            self.register_buffer("halves", self.odd.data.view(torch.int16)[1:, 1:])

    class Seen(Holders):
        def __init__(self) -> None:
            super().__init__(lambda: torch.zeros(1), as_buffer=True)
            self.blocks = nn.ModuleList([Bits() for _ in range(6)])

    model = seeded(Seen)
    pair = Pair(model, device, policy)
    pair.agree(lambda m: m(noise(device)))
    with torch.no_grad():
        model.blocks[2].odd.add_(1.0)
        model.blocks[0].halves.zero_()
    dop.disable_group_offload(model)
    for block in model.blocks:
        assert torch.equal(block.bits, block.odd.data.view(torch.int32))
        assert torch.equal(block.halves, block.odd.data.view(torch.int16)[1:, 1:])
    assert torch.equal(model.blocks[2].odd, pair.plain.blocks[2].odd.detach().cpu() + 1.0)
