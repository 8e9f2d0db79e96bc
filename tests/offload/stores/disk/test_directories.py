"""Directories that cannot be a store, or cease to be one: full, read-only, relative, linked, a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.stores import mapped_file
from diffusers_offload_plus.offload.stores.disk.allocator import DiskAllocator
from diffusers_offload_plus.offload.stores.disk.directory import StoreDirectory
from diffusers_offload_plus.offload.stores.mapped_file import MappedFile
from tests.offload.stores.disk import children, forked
from tests.offload.stores.disk.setup import (
    assert_right,
    assert_state,
    assert_usable,
    mounted,
    objects,
    offload,
    on_disk,
    save_checkpoint,
    temporaries,
    twin_of,
)
from tests.support.models import Stack, assert_plain, nbytes, noise, seeded

keeps = pytest.mark.parametrize("keep", [False, True])


@keeps
@pytest.mark.parametrize("room", [16, 96])
def test_disk_full_at_set_up(keep: bool, room: int, where: torch.device, tmp_path: Path) -> None:
    model = seeded(Stack)
    twin = twin_of(model, where)
    with mounted(tmp_path / "full", "-t", "tmpfs", "-o", f"size={room}k", "none") as full:
        with pytest.raises(dop.DiskTierError, match="full") as caught:
            offload(model, where, full, keep=keep)
        assert caught.value.errno is not None
        assert temporaries(full) == []
        assert objects(full) == []
        assert_plain(model)
        assert_usable(model, twin, where, tmp_path / "elsewhere")


def test_space_taken_between_looking_and_writing(where: torch.device, tmp_path: Path) -> None:
    """What the preflight saw is no promise; the space is reserved before anything is written."""
    model = seeded(Stack)
    twin = twin_of(model, where)
    with (
        mounted(tmp_path / "full", "-t", "tmpfs", "-o", "size=64k", "none") as full,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(StoreDirectory, "require_space", lambda *_: None)
        for keep in (False, True):
            with pytest.raises(dop.DiskTierError, match=r"reserve .* No space left"):
                offload(model, where, full, keep=keep)
            assert temporaries(full) == []
        assert_usable(model, twin, where, tmp_path / "elsewhere")


def test_disk_full_when_weights_are_stored_anew(where: torch.device, tmp_path: Path) -> None:
    """The error comes at the next forward; the new weights are in memory until there is room."""
    model = seeded(Stack)
    twin = twin_of(model, where)
    with mounted(tmp_path / "full", "-t", "tmpfs", "-o", f"size={nbytes(model) // 1024 + 24}k", "none") as full:
        offload(model, where, full)
        assert_right(model, twin, where)
        filler = full / "filler"
        filler.write_bytes(bytes(os.statvfs(full).f_bavail * os.statvfs(full).f_bsize))
        for tree in (model, twin):
            with torch.no_grad():
                for block in tree.blocks:
                    block.up.weight.data = block.up.weight.data * 2
        for _ in range(2):
            with pytest.raises(dop.DiskTierError, match="full"), torch.no_grad():
                model(noise(where))
        assert_state(model, twin)
        filler.unlink()
        model.to(torch.float32)
        if all(len(slab.files()) for slab in on_disk(model)):
            dop.disable_group_offload(model)
        assert_usable(model, twin, where, tmp_path / "elsewhere")


def test_disk_full_when_a_layer_is_added(where: torch.device, tmp_path: Path) -> None:
    """As a LoRA is: the pass that finds it cannot make room for it, a later one can."""
    model = seeded(Stack)
    twin = twin_of(model, where)
    with mounted(tmp_path / "full", "-t", "tmpfs", "-o", f"size={nbytes(model) // 1024 + 200}k", "none") as full:
        offload(model, where, full)
        assert_right(model, twin, where)
        filler = full / "filler"
        filler.write_bytes(bytes(os.statvfs(full).f_bavail * os.statvfs(full).f_bsize))
        new = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
        model.blocks[3], twin.blocks[3] = new, twin_of(new, where)
        for _ in range(2):
            with pytest.raises(dop.DiskTierError, match="full"), torch.no_grad():
                model(noise(where))
            assert_state(model, twin)
        filler.unlink()
        assert_right(model, twin, where)
        dop.disable_group_offload(model)
        assert_usable(model, twin, where, tmp_path / "elsewhere")


def test_a_change_undone_after_the_disk_was_full(device: torch.device, tmp_path: Path) -> None:
    """Weights read through doors are served again."""
    from tests.support.models import Coder

    model = seeded(Coder)
    twin = twin_of(model, device)
    with mounted(tmp_path / "full", "-t", "tmpfs", "-o", f"size={nbytes(model) // 1024 + 200}k", "none") as full:
        offload(model, device, full, offload_type="leaf_level")
        assert_right(model, twin, device)
        filler = full / "filler"
        filler.write_bytes(bytes(os.statvfs(full).f_bavail * os.statvfs(full).f_bsize))
        old = model.encoder.blocks[0]
        model.encoder.blocks[0] = nn.Linear(32, 32)
        with pytest.raises(dop.DiskTierError, match="full"), torch.no_grad():
            model(noise(device))
        model.encoder.blocks[0] = old
        assert_right(model, twin, device)
        dop.disable_group_offload(model)
        assert_state(model, twin)


def test_set_up_that_fails_between_two_groups(
    where: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was prepared is not used later, when weights may have changed; the groups that were are known still."""
    import errno

    model, twin = seeded(Stack), seeded(Stack).to(where)
    offload(model, where, tmp_path)
    assert_right(model, twin, where)
    for number in (1, 3, 4):
        model.blocks[number] = seeded(lambda: nn.Linear(32, 32), number)
        twin.blocks[number] = twin_of(model.blocks[number], where)
    store, calls = DiskAllocator.store, []

    def failing(self: DiskAllocator, *arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise dop.DiskTierError(errno.EIO, "injected", "file")
        return store(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(DiskAllocator, "store", failing)
        with pytest.raises(dop.DiskTierError, match="injected"), torch.no_grad():
            model(noise(where))
    for tree in (model, twin):
        for parameter in tree.parameters():
            parameter.data.mul_(1.5)
    if where.type == "cpu":
        dop.disable_group_offload(model)
        before = [(f.address, f.address + f.size) for f in mapped_files()]
        assert not any(a <= p.data_ptr() < b for p in model.parameters() for a, b in before)
    else:
        assert_right(model, twin, where)
        dop.disable_group_offload(model)
    assert_usable(model, twin, where, tmp_path / "elsewhere")


def mapped_files() -> list[MappedFile]:
    """Every file that is mapped now."""
    return list(mapped_file._LIVE)


def test_only_a_set_up_looks_through_the_store(
    where: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[object] = []
    kept = StoreDirectory.kept_files
    monkeypatch.setattr(StoreDirectory, "kept_files", lambda self: looks.append(self) or kept(self))
    model = seeded(Stack)
    offload(model, where, tmp_path, keep=True)
    assert_right(model, twin_of(seeded(Stack), where), where)
    model.blocks[1].extra = nn.Identity()
    with torch.no_grad():
        model(noise(where))
    assert len(looks) == 1
    dop.disable_group_offload(model)


def test_a_quota_on_the_size_of_files(tmp_path: Path) -> None:
    assert "reserve" in forked.run(children.largest_file, str(tmp_path), 32 << 10).expect()


@keeps
def test_read_only_directory(keep: bool, where: torch.device, tmp_path: Path) -> None:
    model = seeded(Stack)
    twin = twin_of(model, where)
    source = tmp_path / "source"
    source.mkdir()
    with mounted(tmp_path / "locked", "--bind", "-o", "ro", str(source)) as locked:
        with pytest.raises(dop.InvalidPolicyError, match=r"locked.*can be written|can be written.*locked"):
            offload(model, where, locked, keep=keep)
        assert_usable(model, twin, where, tmp_path / "elsewhere")


def test_directory_of_another_user(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and str(folder) != "/tmp":
            folder.chmod(0o755)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o755)
    if os.getuid() != 0:
        closed.chmod(0o555)
    assert "Permission denied" in forked.run(children.as_nobody, str(closed)).expect()


def test_a_path_that_is_a_file(where: torch.device, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in ("file", "file/below"):
        model = seeded(Stack)
        with pytest.raises(dop.InvalidPolicyError, match="file"):
            offload(model, where, tmp_path / path)
        assert_plain(model)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_empty_string_as_path(path: str, where: torch.device) -> None:
    with pytest.raises(dop.InvalidPolicyError, match="offload_to_disk_path"):
        offload(seeded(Stack), where, path)


def test_relative_path_and_a_later_chdir(where: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    model = seeded(Stack)
    twin = twin_of(model, where)
    monkeypatch.chdir(tmp_path / "first")
    offload(model, where, "store", keep=True)
    assert len(objects(tmp_path / "first" / "store")) == 1
    monkeypatch.chdir(tmp_path / "second")
    assert_right(model, twin, where)
    with torch.no_grad():
        for tree in (model, twin):
            tree.blocks[0].up.weight = nn.Parameter(tree.blocks[0].up.weight + 1)
    assert_right(model, twin, where)
    assert list((tmp_path / "second").iterdir()) == []
    dop.disable_group_offload(model)


def test_symlinked_directory(where: torch.device, tmp_path: Path) -> None:
    """Followed once, at set-up: later the link may lead elsewhere, or nowhere."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "one")
    model = seeded(Stack)
    twin = twin_of(model, where)
    offload(model, where, link, keep=True)
    link.unlink()
    link.symlink_to(tmp_path / "two")
    with torch.no_grad():
        for tree in (model, twin):
            tree.blocks[0].up.weight = nn.Parameter(tree.blocks[0].up.weight + 1)
    assert_right(model, twin, where)
    assert objects(tmp_path / "one")
    assert list((tmp_path / "two").iterdir()) == []
    dop.disable_group_offload(model)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(dop.InvalidPolicyError, match="loop"):
        offload(model, where, tmp_path / "loop")
    assert_usable(model, twin, where, tmp_path / "elsewhere")


@pytest.mark.parametrize("path", [".", "store", "transformer/a/b", "link/x"])
def test_directory_inside_the_checkpoint(path: str, where: torch.device, tmp_path: Path) -> None:
    model = seeded(Stack)
    snapshot = tmp_path / "snapshot"
    save_checkpoint(model, snapshot / "model.safetensors")
    (tmp_path / "snapshot" / "link").symlink_to(snapshot, target_is_directory=True)
    before = sorted(snapshot.rglob("*"))
    with pytest.raises(dop.InvalidPolicyError, match="must not lie in the checkpoint"):
        offload(model, where, snapshot / path, checkpoint=str(snapshot), keep=True)
    assert sorted(snapshot.rglob("*")) == before
    assert_plain(model)


def test_directory_beside_a_checkpoint_file(where: torch.device, tmp_path: Path) -> None:
    model = seeded(Stack)
    twin = twin_of(model, where)
    file = save_checkpoint(model, tmp_path / "model.safetensors")
    offload(model, where, tmp_path / "store", checkpoint=str(file))
    assert_right(model, twin, where)
    dop.disable_group_offload(model)


def test_few_file_descriptors_and_many_groups(tmp_path: Path) -> None:
    """A cast moves every group to a file of its own; none stays open."""
    assert forked.run(children.few_descriptors, str(tmp_path), 64).expect() < 40


def test_more_kept_files_than_descriptors(tmp_path: Path) -> None:
    forked.run(children.many_kept_files, str(tmp_path), 64).expect()
    assert len(objects(tmp_path)) == 64


def test_a_file_larger_than_memory_can_be_mapped(tmp_path: Path) -> None:
    """The system refuses to reserve memory for private mappings beyond what there is; none is reserved."""
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 1 << 40)
    file = MappedFile(str(path))
    file.bytes(1 << 39, 1)[0] = 7
    assert file.is_private(1 << 39, 1)
    assert not file.is_private(1 << 38, 1 << 20)


def test_a_forked_process_reads_by_itself(tmp_path: Path) -> None:
    assert forked.run(children.forked_after_set_up, str(tmp_path)).expect() == 0


def test_files_go_at_normal_exit(tmp_path: Path) -> None:
    forked.run(children.exit_without_disabling, str(tmp_path)).expect()
    assert list(tmp_path.rglob("*")) == []
