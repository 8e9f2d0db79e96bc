"""The commands of ``offload-plus``, one module each.

A command module has the members that :class:`Command` lists. Importing it is fast: it imports heavy libraries (torch,
diffusers) inside ``run``. To add a command, write ``commands/<name>.py`` and put ``<name>`` into :data:`COMMANDS`.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from typing import Protocol, cast

from ..errors import OffloadPlusError

__all__ = ["COMMANDS", "Command", "CommandError", "load_commands"]

COMMANDS: tuple[str, ...] = ("demo", "plan", "store", "lint", "rule")
"""Names of the commands, in the order in which the help lists them."""


class CommandError(OffloadPlusError):
    """The arguments of a command ask for something that it cannot do."""


class Command(Protocol):
    """The members of a command module."""

    SUMMARY: str
    """One line for the list of commands."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's own arguments."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Run the command and return its exit code."""


def load_commands() -> Iterator[tuple[str, Command]]:
    """Yield the name and the module of every command."""
    for name in COMMANDS:
        yield name, cast(Command, importlib.import_module(f"{__name__}.{name}"))
