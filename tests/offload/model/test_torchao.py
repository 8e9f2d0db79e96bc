"""TorchAO weights: every kind under every policy, and what group offloading needs of such tensors, point by point."""

from __future__ import annotations

import copy
import functools
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.hooks.attachment import attachment_of
from diffusers_offload_plus.offload.model.tensors import is_wrapper, map_plain, plain_tensors, repoint, same_bits
from tests.support.meter import Meter, meter_for
from tests.support.models import assert_plain, assert_same, attributes
from tests.support.policies import EVERY, settings
from tests.zoo.denoisers import flux
from tests.zoo.models import MODELS
from tests.zoo.quantized import QUANTISERS, quantised_parameters

every_kind = pytest.mark.parametrize("kind", QUANTISERS)


def built(name: str) -> nn.Module:
    """A plain model; Flux with four blocks only, as its quantised kernels are slow on the CPU."""
    return flux(num_layers=2, num_single_layers=2) if name == "flux" else MODELS[name].build()


@functools.cache
def quantised(name: str, kind: str) -> nn.Module:
    return QUANTISERS[kind](built(name))


@functools.cache
def expected(name: str, kind: str, device: torch.device) -> list[torch.Tensor]:
    return MODELS[name].run(copy.deepcopy(quantised(name, kind)).to(device), "forward", device)


@functools.cache
def traffic_without_offloading(name: str, kind: str, device: torch.device) -> int:
    """Bytes that go to the host when nothing is offloaded: the output, and what a kind computes there."""
    model, meter = copy.deepcopy(quantised(name, kind)).to(device), meter_for(device)
    before = meter.d2h
    MODELS[name].run(model, "forward", device)
    return meter.d2h - before


def a_weight(kind: str) -> tuple[nn.Module, Any]:
    """A quantised Flux and one of its quantised weights."""
    model = copy.deepcopy(quantised("flux", kind))
    return model, model.transformer_blocks[1].attn.to_q.weight


def inner(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    return dict(plain_tensors(tensor))


@pytest.mark.parametrize("policy", EVERY)
@every_kind
@pytest.mark.parametrize("name", ["flux", "t5"])
def test_every_kind_under_every_policy(name: str, kind: str, policy: str, device: torch.device, meter: Meter) -> None:
    want, allowed = expected(name, kind, device), traffic_without_offloading(name, kind, device)
    model = copy.deepcopy(quantised(name, kind))
    weights = quantised_parameters(model)
    assert weights
    ids = {key: id(p) for key, p in model.named_parameters()}
    before = attributes(model)
    meter.reset()
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    for _ in range(2):
        travelled = meter.d2h
        got = MODELS[name].run(model, "forward", device)
        assert_same(got, want)
        assert meter.d2h - travelled == allowed, "no weight travels back"
    report = dop.offload_report(model).components[0]
    assert report.written_back_bytes == report.repacked == 0
    assert report.peak_device_bytes <= report.device_bound
    assert quantised_parameters(model) == weights
    dop.disable_group_offload(model)
    state = model.state_dict()
    for key, tensor in quantised(name, kind).state_dict().items():
        assert same_bits(state[key], tensor), key
    assert {key: id(p) for key, p in model.named_parameters()} == ids
    assert_plain(model)
    assert attributes(model) == before


# What diffusers had helpers for


@every_kind
def test_a_torchao_tensor_is_recognised(kind: str) -> None:
    model = quantised("flux", kind)
    assert {name for name, p in model.named_parameters() if is_wrapper(p)} == set(quantised_parameters(model))


@every_kind
def test_inner_tensor_names_leave_out_optional_ones_that_are_absent(kind: str) -> None:
    _, weight = a_weight(kind)
    names = set(getattr(type(weight), "tensor_data_names", ()))
    optional = set(getattr(type(weight), "optional_tensor_data_names", ()))
    present = {name for name in optional if getattr(weight, name, None) is not None}
    tops = {path.split(".")[0] for path in inner(weight)}
    assert names <= tops
    assert present <= tops
    assert not (optional - present) & tops
    assert all(not is_wrapper(t) for t in inner(weight).values())


def test_optional_inner_tensors_move_too(device: torch.device) -> None:
    """An asymmetric weight has a zero point; lists of names by class have forgotten it before."""
    from torchao.quantization import IntxUnpackedToInt8Tensor

    model, weight = a_weight("int4_weight_only")
    assert isinstance(weight, IntxUnpackedToInt8Tensor)
    assert set(inner(weight)) == {"qdata", "scale", "zero_point"}
    seen: list[set[torch.device]] = []
    model.transformer_blocks[1].attn.to_q.register_forward_hook(
        lambda m, *_: seen.append({t.device for t in inner(m.weight).values()} | {m.weight.device})
    )
    dop.enable_group_offload(model, device)
    MODELS["flux"].run(model, "forward", device)
    assert seen == [{device}]


@every_kind
def test_swap_onto_the_device_keeps_the_parameter(kind: str, device: torch.device, meter: Meter) -> None:
    _, weight = a_weight(kind)
    watched, name_of = weakref.ref(weight), {weight: "to_q"}
    value = weight.dequantize()
    repoint(weight, map_plain(weight, lambda t: t.to(device)))
    assert {t.device for t in (weight, *inner(weight).values())} == {device}
    assert torch.equal(weight.dequantize().cpu(), value)
    assert watched() is weight
    assert name_of[weight] == "to_q"
    assert isinstance(weight, nn.Parameter)


@every_kind
def test_restore_does_not_mutate_the_source(kind: str, device: torch.device, meter: Meter) -> None:
    _, weight = a_weight(kind)
    source = map_plain(weight, lambda t: t)
    parts, bits = inner(source), map_plain(source, torch.clone)
    for _ in range(3):
        repoint(weight, map_plain(source, lambda t: t.to(device)))
        assert all(inner(source)[path] is part for path, part in parts.items())
        repoint(weight, source)
        assert all(inner(weight)[path] is part for path, part in parts.items())
    assert source.device.type == weight.device.type == "cpu"
    assert same_bits(source, bits)


@every_kind
def test_streams_are_recorded_for_all_inner_tensors(
    kind: str, device: torch.device, meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: set[int] = set()
    record = torch.Tensor.record_stream

    def noting(tensor: torch.Tensor, stream: Any) -> None:
        recorded.add(tensor.untyped_storage()._cdata)
        record(tensor, stream)

    monkeypatch.setattr(torch.Tensor, "record_stream", noting)
    model, _ = a_weight(kind)
    storages: list[set[int]] = []
    model.transformer_blocks[1].attn.to_q.register_forward_hook(
        lambda m, *_: storages.append({t.untyped_storage()._cdata for t in inner(m.weight).values()} - recorded)
    )
    dop.enable_group_offload(model, device, use_stream=True, record_stream=True)
    for _ in range(3):
        MODELS["flux"].run(model, "forward", device)
    assert storages == [set()] * 3
    assert meter.races == 0


@every_kind
def test_pinned_copy_does_not_alias_the_device(kind: str, device: torch.device, meter: Meter) -> None:
    model, weight = a_weight(kind)
    pinned = meter.pinned
    dop.enable_group_offload(model, device, use_stream=True)
    assert all(t.is_pinned() for t in inner(weight).values())
    if meter.exact:
        weights = sum(t.numel() * t.element_size() for p in model.parameters() for t in inner(p).values())
        assert (
            weights <= meter.pinned - pinned + dop.offload_report(model).components[0].resident_bytes < 1.5 * weights
        )
    at_rest = map_plain(weight, torch.clone)
    with dop.onloaded(model):
        lent = map_plain(weight, lambda t: t)
        assert lent.device == device
    # What is done to the device copy after the loan must not reach the host copy.
    for tensor in inner(lent).values():
        tensor.zero_()
    assert same_bits(weight, at_rest)
    dop.disable_group_offload(model)
    assert not any(t.is_pinned() for p in model.parameters() for t in inner(p).values())


@pytest.mark.parametrize("policy", ["leaf-lean", "block-lean"])
@every_kind
def test_second_pass_with_low_cpu_memory(kind: str, policy: str, device: torch.device, meter: Meter) -> None:
    """The host copy stays pageable, also after weights were on the device once."""
    level = "leaf_level" if policy == "leaf-lean" else "block_level"
    model, weight = a_weight(kind)
    dop.enable_group_offload(model, device, offload_type=level, use_stream=True, low_cpu_mem_usage=True)
    for _ in range(3):
        assert_same(MODELS["flux"].run(model, "forward", device), expected("flux", kind, device))
        assert not any(t.is_pinned() for t in inner(weight).values())
        assert weight.device.type == "cpu"
    assert sum(t.numel() for t in inner(weight).values()) > 0


@every_kind
def test_on_disk_inner_tensors_are_views_of_files(kind: str, device: torch.device, tmp_path: Path) -> None:
    """Stock refuses, after it has emptied the first groups. Here the inner tensors are stored in a file, bit-equal."""
    model, weight = a_weight(kind)
    before = {path: (id(t), t.clone()) for path, t in inner(weight).items()}
    whole = id(weight)
    dop.enable_group_offload(model, device, offload_type="leaf_level", offload_to_disk_path=str(tmp_path / "weights"))
    assert dop.offload_report(model).components[0].tier == "disk"
    for _ in range(2):
        assert_same(MODELS["flux"].run(model, "forward", device), expected("flux", kind, device))
    assert whole in map(id, model.parameters())
    maps = Path("/proc/self/maps").read_text()
    for path, t in inner(weight).items():
        assert same_bits(t, before[path][1]), path
        assert not t.numel() or str(tmp_path) in region_of(t.data_ptr(), maps), path
    assert list((tmp_path / "weights").iterdir()) == [], "its file has no name"
    dop.disable_group_offload(model)
    assert_same(MODELS["flux"].run(model.to(device), "forward", device), expected("flux", kind, device))


def region_of(address: int, maps: str) -> str:
    """The line of ``/proc/self/maps`` about ``address``."""
    for line in maps.splitlines():
        begin, end = (int(part, 16) for part in line.split()[0].split("-"))
        if begin <= address < end:
            return line
    return ""


# Around them


@pytest.mark.parametrize("policy", ["block", "block-2-stream", "leaf-stream", "leaf-lean"])
@every_kind
def test_requantised_between_passes(kind: str, policy: str, device: torch.device, meter: Meter) -> None:
    model, weight = a_weight(kind)
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    MODELS["flux"].run(model, "forward", device)
    other = built("flux")
    other.transformer_blocks[1].attn.to_q.weight.data.mul_(3)
    other = QUANTISERS[kind](other)
    model.transformer_blocks[1].attn.to_q.weight = other.transformer_blocks[1].attn.to_q.weight
    want = MODELS["flux"].run(copy.deepcopy(other).to(device), "forward", device)
    assert not torch.equal(want[0], expected("flux", kind, device)[0])
    for _ in range(2):
        assert_same(MODELS["flux"].run(model, "forward", device), want)
    dop.disable_group_offload(model)
    assert weight.device.type == "cpu"


def test_quantised_after_enabling(device: torch.device, meter: Meter) -> None:
    model = built("flux")
    dop.enable_group_offload(model, device, use_stream=True)
    MODELS["flux"].run(model, "forward", device)
    QUANTISERS["int8_weight_only"](model)
    assert quantised_parameters(model) == quantised_parameters(quantised("flux", "int8_weight_only"))
    for _ in range(2):
        assert_same(MODELS["flux"].run(model, "forward", device), expected("flux", "int8_weight_only", device))
    assert attachment_of(model) is not None


@every_kind
def test_copies_and_state_dict_of_an_offloaded_model(kind: str, device: torch.device, tmp_path: Path) -> None:
    model, _ = a_weight(kind)
    dop.enable_group_offload(model, device)
    want = expected("flux", kind, device)
    MODELS["flux"].run(model, "forward", device)
    twin = copy.deepcopy(model)
    assert_plain(twin)
    assert_same(MODELS["flux"].run(twin.to(device), "forward", device), want)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    fresh = QUANTISERS[kind](built("flux"))
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=False), assign=True)
    assert_same(MODELS["flux"].run(fresh.to(device), "forward", device), want)


def test_without_torchao() -> None:
    """Nothing in the package imports torchao, nor needs it."""
    script = """
import sys
sys.modules["torchao"] = None  # as if it were not installed
import torch
import diffusers_offload_plus as dop
from tests.support.models import Stack, noise, seeded
from tests.simulated import DEVICE
model, plain = seeded(Stack), seeded(Stack)
want = plain.to(DEVICE)(noise(DEVICE))
dop.enable_group_offload(model, DEVICE, offload_type="leaf_level", use_stream=True)
for _ in range(2):
    assert torch.equal(model(noise(DEVICE)).cpu(), want.cpu())
assert dop.offload_report(model).components[0].transferred_bytes > 0
dop.disable_group_offload(model)
assert not any(name.startswith("torchao.") for name in sys.modules)
"""
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
