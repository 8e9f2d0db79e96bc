"""Weights that lie bit-equal in a local checkpoint are mapped from there: nothing is written."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.hooks.attachment import attachment_of
from tests.offload.stores.disk.setup import (
    assert_right,
    assert_state,
    assert_usable,
    disk_allocator,
    drop_cache,
    offload,
    on_disk,
    save_checkpoint,
    scramble,
    twin_of,
)
from tests.support.models import Stack, assert_same, noise, seeded
from tests.zoo.pipelines import PIPELINES, PROMPT

STARTS = {"aligned": (0, 16), "8 mod 16": (8, 16), "4 mod 16": (4, 16), "odd": (1, 2), "7 mod 16": (7, 16)}


@pytest.mark.parametrize("layout", STARTS)
def test_headers_of_every_length(layout: str, where: torch.device, tmp_path: Path) -> None:
    """On the CPU what is not aligned to 16 bytes is copied first: the last bits would differ otherwise."""
    model = seeded(Stack)
    twin = twin_of(model, where)
    start, modulus = STARTS[layout]
    file = save_checkpoint(model, tmp_path / "model.safetensors", start=start, modulus=modulus)
    before = file.read_bytes()
    offload(model, where, tmp_path / "store", checkpoint=str(file))
    assert disk_allocator(model).written == 0
    assert disk_allocator(model).found == sum(p.nbytes for p in model.parameters())
    assert list((tmp_path / "store").iterdir()) == []
    assert_right(model, twin, where, passes=3)
    with torch.no_grad():  # one row: a kernel that adds up in another order where weights are aligned less
        assert_same(model(noise(where, 1, 32)), twin(noise(where, 1, 32)))
    assert_state(model, twin)
    with torch.no_grad():
        for tree in (model, twin):
            tree.blocks[2].down.weight.mul_(1.5)
    assert_right(model, twin, where)
    assert file.read_bytes() == before
    dop.disable_group_offload(model)
    assert_usable(model, twin, where, tmp_path / "elsewhere")


def test_aligned_copies_take_turns_in_one_piece_of_memory(tmp_path: Path) -> None:
    """Fresh memory for each costs more than the copy: the system has to clear it first."""
    cpu = torch.device("cpu")
    model = seeded(Stack)
    twin = twin_of(model, cpu)
    file = save_checkpoint(model, tmp_path / "model.safetensors", start=8)
    offload(model, cpu, tmp_path / "store", checkpoint=str(file))
    attachment = attachment_of(model)
    assert attachment is not None
    engine = attachment.engine
    assert_right(model, twin, cpu)
    before = engine.budget.slabs.reused
    held: list[int] = []
    for block in model.blocks:
        block.register_forward_hook(lambda *_: held.append(engine.budget.slabs.nbytes))
    assert_right(model, twin, cpu)
    sizes = [group.nbytes for group in engine.streamed]
    assert engine.budget.slabs.reused - before >= sum(a == b for a, b in itertools.pairwise(sizes)) > 0
    assert max(held) <= max(sizes)
    assert engine.budget.slabs.nbytes == 0, "a pass leaves nothing"
    dop.disable_group_offload(model)


@pytest.mark.parametrize("start", [8, 4])
def test_weights_that_the_loader_left_in_the_file_are_used_where_they_are(start: int, tmp_path: Path) -> None:
    """However they lie there: un-offloaded, the model computes with those very addresses, modulo a page."""
    cpu = torch.device("cpu")
    model = seeded(Stack)
    file = save_checkpoint(model, tmp_path / "model.safetensors", start=start)
    state = load_file(file)
    assert {value.data_ptr() % 16 for value in state.values()} == {start}, "safetensors maps files no more"
    model.load_state_dict(state, assign=True)
    x, row = noise(cpu), noise(cpu, 1, 32)
    with torch.no_grad():
        want = model(x), model(row)
        offload(model, cpu, tmp_path / "store", checkpoint=str(file))
        for _ in range(2):
            assert_same((model(x), model(row)), want)
    (component,) = dop.offload_report(model).components
    assert component.disk_written_bytes == component.transferred_bytes == 0
    dop.disable_group_offload(model)


def test_shards_in_a_directory(where: torch.device, tmp_path: Path) -> None:
    model = seeded(Stack)
    twin = twin_of(model, where)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    names = sorted(state)
    for number in range(3):
        save_file({n: state[n] for n in names[number::3]}, tmp_path / f"model-{number}.safetensors")
    offload(model, where, tmp_path.parent / f"{tmp_path.name}-store", checkpoint=str(tmp_path))
    assert disk_allocator(model).written == 0
    assert_right(model, twin, where)
    dop.disable_group_offload(model)


def test_a_pipelines_own_snapshot_is_found(device: torch.device, tmp_path: Path) -> None:
    case = PIPELINES["flux"]
    case.build().save_pretrained(str(tmp_path / "snapshot"))
    from diffusers import FluxPipeline

    plain, ours = (FluxPipeline.from_pretrained(str(tmp_path / "snapshot")) for _ in range(2))
    want = case.run(plain.to(device), PROMPT, 0)
    offload(ours, device, tmp_path / "store")
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        assert disk_allocator(getattr(ours, part)).written == 0, part
    for _ in range(2):
        assert (case.run(ours, PROMPT, 0) == want).all()
    dop.disable_group_offload(ours)


def test_a_pipelines_checkpoint_without_one_component(device: torch.device, tmp_path: Path) -> None:
    ours: Any = PIPELINES["flux"].build()
    ours.transformer.save_pretrained(str(tmp_path / "snapshot" / "transformer"))
    (tmp_path / "snapshot" / "model_index.json").write_text("{}")
    offload(ours, device, tmp_path / "store", checkpoint=str(tmp_path / "snapshot"))
    assert disk_allocator(ours.transformer).written == 0
    assert disk_allocator(ours.vae).written > 0
    dop.disable_group_offload(ours)


@pytest.mark.parametrize("times", [1, 2])
def test_two_zero_biases_do_not_share_memory(times: int, where: torch.device, tmp_path: Path) -> None:
    """Whether the checkpoint has their bytes once or twice."""
    model: Any = seeded(Stack)
    names = [f"blocks.{i}.up.bias" for i in range(6)]
    for name in names:
        nn.init.zeros_(model.get_parameter(name))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for name in names[times:]:
        del state[name]
    save_file(state, tmp_path / "model.safetensors")
    offload(model, where, tmp_path / "store", checkpoint=str(tmp_path / "model.safetensors"))
    assert disk_allocator(model).written == (6 - times) * 64 * 4
    with torch.no_grad():
        model.blocks[0].up.bias.add_(1)
    assert [bool(model.get_parameter(name).any()) for name in names] == [True] + [False] * 5
    dop.disable_group_offload(model)
    assert [bool(model.get_parameter(name).any()) for name in names] == [True] + [False] * 5


def test_weights_changed_between_load_and_set_up(where: torch.device, tmp_path: Path) -> None:
    model = seeded(Stack)
    file = save_checkpoint(model, tmp_path / "model.safetensors", start=0)
    model.load_state_dict(load_file(file))
    with torch.no_grad():
        model.blocks[1].up.weight[0, 0] += 1e-7
    twin = twin_of(model, where)
    offload(model, where, tmp_path / "store", checkpoint=str(file))
    assert disk_allocator(model).written == model.blocks[1].up.weight.nbytes
    assert_right(model, twin, where)
    dop.disable_group_offload(model)


@pytest.mark.parametrize("damage", ["changed", "truncated", "emptied", "no safetensors"])
def test_checkpoint_changed_between_load_and_set_up(damage: str, where: torch.device, tmp_path: Path) -> None:
    """It is not used; the weights are written instead."""
    model = seeded(Stack)
    twin = twin_of(model, where)
    file = save_checkpoint(model, tmp_path / "model.safetensors", start=0)
    if damage == "changed":
        scramble(file)
    else:
        file.write_bytes({"truncated": file.read_bytes()[:-100], "emptied": b""}.get(damage, b"no safetensors at all"))
    offload(model, where, tmp_path / "store", checkpoint=str(file))
    assert disk_allocator(model).found == 0
    assert_right(model, twin, where)
    dop.disable_group_offload(model)
    assert_usable(model, twin, where, tmp_path / "elsewhere")


def test_checkpoint_changed_in_place_after_set_up(where: torch.device, tmp_path: Path) -> None:
    model = seeded(Stack)
    file = save_checkpoint(model, tmp_path / "model.safetensors", start=0)
    offload(model, where, tmp_path / "store", checkpoint=str(file))
    with torch.no_grad():
        model(noise(where))
    with file.open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x7f")
    with pytest.raises(dop.FileChangedError, match=r"model\.safetensors"), torch.no_grad():
        model(noise(where))


def test_protect_copy_survives_changes_in_place(where: torch.device, tmp_path: Path) -> None:
    model = seeded(Stack)
    twin = twin_of(model, where)
    file = save_checkpoint(model, tmp_path / "model.safetensors", start=0)
    offload(model, where, tmp_path / "store", checkpoint=str(file), protect="copy")
    assert disk_allocator(model).written == file.stat().st_size, "copied once"
    for damage in (lambda: scramble(file), lambda: file.write_bytes(b""), file.unlink):
        damage()
        assert_right(model, twin, where)
        assert_state(model, twin)
    dop.disable_group_offload(model)
    assert_usable(model, twin, where, tmp_path / "elsewhere")


def test_protected_checkpoint_is_not_copied_again_with_each_change(where: torch.device, tmp_path: Path) -> None:
    model: Any = seeded(Stack)
    file = save_checkpoint(model, tmp_path / "model.safetensors", start=0)
    offload(model, where, tmp_path / "store", checkpoint=str(file), protect="copy")
    for _ in range(3):
        model.blocks.append(nn.Linear(32, 32))
        twin = twin_of_changed(model, where)
        assert_right(model, twin, where)
    assert disk_allocator(model).written < file.stat().st_size + 3 * 3 * 32 * 33 * 4
    dop.disable_group_offload(model)


def twin_of_changed(model: nn.Module, where: torch.device) -> nn.Module:
    """A plain copy of a model that is offloaded already."""
    plain = seeded(Stack)
    for _ in range(len(model.blocks) - 6):  # type: ignore[arg-type]
        plain.blocks.append(nn.Linear(32, 32))
    plain.load_state_dict({name: value.cpu().clone() for name, value in model.state_dict().items()})
    return plain.to(where)


def assert_packed(model: nn.Module) -> None:
    """The packed bytes of each group are what the mapping shows, and zeros between weights."""
    for slab in on_disk(model):
        want = torch.zeros(slab.nbytes, dtype=torch.uint8)
        for extent, (mapped, offset, nbytes) in zip(slab.layout.extents, slab.ranges, strict=True):
            want[extent.offset : extent.offset + nbytes] = mapped.bytes(offset, nbytes)
        for start, stop in itertools.combinations(range(0, slab.nbytes + 1, max(1, slab.nbytes // 7)), 2):
            packed = torch.full((stop - start,), 0x5A, dtype=torch.uint8)
            slab.read_into(packed, start)
            assert torch.equal(packed, want[start:stop])
            assert torch.equal(slab.part(start, stop), want[start:stop])


def test_packed_bytes_of_weights_of_odd_sizes(tmp_path: Path) -> None:
    """They are compared as a whole, so what lies between weights must have values."""
    model = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 7))
    offload(model, "cpu", tmp_path, offload_type="leaf_level")
    with torch.no_grad():
        model[1].bias[2] = 7
    assert_packed(model)


def test_written_pages_survive_release_and_cold_caches(tmp_path: Path) -> None:
    """A read of the file stands in for the mapping only where nothing was written."""
    model = seeded(Stack)
    twin = twin_of(model, "cpu")
    file = save_checkpoint(model, tmp_path / "model.safetensors", start=0)
    offload(model, "cpu", tmp_path / "store", checkpoint=str(file))
    with torch.no_grad():
        for tree in (model, twin):
            tree.blocks[3].up.weight[::7].neg_()
            tree.inlet.bias.fill_(0.25)
    for slab in on_disk(model):
        slab.release()
    drop_cache(file)
    assert_packed(model)
    assert_right(model, twin, "cpu")
    assert_state(model, twin)
    dop.disable_group_offload(model)
    assert_state(model, twin)


@pytest.mark.parametrize("level", ["block_level", "leaf_level"])
def test_writes_across_tensors_of_a_group_in_a_checkpoint(level: str, device: torch.device, tmp_path: Path) -> None:
    """The order in the file is not that in memory: what is found to differ is stored tensor by tensor."""
    model: Any = seeded(lambda: Stack(depth=4))
    twin = copy.deepcopy(model).to(device)
    shuffled = dict(sorted(model.state_dict().items(), key=lambda item: item[0][::-1]))
    save_file(shuffled, tmp_path / "model.safetensors")
    before = (tmp_path / "model.safetensors").read_bytes()
    dop.enable_group_offload(
        model,
        device,
        offload_type=level,
        offload_to_disk_path=str(tmp_path / "store"),
        checkpoint=str(tmp_path / "model.safetensors"),
    )
    assert dop.offload_report(model).components[0].disk_written_bytes == 0
    for number in range(3):
        with dop.onloaded(model):
            for one in (model, twin):
                for place, parameter in enumerate(one.parameters()):
                    if place % 3 != number:
                        parameter.data.mul_(0.5)
        with torch.no_grad():
            assert_same(model(noise(device)), twin(noise(device)))
    dop.disable_group_offload(model)
    assert_same([p.detach() for p in model.parameters()], [p.detach() for p in twin.parameters()])
    assert (tmp_path / "model.safetensors").read_bytes() == before
