"""A model larger than memory: built as a checkpoint, loaded and run in a process that a control group holds to less.

The output is compared with that of an un-offloaded run, which is not held. Needs permission to make a memory control
group (root, as a rule); swap is not used by a process in it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LAYER = 29_500_000  # bytes of a single block in bf16 at the width below, nearly


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.larger_than_memory", description=__doc__)
    parser.add_argument("--model", type=int, default=4000, metavar="MB")
    parser.add_argument("--limit", type=int, default=1500, metavar="MB", help="of the control group")
    parser.add_argument("--directory", type=Path, help="on the disk to use (default: the current directory)")
    parser.add_argument("--role", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.role:
        print(json.dumps(play(options.role, options.work, options.model)))
        return
    with tempfile.TemporaryDirectory(prefix="offload-plus-bench-", dir=options.directory or Path.cwd()) as folder:
        result = measure(Path(folder), options.model, options.limit)
    print(json.dumps(result, indent=1))


def measure(work: Path, model_mb: int, limit_mb: int) -> dict[str, Any]:
    """Figures of both runs. ``limited`` says whether a control group could be made."""
    child("make", work, model_mb)
    size = sum(file.stat().st_size for file in (work / "model").glob("*.safetensors"))
    plain = child("plain", work)
    for file in (work / "model").glob("*.safetensors"):  # cached pages are charged to whoever read them first
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with control_group(limit_mb * 1_000_000) as group:
        held = child("offloaded", work, group=group)
        peak = None if group is None else int((group / PEAK[group_version(group)]).read_text())
    return {
        "model_bytes": size,
        "limit_bytes": limit_mb * 1_000_000,
        "limited": group is not None,
        "cgroup_peak_bytes": peak,
        "equal": plain["digest"] == held["digest"],
        "un-offloaded": plain,
        "offloaded": held,
    }


PEAK = {1: "memory.max_usage_in_bytes", 2: "memory.peak"}
LIMIT = {1: "memory.limit_in_bytes", 2: "memory.max"}


@contextlib.contextmanager
def control_group(limit: int) -> Iterator[Path | None]:
    """A memory control group of ``limit`` bytes; None where none may be made."""
    name = f"offload-plus-{os.getpid()}"
    for version, root in ((1, Path("/sys/fs/cgroup/memory")), (2, Path("/sys/fs/cgroup"))):
        if version == 2 and not (root / "cgroup.controllers").exists():
            continue
        group = root / name
        try:
            group.mkdir()
            (group / LIMIT[version]).write_text(str(limit))
        except OSError:
            with contextlib.suppress(OSError):
                group.rmdir()
            continue
        try:
            if version == 2:
                with contextlib.suppress(OSError):
                    (group / "memory.swap.max").write_text("0")
            yield group
        finally:
            with contextlib.suppress(OSError):
                group.rmdir()
        return
    yield None


def group_version(group: Path) -> int:
    return 1 if (group / LIMIT[1]).exists() else 2


def child(role: str, work: Path, model_mb: int = 0, group: Path | None = None) -> dict[str, Any]:
    def join() -> None:
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    command = [sys.executable, "-m", "benchmarks.larger_than_memory", "--role", role, "--work", str(work)]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "DIFFUSERS_VERBOSITY": "error"}
    done = subprocess.run(
        [*command, "--model", str(model_mb)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=join,
        cwd=Path(__file__).parents[1],
    )
    if done.returncode:
        raise RuntimeError(f"{role} ended with {done.returncode}: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def play(role: str, work: Path, model_mb: int) -> dict[str, Any]:
    import torch
    from diffusers import FluxTransformer2DModel

    import diffusers_offload_plus as dop
    from diffusers_offload_plus.offload.memory.process import process_memory

    if role == "make":
        torch.manual_seed(0)
        with torch.device("meta"):
            model = FluxTransformer2DModel(
                num_layers=1,
                num_single_layers=max(1, model_mb * 1_000_000 // LAYER - 3),
                attention_head_dim=64,
                num_attention_heads=16,
                joint_attention_dim=1024,
                pooled_projection_dim=256,
                axes_dims_rope=(16, 24, 24),
            ).to(torch.bfloat16)
        model = model.to_empty(device="cpu")
        for parameter in model.parameters():
            parameter.data.normal_(std=0.02)
        model.save_pretrained(work / "model", max_shard_size="500MB")
        return {}
    before = process_memory().anonymous
    begin = time.perf_counter()
    if role == "plain":
        model = FluxTransformer2DModel.from_pretrained(work / "model", torch_dtype=torch.bfloat16)
    else:
        model = dop.load_offloaded(FluxTransformer2DModel, work / "model", "cpu", offload_to_disk_path=work / "store")
    loaded = time.perf_counter() - begin
    passes, anonymous = [], 0
    with torch.no_grad():
        for _ in range(2):
            begin = time.perf_counter()
            output = model(
                hidden_states=torch.ones(1, 16, 64, dtype=torch.bfloat16),
                encoder_hidden_states=torch.ones(1, 8, 1024, dtype=torch.bfloat16),
                pooled_projections=torch.ones(1, 256, dtype=torch.bfloat16),
                timestep=torch.tensor([0.5], dtype=torch.bfloat16),
                img_ids=torch.zeros(16, 3),
                txt_ids=torch.zeros(8, 3),
                return_dict=False,
            )[0]
            passes.append(round(time.perf_counter() - begin, 2))
            anonymous = max(anonymous, process_memory().anonymous or 0)
    written = dop.offload_report(model).components[0].disk_written_bytes if role == "offloaded" else None
    return {
        "load_s": round(loaded, 2),
        "passes_s": passes,
        "written_bytes": written,
        "anonymous_growth_bytes": anonymous - (before or 0),
        "digest": hashlib.sha256(output.view(torch.uint8).numpy().tobytes()).hexdigest(),
    }


if __name__ == "__main__":
    main()
