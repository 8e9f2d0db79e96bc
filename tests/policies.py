"""The policies that engine tests are run under."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from typing import Any

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
    "disk": {"offload_type": "block_level", "offload_to_disk_path": DIRECTORY},
    "disk-leaf-stream": {"offload_type": "leaf_level", "use_stream": True, "offload_to_disk_path": DIRECTORY},
    "disk-block-stream-budget": {
        "offload_type": "block_level",
        "use_stream": True,
        "offload_to_disk_path": DIRECTORY,
        "host_budget": 100_000,
    },
}
