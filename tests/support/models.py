"""Small models for scenarios, and an offloaded model beside its un-offloaded twin."""

from __future__ import annotations

import contextlib
import copy
import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.stores.layout import ALIGNMENT
from tests.support.policies import settings, soaked
from tests.zoo.case import tensors_in
from tests.zoo.models import MODELS

CHOSEN = (
    *("block", "block-2-stream", "leaf-stream", "disk-block-stream-budget"),
    *soaked("leaf-lean", "shared-leaf-stream", "disk-leaf-stream"),
)
"""The policies of scenarios: both levels, with and without streams, several blocks a group, disk; with `make soak` two
staging buffers and memory shared with other processes as well, which the twin test has always."""

BUDGETED = (*CHOSEN, "half", *soaked("auto"))
"""Those, and budgets of device memory, under which weights stay on the device between passes."""

WIDTH = 32

# The meter collects garbage around each test: what the imports made (lazily, so far) need not be walked each time.
IMPORTED = (dop.enable_group_offload, dop.disable_group_offload, dop.onloaded, dop.offload_report, MODELS)
gc.collect()
gc.freeze()

Call = Callable[[nn.Module], Any]


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A model in eval mode, drawn from `seed`; vectors, which start at zeros or ones, are drawn too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1 and parameter.dtype == torch.float32 and parameter.is_contiguous():
                    parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def noise(device: torch.device | str, *shape: int, seed: int = 7) -> torch.Tensor:
    """Standard normal numbers, the same on every device; (4, WIDTH) of them unless told."""
    numbers = torch.randn(shape or (4, WIDTH), generator=torch.Generator().manual_seed(seed), device="cpu")
    return numbers.to(device)


def nbytes(model: nn.Module) -> int:
    """Device bytes of all parameters and buffers, each where a kernel expects it to begin."""
    sizes = (t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    return sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)


def held(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer, also those that no state dict has, under each of its names."""
    found: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    return found | dict(model.named_buffers(remove_duplicate=False))


def attributes(model: nn.Module) -> dict[str, list[str]]:
    """The instance attributes of each module."""
    return {name: sorted(vars(module)) for name, module in model.named_modules(remove_duplicate=False)}


def assert_same(got: Any, want: Any, where: str = "") -> None:
    """Outputs are bit-equal, tensor by tensor, and there is at least one."""
    mine, theirs = list(tensors_in(got)), list(tensors_in(want))
    assert mine, "no tensor in the output"
    assert len(mine) == len(theirs)
    for number, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        assert a.dtype == b.dtype
        assert torch.equal(a.cpu(), b.cpu()), f"tensor {number} differs {where}"


def assert_plain(model: nn.Module) -> None:
    """Nothing of the package is left on the model."""
    for name, module in model.named_modules():
        assert type(module._parameters) is dict, name
        assert type(module._buffers) is dict, name
        assert not {"_diffusers_hook", "__reduce_ex__", "forward"} & set(vars(module)), name


class Pair:
    """An offloaded `model` beside `plain`, an un-offloaded deep copy of it on the same device."""

    def __init__(self, model: nn.Module, device: torch.device, policy: str, plain: nn.Module | None = None) -> None:
        self.device = device
        self.reference = copy.deepcopy(model)
        self.plain = (copy.deepcopy(model) if plain is None else plain).to(device)
        self.size = nbytes(model)
        self.model = model
        self._attributes = attributes(model)
        chosen = settings(policy, model, device)
        self.measured = chosen.get("vram_budget") == "auto"
        self.limit: int | None = None if self.measured else chosen.get("vram_budget")
        dop.enable_group_offload(model, device, **chosen)

    def agree(self, call: Call, passes: int = 2, *, grad: bool = False) -> None:
        """Both give the same outputs; the second pass is one that prefetches."""
        for number in range(passes):
            with torch.set_grad_enabled(grad):
                want = call(self.plain)
                got = call(self.model)
            assert_same(got, want, f"in pass {number}")

    def change(self, what: Callable[[nn.Module], object]) -> None:
        """The user does something to the weights; the twin is a copy of a host model to which the same was done."""
        what(self.model)
        what(self.reference)
        self.plain = copy.deepcopy(self.reference).to(self.device)

    def same_state(self, *, on_host: bool = False) -> None:
        """Every parameter and buffer, and the state dict, are the twin's."""
        for mine, theirs in ((held(self.model), held(self.plain)), (self.model.state_dict(), self.plain.state_dict())):
            assert mine.keys() == theirs.keys()
            for name, tensor in mine.items():
                assert tensor.dtype == theirs[name].dtype, name
                assert torch.equal(tensor.cpu(), theirs[name].cpu()), name
                assert not on_host or tensor.device.type == "cpu", name

    def component(self) -> Any:
        """The report on the model."""
        return dop.offload_report(self.model).components[0]

    def finish(self, *, saves: bool = True, tidy: bool = True) -> None:
        """Weights moved and most did not stay, nothing was lost, and disabling leaves no trace."""
        report = self.component()
        assert report.transferred_bytes > 0
        if self.limit is not None:
            assert report.peak_device_bytes <= self.limit
        if saves and not self.measured and (self.limit is None or self.limit < self.size):
            assert report.peak_device_bytes < self.size
        self.same_state()
        dop.disable_group_offload(self.model)
        self.same_state(on_host=True)
        assert_plain(self.model)
        if tidy:
            assert attributes(self.model) == self._attributes


class Block(nn.Module):
    """Norm, two layers, a residual."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Stack(nn.Module):
    """A layer, blocks, a layer."""

    def __init__(self, depth: int = 6, block: Callable[[], nn.Module] = Block) -> None:
        super().__init__()
        self.inlet = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList([block() for _ in range(depth)])
        self.outlet = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inlet(x)
        for block in self.blocks:
            x = block(x)
        return self.outlet(x)


class Steps(Stack):
    """Runs the blocks it is told to, in that order."""

    def forward(self, x: torch.Tensor, order: tuple[int, ...] = (0, 1, 2, 3, 4, 5)) -> torch.Tensor:  # type: ignore[override]
        x = self.inlet(x)
        for number in order:
            x = self.blocks[number](x)
        return self.outlet(x)


class Coder(nn.Module):
    """Has doors beside `forward`, and parameters of the root that `encode` reads."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(WIDTH))
        self.encoder = Stack(depth)
        self.decoder = Stack(depth)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder(x) * self.scale

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        # The encoder's last layer is used, and never called.
        return F.linear(self.decoder(z), self.encoder.outlet.weight, self.encoder.outlet.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decode(self.encode(x))


class Language(nn.Module):
    """Token embedding, blocks, and a head that has the embedding's weight."""

    def __init__(self, words: int = 48, depth: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, WIDTH)
        self.blocks = nn.ModuleList([Block() for _ in range(depth)])
        self.head = nn.Linear(WIDTH, words, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Side(nn.Module):
    """One half of an encoder and decoder that share a token embedding."""

    def __init__(self, embed_tokens: nn.Embedding, depth: int) -> None:
        super().__init__()
        self.embed_tokens = embed_tokens
        self.block = nn.ModuleList([Block() for _ in range(depth)])

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(tokens)
        for block in self.block:
            x = block(x)
        return x


class Translator(nn.Module):
    """Encoder and decoder that share one embedding module, the way T5 does."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.shared = nn.Embedding(48, WIDTH)
        self.encoder = Side(self.shared, depth)
        self.decoder = Side(self.shared, depth)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return F.linear(self.encoder(tokens) * self.decoder(tokens.flip(0)), self.shared.weight)


def tokens(device: torch.device, words: int = 48) -> torch.Tensor:
    """Twelve token numbers."""
    return torch.randint(0, words, (12,), generator=torch.Generator().manual_seed(3)).to(device)


@contextlib.contextmanager
def fused_cells(device: torch.device) -> Iterator[None]:
    """Recurrent layers on the simulated accelerator, whose fused cells have no CPU kernel to stand in."""
    if device.type != "sim":
        yield
        return

    def lstm(x: torch.Tensor, h: torch.Tensor, c: torch.Tensor, *bias: torch.Tensor) -> tuple[torch.Tensor, ...]:
        gates = x + h + sum(bias)
        i, f, g, o = gates.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c, gates

    def gru(x: torch.Tensor, h: torch.Tensor, hx: torch.Tensor, *bias: torch.Tensor) -> tuple[torch.Tensor, ...]:
        xb, hb = bias
        (xr, xz, xn), (hr, hz, hn) = (x + xb).chunk(3, 1), (h + hb).chunk(3, 1)
        z = (xz + hz).sigmoid()
        n = (xn + (xr + hr).sigmoid() * hn).tanh()
        return (1 - z) * n + z * hx, x

    library = torch.library.Library("aten", "IMPL")
    library.impl("_thnn_fused_lstm_cell", lstm, "PrivateUse1")
    library.impl("_thnn_fused_gru_cell", gru, "PrivateUse1")
    yield
    library._destroy()
