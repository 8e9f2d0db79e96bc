"""The policies that engine tests are run under."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from typing import Any

import pytest

from diffusers_offload_plus.offload.api.checks import policy_for
from diffusers_offload_plus.offload.api.components import components_of
from diffusers_offload_plus.offload.memory.device_budget import least_limit
from diffusers_offload_plus.offload.planning.fitting import size_summary

DIRECTORY = tempfile.mkdtemp(prefix="offload-plus-tests-")
atexit.register(shutil.rmtree, DIRECTORY, ignore_errors=True)

POLICIES: dict[str, dict[str, Any]] = {
    "block": {"offload_type": "block_level"},
    "block-stream": {"offload_type": "block_level", "use_stream": True},
    "block-2-stream": {"offload_type": "block_level", "use_stream": True, "num_blocks_per_group": 2},
    "block-record": {"offload_type": "block_level", "use_stream": True, "record_stream": True},
    "block-lean": {"offload_type": "block_level", "use_stream": True, "low_cpu_mem_usage": True},
    "leaf": {"offload_type": "leaf_level", "non_blocking": True},
    "leaf-stream": {"offload_type": "leaf_level", "use_stream": True},
    "leaf-record": {"offload_type": "leaf_level", "use_stream": True, "record_stream": True},
    "leaf-lean": {"offload_type": "leaf_level", "use_stream": True, "low_cpu_mem_usage": True},
    "shared-leaf-stream": {"offload_type": "leaf_level", "use_stream": True, "share_host_copy": True},
    "tight": {"vram_budget": 0.0},
    "half": {"vram_budget": 0.5},
    "whole": {"vram_budget": 1.0},
    "auto": {"vram_budget": "auto"},
    "disk": {"offload_type": "block_level", "offload_to_disk_path": DIRECTORY},
    "disk-leaf-stream": {"offload_type": "leaf_level", "use_stream": True, "offload_to_disk_path": DIRECTORY},
    "disk-block-stream-budget": {
        "offload_type": "block_level",
        "use_stream": True,
        "offload_to_disk_path": DIRECTORY,
        "host_budget": 100_000,
    },
}


def soaked(*policies: str) -> list[Any]:
    """These as parameters of tests that only `make soak` runs."""
    return [pytest.param(policy, marks=pytest.mark.soak) for policy in policies]


_ALWAYS = ("block", "block-record", "leaf-stream", "leaf-lean", "half", "auto", "disk-leaf-stream")
EVERY = [*_ALWAYS, *soaked(*(name for name in POLICIES if name not in _ALWAYS))]
"""All of them; those that combine what the others have are left to `make soak`."""


def settings(policy: str, target: Any, device: Any) -> dict[str, Any]:
    """Arguments of ``enable_group_offload`` for ``policy``.

    A budget given as a part is made one in bytes: 0.0 is the least that works for ``target``, 1.0 what it takes whole.
    """
    chosen = dict(POLICIES[policy])
    part = chosen.get("vram_budget")
    if isinstance(part, float):
        leaves = policy_for(onload_device=device, offload_type="leaf_level", use_stream=True)
        summaries = [size_summary(module, leaves, name) for name, module in components_of(target).items()]
        fixed = sum(summary.fixed for summary in summaries)
        least = least_limit(fixed + max(summary.floor for summary in summaries))
        whole = least_limit(sum(summary.total for summary in summaries))
        chosen["vram_budget"] = int(least + part * max(0, whole - least))
    return chosen
