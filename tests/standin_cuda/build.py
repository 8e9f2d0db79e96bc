"""Builds the stand-in once per version of its sources and of torch."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

__all__ = ["DRIVER", "RUNTIME", "build"]

_SOURCES = Path(__file__).with_name("csrc")
_FLAGS = ["-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-missing-field-initializers"]
RUNTIME, OPERATORS, DRIVER = "libstandin_cudart.so", "libstandin_operators.so", "libcuda.so.1"
# What of PyTorch calls the runtime, and what of it calls the driver.
_CALLERS = ["libtorch_cuda.so", "libc10_cuda.so", "libtorch_python.so", "libtorch_cuda_linalg.so"]
_DRIVER_CALLERS = ["libcaffe2_nvrtc.so"]


def _site_packages() -> Path:
    """Where torch is installed, found without importing it."""
    found = find_spec("torch")
    if found is None or found.origin is None:
        raise RuntimeError("The stand-in for CUDA needs torch, in its CUDA build, and torch is not installed.")
    path = Path(found.origin).parents[1]
    if not (path / "torch" / "lib" / "libtorch_cuda.so").exists():
        raise RuntimeError(
            f"The stand-in for CUDA needs the CUDA build of torch, and torch {version('torch')} in {path} is another. "
            "`make test-cuda` makes an environment with it."
        )
    return path


def build() -> Path:
    """Return the folder of the libraries, building first what no earlier process has built."""
    packages = _site_packages()
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions")
    folder = root / "standin_cuda" / _digest([Path(__file__), *_sources("**/*.cpp"), *_sources("**/*.h")], [])
    folder.mkdir(parents=True, exist_ok=True)
    with (root / "standin_cuda" / "flock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "finished").exists():
            _build_runtime(folder, packages)
            _build_driver(folder, packages)
            _build_operators(folder, packages)
            (folder / "finished").touch()
    return folder


def _build_runtime(folder: Path, packages: Path) -> None:
    flags = ["-std=c++17", "-I", str(_SOURCES), "-I", str(_cuda_headers(packages))]
    objects = _objects(folder, ["base", "device", "api"], flags)
    _link_with_stubs(folder, RUNTIME, objects, _imports(packages, _CALLERS, r"(__)?cuda[A-Z]"))


def _build_driver(folder: Path, packages: Path) -> None:
    flags = ["-std=c++17", "-I", str(_SOURCES), "-I", str(_cuda_headers(packages))]
    objects = [*_objects(folder, ["driver"], flags), folder / RUNTIME]
    soname = f"-Wl,-soname,{DRIVER}"
    _link_with_stubs(folder, DRIVER, objects, _imports(packages, _DRIVER_CALLERS, r"cu[A-Z]"), soname)


def _build_operators(folder: Path, packages: Path) -> None:
    torch = packages / "torch"
    headers = [
        torch / "include",
        torch / "include" / "torch" / "csrc" / "api" / "include",
        _cuda_headers(packages),
        Path(sysconfig.get_path("include")),
    ]
    flags = ["-std=c++20", "-I", str(_SOURCES), *(word for path in headers for word in ("-isystem", str(path)))]
    objects = _objects(folder, ["kernels", "operators", "library"], flags)
    libraries = ["-ltorch", "-ltorch_cpu", "-ltorch_cuda", "-lc10", "-lc10_cuda"]
    search = ["-L", str(torch / "lib"), f"-Wl,-rpath,{torch / 'lib'}", "-Wl,--allow-shlib-undefined"]
    _link(folder / OPERATORS, [*objects, folder / RUNTIME], *search, *libraries)


def _link_with_stubs(folder: Path, name: str, objects: list[Path], imports: set[str], *flags: str) -> None:
    """Link a library that has all ``imports``: those that are in no object abort, and say which was called."""
    missing = sorted(imports - _names(objects, "--defined-only"))
    source = folder / f"missing_{name}.cpp"
    lines = ["namespace standin { [[noreturn]] void abort_missing(const char*); }"]
    for stub in missing:
        body = f'standin::abort_missing("{stub}")'
        lines.append(f'extern "C" __attribute__((visibility("default"))) void {stub}() {{ {body}; }}')
    source.write_text("\n".join(lines))
    _compile(source, source.with_suffix(".o"), [])
    _link(folder / name, [*objects, source.with_suffix(".o")], *flags)


def _objects(folder: Path, rooms: list[str], flags: list[str]) -> list[Path]:
    """What the sources of these rooms compile to; what has been compiled before is taken again."""
    headers = [*_sources("api/launch.h"), *(path for room in rooms for path in _sources(f"{room}/*.h"))]
    sources = [path for room in rooms for path in _sources(f"{room}/*.cpp")]
    objects = [folder.parent / "objects" / f"{_digest([source, *headers], flags)}.o" for source in sources]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda source, into: into.exists() or _compile(source, into, flags), sources, objects))
    return objects


def _compile(source: Path, into: Path, flags: list[str]) -> None:
    into.parent.mkdir(exist_ok=True)
    unfinished = into.with_suffix(".unfinished")
    _run([*_FLAGS, *flags, "-c", str(source), "-o", str(unfinished)])
    unfinished.rename(into)


def _link(into: Path, objects: list[Path], *flags: str) -> None:
    _run(["-shared", *map(str, objects), *flags, "-o", str(into)])


def _cuda_headers(packages: Path) -> Path:
    found = sorted((packages / "nvidia").glob("cu*/include/cuda_runtime_api.h"))
    if not found or not (found[-1].parent / "crt" / "host_config.h").exists():
        raise RuntimeError("Headers of CUDA are missing: install nvidia-cuda-crt beside the CUDA build of torch.")
    return found[-1].parent


def _imports(packages: Path, libraries: list[str], pattern: str) -> set[str]:
    found = _names([packages / "torch" / "lib" / name for name in libraries], "--undefined-only")
    return {name for name in found if re.match(pattern, name)}


def _names(libraries: list[Path], which: str) -> set[str]:
    dynamic = [] if libraries[0].suffix == ".o" else ["-D"]
    command = ["nm", *dynamic, which, *map(str, libraries)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {line.split()[-1].split("@")[0] for line in output.splitlines() if len(line.split()) > 1}


def _run(arguments: list[str]) -> None:
    compiler = (os.environ.get("CXX") or "g++").split()
    if shutil.which(compiler[0]) is None:
        raise RuntimeError(f"The stand-in for CUDA is built from C++, and the compiler {compiler[0]!r} was not found.")
    done = subprocess.run([*compiler, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"The stand-in for CUDA could not be built:\n{done.stderr[-8000:]}")


def _sources(pattern: str) -> list[Path]:
    return sorted(_SOURCES.glob(pattern))


def _digest(sources: list[Path], flags: list[str]) -> str:
    digest = hashlib.sha256()
    for part in (version("torch"), sys.implementation.cache_tag, *_FLAGS, *flags):
        digest.update(f"{part}\n".encode())
    for source in sources:
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:16]
