"""``--import MODULE[:FUNCTION]``: import a module that registers a torch device."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from . import CommandError

__all__ = ["add_import_argument", "import_plugins"]


def add_import_argument(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` the option ``--import``; its values are in ``arguments.imports``."""
    parser.add_argument(
        "--import",
        dest="imports",
        metavar="MODULE[:FUNCTION]",
        action="append",
        default=[],
        help="import MODULE first, and call its FUNCTION without arguments if one is named: for devices that are "
        "registered by a package of their own, such as torch_npu. Modules in the current directory are found too. "
        "May be repeated",
    )


def import_plugins(specifications: list[str]) -> None:
    """Import each ``MODULE[:FUNCTION]``, and call the function.

    Raises:
        CommandError: the module or the function does not exist, or the function raised.
    """
    if specifications and os.getcwd() not in sys.path and "" not in sys.path:
        # At the end, unlike `python -m`: a local file must not be imported instead of an installed library.
        sys.path.append(os.getcwd())
    for specification in specifications:
        name, _, function = specification.partition(":")
        try:
            module = importlib.import_module(name)
        except (ImportError, ValueError, TypeError) as error:
            raise CommandError(
                f"--import {specification}: cannot import the module {name!r}: {error}. It has to be installed, or "
                "lie below the current directory."
            ) from error
        if not function:
            continue
        register = getattr(module, function, None)
        if not callable(register):
            raise CommandError(f"--import {specification}: the module {name!r} has no function {function!r}.")
        try:
            register()
        except Exception as error:
            raise CommandError(
                f"--import {specification}: {function}() raised {type(error).__name__}: {error}"
            ) from error
