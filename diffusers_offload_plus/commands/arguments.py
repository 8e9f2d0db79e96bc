"""Arguments of commands as data, and how their values are read."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from ..offload.formatting import parse_bytes

__all__ = ["DIRECTORY", "FILE", "FLAG", "add_options", "comma_separated", "expecting", "size", "whole_number", "words"]

T = TypeVar("T")

DIRECTORY = {"type": Path, "metavar": "DIR"}
FILE = {"type": Path, "metavar": "FILE"}
FLAG = {"action": "store_true"}


def add_options(parser: argparse._ActionsContainer, options: Iterable[tuple[str, dict[str, Any], str]]) -> None:
    """Declare options: each is its name, how argparse is to read it, and its help."""
    for name, reading, text in options:
        parser.add_argument(name, help=text, **reading)


def expecting(expected: str, read: Callable[[str], T]) -> Callable[[str], T]:
    """``read`` as a type for argparse: where it raises ValueError, the message says what was expected."""

    def value(text: str) -> T:
        try:
            return read(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}") from None

    return value


def comma_separated(read: Callable[[str], T]) -> Callable[[str], list[T]]:
    """A list of what ``read`` reads, between commas."""
    return lambda text: [read(part.strip()) for part in text.split(",")]


def whole_number(least: int) -> Callable[[str], int]:
    """A number of at least ``least``."""

    def read(text: str) -> int:
        if int(text) < least:
            raise ValueError
        return int(text)

    return expecting(f"a whole number of at least {least}", read)


def _word(text: str) -> str:
    if not text:
        raise ValueError
    return text


size = expecting("a size such as 12GiB", lambda text: parse_bytes("size", text))
words = expecting("words separated by commas", comma_separated(_word))
