"""Tests of tensors on the simulated accelerator: storages, serialization, and operators bit-equal to the CPU."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.simulated import DEVICE, stats

from .stream_programs import N, Streams

# Tensors and storages


DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int64,
    torch.uint16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_move_and_convert(dtype: torch.dtype) -> None:
    values = (torch.randn(8) * 3).abs().to(dtype)
    moved = values.to("sim")
    assert bits(moved.cpu()) == bits(values)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    assert torch.equal(moved.to(wide).cpu(), values.to(wide))
    view = torch.empty(0, dtype=dtype, device="sim").set_(moved.untyped_storage(), 2, (3,), (1,))
    assert bits(view.cpu()) == bits(values[2:5])
    assert view.data_ptr() == moved.data_ptr() + 2 * dtype.itemsize


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.clone().untyped_storage())


def test_a_storage_slice_keeps_its_block_alive() -> None:
    before = stats().live
    x = torch.arange(16.0).to("sim")
    part = x.untyped_storage()[16:48]
    del x
    assert stats().live == before + 64
    view = torch.empty(0, device="sim").set_(part, 0, (8,), (1,))
    del part
    assert view.tolist() == list(range(4, 12))
    del view
    assert stats().live == before


def test_storages_resize_and_tensors_are_set() -> None:
    before = stats().live
    x = torch.ones(4, device="sim:1")
    x.untyped_storage().resize_(0)
    assert stats().live == before
    x.untyped_storage().resize_(16)
    assert x.fill_(2).device.index == 1
    x.resize_(8)
    assert x[:4].tolist() == [2] * 4
    assert x.set_(torch.zeros(3, device="sim:1")).tolist() == [0] * 3
    assert x.set_().numel() == 0


def test_parameter_data_crosses_devices() -> None:
    parameter = nn.Parameter(torch.ones(3))
    host = parameter.data
    parameter.data = host.to("sim")
    assert parameter.device == DEVICE
    parameter.data = host
    assert parameter.device.type == "cpu"


@pytest.mark.parametrize("device", ["sim:0", "sim:1"])
def test_save_load_pickle_and_deepcopy(device: str) -> None:
    linear = nn.Linear(4, 3).to(device)
    file = io.BytesIO()
    torch.save(linear.state_dict(), file)
    for target in (None, "cpu", "sim:0", "sim:1"):
        file.seek(0)
        loaded = torch.load(file, map_location=target)["weight"]
        assert loaded.device == torch.device(target or device)
        assert torch.equal(loaded.cpu(), linear.weight.cpu())
    copied = copy.deepcopy(linear)
    assert copied.weight.device == torch.device(device)
    assert copied.weight.data_ptr() != linear.weight.data_ptr()
    assert torch.equal(copied.weight, linear.weight)
    piece = torch.arange(10, device=device)[2:5]
    for twin in (copy.deepcopy(piece), pickle.loads(pickle.dumps(piece))):
        assert twin.device == torch.device(device)
        assert twin.tolist() == [2, 3, 4]


def test_materialize_on_the_device() -> None:
    assert nn.Linear(2, 2, device="meta").to_empty(device="sim").weight.isnan().all()


def test_optimizer_and_foreach() -> None:
    linear = nn.Linear(2, 2).to("sim")
    for parameter in linear.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.AdamW(linear.parameters())
    before = linear.weight.detach().clone()
    optimizer.step()
    optimizer.step()
    assert (linear.weight < before).all()


# Operators give the bits of the CPU


def tensors(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def attention(**options: object) -> Callable[..., Tensor]:
    return lambda query, key, value: F.scaled_dot_product_attention(query, key, value, **options)


def masked_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    mask = torch.ones(6, 6, dtype=torch.bool, device=query.device).tril()
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def channels_last_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x.contiguous(memory_format=torch.channels_last), weight, bias, padding=1)


def rotary(x: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    angles = torch.polar(torch.ones(4, device=x.device), torch.arange(4.0, device=x.device))
    return torch.view_as_real(pairs * angles).flatten(-2)


HEADS = (1, 2, 6, 8)
OPERATORS: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "linear": (F.linear, ((2, 5, 8), (16, 8), (16,))),
    "linear without bias": (F.linear, ((5, 8), (16, 8))),
    "conv1d in groups": (lambda x, w: F.conv1d(x, w, groups=2), ((1, 4, 9), (4, 2, 3))),
    "conv2d": (lambda x, w, b: F.conv2d(x, w, b, padding=1), ((2, 4, 8, 8), (6, 4, 3, 3), (6,))),
    "conv2d channels last": (channels_last_convolution, ((2, 4, 8, 8), (6, 4, 3, 3), (6,))),
    "conv_transpose2d": (F.conv_transpose2d, ((2, 4, 8, 8), (4, 6, 3, 3))),
    "conv3d": (F.conv3d, ((1, 2, 4, 4, 4), (3, 2, 2, 2, 2), (3,))),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, (8,), w, b), ((2, 5, 8), (8,), (8,))),
    "layer_norm without weights": (lambda x: F.layer_norm(x, (8,)), ((2, 5, 8),)),
    "group_norm": (lambda x, w, b: F.group_norm(x, 2, w, b), ((2, 4, 5, 5), (4,), (4,))),
    "batch_norm": (lambda x, w, b: F.batch_norm(x, None, None, w, b, True), ((2, 4, 5, 5), (4,), (4,))),
    "rms_norm": (lambda x, w: F.rms_norm(x, (8,), w), ((2, 5, 8), (8,))),
    "embedding": (lambda w: F.embedding(torch.arange(4, device=w.device), w), ((8, 3),)),
    "attention": (attention(), (HEADS,) * 3),
    "attention causal": (attention(is_causal=True), (HEADS,) * 3),
    "attention masked": (masked_attention, (HEADS,) * 3),
    "attention grouped": (attention(enable_gqa=True), (HEADS, (1, 1, 6, 8), (1, 1, 6, 8))),
    "rotary embedding": (rotary, ((2, 8),)),
    "gelu": (F.gelu, ((3, 40),)),
    "gelu tanh": (lambda x: F.gelu(x, approximate="tanh"), ((3, 40),)),
    "silu": (F.silu, ((3, 40),)),
    "mish": (F.mish, ((3, 40),)),
    "softmax": (lambda x: x.softmax(-1), ((3, 40),)),
    "dropout": (F.dropout, ((100,),)),
    "interpolate": (lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"), ((1, 2, 4, 4),)),
    "interpolate nearest": (lambda x: F.interpolate(x, scale_factor=2.0), ((1, 2, 4, 4),)),
    "reflect": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), ((1, 2, 4, 4),)),
    "einsum": (lambda a, b: torch.einsum("bij,bjk->bik", a, b), ((2, 3, 4), (2, 4, 5))),
    "fft": (lambda x: torch.fft.ifft(torch.fft.fft(x).conj()).real, ((2, 8),)),
    "index": (lambda x: x[torch.tensor([0, 2])], ((4, 3),)),
    "stack and where": (lambda x: torch.stack([x, torch.where(x > 0, x, 0.0)]).cumsum(0).sort()[0], ((9,),)),
    "inverse": (lambda x: torch.linalg.inv(x @ x.mT + torch.eye(4, device=x.device)), ((4, 4),)),
    "matrix_exp": (torch.linalg.matrix_exp, ((4, 4),)),
    "vector_norm": (torch.linalg.vector_norm, ((40,),)),
    "lerp and addcmul": (lambda x, y: torch.addcmul(torch.lerp(x, y, 0.3), x, y), ((9,), (9,))),
    "in place on a view": (lambda x: x.clone()[:, 1:3].mul_(2), ((4, 4),)),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_forward_and_backward_are_bit_equal_to_the_cpu(name: str) -> None:
    operator, shapes = OPERATORS[name]
    results = []
    for device in ("cpu", "sim"):
        inputs = [tensor.to(device).requires_grad_() for tensor in tensors(*shapes)]
        torch.manual_seed(0)
        output = operator(*inputs)
        output.square().sum().backward()
        results.append([output.detach(), *(x.grad for x in inputs)])
    for expected, actual in zip(*results, strict=True):
        assert actual.device == DEVICE
        assert torch.equal(actual.cpu(), expected)
        assert actual.stride() == expected.stride()
    assert stats().races == 0


@pytest.mark.parametrize("offset", [0, 1, 2, 3, 5])
def test_bits_do_not_depend_on_where_a_weight_lies_in_its_slab(offset: int) -> None:
    x, weight = tensors((1, 33), (17, 33))  # one row: the CPU's kernel for it rounds by alignment
    slab = torch.empty(1000, device="sim")
    placed = slab[offset : offset + weight.numel()].view_as(weight)
    placed.copy_(weight)
    assert torch.equal(F.linear(x.to("sim"), placed).cpu(), F.linear(x, weight))


def test_results_into_given_tensors() -> None:
    x = torch.arange(4.0, device="sim")
    out = torch.empty(0, device="sim")
    assert torch.add(x, 1, out=out) is out
    assert out.tolist() == [1, 2, 3, 4]
    x[x > 1] = 9
    x[torch.tensor([0])] = 7
    assert x.tolist() == [7, 1, 9, 9]


def test_lazy_conjugates_are_copied_right() -> None:
    x = torch.tensor([1 + 2j, 3 - 1j], device="sim")
    assert x.conj().tolist() == [1 - 2j, 3 + 1j]
    assert x.conj().clone().tolist() == [1 - 2j, 3 + 1j]


def test_a_module_trains() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.Linear(16, 2)).to("sim")
    module(torch.randn(2, 3, 4, 4, device="sim")).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in module.parameters())


def test_inference_mode() -> None:
    s = Streams()
    with torch.inference_mode():
        x = torch.empty(N, device="sim")
        s.a.wait_stream(s.main)
        s.upload(s.a, x)
    s.main.wait_stream(s.a)
    with torch.inference_mode():
        assert x.sum().item() == N


def test_autocast() -> None:
    x = torch.ones(2, 2, device="sim")
    with torch.autocast("sim", dtype=torch.bfloat16):
        assert F.linear(x, x).dtype == torch.bfloat16
        assert F.linear(x, x).exp().dtype == torch.float32


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile(backend: str) -> None:
    torch._dynamo.reset()
    module = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 4)).to("sim")
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    x = torch.randn(2, 8, device="sim")
    with torch.no_grad():
        assert torch.equal(compiled(x), module(x))
    compiled(x).sum().backward()
    assert module[0].weight.grad is not None
    attend = torch.compile(lambda q: F.scaled_dot_product_attention(q, q, q), backend=backend, fullgraph=True)
    query = torch.randn(HEADS, device="sim")
    assert torch.equal(attend(query), F.scaled_dot_product_attention(query, query, query))


# Random numbers


def test_generators_give_the_numbers_of_the_cpu() -> None:
    expected = torch.randn(8, generator=torch.Generator().manual_seed(3))
    own = torch.Generator(device="sim").manual_seed(3)
    assert own.device.type == "sim"
    assert own.initial_seed() == 3
    state = own.get_state()
    assert torch.equal(torch.randn(8, generator=own, device="sim").cpu(), expected)
    own.set_state(state)
    assert torch.equal(torch.randn(8, generator=own, device="sim").cpu(), expected)
    of_cpu = torch.Generator().manual_seed(3)
    assert torch.equal(torch.randn(8, generator=of_cpu, device="sim").cpu(), expected)


def test_the_default_generator_is_the_devices_own() -> None:
    torch.manual_seed(5)
    on_device = torch.randn(4, device="sim")
    assert torch.equal(torch.randn(4), on_device.cpu())
    state = torch.sim.get_rng_state()
    first = torch.rand(2, device="sim")
    torch.sim.set_rng_state(state)
    assert torch.equal(torch.rand(2, device="sim"), first)
    with torch.random.fork_rng(devices=[0], device_type="sim"):
        torch.rand(2, device="sim")
    assert not math.isnan(torch.rand((), device="sim").item())
