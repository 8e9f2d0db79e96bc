"""Where models on disk compute: on the CPU, in place, and on an accelerator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.offload.stores.disk import forked


@pytest.fixture(params=["in-place", "accelerator"])
def where(request: Any) -> torch.device:
    """The CPU, which uses weights where they are mapped, and the device of the other tests."""
    if request.param == "in-place":
        return torch.device("cpu")
    found: torch.device = request.getfixturevalue("device")
    return found


@pytest.fixture(scope="session", autouse=True)
def _processes() -> Iterator[None]:
    yield
    forked.stop()
