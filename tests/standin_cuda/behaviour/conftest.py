"""These tests look at the stand-in for CUDA: they are there only in a process that runs with it (`make test-cuda`)."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from tests import standin_cuda

collect_ignore_glob = [] if standin_cuda.is_loaded() else ["test_*.py"]


@pytest.fixture(autouse=True)
def fresh_device() -> Iterator[None]:
    """Every test starts with an idle device and counters at zero."""
    import torch

    gc.collect()  # what earlier tests left would call the runtime in the midst of this one when it goes
    torch.cuda.synchronize()
    standin_cuda.misuse()
    standin_cuda.refused_kernels()
    standin_cuda.reset_stats()
    yield
    standin_cuda.forgive()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
