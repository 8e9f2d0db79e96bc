"""The command line: ``offload-plus COMMAND``, also ``python -m diffusers_offload_plus COMMAND``.

Importing this module imports neither torch nor diffusers; each command imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import __version__
from .commands import Command, load_commands
from .errors import OffloadPlusError

__all__ = ["main"]

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that ``argv`` (by default ``sys.argv[1:]``) names, and return the exit code.

    An error of this package becomes one message on stderr and exit code 2. As usual with argparse, wrong usage,
    ``--help`` and ``--version`` end in ``SystemExit``.
    """
    commands = dict(load_commands())
    arguments = _parser(commands).parse_args(argv)
    try:
        return commands[arguments.command].run(arguments)
    except OffloadPlusError as error:
        print(f"offload-plus {arguments.command}: error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print(f"offload-plus {arguments.command}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _parser(commands: dict[str, Command]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="offload-plus", description="Group offloading for diffusers that is always right."
    )
    parser.add_argument("--version", action="version", version=f"offload-plus {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in commands.items():
        command.add_arguments(subparsers.add_parser(name, help=command.SUMMARY))
    return parser


if __name__ == "__main__":
    sys.exit(main())
