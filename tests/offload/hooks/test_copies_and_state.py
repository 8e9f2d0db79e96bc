"""State dicts, files and copies of an offloaded model are those of a plain one."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

import diffusers_offload_plus as dop
from tests.support.models import (
    CHOSEN,
    WIDTH,
    Block,
    Coder,
    Language,
    Pair,
    Stack,
    assert_plain,
    assert_same,
    attributes,
    held,
    noise,
    seeded,
    tokens,
)
from tests.support.policies import settings
from tests.zoo.models import MODELS

pytestmark = [pytest.mark.usefixtures("meter"), pytest.mark.parametrize("policy", CHOSEN)]


class Counted(Block):
    """A block with buffers of both kinds, written by forward."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(WIDTH))
        self.register_buffer("steps", torch.tensor(0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.total += x.sum(0)
        self.steps += 1
        return super().forward(x) + self.total


class CountedStack(Stack):
    """Of its own class at module level, so that it can be pickled."""

    def __init__(self) -> None:
        super().__init__(block=Counted)


def saved(value: Any) -> bytes:
    """What `torch.save` writes."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def reloaded(value: Any) -> Any:
    """`value` through a file of `torch.save`."""
    return torch.load(io.BytesIO(saved(value)), weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "torch_save": reloaded,
}


def used_pair(device: torch.device, policy: str) -> Pair:
    """After two passes."""
    pair = Pair(seeded(CountedStack), device, policy)
    pair.agree(lambda m: m(noise(device)))
    return pair


def assert_independent(first: nn.Module, second: nn.Module) -> None:
    """No tensor is shared: neither object nor memory."""
    mine, theirs = held(first), held(second)
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert mine[name] is not theirs[name], name
        assert mine[name].untyped_storage().data_ptr() != theirs[name].untyped_storage().data_ptr(), name


# Copies


@pytest.mark.parametrize("how", COPIES)
def test_copy_of_the_model_is_plain_and_independent(policy: str, how: str, device: torch.device) -> None:
    pair = used_pair(device, policy)
    twin = COPIES[how](pair.model)
    assert type(twin) is CountedStack
    assert_plain(twin)
    assert attributes(twin) == attributes(pair.reference)
    assert all(tensor.device.type == "cpu" for tensor in held(twin).values())
    assert_same([t.cpu() for t in held(twin).values()], [t.cpu() for t in held(pair.plain).values()])
    assert_independent(twin, pair.model)
    with pytest.raises(dop.NotOffloadedError):
        dop.offload_report(twin)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(2)
    pair.agree(lambda m: m(noise(device)))  # the original does not notice
    beside = copy.deepcopy(pair.reference)
    beside.load_state_dict(twin.state_dict())
    for buffer, theirs in zip(beside.buffers(), twin.buffers(), strict=True):
        buffer.copy_(theirs)
    assert_same(twin.to(device)(noise(device)), beside.to(device)(noise(device)))
    pair.finish()


@pytest.mark.parametrize("how", COPIES)
def test_copy_can_be_offloaded_beside_the_original(policy: str, how: str, device: torch.device) -> None:
    pair = used_pair(device, policy)
    other = Pair(COPIES[how](pair.model), device, policy)
    for _ in range(2):
        other.agree(lambda m: m(noise(device)), passes=1)
        pair.agree(lambda m: m(noise(device)), passes=1)
    other.finish()
    pair.finish()


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("part", ["blocks.2", "blocks.2.up", "blocks"])
def test_copy_of_a_part(policy: str, part: str, how: str, device: torch.device) -> None:
    pair = used_pair(device, policy)
    original, plain = pair.model.get_submodule(part), pair.plain.get_submodule(part)
    twin = COPIES[how](original)
    assert type(twin) is type(original)
    assert_plain(twin)
    assert_independent(twin, original)
    assert len(saved(original)) < 2 * sum(t.nbytes for t in held(original).values()) + 20000
    if part != "blocks":
        with torch.no_grad():
            assert_same(twin.to(device)(noise(device)), copy.deepcopy(plain)(noise(device)))
    pair.agree(lambda m: m(noise(device)))
    pair.finish()


def test_shallow_copy(policy: str, device: torch.device) -> None:
    pair = Pair(seeded(Stack), device, policy)
    pair.agree(lambda m: m(noise(device)))
    twin = copy.copy(pair.model)
    assert type(twin) is Stack
    assert twin.blocks is pair.model.blocks
    pair.agree(lambda m: m(noise(device)))
    with torch.no_grad():
        assert_same(twin(noise(device)), pair.plain(noise(device)))
    pair.finish()
    with torch.no_grad():
        assert_same(copy.copy(pair.model).to(device)(noise(device)), pair.plain(noise(device)))
    pair.model.to("cpu")


def test_deepcopy_keeps_ties(policy: str, device: torch.device) -> None:
    pair = Pair(seeded(Language), device, policy)
    pair.agree(lambda m: m(tokens(device)))
    for how in COPIES.values():
        twin = how(pair.model)
        assert twin.head.weight is twin.embed.weight
        with torch.no_grad():
            assert_same(twin.to(device)(tokens(device)), pair.plain(tokens(device)))
    pair.finish()


def test_copy_inside_onloaded(policy: str, device: torch.device) -> None:
    pair = used_pair(device, policy)
    with dop.onloaded(pair.model.blocks[1]):
        twin = copy.deepcopy(pair.model)
    assert_plain(twin)
    assert_same([t.cpu() for t in held(twin).values()], [t.cpu() for t in held(pair.plain).values()])
    del twin
    pair.agree(lambda m: m(noise(device)))
    pair.finish()


def test_saving_one_parameter_writes_it_alone(policy: str, device: torch.device) -> None:
    pair = used_pair(device, policy)
    for name, parameter in pair.model.named_parameters():
        written = saved(parameter)
        assert len(written) < parameter.nbytes + 4000, name
        back = torch.load(io.BytesIO(written), weights_only=False)
        assert torch.equal(back, pair.plain.get_parameter(name).cpu())
        assert copy.deepcopy(parameter).untyped_storage().nbytes() == parameter.nbytes
    assert len(saved(pair.model.state_dict())) < len(saved(pair.reference.state_dict())) + 4000
    pair.finish()


# State dicts


def test_state_dict_is_real_at_any_time(policy: str, device: torch.device) -> None:
    model = seeded(CountedStack)
    before = {name: id(p) for name, p in model.named_parameters()}
    pair = Pair(model, device, policy)
    for _ in range(3):
        pair.same_state()
        assert list(model.state_dict()) == list(pair.reference.state_dict())
        assert before == {name: id(p) for name, p in model.named_parameters()}
        assert all(isinstance(p, nn.Parameter) and p.device.type == "cpu" for p in model.parameters())
        pair.agree(lambda m: m(noise(device)), passes=1)
    pair.finish()
    assert before == {name: id(p) for name, p in model.named_parameters()}


def test_state_dict_kept_from_before_is_still_the_state(policy: str, device: torch.device) -> None:
    pair = used_pair(device, policy)
    kept = {name: value.clone() for name, value in pair.model.state_dict().items()}
    pair.agree(lambda m: m(noise(device)))
    pair.model.load_state_dict(kept)
    pair.plain.load_state_dict(kept)
    pair.agree(lambda m: m(noise(device)))
    pair.finish()


def test_state_dict_hook_inside_a_pass(policy: str, device: torch.device) -> None:
    pair = Pair(seeded(Stack), device, policy)
    seen: list[dict[str, torch.Tensor]] = []
    pair.model.blocks[3].register_forward_hook(
        lambda *_: seen.append({name: value.cpu().clone() for name, value in pair.model.state_dict().items()})
    )
    pair.agree(lambda m: m(noise(device)))
    for state in seen:
        assert_same(list(state.values()), list(pair.reference.state_dict().values()))
    pair.finish(tidy=False)


# Files of diffusers


def files(folder: Path) -> dict[str, bytes]:
    """All files of a folder with their content."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("limit", ["10GB", "200KB", "60KB"])
def test_save_pretrained_writes_the_same_files(policy: str, limit: str, device: torch.device, tmp_path: Path) -> None:
    case = MODELS["flux"]
    pair = Pair(case.build().eval(), device, policy)
    assert_same(case.run(pair.model, "forward", device), case.run(pair.plain, "forward", device))
    for folder, model in (("plain", pair.reference), ("offloaded", pair.model)):
        model.save_pretrained(tmp_path / folder, max_shard_size=limit)
    mine, theirs = files(tmp_path / "offloaded"), files(tmp_path / "plain")
    assert list(mine) == list(theirs)
    assert len(theirs) > 2 or limit == "10GB"
    assert all(mine[name] == theirs[name] for name in mine)
    loaded = diffusers.FluxTransformer2DModel.from_pretrained(tmp_path / "offloaded").eval()
    assert_same(case.run(loaded.to(device), "forward", device), case.run(pair.plain, "forward", device))
    pair.finish()


def test_save_pretrained_of_a_text_encoder_with_ties(policy: str, device: torch.device, tmp_path: Path) -> None:
    name = next(name for name in MODELS if "t5" in name)
    case = MODELS[name]
    pair = Pair(case.build().eval(), device, policy)
    call = next(iter(case.calls))
    assert_same(case.run(pair.model, call, device), case.run(pair.plain, call, device))
    for folder, model in (("plain", pair.reference), ("offloaded", pair.model)):
        model.save_pretrained(tmp_path / folder)
    assert files(tmp_path / "offloaded") == files(tmp_path / "plain")
    pair.finish(saves=False)


# Nothing is left


def test_disable_leaves_no_trace(policy: str, device: torch.device) -> None:
    model = seeded(Coder)
    before, tensors = attributes(model), held(model)
    for _ in range(2):
        pair = Pair(model, device, policy)
        pair.agree(lambda m: m.encode(noise(device)))
        pair.agree(lambda m: m(noise(device)))
        pair.finish()
        assert attributes(model) == before
        assert all(tensor is tensors[name] for name, tensor in held(model).items())
        assert not any(tensor.is_pinned() for tensor in held(model).values())
        assert not any(tensor.grad_fn or tensor._backward_hooks for tensor in model.parameters())


def test_disable_after_training_leaves_no_hooks_on_parameters(policy: str, device: torch.device) -> None:
    pair = Pair(seeded(Stack), device, policy)
    for model in (pair.model, pair.plain):
        model(noise(device)).sum().backward()
    pair.finish()
    assert not any(p._backward_hooks or p._post_accumulate_grad_hooks for p in pair.model.parameters())
    assert all(p.grad is not None and p.grad.device.type == "cpu" for p in pair.model.parameters())
    copy.deepcopy(pair.model)
    pickle.dumps(list(pair.model.parameters()))


def test_a_forward_of_the_users_own_survives(policy: str, device: torch.device) -> None:
    model = seeded(Stack)

    def doubled(x: torch.Tensor) -> torch.Tensor:
        return type(model).forward(model, x) * 2

    model.forward = doubled
    pair = Pair(model, device, policy, plain=seeded(Stack))
    with torch.no_grad():
        for _ in range(2):
            assert_same(model(noise(device)), pair.plain(noise(device)) * 2)
    dop.disable_group_offload(model)
    assert model.forward is doubled
    pair.same_state(on_host=True)


@torch.no_grad()
@pytest.mark.parametrize("copying", [copy.deepcopy, pickle.dumps])
def test_part_called_right_after_a_copy_has_its_buffers(copying: Any, policy: str, device: torch.device) -> None:
    """A copy brings buffers to the host; a part of a block, which has no hook, is the next that computes."""
    model = nn.Sequential(nn.Sequential(nn.BatchNorm1d(WIDTH)), nn.Sequential(nn.Linear(WIDTH, WIDTH)))
    plain, x = copy.deepcopy(model).to(device), noise(device)
    dop.enable_group_offload(model, device, **settings(policy, model, device))
    for _ in range(2):
        assert_same(model(x), plain(x))
        copying(model)
        assert_same(model[0][0](x), plain[0][0](x))
    assert torch.equal(model[0][0].running_mean.cpu(), plain[0][0].running_mean.cpu())
    dop.disable_group_offload(model)
    assert_plain(model)
