"""The command line: ``offload-plus COMMAND``, also ``python -m diffusers_offload_plus COMMAND``.

Importing this module imports neither torch nor diffusers; each command imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from . import __version__
from .commands import COMMANDS
from .errors import OffloadPlusError

__all__ = ["main"]

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that ``argv`` (by default ``sys.argv[1:]``) names, and return the exit code.

    An error of this package becomes one message on stderr and exit code 2. As usual with argparse, wrong usage,
    ``--help`` and ``--version`` end in ``SystemExit``.
    """
    arguments = _parser(sys.argv[1:] if argv is None else argv).parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except OffloadPlusError as error:
        print(f"offload-plus {arguments.command}: error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print(f"offload-plus {arguments.command}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="offload-plus", description="Group offloading for diffusers that is always right."
    )
    parser.add_argument("--version", action="version", version=f"offload-plus {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = subparsers.add_parser(name, help=summary)
        if name in argv:  # the others need not be imported
            module = importlib.import_module(f"{__package__}.commands.{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
