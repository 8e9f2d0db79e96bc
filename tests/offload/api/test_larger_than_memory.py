"""A model that does not fit into the memory its process may have, at a scale that suits a test."""

from __future__ import annotations

from pathlib import Path

from benchmarks.larger_than_memory import measure


def test_a_model_larger_than_its_process_may_be(tmp_path: Path) -> None:
    """Where no control group may be made, the growth of anonymous memory is what is left to look at."""
    # A process that has only imported torch and diffusers takes about 350 MB.
    found = measure(tmp_path, model_mb=300, limit_mb=550)
    assert found["model_bytes"] > 250_000_000
    assert found["equal"]
    assert found["offloaded"]["written_bytes"] == 0
    assert found["offloaded"]["anonymous_growth_bytes"] < 0.4 * found["model_bytes"]
    if found["limited"]:
        assert found["cgroup_peak_bytes"] <= found["limit_bytes"]
