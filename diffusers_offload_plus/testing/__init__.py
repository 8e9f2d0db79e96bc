"""For the tests of those who write modular pipelines: conventions as one assertion."""

from __future__ import annotations

from .conventions import assert_block_conventions

__all__ = ["assert_block_conventions"]
