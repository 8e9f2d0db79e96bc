"""Builds the C++ side once per version of its sources, and loads it."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.machinery
import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

import torch

__all__ = ["load_extension"]

_SOURCES = Path(__file__).with_name("csrc")
_FLAGS = ["-O1"]


def load_extension() -> ModuleType:
    """Return the extension, building it first if no earlier process has.

    Processes that start at the same time build it once: the others wait for the first.
    """
    name = f"simulated_accelerator_{_fingerprint()}"
    directory = _build_root() / name
    library = directory / f"{name}.so"
    finished = directory / "finished"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "flock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not finished.exists():
            # PyTorch's own lock file is left behind by a build that was killed; whoever holds it also holds ours.
            (directory / "lock").unlink(missing_ok=True)
            _build(name, directory)
            finished.touch()
    return _import(name, library)


def _build(name: str, directory: Path) -> None:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise RuntimeError(
            f"The simulated accelerator is built from C++ at first use, and the compiler {compiler!r} was not found. "
            "Install g++, or name a compiler in the environment variable CXX."
        )
    from torch.utils.cpp_extension import load

    path = os.environ.get("PATH", "")
    # Ninja may be installed only next to the interpreter, and a virtual environment need not be activated.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), path])
    try:
        load(
            name=name,
            sources=[str(source) for source in sorted(_SOURCES.glob("*.cpp"))],
            extra_cflags=_FLAGS,
            build_directory=str(directory),
            is_python_module=False,
            keep_intermediates=False,
        )
    finally:
        os.environ["PATH"] = path


def _import(name: str, library: Path) -> ModuleType:
    loader = importlib.machinery.ExtensionFileLoader(name, str(library))
    spec = importlib.util.spec_from_file_location(name, library, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def _build_root() -> Path:
    from torch.utils.cpp_extension import get_default_build_root

    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())


def _fingerprint() -> str:
    digest = hashlib.sha256()
    for part in (torch.__version__, sys.implementation.cache_tag, *_FLAGS):
        digest.update(f"{part}\n".encode())
    for source in sorted(_SOURCES.iterdir()):
        if source.suffix in {".cpp", ".h"}:
            digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:16]
