"""``python -m tests.mutants``: break the package in each of the ways of :mod:`tests.mutants.changes`; run the suite.

Whatever is not killed is printed and makes the exit code 1. Works on copies; the tree is not touched.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import sys

from tests.mutants.changes import ROOMS
from tests.mutants.trial import try_in_copy


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--only", default="", help="run the mutants whose name contains this")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds for one mutant")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    options = parser.parse_args()
    chosen = [(room, mutant) for room in ROOMS for mutant in room.mutants if options.only in mutant.name]
    if not chosen:
        parser.error(f"no mutant has {options.only!r} in its name")
    bad = 0
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        results = pool.map(lambda one: try_in_copy(one[1], one[0].first, options.timeout), chosen)
        for number, ((_, mutant), (said, seconds)) in enumerate(zip(chosen, results, strict=True), 1):
            bad += not said.startswith("killed")
            print(f"[{number}/{len(chosen)}] {mutant.name}: {said} ({seconds:.0f} s)", flush=True)
    print(f"{len(chosen) - bad} of {len(chosen)} mutants killed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
