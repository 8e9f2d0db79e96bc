"""An assertion for tests of modular pipelines: blocks keep the conventions."""

from __future__ import annotations

from .conventions import assert_block_conventions

__all__ = ["assert_block_conventions"]
