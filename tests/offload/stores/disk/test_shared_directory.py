"""One directory for any number of models: what a file holds is decided by its content."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import diffusers_offload_plus as dop
from tests.offload.stores.disk.setup import (
    assert_right,
    assert_state,
    assert_whole,
    disk_allocator,
    flip,
    objects,
    offload,
    temporaries,
    twin_of,
)
from tests.support.models import Stack, noise, seeded
from tests.zoo.models import MODELS
from tests.zoo.pipelines import PIPELINES, PROMPT


@pytest.mark.parametrize("name", ["sdxl", "wan"])
@pytest.mark.parametrize("calls", ["one", "several"])
def test_two_components_in_one_directory(name: str, calls: str, device: torch.device, tmp_path: Path) -> None:
    """Two CLIP encoders, two transformers: stock gives the second one the weights of the first."""
    case = PIPELINES[name]
    plain, ours = case.build(), case.build()
    want = case.run(plain.to(device), PROMPT, 0)
    if calls == "one":
        offload(ours, device, tmp_path)
    else:
        for component in ours.components.values():
            if isinstance(component, nn.Module):
                offload(component, device, tmp_path)
    for _ in range(2):
        assert (case.run(ours, PROMPT, 0) == want).all()
    dop.disable_group_offload(ours)
    for part, component in ours.components.items():
        if isinstance(component, nn.Module):
            assert_state(component, getattr(plain, part))


@pytest.mark.parametrize("keep", [False, True])
def test_models_of_one_shape_in_one_directory_at_once(keep: bool, where: torch.device, tmp_path: Path) -> None:
    models = [seeded(Stack, seed) for seed in range(4)]
    twins = [twin_of(model, where) for model in models]
    for model in models:
        offload(model, where, tmp_path, keep=keep)
    for _ in range(2):
        for model, twin in zip(models, twins, strict=True):
            assert_right(model, twin, where, passes=1)
    for model, twin in zip(models, twins, strict=True):
        dop.disable_group_offload(model)
        assert_state(model, twin)


def test_directory_reused_with_other_weights(where: torch.device, tmp_path: Path) -> None:
    """Yesterday's files hold another model of the same shape; and, beside it, this very one."""
    yesterday = seeded(Stack, 1)
    offload(yesterday, where, tmp_path, keep=True)
    dop.disable_group_offload(yesterday)
    today = seeded(Stack, 2)
    twin = twin_of(today, where)
    offload(today, where, tmp_path, keep=True)
    assert_right(today, twin, where)
    assert disk_allocator(today).written > 0
    again = seeded(Stack, 1)
    twin = twin_of(again, where)
    offload(again, where, tmp_path, keep=True)
    assert_right(again, twin, where)
    assert disk_allocator(again).written == 0
    assert_whole(tmp_path)


def test_directory_reused_after_one_weight_changed(where: torch.device, tmp_path: Path) -> None:
    first = seeded(Stack)
    offload(first, where, tmp_path, keep=True)
    second = seeded(Stack)
    with torch.no_grad():
        second.blocks[2].up.weight[5, 7] += 1e-6
    twin = twin_of(second, where)
    offload(second, where, tmp_path, keep=True)
    assert disk_allocator(second).written == second.blocks[2].up.weight.nbytes
    assert_right(second, twin, where)


def test_one_model_set_up_twice_shares_its_file_and_not_its_edits(where: torch.device, tmp_path: Path) -> None:
    first, second = seeded(Stack), seeded(Stack)
    twin = twin_of(second, where)
    offload(first, where, tmp_path, keep=True)
    offload(second, where, tmp_path, keep=True)
    assert disk_allocator(second).written == 0
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
    assert_right(second, twin, where)
    assert_state(second, twin)
    assert_whole(tmp_path)


def test_a_lora_changed_and_the_directory_reused(where: torch.device, tmp_path: Path) -> None:
    case = MODELS["flux"]
    twin = case.build()
    for scale in (0.0, 0.5, -0.5, 0.5):
        model = case.build()
        with torch.no_grad():
            for plain, ours in zip(twin.parameters(), model.parameters(), strict=True):
                if ours.ndim == 2:
                    ours += scale * torch.outer(plain[:, 0], plain[0])
        merged = copy.deepcopy(model).to(where)
        offload(model, where, tmp_path, keep=True)
        assert torch.equal(case.run(model, device=where)[0], case.run(merged, device=where)[0])
        dop.disable_group_offload(model)


def test_files_of_stock_diffusers_in_the_directory(where: torch.device, tmp_path: Path) -> None:
    from diffusers.hooks import apply_group_offloading

    stock = seeded(Stack, 5)
    apply_group_offloading(
        stock,
        onload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        offload_to_disk_path=str(tmp_path),
    )
    theirs = {path: path.read_bytes() for path in tmp_path.glob("*.safetensors")}
    assert theirs
    model = seeded(Stack)
    twin = twin_of(model, where)
    offload(model, where, tmp_path, keep=True)
    assert_right(model, twin, where)
    assert {path: path.read_bytes() for path in tmp_path.glob("*.safetensors")} == theirs


@pytest.mark.parametrize("seed", range(8))
def test_flipped_bits_in_an_offload_file(seed: int, where: torch.device, tmp_path: Path) -> None:
    """Before reuse, anywhere in the file: what is not as it was is written anew."""
    first = seeded(Stack)
    offload(first, where, tmp_path, keep=True)
    dop.disable_group_offload(first)
    flip(objects(tmp_path)[0], random.Random(seed), 1 + seed % 3, data_only=seed % 2 == 0)
    model = seeded(Stack)
    twin = twin_of(model, where)
    offload(model, where, tmp_path, keep=True)
    assert_right(model, twin, where)
    assert_state(model, twin)


def test_files_that_are_no_weights_in_the_objects(where: torch.device, tmp_path: Path) -> None:
    folder = tmp_path / "objects"
    folder.mkdir()
    contents: dict[str, bytes] = {
        "empty": b"",
        "short": b"\x01",
        "long header": b"\xff" * 100,
        "no header": (2).to_bytes(8, "little") + b"[]",
        "number": (1).to_bytes(8, "little") + b"7",
        "deep": (200_000).to_bytes(8, "little") + b"[" * 200_000,
        "floats": b'\x2d\0\0\0\0\0\0\0{"a":{"dtype":"U8","data_offsets":[0.0,4.0]}}' + bytes(8),
        "beyond": b'\x2a\0\0\0\0\0\0\0{"a":{"dtype":"U8","data_offsets":[0,90]}}' + bytes(8),
    }
    for name, content in contents.items():
        (folder / f"{name}.safetensors").write_bytes(content)
    (folder / "folder.safetensors").mkdir()
    (folder / "link.safetensors").symlink_to(tmp_path / "nothing")
    model = seeded(Stack)
    twin = twin_of(model, where)
    offload(model, where, tmp_path, keep=True)
    assert_right(model, twin, where)


def test_overlapping_tensors_in_a_file_are_refused(tmp_path: Path) -> None:
    """Two weights on one range would share memory."""
    import json

    model = nn.ModuleList([nn.Linear(8, 8, bias=False) for _ in range(2)])
    model[1].load_state_dict(model[0].state_dict())
    entry = {"dtype": "F32", "shape": [8, 8], "data_offsets": [0, 256]}
    header = json.dumps({"a": entry, "b": entry}).encode()
    data = model[0].weight.detach().numpy().tobytes()
    (tmp_path / "objects").mkdir()
    file = tmp_path / "objects" / "overlap.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + data)
    offload(model, "cpu", tmp_path, keep=True)
    with torch.no_grad():
        model[0].weight.zero_()
    assert model[1].weight.abs().sum() > 0


def test_orphans_of_killed_processes_go_at_the_next_set_up(where: torch.device, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "objects", tmp_path / "manifests"):
        folder.mkdir(exist_ok=True)
        (folder / ".half.tmp").write_bytes(b"half")
    model = seeded(Stack)
    offload(model, where, tmp_path)
    assert temporaries(tmp_path) == []


def test_what_another_process_is_writing_is_no_orphan(tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "objects").mkdir()
    path = tmp_path / "objects" / ".busy.tmp"
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        offload(seeded(Stack), "cpu", tmp_path, keep=True)
        assert path.exists()
    offload(seeded(Stack), "cpu", tmp_path, keep=True)
    assert not path.exists()


def test_without_keep_nothing_is_left_and_nothing_is_seen(where: torch.device, tmp_path: Path) -> None:
    model = seeded(Stack)
    offload(model, where, tmp_path)
    with torch.no_grad():
        model(noise(where))
    assert list(tmp_path.rglob("*")) == []
    dop.disable_group_offload(model)
    assert list(tmp_path.rglob("*")) == []


def test_equal_weights_do_not_share_memory(where: torch.device, tmp_path: Path) -> None:
    """Also where the store has their bytes but once."""
    for _ in range(2):
        model: Any = seeded(Stack)
        for block in model.blocks:
            nn.init.zeros_(block.up.bias)
        offload(model, where, tmp_path, keep=True)
        with torch.no_grad():
            model.blocks[0].up.bias.add_(1)
        assert all(not block.up.bias.any() for block in model.blocks[1:])
        dop.disable_group_offload(model)
        assert all(not block.up.bias.any() for block in model.blocks[1:])
