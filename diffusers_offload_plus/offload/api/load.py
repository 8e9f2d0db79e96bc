"""``load_offloaded``: load a model or a pipeline, which may be larger than memory, straight to the disk tier.

The library's own ``from_pretrained`` builds the model without values and maps its weights from the checkpoint, as long
as it need not convert them. So weights are loaded in the dtype of the checkpoint, stored on disk, and cast after that,
one group at a time.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ...errors import InvalidPolicyError
from ..hooks.attachment import attachment_of
from ..hooks.diffusers_api import is_pipeline_class
from ..model.tensors import cast_tensor
from ..modes import engine_mode
from ..stores.disk.safetensors_files import header_of, safetensors_files
from ..stores.mapped_file import MappedFile
from .checks import policy_for
from .components import components_of
from .enable import enable_group_offload

__all__ = ["kept_in_float32", "load_offloaded", "stored_dtype"]

T = TypeVar("T")

_FLOATS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


def load_offloaded(
    cls: type[T],
    path: str | os.PathLike[str],
    onload_device: str | torch.device,
    *,
    offload_to_disk_path: str | os.PathLike[str],
    torch_dtype: torch.dtype | None = None,
    loading: Mapping[str, Any] | None = None,
    **settings: Any,
) -> T:
    """Load a model or a pipeline from a local checkpoint and offload it to disk. It is never in memory as a whole.

    Args:
        cls: a model class of diffusers or transformers, or a pipeline class.
        path: directory of a local checkpoint with safetensors files.
        onload_device: where the model computes.
        offload_to_disk_path: directory for weights that the checkpoint does not contain bit for bit.
        torch_dtype: dtype to compute in; None for that of the checkpoint. With any other dtype the cast weights are
            written to ``offload_to_disk_path``.
        loading: more arguments for ``cls.from_pretrained``, such as ``{"subfolder": "transformer"}``.
        settings: more arguments of :func:`enable_group_offload`.

    Raises:
        InvalidPolicyError: an argument cannot be used.
        UnsupportedModelError, DiskTierError: as :func:`enable_group_offload`.
    """
    loading = dict(loading or {})
    folder = _checked(cls, path, loading)
    if not (torch_dtype is None or (isinstance(torch_dtype, torch.dtype) and torch_dtype.is_floating_point)):
        raise InvalidPolicyError(
            f"`torch_dtype` must be a floating-point torch dtype or None, got {torch_dtype!r}. "
            "Leave it out to compute in the dtype of the checkpoint."
        )
    names = ("exclude_modules",)
    policy_for(
        onload_device=onload_device,
        offload_to_disk_path=offload_to_disk_path,
        checkpoint=folder,
        **{name: value for name, value in settings.items() if name not in names},
    )
    target: T = _load(cls, path, folder, loading)
    enable_group_offload(
        target, onload_device, offload_to_disk_path=str(offload_to_disk_path), checkpoint=folder, **settings
    )
    if torch_dtype is not None:
        try:
            for module in components_of(target).values():
                _cast(module, torch_dtype)
        except BaseException:
            _drop(target)
            raise
    return target


def _checked(cls: Any, path: Any, loading: dict[str, Any]) -> str:
    if not callable(getattr(cls, "from_pretrained", None)):
        raise InvalidPolicyError(
            f"`cls` must be a class with `from_pretrained`, got {cls!r}. Give a model or pipeline class of diffusers "
            "or transformers."
        )
    if hasattr(cls, "load_components"):
        raise InvalidPolicyError(
            f"`cls` must be a model or pipeline class, got {cls.__name__}, a modular pipeline, which loads its "
            "components one by one. Load each with `load_offloaded`, and pass them to `pipe.update_components(...)`."
        )
    for name in ("device_map", "torch_dtype", "dtype", "quantization_config"):
        if name in loading:
            raise InvalidPolicyError(
                f"`loading` must not name '{name}': `load_offloaded` decides on the device and the dtype of weights."
            )
    folder = os.path.join(os.path.expanduser(os.fspath(path)), loading.get("subfolder") or "")
    if not os.path.isdir(folder):
        raise InvalidPolicyError(
            f"`path` must be the directory of a local checkpoint, got {os.fspath(path)!r} ({folder} does not exist). "
            "Download it first, with `huggingface_hub.snapshot_download`."
        )
    return folder


def _load(cls: Any, path: Any, folder: str, loading: dict[str, Any]) -> Any:
    if is_pipeline_class(cls):
        stored = {
            part.name: dtype
            for part in sorted(Path(folder).iterdir())
            if part.is_dir() and (dtype := stored_dtype(str(part))) is not None
        }
        return cls.from_pretrained(path, torch_dtype={**stored, "default": torch.float32}, **loading)
    dtype = stored_dtype(folder)
    if _is_of_transformers(cls):
        return cls.from_pretrained(path, dtype=dtype, **loading)
    return cls.from_pretrained(path, torch_dtype=dtype, low_cpu_mem_usage=True, **loading)


def stored_dtype(folder: str) -> torch.dtype | None:
    """The dtype of most floating-point bytes of a checkpoint; None if it has no safetensors files."""
    nbytes: Counter[torch.dtype] = Counter()
    try:
        files = safetensors_files(folder, "")
    except InvalidPolicyError:
        return None
    for file in files:
        for entry in header_of(MappedFile(file)).values():
            if isinstance(entry, dict) and entry.get("dtype") in _FLOATS:
                begin, end = entry["data_offsets"]
                nbytes[_FLOATS[entry["dtype"]]] += end - begin
    return nbytes.most_common(1)[0][0] if nbytes else None


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    attachment = attachment_of(module)
    if attachment is None:
        module.to(dtype)
        return
    in_float32, stored = kept_in_float32(module, dtype), module.state_dict().keys()

    def dtype_of(name: str) -> torch.dtype | None:
        if name not in stored:
            return None
        return torch.float32 if any(part in in_float32 for part in name.split(".")) else dtype

    engine = attachment.engine
    engine.to_host()
    with engine_mode():
        managed: set[int] = set()
        for group in engine.groups:
            group.cast(dtype_of)
            managed.update(id(entry.tensor) for entry in group.spec.entries)
        for name, buffer in module.named_buffers():
            cast_tensor(buffer, None if id(buffer) in managed else dtype_of(name))
    engine.refresh()


def _drop(target: Any) -> None:
    # Nobody gets it. Its weights must not come to memory, which may be too small for them.
    for module in components_of(target).values():
        attachment = attachment_of(module)
        if attachment is not None:
            attachment.detach(leave=False)
            attachment.abandon()


def _is_of_transformers(cls: type) -> bool:
    return any(base.__module__.startswith("transformers.") for base in cls.__mro__)


def kept_in_float32(module: nn.Module, dtype: torch.dtype) -> set[str]:
    """Parts of the names of weights that ``from_pretrained`` leaves in float32 although ``dtype`` is asked for."""
    lenient, strict = (
        set(getattr(module, name, None) or ()) for name in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
    )
    if not _is_of_transformers(type(module)):
        return lenient
    return {torch.float16: lenient | strict, torch.bfloat16: strict}.get(dtype, set())
