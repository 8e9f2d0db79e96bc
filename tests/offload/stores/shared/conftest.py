"""The process that ranks are forked from ends with the tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.offload.stores.disk import forked


@pytest.fixture(scope="session", autouse=True)
def _processes() -> Iterator[None]:
    yield
    forked.stop()
