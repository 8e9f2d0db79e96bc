"""The disk tier on a CPU onload device: set-up, pass and memory, beside stock diffusers in the same run.

Each measurement is a process of its own, so that one leaves no memory or page tables to the next. "cold" means that
the page cache of the files was dropped first; the limit is a sequential read of the same file.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CASES = {
    "un-offloaded": "in memory",
    "stock": "stock diffusers, disk",
    "fresh": "ours, written",
    "checkpoint": "ours, from checkpoint",
    "kept": "ours, kept: first run",
    "restart": "ours, kept: restart",
}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.disk", description=__doc__)
    parser.add_argument("--layers", type=int, default=18, help="single blocks of the Flux (default: 18, about 1 GB)")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--directory", type=Path, help="on the disk to measure (default: the current directory)")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cold", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.case:
        print(json.dumps(one(options.case, options.work, options.cold)))
        return
    with tempfile.TemporaryDirectory(prefix="offload-plus-bench-", dir=options.directory or Path.cwd()) as folder:
        report(Path(folder), options.layers, options.repeat)


def report(work: Path, layers: int, repeat: int) -> None:
    run("make", work, layers)
    size = sum(file.stat().st_size for file in (work / "model").glob("*.safetensors"))
    warm: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES}
    cold: dict[str, list[dict[str, Any]]] = {case: [] for case in ("checkpoint", "stock")}
    raw = []
    for _ in range(repeat):
        shutil.rmtree(work / "kept", ignore_errors=True)
        for case in CASES:
            warm[case].append(run(case, work))
        for case in cold:
            cold[case].append(run(case, work, cold=True))
        raw.append(run("raw", work, cold=True)["seconds"])
    print(
        f"Flux at reduced width, {size / 1e6:.0f} MB in bf16, 64 tokens; onload device cpu, block level; "
        f"{os.cpu_count()} cores ({platform.machine()}); median of {repeat}.\n"
    )
    print("| | set-up s | written MB | first pass s | later pass s | x un-offloaded | anonymous MB | file-backed MB |")
    print("|---|---|---|---|---|---|---|---|")
    plain = middle(warm["un-offloaded"], "later")
    for case, text in CASES.items():
        row = warm[case]
        memory = f"{middle(row, 'anonymous') / 1e6:.0f} | {middle(row, 'file') / 1e6:.0f}"
        print(
            f"| {text} | {middle(row, 'setup'):.2f} | {middle(row, 'written') / 1e6:.0f} | {middle(row, 'first'):.2f} "
            f"| {middle(row, 'later'):.2f} | {middle(row, 'later') / plain:.2f} | {memory} |"
        )
    rate = size / statistics.median(raw)
    print(f"\nSequential read of the same files, cold: {rate / 1e6:.0f} MB/s.")
    for case, row in cold.items():
        took = middle(row, "first")
        share = size / took / rate
        print(f"First pass, cold, {CASES[case]}: {took:.2f} s, {size / took / 1e6:.0f} MB/s, {share:.2f} x that.")


def middle(rows: list[dict[str, Any]], name: str) -> float:
    return statistics.median(row[name] for row in rows)


def run(case: str, work: Path, layers: int = 0, *, cold: bool = False) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.disk", "--case", case, "--work", str(work), "--layers", str(layers)]
    # Threads that spin at a barrier take time from those they wait for, on a busy machine.
    environment = {
        **os.environ,
        "OMP_WAIT_POLICY": "PASSIVE",
        "BENCH_LAYERS": str(layers),
        "DIFFUSERS_VERBOSITY": "error",
    }
    done = subprocess.run(
        [*command, *(["--cold"] if cold else [])], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{case}: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def one(case: str, work: Path, cold: bool) -> dict[str, Any]:
    import torch
    from diffusers import FluxTransformer2DModel

    import diffusers_offload_plus as dop
    from diffusers_offload_plus.offload.memory import give_memory_back, process_memory

    if case == "make":
        torch.manual_seed(0)
        FluxTransformer2DModel(
            num_layers=4,
            num_single_layers=int(os.environ["BENCH_LAYERS"]),
            attention_head_dim=64,
            num_attention_heads=16,
            joint_attention_dim=1024,
            pooled_projection_dim=256,
            axes_dims_rope=(16, 24, 24),
        ).to(torch.bfloat16).save_pretrained(work / "model")
        return {}
    if case == "raw":
        drop_cache(work)
        return {"seconds": read_all(work)}
    torch.set_num_threads(os.cpu_count() or 1)
    inputs = {
        "hidden_states": torch.ones(1, 64, 64, dtype=torch.bfloat16),
        "encoder_hidden_states": torch.ones(1, 8, 1024, dtype=torch.bfloat16),
        "pooled_projections": torch.ones(1, 256, dtype=torch.bfloat16),
        "timestep": torch.tensor([0.5], dtype=torch.bfloat16),
        "img_ids": torch.zeros(64, 3),
        "txt_ids": torch.zeros(8, 3),
        "return_dict": False,
    }
    model = FluxTransformer2DModel.from_pretrained(work / "model", torch_dtype=torch.bfloat16)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # in memory, as after any change; not views of the loader's mapping
    if case != "checkpoint":
        model.register_to_config(_name_or_path="")  # or the weights would be found where they were loaded from
    gc.collect()
    give_memory_back()
    begin = time.perf_counter()
    if case == "stock":
        model.enable_group_offload(
            torch.device("cpu"),
            offload_type="block_level",
            num_blocks_per_group=1,
            offload_to_disk_path=str(work / "stock"),
        )
    elif case != "un-offloaded":
        dop.enable_group_offload(
            model,
            "cpu",
            offload_to_disk_path=work / ("kept" if case in ("kept", "restart") else "store"),
            checkpoint=work / "model" if case == "checkpoint" else None,
            keep=case in ("kept", "restart"),
        )
    setup = time.perf_counter() - begin
    written = 0
    if case == "stock":
        written = sum(file.stat().st_size for file in (work / "stock").glob("*"))
    elif case != "un-offloaded":
        written = dop.offload_report(model).components[0].disk_written_bytes
    if cold:
        drop_cache(work)
    passes = []
    with torch.no_grad():
        for _ in range(4):
            begin = time.perf_counter()
            model(**inputs)
            passes.append(time.perf_counter() - begin)
    gc.collect()
    give_memory_back()
    memory = process_memory()
    shutil.rmtree(work / "stock", ignore_errors=True)
    return {
        "setup": setup,
        "written": written,
        "first": passes[0],
        "later": min(passes[1:]),
        "anonymous": memory.anonymous,
        "file": memory.file_backed,
    }


def drop_cache(work: Path) -> None:
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1")
    except OSError:
        for file in work.rglob("*.safetensors"):
            with file.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_all(work: Path) -> float:
    buffer = bytearray(8 << 20)
    begin = time.perf_counter()
    for file in sorted((work / "model").glob("*.safetensors")):
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass
    return time.perf_counter() - begin


if __name__ == "__main__":
    main(sys.argv[1:])
