"""Every test of this folder starts with an idle device and counters at zero."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.simulated import register, reset_stats, trim

from .stream_programs import synchronize_all


@pytest.fixture(autouse=True)
def fresh_device() -> Iterator[None]:
    register()
    synchronize_all()
    reset_stats()
    yield
    synchronize_all()
    trim()
