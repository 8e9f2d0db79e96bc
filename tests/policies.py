"""The policies that engine tests are run under."""

from __future__ import annotations

from typing import Any

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
}
