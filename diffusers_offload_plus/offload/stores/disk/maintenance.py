"""Listing, verifying and cleaning a store, for ``offload-plus store``."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from ....errors import DiskTierError
from .directory import StoreDirectory, open_shared
from .store_file import verify_file

__all__ = ["KeptModel", "Problem", "collect_garbage", "kept_models", "verify"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeptModel:
    """A model whose weights are kept, as its manifest says.

    Attributes:
        label: the component's name; ``model``: the name of its class.
        nbytes: bytes of its weights that lie in the store or in its checkpoint.
        created: when, in UTC.
        objects: names of the files it needs, below ``objects/``; ``missing``: the ones that are not there.
        path: the manifest.
    """

    label: str
    model: str
    nbytes: int
    created: str
    objects: tuple[str, ...]
    missing: tuple[str, ...]
    path: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """A file of a store that is not as it should be."""

    path: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


def kept_models(directory: str) -> Iterator[KeptModel | Problem]:
    """The models that the manifests of a store name, in the order of the manifests' names."""
    store = StoreDirectory(directory)
    for path in sorted(store.manifests.glob("*.json")):
        try:
            manifest = json.loads(path.read_text())
            objects = tuple(str(name) for name in manifest["objects"])
            yield KeptModel(
                label=str(manifest["label"]),
                model=str(manifest["model"]),
                nbytes=int(manifest["bytes"]),
                created=str(manifest["created"]),
                objects=objects,
                missing=tuple(name for name in objects if not (store.objects / name).is_file()),
                path=str(path),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            yield Problem(path=str(path), text=f"not a manifest: {type(error).__name__}: {error}")


def verify(directory: str) -> Iterator[Problem | str]:
    """Read every kept file and compare it with the checksums it was written with.

    Yields the path of each whole one.
    """
    store = StoreDirectory(directory)
    for path in _objects(store):
        try:
            wrong = verify_file(open_shared(str(path)))
        except DiskTierError as error:
            yield Problem(path=str(path), text=str(error.strerror))
            continue
        if wrong:
            yield Problem(path=str(path), text=f"{len(wrong)} of its tensors do not have the bytes that were written")
        else:
            yield str(path)
    for found in kept_models(directory):
        if isinstance(found, Problem):
            yield found
        elif found.missing:
            yield Problem(path=found.path, text=f"needs {', '.join(found.missing)}, which is not there")


def collect_garbage(directory: str, *, remove: bool = True) -> Iterator[tuple[str, int]]:
    """Remove what no manifest needs and no process uses; yields path and size of each file.

    Manifests whose files are gone go as well, and temporary files of processes that are no longer there.
    """
    store = StoreDirectory(directory)
    needed: set[str] = set()
    for found in kept_models(directory):
        if isinstance(found, KeptModel) and not found.missing:
            needed.update(found.objects)
        elif removed := _remove_unlocked(Path(found.path), remove):
            yield removed
    for path in [*(p for p in _objects(store) if p.name not in needed), *sorted(store.temporaries())]:
        if removed := _remove_unlocked(path, remove):
            yield removed


def _objects(store: StoreDirectory) -> list[Path]:
    return sorted(store.objects.glob("*.safetensors"))


def _remove_unlocked(path: Path, remove: bool) -> tuple[str, int] | None:
    # Whoever writes or maps a file holds a lock on it.
    with contextlib.suppress(OSError), open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        size = os.fstat(file.fileno()).st_size
        if remove:
            path.unlink()
        return str(path), size
    return None
