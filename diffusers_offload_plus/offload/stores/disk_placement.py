"""Gives weights a home on disk: where their bytes lie already, else in a file of our own."""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Hashable, Sequence

import torch

from .checkpoint_files import safetensors_files
from .directory import StoreDirectory
from .disk import DiskSlab, Piece
from .host import HostSlab
from .layout import SlabLayout, lay_out
from .mapped_file import MappedFile, named_error
from .matching import KnownRanges
from .store_file import Content, digest

__all__ = ["DiskPlacement"]

FICLONE = 0x40049409  # of <linux/fs.h>: share blocks until one of the two files is written


class DiskPlacement:
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
        self._prepared: dict[Hashable, list[Piece]] = {}
        self._kept: set[str] = set()
        self.written = 0
        self.found = 0

    def prepare(self, groups: Sequence[tuple[Hashable, Sequence[torch.Tensor]]]) -> None:
        """Find or write the bytes of every group; ``groups`` are keys for :meth:`place` and the tensors. Changes no
        tensor.

        Raises:
            DiskTierError: there is no room, or a file cannot be written.
        """
        known = self._known_ranges()
        missing: list[Content] = []
        found: dict[Hashable, list[Piece | None]] = {}
        hosts: list[HostSlab] = []  # what lay on a device, until it is written
        for key, sources in groups:
            found[key] = []
            for extent in self._layout(sources, hosts).extents:
                piece = known.take(extent.start, extent.nbytes)
                if piece is None:
                    values = _memory(extent.start, extent.nbytes)
                    missing.append(Content(values, digest(values) if self._keep else str(len(missing))))
                else:
                    self.found += extent.nbytes
                found[key].append(piece)
        written = iter(self._write(missing, private=not self._keep))
        prepared = {key: [piece or next(written) for piece in pieces] for key, pieces in found.items()}
        self._prepared.update(prepared)
        if self._keep:
            self._note_kept([piece for pieces in prepared.values() for piece in pieces])

    def place(self, key: Hashable, sources: Sequence[torch.Tensor]) -> DiskSlab:
        """The home of ``sources``, prepared under ``key`` or made now."""
        hosts: list[HostSlab] = []
        layout = self._layout(sources, hosts)
        pieces = self._prepared.pop(key, None)
        if pieces is None or [p.nbytes for p in pieces] != [e.nbytes for e in layout.extents]:
            pieces = self._write_anew(layout)
        tensors = hosts[0].tensors if hosts else sources
        return DiskSlab(tensors, layout, pieces)

    def _write_anew(self, layout: SlabLayout) -> list[Piece]:
        # Changed since: the new values are this process's own, whatever is kept.
        contents = [Content(_memory(e.start, e.nbytes), str(number)) for number, e in enumerate(layout.extents)]
        pieces = self._write(contents, private=True)
        if pieces:
            pieces[
                0
            ].file.close()  # nobody else can reach the file, so there is nothing to check: spare the descriptor
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
        for file in self._directory.kept_files():
            known.add(file)
        if self._checkpoint is not None:
            for path in safetensors_files(self._checkpoint, self._label):
                known.add(self._copy_of(path) if self._protect else MappedFile(path))
        return known

    def _copy_of(self, path: str) -> MappedFile:
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
        return lay_out(sources)


def _memory(address: int, nbytes: int) -> torch.Tensor:
    """The bytes at ``address`` as a uint8 tensor that owns nothing."""
    return torch.frombuffer((ctypes.c_char * nbytes).from_address(address), dtype=torch.uint8)
