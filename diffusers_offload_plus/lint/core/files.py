"""Writing files: in one step, so that no reader ever sees half a file."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from .errors import LintError

__all__ = ["write_bytes", "write_file"]


def write_file(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 with the newlines it has.

    Raises:
        LintError: the file cannot be written.
    """
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the file at ``path`` in one step, keeping its mode. A reader sees the old bytes or the new ones.

    Raises:
        LintError: the file cannot be written.
    """
    import tempfile  # most runs write no file

    target = Path(os.path.realpath(path))  # a link stays a link
    try:
        if target.exists() and not target.is_file():  # /dev/stdout and the like cannot be replaced
            target.write_bytes(data)
            return
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.chmod(name, stat.S_IMODE(target.stat().st_mode) if target.exists() else _default_mode())
            os.replace(name, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        raise LintError(f"{path}: cannot be written: {error.strerror or error}.") from error


def _default_mode() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
