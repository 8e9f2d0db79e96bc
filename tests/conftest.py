"""The device all engine tests run on: CUDA where there is one, else the simulated accelerator."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from tests import standin_cuda
from tests.support.meter import Meter, meter_for

# Timings are no assertions: a busy machine takes what time it takes.
settings.register_profile("project", deadline=None)
settings.load_profile("project")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test first, so that workers do not wait for it at the end."""
    items.sort(key=lambda item: "twin" not in item.nodeid)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # Tiny tensors: a thread pool per xdist worker costs more than it gives.
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def _short_collections() -> None:
    # Leak checks collect garbage around every test; what the imports made need not be walked each time. What an
    # earlier module left alive when it was frozen may be garbage by now.
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where offloaded models compute."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    from tests.simulated import register

    register()
    return torch.device("sim", 0)


@pytest.fixture(autouse=True)
def _stand_in() -> Iterator[None]:
    """On the stand-in for CUDA: what a device would not have noticed fails the test that did it, and a kernel that
    failed takes no other test with it."""
    yield
    if standin_cuda.is_loaded():
        noticed = [*standin_cuda.misuse(), *standin_cuda.refused_kernels()]
        standin_cuda.forgive()
        assert not noticed


@pytest.fixture
def meter(device: torch.device) -> Iterator[Meter]:
    """Counts what the device did since the test began; fails the test on a race, or where memory leaks."""
    gc.collect()
    found = meter_for(device)
    found.reset()
    yield found
    assert found.races == 0, found.race_log
    gc.collect()
    assert found.leaked == 0, f"{found.leaked} device bytes are still held after the test"
    assert found.pinned <= 0, f"{found.pinned} bytes of pinned memory are still held after the test"
