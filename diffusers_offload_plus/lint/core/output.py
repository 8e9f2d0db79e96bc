"""Text to standard output, wherever that leads."""

from __future__ import annotations

import os
import sys

from .errors import LintError

__all__ = ["write_output"]


def write_output(text: str) -> None:
    """Write ``text`` to standard output. Characters that it cannot show are written as escapes.

    Raises:
        LintError: standard output is closed, or cannot be written. A reader that has left is no error.
    """
    if sys.stdout is None:
        raise LintError("standard output is closed.")
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:  # `offload-plus lint | head`
        _discard()
    except OSError as error:
        _discard()
        raise LintError(f"standard output cannot be written: {error.strerror or error}.") from error


def _discard() -> None:
    """Let what is still to be written go nowhere, or the interpreter complains about it when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
