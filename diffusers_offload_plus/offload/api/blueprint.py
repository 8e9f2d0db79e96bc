"""The models of a local checkpoint without their weights: classes and shapes from configs, dtypes from file headers.

The models are on the meta device, so only a few kilobytes are read from a checkpoint of any size. The dtype of a model
is the one that most of its bytes in the checkpoint have. ``load_offloaded`` would load it in that dtype.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn

from ...errors import InvalidPolicyError
from ..formatting import first_line
from ..model.tensors import cast_tensor, default_dtype
from .load import kept_in_float32, stored_dtype

__all__ = ["Blueprint", "read_blueprint"]


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """The models of a checkpoint, without values. ``plan_group_offload`` takes it like a pipeline.

    Attributes:
        components: the models by name.
        assumed: names of models without safetensors files. Their dtype is that of the config, or else float32.
    """

    components: dict[str, nn.Module]
    assumed: tuple[str, ...]


def read_blueprint(directory: str | os.PathLike[str]) -> Blueprint:
    """Build the models of the pipeline, or the one model, whose checkpoint is in ``directory``.

    Raises:
        InvalidPolicyError: the directory is no checkpoint, or a class that it names is not known or cannot be built.
    """
    folder = Path(directory).expanduser()
    if not folder.is_dir():
        raise InvalidPolicyError(f"'{directory}' is no directory. Name a local checkpoint of diffusers.")
    if (folder / "model_index.json").is_file():
        sources = dict(_parts(folder))
    elif (folder / "config.json").is_file():
        cls = _class_of_config(folder)
        sources = {cls.__name__: (folder, cls)}
    else:
        raise InvalidPolicyError(
            f"'{directory}' has neither a model_index.json nor a config.json. Name a directory that "
            "`save_pretrained` has written, or a snapshot of a checkpoint."
        )
    components, assumed = {}, []
    for name, (place, cls) in sources.items():
        dtype = stored_dtype(str(place))
        if dtype is None:
            assumed.append(name)
        components[name] = _build(name, place, cls, dtype)
    if not components:
        raise InvalidPolicyError(f"'{directory}' lists no component that has weights.")
    return Blueprint(components, tuple(assumed))


def _parts(folder: Path) -> Iterator[tuple[str, tuple[Path, Any]]]:
    for name, entry in _read(folder / "model_index.json").items():
        if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)):
            continue  # settings of the pipeline, and components that are left out
        library, kind = entry
        cls = _class(library, kind, folder / "model_index.json")
        if isinstance(cls, type) and issubclass(cls, nn.Module):
            yield name, (folder / name, cls)


def _class_of_config(folder: Path) -> Any:
    path = folder / "config.json"
    config = _read(path)
    if isinstance(config.get("_class_name"), str):
        return _class("diffusers", config["_class_name"], path)
    architectures = config.get("architectures")
    if isinstance(architectures, list) and architectures and isinstance(architectures[0], str):
        return _class("transformers", architectures[0], path)
    raise InvalidPolicyError(f"{path} names no class, neither as `_class_name` nor in `architectures`.")


def _class(library: str, name: str, path: Path) -> Any:
    # Some pipelines of diffusers come with models of their own, listed under the pipeline's name.
    place = library if library in ("diffusers", "transformers") else f"diffusers.pipelines.{library}"
    with contextlib.suppress(ImportError, AttributeError):
        return getattr(importlib.import_module(place), name)
    raise InvalidPolicyError(
        f"{path} names the class '{name}' of '{library}', which the installed libraries do not have. Load the model "
        "and use `plan_group_offload`."
    )


def _build(name: str, folder: Path, cls: Any, dtype: torch.dtype | None) -> nn.Module:
    path = folder / "config.json"
    if not path.is_file():
        raise InvalidPolicyError(f"'{name}' has no config: {path} does not exist.")
    config = _read(path)
    if config.get("quantization_config"):
        raise InvalidPolicyError(
            f"'{name}' is quantized, by {path}, so its sizes are known only once it is loaded. Load it and use "
            "`plan_group_offload`."
        )
    dtype = dtype or _dtype_in(config)
    try:
        model = _empty(cls, folder, config, dtype)
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InvalidPolicyError(f"'{name}' ({cls.__name__}) cannot be built from {path}: {reason}") from error
    _cast(model, dtype)
    return model


def _empty(cls: Any, folder: Path, config: dict[str, Any], dtype: torch.dtype) -> nn.Module:
    # As both libraries load: buffers that no file holds are made in the dtype of the model.
    try:
        with default_dtype(dtype), torch.device("meta"):
            return _from_config(cls, folder, config)
    except (NotImplementedError, RuntimeError):
        # It computes with values while it is built; those of parameters are hardly ever among them.
        with default_dtype(dtype), init_empty_weights(include_buffers=False):
            return _from_config(cls, folder, config)


def _from_config(cls: Any, folder: Path, config: dict[str, Any]) -> nn.Module:
    model: Any
    if hasattr(cls, "config_class"):
        model = cls(cls.config_class.from_pretrained(folder, local_files_only=True))
        model.tie_weights()
    else:
        model = cls.from_config(config)
    return model.eval()  # type: ignore[no-any-return]


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    in_float32, stored = kept_in_float32(model, dtype), model.state_dict().keys()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in stored:
            cast_tensor(tensor, torch.float32 if in_float32.intersection(name.split(".")) else dtype)


def _dtype_in(config: dict[str, Any]) -> torch.dtype:
    found = getattr(torch, str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch."), None)
    return found if isinstance(found, torch.dtype) else torch.float32


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidPolicyError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise InvalidPolicyError(f"{path} is no configuration: it must contain one JSON object.")
    return found
