"""Runs Python with the stand-in for CUDA, and all processes that it starts.

``python -m tests.standin_cuda script.py``, or ``python -m tests.standin_cuda -m pytest tests/offload``.
"""

from __future__ import annotations

import os
import sys

from .build import DRIVER, RUNTIME, build


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(f"usage: {sys.executable} -m tests.standin_cuda SCRIPT | -m MODULE | -c COMMAND  [argument ...]")
    folder = build()
    libraries = [str(folder / RUNTIME), str(folder / DRIVER), *filter(None, [os.environ.get("LD_PRELOAD")])]
    os.execve(sys.executable, [sys.executable, *sys.argv[1:]], os.environ | {"LD_PRELOAD": ":".join(libraries)})


if __name__ == "__main__":
    main()
