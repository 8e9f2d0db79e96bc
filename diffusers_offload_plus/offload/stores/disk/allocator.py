"""Gives weights a home on disk: where their bytes lie already, else in a file of our own."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import logging
import os
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch

from ....errors import DiskTierError
from ..host import HostSlab
from ..layout import SlabLayout, lay_out
from ..mapped_file import MappedFile, check_mapped, named_error
from .directory import StoreDirectory
from .matching import KnownRanges
from .safetensors_files import safetensors_files
from .slab import DiskSlab, Piece
from .store_file import Content, digest, sync_data

__all__ = ["DiskAllocator"]

logger = logging.getLogger("diffusers_offload_plus")

FICLONE = 0x40049409  # of <linux/fs.h>: share blocks until one of the two files is written


class _Prepared(NamedTuple):
    """Where the bytes of a group are, and the tensors they were taken from, as they were."""

    pieces: list[Piece]
    sources: Sequence[torch.Tensor]  # held, so that no other tensor can have their addresses
    state: list[tuple[int, int | None]]


class DiskAllocator:
    """Homes on disk for the weights of one model.

    Attributes:
        written: bytes written to files of our own.
        found: bytes that lay on disk already, proved equal.
    """

    def __init__(
        self, directory: str, label: str, model: str, *, checkpoint: str | None, keep: bool, protect: bool
    ) -> None:
        """Nothing is read or written yet.

        Args:
            directory: absolute path of the store.
            label: the component's name; ``model``: its class's name.
            checkpoint: where the weights may lie bit-equal already.
            keep: leave what is written for later processes.
            protect: use a copy of the checkpoint's files, so that others may write them.
        """
        self._directory = StoreDirectory(directory)
        self._label = label
        self._model = model
        self._checkpoint = checkpoint
        self._keep = keep
        self._protect = protect
        self._prepared: dict[Hashable, _Prepared] = {}
        self._copies: dict[str, MappedFile] = {}
        self._kept: set[str] = set()
        self.written = 0
        self.found = 0

    def prepare(self, groups: Sequence[tuple[Hashable, Sequence[torch.Tensor]]]) -> None:
        """Find or write the bytes of every group; ``groups`` are keys for :meth:`place` and the tensors. Changes no
        tensor.

        Raises:
            DiskTierError: there is no room, or a file cannot be written.
            FileChangedError: the tensors are mapped from a file that was changed in place.
        """
        if not groups:
            return
        self._directory.remove_orphans()
        known = self._known_ranges()
        missing: list[Content] = []
        found: dict[Hashable, list[Piece | None]] = {}
        hosts: list[HostSlab] = []  # what lay on a device, until it is written
        extents = {key: self._layout(sources, hosts).extents for key, sources in groups}
        ranges = iter(known.take([(e.start, e.nbytes) for of_group in extents.values() for e in of_group]))
        for key, of_group in extents.items():
            found[key] = []
            for extent in of_group:
                piece = next(ranges)
                if piece is None:
                    values = _memory(extent.start, extent.nbytes)
                    missing.append(Content(values, digest(values) if self._keep else str(len(missing))))
                else:
                    self.found += extent.nbytes
                found[key].append(piece)
        written = iter(self._write(missing, private=not self._keep))
        prepared = {key: [piece or next(written) for piece in pieces] for key, pieces in found.items()}
        for _, sources in groups:
            check_mapped(sources)  # changed while it was read
        for key, sources in groups:
            self._prepared[key] = _Prepared(prepared[key], sources, _state_of(sources))
        if self._keep:
            self._note_kept([piece for pieces in prepared.values() for piece in pieces])

    def place(self, key: Hashable, sources: Sequence[torch.Tensor]) -> DiskSlab:
        """The home of ``sources``, prepared under ``key`` or made now."""
        hosts: list[HostSlab] = []
        layout = self._layout(sources, hosts)
        prepared = self._prepared.pop(key, None)
        if prepared is not None and prepared.state == _state_of(sources):
            pieces = prepared.pieces
        else:
            pieces = self._write_anew(layout)
            check_mapped(sources)  # changed while it was read
        tensors = hosts[0].tensors if hosts else sources
        return DiskSlab(tensors, layout, pieces)

    def forget(self) -> None:
        """What was prepared and not placed may be changed by others from now on."""
        self._prepared.clear()

    def _write_anew(self, layout: SlabLayout) -> list[Piece]:
        # Changed since: the new values are this process's own, whatever is kept.
        contents = [Content(_memory(e.start, e.nbytes), str(number)) for number, e in enumerate(layout.extents)]
        pieces = self._write(contents, private=True)
        if pieces:
            # Nobody else can reach the file, so there is nothing to check: spare the descriptor.
            pieces[0].file.close()
        return pieces

    def _write(self, contents: list[Content], *, private: bool) -> list[Piece]:
        if not contents:
            return []
        nbytes = sum(content.bytes.numel() for content in contents)
        self._directory.require_space(nbytes)
        write = self._directory.write if private else self._directory.publish
        pieces = write(contents, self._label)
        self.written += nbytes
        return pieces

    def _known_ranges(self) -> KnownRanges:
        known = KnownRanges()
        for reopen in self._directory.kept_files():
            _offer(known, reopen)
        if self._checkpoint is not None:
            for path in safetensors_files(self._checkpoint, self._label):
                _offer(known, functools.partial(self._copy_of if self._protect else MappedFile, path))
        return known

    def _copy_of(self, path: str) -> MappedFile:
        # Copied once; a mapping of its own each time, for ranges are given out once for each mapping.
        if path not in self._copies:
            self._copies[path] = self._copied(path)
        copy = self._copies[path]
        with named_error("open", copy.path):
            return MappedFile(copy.path, os.dup(copy.fileno()))

    def _copied(self, path: str) -> MappedFile:
        source = MappedFile(path)
        self._directory.require_space(source.size)
        descriptor = self._directory.nameless(self._directory.path)
        try:
            with named_error("copy", path):
                try:
                    fcntl.ioctl(descriptor, FICLONE, source.fileno())
                except OSError:
                    done = 0
                    while count := os.sendfile(descriptor, source.fileno(), done, source.size - done):
                        done += count
            sync_data(descriptor, path)
            source.check()
        except BaseException:
            os.close(descriptor)
            raise
        self.written += source.size
        return MappedFile(f"{self._directory.path}/(copy of {path})", descriptor)

    def _note_kept(self, pieces: list[Piece]) -> None:
        objects = str(self._directory.objects) + os.sep
        self._kept.update(p.file.path.removeprefix(objects) for p in pieces if p.file.path.startswith(objects))
        if self._kept:
            nbytes = sum(piece.nbytes for piece in pieces)
            self._directory.note_kept(self._label, self._model, sorted(self._kept), nbytes)

    @staticmethod
    def _layout(sources: Sequence[torch.Tensor], hosts: list[HostSlab]) -> SlabLayout:
        if any(t.device.type != "cpu" for t in sources):
            slab = HostSlab(sources, lambda nbytes: torch.empty(nbytes, dtype=torch.uint8))
            hosts.append(slab)
            sources = slab.tensors
        check_mapped(sources)
        return lay_out(sources)


def _offer(known: KnownRanges, reopen: Callable[[], MappedFile]) -> None:
    try:
        known.add(reopen)
    except DiskTierError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE):
            raise
        logger.warning("Not used: %s", error)  # not whole, or not to be read: what it should hold is written anew


def _state_of(sources: Sequence[torch.Tensor]) -> list[tuple[int, int | None]]:
    return [(t.data_ptr(), None if t.is_inference() else t._version) for t in sources]


def _memory(address: int, nbytes: int) -> torch.Tensor:
    """The bytes at ``address`` as a uint8 tensor that owns nothing."""
    return torch.frombuffer((ctypes.c_char * nbytes).from_address(address), dtype=torch.uint8)
