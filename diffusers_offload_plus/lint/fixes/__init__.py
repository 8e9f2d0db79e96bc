"""Mending findings. Importing this needs the standard library alone; libcst is imported for a file being mended."""

from __future__ import annotations

from .apply import FileFix, Fixed, fix_files

__all__ = ["FileFix", "Fixed", "fix_files"]
