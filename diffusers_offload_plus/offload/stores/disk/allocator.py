"""Stores weights on disk: where their bytes lie already, else in a file of our own."""

from __future__ import annotations

import fcntl
import functools
import itertools
import logging
import os
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch

from ....errors import DiskTierError
from ..host import in_host_memory
from ..layout import Extent, bytes_at
from ..mapped_file import FileRange, MappedFile, check_mapped, is_shortage, named_error
from .directory import StoreDirectory
from .matching import KnownRanges
from .safetensors_files import safetensors_files
from .slab import DiskSlab
from .store_file import sync_data

__all__ = ["DiskAllocator"]

logger = logging.getLogger("diffusers_offload_plus")

FICLONE = 0x40049409  # of <linux/fs.h>: share blocks until one of the two files is written


class _Prepared(NamedTuple):
    """Where the bytes of a group lie, and the tensors they were taken from, as they were."""

    ranges: list[FileRange]
    sources: Sequence[torch.Tensor]  # referenced, so that no other tensor can get their addresses
    state: list[tuple[int, int | None]]


class DiskAllocator:
    """Stores the weights of one model on disk.

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
        """Find or write the bytes of every group; ``groups`` are keys for :meth:`store` and the tensors. Changes no
        tensor.

        Raises:
            DiskTierError: the disk is full, or a file cannot be written.
            FileChangedError: the tensors are mapped from a file that was changed in place.
        """
        if not groups:
            return
        self._directory.remove_orphans()
        in_memory = [in_host_memory(sources) for _, sources in groups]  # copies of what lies on a device
        extents = [extent for _, layout in in_memory for extent in layout.extents]
        found = self._known_ranges().take([(extent.start, extent.nbytes) for extent in extents])
        missing = [extent for extent, place in zip(extents, found, strict=True) if place is None]
        self.found += sum(place.nbytes for place in found if place is not None)
        written = iter(self._write(missing, private=not self._keep))
        ranges = [place or next(written) for place in found]
        for _, sources in groups:
            check_mapped(sources)  # changed while it was read
        rest = iter(ranges)
        for (key, sources), (_, layout) in zip(groups, in_memory, strict=True):
            of_group = list(itertools.islice(rest, len(layout.extents)))
            self._prepared[key] = _Prepared(of_group, sources, _state_of(sources))
        if self._keep:
            self._note_kept(ranges)

    def store(self, key: Hashable, sources: Sequence[torch.Tensor]) -> DiskSlab:
        """Views of the bytes that were prepared under ``key``, or that are written now if ``sources`` have changed
        since."""
        tensors, layout = in_host_memory(sources)
        prepared = self._prepared.pop(key, None)
        if prepared is not None and prepared.state == _state_of(sources):
            return DiskSlab(tensors, layout, prepared.ranges)
        ranges = self._write(layout.extents, private=True)  # new values are this process's own, whatever is kept
        if ranges:
            ranges[0].file.close()  # nobody else can reach the file, so there is nothing to check: spare a descriptor
        check_mapped(sources)  # changed while it was read
        return DiskSlab(tensors, layout, ranges)

    def forget(self) -> None:
        """Drop what was prepared and not stored: others may change the tensors from now on."""
        self._prepared.clear()

    def _write(self, extents: Sequence[Extent], *, private: bool) -> list[FileRange]:
        if not extents:
            return []
        nbytes = sum(extent.nbytes for extent in extents)
        self._directory.require_space(nbytes)
        write = self._directory.write if private else self._directory.publish
        ranges = write([bytes_at(extent.start, extent.nbytes) for extent in extents], self._label)
        self.written += nbytes
        return ranges

    def _known_ranges(self) -> KnownRanges:
        known = KnownRanges()
        for open_file in self._directory.kept_files():
            _add(known, open_file)
        if self._checkpoint is not None:
            for path in safetensors_files(self._checkpoint, self._label):
                _add(known, functools.partial(self._copy_of if self._protect else MappedFile, path))
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
        descriptor = self._directory.create_nameless()
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

    def _note_kept(self, ranges: Sequence[FileRange]) -> None:
        objects = str(self._directory.objects) + os.sep
        self._kept.update(r.file.path.removeprefix(objects) for r in ranges if r.file.path.startswith(objects))
        if self._kept:
            nbytes = sum(place.nbytes for place in ranges)
            self._directory.note_kept(self._label, self._model, sorted(self._kept), nbytes)


def _add(known: KnownRanges, open_file: Callable[[], MappedFile]) -> None:
    try:
        known.add(open_file)
    except DiskTierError as error:
        if is_shortage(error):
            raise
        logger.warning("Not used: %s", error)  # not whole, or not to be read: what it should hold is written anew


def _state_of(sources: Sequence[torch.Tensor]) -> list[tuple[int, int | None]]:
    return [(t.data_ptr(), None if t.is_inference() else t._version) for t in sources]
