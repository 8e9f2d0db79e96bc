"""``python -m diffusers_offload_plus.lint``: the same as ``offload-plus lint``."""

from __future__ import annotations

import sys

from ..cli import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main(["lint", *sys.argv[1:]]))
