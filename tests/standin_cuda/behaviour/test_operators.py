"""Operators are the CPU's, bit for bit where PyTorch gives both the same kernel to run, and as late as copies."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.standin_cuda import reset_stats, settings, stats


def made(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


X, W, B = made(2, 4, 8, 16), made(16), made(16, seed=1)
Q, K, V = (made(2, 4, 8, 16, seed=seed) for seed in range(3))

DIFFERENTIATED: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
    "linear": (F.linear, [X, made(5, 16), made(5)]),
    "layer norm": (lambda x, w, b: F.layer_norm(x, (16,), w, b), [X, W, B]),
    "rms norm": (lambda x, w: F.rms_norm(x, (16,), w), [X, W]),
    "rms norm over two": (lambda x, w: F.rms_norm(x, (8, 16), w), [X, made(8, 16)]),
    "group norm": (lambda x, w, b: F.group_norm(x, 2, w, b), [X, made(4), made(4, seed=1)]),
    "batch norm": (lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), [X, made(4), made(4, seed=1)]),
    "convolution": (F.conv2d, [X, made(3, 4, 3, 3), made(3)]),
    "transposed convolution": (F.conv_transpose2d, [X, made(4, 3, 3, 3), made(3)]),
    "gelu": (lambda x: F.gelu(x, approximate="tanh"), [X]),
    "silu": (F.silu, [X]),
    "softmax": (lambda x: x.softmax(-1), [X]),
    "matrices": (torch.matmul, [X, made(16, 3)]),
    "upsampling": (lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"), [X]),
    "embedding": (lambda w: F.embedding(torch.tensor([1, 3, 1], device=w.device), w), [made(5, 4)]),
    "attention": (F.scaled_dot_product_attention, [Q, K, V]),
    "causal attention": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), [Q, K, V]),
    "attention with a scale": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3), [Q, K, V]),
    "flash attention": (
        lambda q, k, v: F.scaled_dot_product_attention(q.bfloat16(), k.bfloat16(), v.bfloat16()).float(),
        [Q, K, V],
    ),
}
CLOSE: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
    "attention with a mask": (lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m), [Q, K, V, made(8, 8)]),
    "attention with fewer heads": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k[:, :2], v[:, :2], enable_gqa=True),
        [Q, K, V],
    ),
    "attention with wider values": (F.scaled_dot_product_attention, [Q, K, made(2, 4, 8, 24)]),
}
ROUNDED = {"rms norm", "rms norm over two"}  # backward: PyTorch has no kernel for the CPU to compare with


def values_and_gradients(run: Callable[..., Tensor], inputs: list[Tensor], device: str) -> list[Tensor]:
    leaves = [value.detach().clone().to(device).requires_grad_() for value in inputs]
    result = run(*leaves)
    gradients = torch.autograd.grad(result, leaves, made(*result.shape, seed=9).to(device))
    return [value.detach().cpu() for value in (result, *gradients)]


@pytest.mark.parametrize("seed", [-1, 1, 2, 3])
@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_results_and_gradients_are_those_of_the_cpu(name: str, seed: int) -> None:
    run, inputs = DIFFERENTIATED[name]
    with settings(seed=seed):
        found = values_and_gradients(run, inputs, "cuda")
    for ours, cpu in zip(found, values_and_gradients(run, inputs, "cpu"), strict=True):
        torch.testing.assert_close(ours, cpu, rtol=1e-5, atol=1e-5)
        assert name in ROUNDED or torch.equal(ours, cpu)


@pytest.mark.parametrize("name", CLOSE)
def test_results_and_gradients_are_close_to_those_of_the_cpu(name: str) -> None:
    run, inputs = CLOSE[name]
    found = values_and_gradients(run, inputs, "cuda")
    for ours, cpu in zip(found, values_and_gradients(run, inputs, "cpu"), strict=True):
        torch.testing.assert_close(ours, cpu, rtol=1e-5, atol=1e-5)


def test_none_of_these_has_to_run_at_once() -> None:
    reset_stats()
    for run, inputs in (*DIFFERENTIATED.values(), *CLOSE.values()):
        values_and_gradients(run, inputs, "cuda")
    assert stats().kernels > 50
    assert stats().immediate_kernels == 0


@pytest.mark.parametrize("run", [torch.nonzero, torch.unique, lambda x: x[x > 0], lambda x: torch.equal(x, x)])
def test_what_only_the_result_tells_the_shape_of_runs_at_once(run: Callable[[Tensor], object]) -> None:
    value = X.cuda()
    reset_stats()
    found, cpu = run(value), run(X)
    assert stats().immediate_kernels == 1
    assert torch.equal(found.cpu(), cpu) if isinstance(found, Tensor) else found == cpu


LAYERS = {
    "lstm": lambda: nn.LSTM(6, 5, 2, bidirectional=True),
    "lstm, batch first": lambda: nn.LSTM(6, 5, batch_first=True),
    "lstm with a projection": lambda: nn.LSTM(6, 5, proj_size=3),
    "lstm without biases": lambda: nn.LSTM(6, 5, bias=False),
    "lstm with dropout": lambda: nn.LSTM(6, 5, 2, dropout=0.5).eval(),
    "gru": lambda: nn.GRU(6, 5, 2, bidirectional=True),
    "rnn": lambda: nn.RNN(6, 5, nonlinearity="relu"),
}


def of_a_layer(make: Callable[[], nn.Module], device: str, *, packed: bool) -> list[Tensor]:
    """Its output, and the gradients of its input and weights, for a batch of three sequences of four."""
    torch.manual_seed(0)
    layer = make().to(device)
    value = made(4, 3, 6).to(device).requires_grad_()
    given = nn.utils.rnn.pack_padded_sequence(value, torch.tensor([4, 3, 2])) if packed else value
    output = layer(given)[0]
    output = output.data if packed else output
    output.sum().backward()
    return [output.detach().cpu(), value.grad.cpu(), *(p.grad.cpu() for p in layer.parameters())]


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("cudnn", [True, False], ids=["cudnn", "cells"])
@pytest.mark.parametrize("name", LAYERS)
def test_recurrent_layers(name: str, cudnn: bool, packed: bool) -> None:
    packed = packed and "batch first" not in name
    with torch.backends.cudnn.flags(enabled=cudnn):
        found = of_a_layer(LAYERS[name], "cuda", packed=packed)
    for ours, cpu in zip(found, of_a_layer(LAYERS[name], "cpu", packed=packed), strict=True):
        torch.testing.assert_close(ours, cpu, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_recurrent_cells(cell: type[nn.Module]) -> None:
    torch.manual_seed(0)
    weights = cell(6, 5).state_dict()

    def gradients(device: str) -> list[Tensor]:
        layer = cell(6, 5).to(device)
        layer.load_state_dict(weights)
        value = made(3, 6).to(device).requires_grad_()
        found = layer(value)
        torch.stack(found if isinstance(found, tuple) else (found,)).sum().backward()
        return [value.grad.cpu(), *(p.grad.cpu() for p in layer.parameters())]

    for ours, cpu in zip(gradients("cuda"), gradients("cpu"), strict=True):
        torch.testing.assert_close(ours, cpu, rtol=1e-5, atol=1e-5)


def test_generators_draw_the_same_numbers_from_the_same_state() -> None:
    generator = torch.Generator("cuda").manual_seed(5)
    draws = [torch.randn(8, device="cuda", generator=generator) for _ in range(2)]
    state = generator.get_state()
    third = torch.rand(8, device="cuda", generator=generator)
    assert not torch.equal(*draws)
    generator.set_state(state)
    assert torch.equal(third, torch.rand(8, device="cuda", generator=generator))
    generator.manual_seed(5)
    assert torch.equal(draws[0], torch.randn(8, device="cuda", generator=generator))


def test_the_numbers_are_those_of_the_call_however_late_they_are_drawn() -> None:
    def draw(seed: int) -> list[list[float]]:
        with settings(seed=seed):
            torch.manual_seed(3)
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                first = torch.randn(4, device="cuda")
            second = F.dropout(torch.ones(4, device="cuda"))
            host = torch.rand(4)
            torch.cuda.synchronize()
            return [first.tolist(), second.tolist(), host.tolist()]

    first = draw(-1)
    assert all(draw(seed) == first for seed in range(20))


def test_a_tensor_that_is_expanded_is_read_but_not_written() -> None:
    narrow = torch.arange(3.0, device="cuda").view(3, 1)
    wide = narrow.expand(3, 4)
    assert torch.equal((wide + 1).cpu(), (narrow.cpu() + 1).expand(3, 4))
    with pytest.raises(RuntimeError, match="more than one element"):
        wide.add_(1)
    wide.narrow(1, 0, 1).mul_(2)
    assert wide.tolist() == [[0.0] * 4, [2.0] * 4, [4.0] * 4]


def test_results_go_into_tensors_that_are_given() -> None:
    value = X.cuda()
    empty, fitting = torch.empty(0, device="cuda"), torch.empty(8, 16, 4, 2, device="cuda").permute(3, 2, 0, 1)
    for out in (empty, fitting):
        torch.mul(value, 2, out=out)
        assert torch.equal(out.cpu(), X * 2)
    shifted = torch.zeros(X.numel() + 3, device="cuda")[3:].view(X.shape)  # where the CPU takes other kernels
    shifted.copy_(value).div_(3).add_(value, alpha=2)
    assert torch.equal(shifted.cpu(), X / 3 + X * 2)


def test_lists_of_tensors() -> None:
    values = [made(3).cuda(), made(4).cuda()]
    torch._foreach_mul_(values, 2)
    torch._foreach_copy_(values, [v * 3 for v in values])
    assert torch.equal(values[1].cpu(), made(4) * 2 * 3)
    weights = [nn.Parameter(made(3, 3).cuda())]
    optimizer = torch.optim.AdamW(weights, fused=True)
    weights[0].grad = torch.ones(3, 3, device="cuda")
    optimizer.step()
    assert not torch.equal(weights[0].detach().cpu(), made(3, 3))
