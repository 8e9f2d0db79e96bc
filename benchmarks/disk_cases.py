"""What the processes of :mod:`benchmarks.disk` do; each prints its figures as one line of JSON."""

from __future__ import annotations

import gc
import json
import mmap
import os
import shutil
import statistics
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.hooks.attachment import attachment_of
from diffusers_offload_plus.offload.memory.process import give_memory_back, process_memory
from diffusers_offload_plus.offload.stores.disk.slab import DiskSlab
from diffusers_offload_plus.offload.stores.mapped_file import MappedFile

Figures = dict[str, Any]


def make(work: Path, layers: int) -> Figures:
    """The checkpoints: a Flux, and a stack of layers that takes longer to read than to compute with."""
    from diffusers import FluxTransformer2DModel
    from safetensors.torch import save_file

    torch.manual_seed(0)
    FluxTransformer2DModel(
        num_layers=4,
        num_single_layers=layers,
        attention_head_dim=64,
        num_attention_heads=16,
        joint_attention_dim=1024,
        pooled_projection_dim=256,
        axes_dims_rope=(16, 24, 24),
    ).to(torch.bfloat16).save_pretrained(work / "model")
    for file in (work / "model").glob("*.safetensors"):
        _misalign(file)
    (work / "stack").mkdir()
    save_file(_stack(layers * 2).state_dict(), work / "stack" / "model.safetensors")
    return {}


def _misalign(file: Path) -> None:
    """Let most weights lie 8 bytes past a multiple of 16, as they do in half of all files, by the header's length."""
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    starts = [entry["data_offsets"][0] for entry in json.loads(raw[8 : 8 + length]).values() if "dtype" in entry]
    if statistics.mode((8 + length + start) % 16 for start in starts) == 0:
        file.write_bytes(struct.pack("<Q", length + 8) + raw[8 : 8 + length] + b" " * 8 + raw[8 + length :])


def set_up(case: str, work: Path) -> Figures:
    """Time and bytes of one set-up, and memory after a pass."""
    model = _flux(work, named=case == "checkpoint")
    begin, cpu = time.perf_counter(), time.process_time()
    _offload(model, case, work)
    setup, setup_cpu = time.perf_counter() - begin, time.process_time() - cpu
    written = 0
    if case == "stock":
        written = sum(file.stat().st_size for file in (work / "stock").glob("*"))
    elif case != "un-offloaded":
        written = dop.offload_report(model).components[0].disk_written_bytes
    _run(model)
    gc.collect()
    give_memory_back()
    memory = process_memory()
    shutil.rmtree(work / "stock", ignore_errors=True)
    return {
        "setup": setup,
        "setup cpu": setup_cpu,
        "written": written,
        "anonymous": memory.anonymous,
        "file": memory.file_backed,
    }


def passes(work: Path, repeat: int) -> Figures:
    """Passes of the same model un-offloaded, with stock offloading and ours, in turn, in one process: whatever else
    the machine does falls on all of them alike. In ``mapped`` and ``checkpoint`` weights lie where ``from_pretrained``
    left them, in its mapping of the file; in the others they had memory of their own."""
    models = {
        case: _flux(work, named=case in ("checkpoint", "copied"), mapped=case in ("mapped", "checkpoint"))
        for case in ("un-offloaded", "stock", "copied", "mapped", "checkpoint")
    }
    for case, model in models.items():
        _offload(model, case, work)
    took: dict[str, list[list[float]]] = {case: [] for case in models}
    for number in range(repeat + 1):
        for case in sorted(models, key=lambda case: (list(models).index(case) + number) % len(models)):
            begin, cpu = time.perf_counter(), time.process_time()
            _run(models[case])
            if number:  # the first pass learns the order, and brings pages in
                took[case].append([time.perf_counter() - begin, time.process_time() - cpu])
    shutil.rmtree(work / "stock", ignore_errors=True)
    return took


def cold(way: str, work: Path, repeat: int) -> Figures:
    """Weights of the stack used over an empty page cache, on the CPU or in that they are brought to staging buffers
    (what an accelerator would do on top depends on it), and reading its file from beginning to end, in turn."""
    path = work / "stack" / "model.safetensors"
    model = _stack(int(os.environ["BENCH_LAYERS"]) * 2)
    model.load_state_dict(_loaded(path))
    dop.enable_group_offload(
        model,
        "cpu",
        offload_type="leaf_level",
        offload_to_disk_path=work / "store",
        checkpoint=path,
    )
    attachment = attachment_of(model)
    assert attachment is not None
    slabs = [g.home for g in attachment.engine.groups if isinstance(g.home, DiskSlab)]
    files = list({file for slab in slabs for file in slab.files()})
    buffers = [torch.empty(max(slab.nbytes for slab in slabs), dtype=torch.uint8) for _ in range(2)]

    def computed(x: torch.Tensor) -> None:
        model(x)

    def staged(x: torch.Tensor) -> None:
        for number, slab in enumerate(slabs):
            slab.read_into(buffers[number % 2][: slab.nbytes])

    use = computed if way == "computed with" else staged
    x = torch.ones(1, 2048)
    found: Figures = {"bytes": path.stat().st_size, "pass": [], "read": []}
    with torch.no_grad():
        use(x)
        for _ in range(repeat):
            for name, work_of in (("pass", lambda: use(x)), ("read", lambda: _read(path, 8 << 20))):
                _evict(path, files)
                found[name].append(_seconds(work_of))
        found["warm"] = [_seconds(lambda: use(x)) for _ in range(2 + repeat)][2:]
    return found


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _stack(layers: int) -> nn.Module:
    with torch.device("meta"):
        model = nn.Sequential(*[nn.Linear(2048, 2048) for _ in range(layers)])
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.uniform_(-0.02, 0.02)
    return model


def _loaded(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {name: value.clone() for name, value in load_file(path).items()}


def _flux(work: Path, *, named: bool, mapped: bool = False) -> Any:
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel.from_pretrained(work / "model", torch_dtype=torch.bfloat16)
    if not mapped:
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()  # as after any change; not views of the loader's mapping
    if not named:
        model.register_to_config(_name_or_path="")  # or the weights would be found where they were loaded from
    gc.collect()
    give_memory_back()
    return model


def _offload(model: Any, case: str, work: Path) -> None:
    if case == "stock":
        model.enable_group_offload(
            torch.device("cpu"),
            offload_type="block_level",
            num_blocks_per_group=1,
            offload_to_disk_path=str(work / "stock"),
        )
    elif case not in ("un-offloaded", "mapped"):
        dop.enable_group_offload(
            model,
            "cpu",
            offload_to_disk_path=work / ("kept" if case in ("kept", "restart") else "store"),
            checkpoint=work / "model" if case in ("checkpoint", "copied") else None,
            keep=case in ("kept", "restart"),
        )


@torch.no_grad()
def _run(model: Any) -> None:
    model(
        hidden_states=torch.ones(1, 64, 64, dtype=torch.bfloat16),
        encoder_hidden_states=torch.ones(1, 8, 1024, dtype=torch.bfloat16),
        pooled_projections=torch.ones(1, 256, dtype=torch.bfloat16),
        timestep=torch.tensor([0.5], dtype=torch.bfloat16),
        img_ids=torch.zeros(64, 3),
        txt_ids=torch.zeros(8, 3),
        return_dict=False,
    )


def _evict(path: Path, files: list[MappedFile]) -> None:
    for file in files:
        file._advise(0, file.size, 21)  # MADV_PAGEOUT: out of the page tables, which keep pages in the cache
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read(path: Path, chunk: int) -> None:
    with path.open("rb", buffering=0) as file, mmap.mmap(-1, chunk) as buffer:
        while file.readinto(buffer):
            pass


def main(case: str, folder: str, number: str) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    work = Path(folder)
    if case == "make":
        figures = make(work, int(number))
    elif case == "passes":
        figures = passes(work, int(number))
    elif case.startswith("cold "):
        figures = cold(case.removeprefix("cold "), work, int(number))
    else:
        figures = set_up(case, work)
    print(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
