"""``make bench``: run every benchmark and print its table as Markdown."""

from __future__ import annotations

import sys

from benchmarks import budgets, disk, hooks, lint, simulated_step


def main() -> int:
    disk.main(sys.argv[1:])
    lint.main([])
    hooks.main([])
    simulated_step.main([])
    budgets.main([])
    return 0


if __name__ == "__main__":
    sys.exit(main())
