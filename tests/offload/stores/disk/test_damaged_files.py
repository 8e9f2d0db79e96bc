"""Files deleted, replaced, truncated or changed in place under an offloaded model."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.stores.disk.store_file import verify_file
from tests.offload.stores.disk import children, forked
from tests.offload.stores.disk.setup import (
    assert_right,
    assert_state,
    assert_usable,
    assert_whole,
    disk_allocator,
    drop_cache,
    flip,
    objects,
    offload,
    on_disk,
    save_checkpoint,
    scramble,
    twin_of,
    writable,
)
from tests.support.models import Stack, assert_plain, noise, seeded

Use = Callable[[Any, torch.device, Path], None]
KINDS = ("kept", "checkpoint")
every_kind = pytest.mark.parametrize("kind", KINDS)


def set_up(kind: str, where: torch.device, folder: Path) -> tuple[torch.nn.Module, torch.nn.Module, Path]:
    """A model mapped from a kept file or from a checkpoint, its twin, and the file."""
    model = seeded(Stack)
    twin = twin_of(model, where)
    if kind == "kept":
        offload(model, where, folder / "store", keep=True)
        return model, twin, objects(folder / "store")[0]
    path = save_checkpoint(model, folder / "model.safetensors", start=0)
    offload(model, where, folder / "store", checkpoint=str(path))
    assert disk_allocator(model).written == 0
    return model, twin, path


@every_kind
def test_an_offload_file_deleted(kind: str, where: torch.device, tmp_path: Path) -> None:
    """Then offloading enabled again: stock writes placeholders as the model."""
    model, twin, path = set_up(kind, where, tmp_path)
    drop_cache(path)
    path.unlink()
    assert_right(model, twin, where)
    assert_state(model, twin)
    offload(model, where, tmp_path / "store", offload_type="leaf_level")
    assert_right(model, twin, where)
    dop.disable_group_offload(model)
    assert_usable(model, twin, where, tmp_path / "elsewhere")


def test_the_whole_directory_deleted(where: torch.device, tmp_path: Path) -> None:
    model, twin, _ = set_up("kept", where, tmp_path)
    shutil.rmtree(tmp_path / "store")
    assert_right(model, twin, where)
    with torch.no_grad():
        for tree in (model, twin):
            tree.blocks[1].up.weight = torch.nn.Parameter(tree.blocks[1].up.weight * 2)
    with pytest.raises(dop.DiskTierError, match="store"):
        model(noise(where))
    assert_state(model, twin)
    (tmp_path / "store").mkdir()
    assert_right(model, twin, where)
    dop.disable_group_offload(model)
    assert_usable(model, twin, where, tmp_path / "elsewhere")


@every_kind
def test_a_file_replaced(kind: str, where: torch.device, tmp_path: Path) -> None:
    model, twin, path = set_up(kind, where, tmp_path)
    other = tmp_path / "other"
    shutil.copy(path, other)
    scramble(other)
    os.replace(other, path)
    assert_right(model, twin, where)
    dop.disable_group_offload(model)
    assert_usable(model, twin, where, tmp_path / "elsewhere")


def forward(model: Any, where: torch.device, folder: Path) -> None:
    with torch.no_grad():
        model(noise(where))


def train(model: Any, where: torch.device, folder: Path) -> None:
    model(noise(where))


def disable(model: Any, where: torch.device, folder: Path) -> None:
    dop.disable_group_offload(model)


def enable_again(model: Any, where: torch.device, folder: Path) -> None:
    offload(model, where, folder / "store", offload_type="leaf_level")


def store_anew(model: Any, where: torch.device, folder: Path) -> None:
    model.blocks[0].norm.weight.data = model.blocks[0].norm.weight.data.clone()
    forward(model, where, folder)


def hold(model: Any, where: torch.device, folder: Path) -> None:
    with dop.onloaded(model):
        pass


@every_kind
@pytest.mark.parametrize("use", [forward, train, disable, enable_again, store_anew, hold])
def test_a_file_changed_in_place(kind: str, use: Use, where: torch.device, tmp_path: Path) -> None:
    """Whatever we do next with its weights, the change is noticed and the file is named."""
    model, _, path = set_up(kind, where, tmp_path)
    forward(model, where, tmp_path)
    scramble(path)
    with pytest.raises(dop.FileChangedError, match=path.name) as caught:
        use(model, where, tmp_path)
    assert caught.value.filename == str(path)
    assert caught.value.errno is not None


def test_disabling_after_a_change_in_place_leaves_no_hooks(where: torch.device, tmp_path: Path) -> None:
    """The weights are gone with the file; the model is not stuck with the hooks."""
    model, _, path = set_up("checkpoint", where, tmp_path)
    scramble(path)
    with pytest.raises(dop.FileChangedError, match=path.name):
        dop.disable_group_offload(model)
    assert_plain(model)
    model.load_state_dict(seeded(Stack).state_dict())
    dop.disable_group_offload(model, missing_ok=True)
    fresh = seeded(Stack)
    assert_usable(fresh, twin_of(fresh, where), where, tmp_path / "elsewhere")


@pytest.mark.parametrize("use", [train, hold])
def test_a_file_changed_while_its_weights_are_on_the_device(use: Use, device: torch.device, tmp_path: Path) -> None:
    """The device has the right values then, and they are compared with the file's: those of the device are kept."""
    model, twin, path = set_up("checkpoint", device, tmp_path)
    block: Any = model.blocks[2]
    with dop.onloaded(block):
        scramble(path)
    assert_state(block, twin.blocks[2])
    with pytest.raises(dop.FileChangedError, match=path.name):
        use(model, device, tmp_path)
    assert_state(block, twin.blocks[2])
    with pytest.raises(dop.FileChangedError, match=path.name):
        dop.disable_group_offload(model)
    assert_plain(model)
    assert_state(block, twin.blocks[2])


def test_all_weights_on_the_device_while_the_file_is_changed(device: torch.device, tmp_path: Path) -> None:
    model, twin, path = set_up("checkpoint", device, tmp_path)
    with dop.onloaded(model):
        scramble(path)
    assert_state(model, twin)
    assert_right(model, twin, device)
    dop.disable_group_offload(model)
    assert_usable(model, twin, device, tmp_path / "elsewhere")


@pytest.mark.parametrize("kind", ["forward", "disable", "again", "stored anew"])
def test_a_file_truncated_between_set_up_and_use(kind: str, tmp_path: Path) -> None:
    outcome = forked.run(children.truncated_before_use, str(tmp_path), kind)
    assert "model.safetensors" in outcome.expect()


def test_what_the_user_reads_of_a_truncated_file_is_a_sigbus(tmp_path: Path) -> None:
    """As with any mapping; the documentation says so."""
    assert forked.run(children.truncated_before_use, str(tmp_path), "user").signal == "SIGBUS"


def test_truncated_file_accepted_at_set_up(where: torch.device, tmp_path: Path) -> None:
    """Stock fails at the first forward; ours writes anew what the file does not have."""
    model, _, path = set_up("kept", where, tmp_path)
    dop.disable_group_offload(model)
    size = path.stat().st_size
    for length in (0, 5, 300, size // 2, size - 1):
        with writable(path):
            os.truncate(path, length)
        fresh = seeded(Stack)
        twin = twin_of(fresh, where)
        offload(fresh, where, tmp_path / "store", keep=True)
        assert disk_allocator(fresh).written > 0
        assert_right(fresh, twin, where)
        dop.disable_group_offload(fresh)
        assert_whole(tmp_path / "store")


def test_truncated_kept_file_under_an_accelerator(device: torch.device, tmp_path: Path) -> None:
    model, _, path = set_up("kept", device, tmp_path)
    with writable(path):
        os.truncate(path, 4096)
    with pytest.raises(dop.FileChangedError, match=path.name), torch.no_grad():
        model(noise(device))


@pytest.mark.parametrize("seed", range(6))
def test_flipped_bits_in_a_kept_file_are_found(seed: int, tmp_path: Path) -> None:
    """By the checksums it was written with, and before the next use."""
    model, _, path = set_up("kept", torch.device("cpu"), tmp_path)
    assert verify_file(on_disk(model)[0].files()[0]) == []
    before = path.read_bytes()
    flip(path, random.Random(seed), data_only=True)
    changed = next(i for i, (a, b) in enumerate(zip(before, path.read_bytes(), strict=True)) if a != b)
    with pytest.raises(dop.FileChangedError, match=path.name), torch.no_grad():
        model(noise("cpu"))
    from diffusers_offload_plus.offload.stores.disk.safetensors_files import ranges_of
    from diffusers_offload_plus.offload.stores.mapped_file import MappedFile

    file = MappedFile(str(path))
    hit = [r.name for r in ranges_of(file) if r.offset <= changed < r.offset + r.nbytes]
    assert verify_file(file) == [name for name in hit if not name.startswith("padding.")]


@pytest.mark.parametrize("how", ["populate", "read", "closed", "compare"])
def test_bytes_that_cannot_be_read_are_a_named_error(how: str, tmp_path: Path) -> None:
    """Not a signal: the system is asked for the pages before they are touched."""
    said = forked.run(children.bytes_that_cannot_be_read, str(tmp_path), how).expect()
    assert said.startswith(("DiskTierError", "FileChangedError"))
    assert str(tmp_path / "file") in said


def test_a_failing_read_surfaces_in_the_calling_thread(
    where: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once; the next pass reads again."""
    import errno

    from diffusers_offload_plus.offload.stores.mapped_file import MappedFile

    model, twin, path = set_up("kept", where, tmp_path)
    assert_right(model, twin, where)

    def broken(self: MappedFile, *_: object) -> None:
        raise dop.DiskTierError(errno.EIO, "injected", self.path)

    with monkeypatch.context() as patch:
        patch.setattr(MappedFile, "read_into", broken)
        patch.setattr(MappedFile, "populate", broken)
        for _ in range(2):
            with pytest.raises(dop.DiskTierError, match="injected") as caught, torch.no_grad():
                model(noise(where))
            assert caught.value.filename == str(path)
            assert caught.value.errno == errno.EIO
    assert_right(model, twin, where)
    dop.disable_group_offload(model)
    assert_usable(model, twin, where, tmp_path / "elsewhere")
