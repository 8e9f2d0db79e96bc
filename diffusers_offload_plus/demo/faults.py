"""Two faults of stock disk offloading, reproduced, and what this package does in the same cases.

Stock hooks name files after modules only, so that two models overwrite each other's files: the first fault. They put a
placeholder without values in place of a weight, so that saving writes wrong values: the second fault.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ..errors import InvalidPolicyError
from ..offload.api.enable import enable_group_offload
from .models import SMALL, flux_transformer
from .options import DemoOptions

__all__ = ["FaultResult", "Outcome", "run_faults"]

OFFLOAD_TYPE = "leaf_level"
SEEDS = (11, 12)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of one fault with one implementation.

    Attributes:
        who: ``diffusers`` or ``offload-plus``.
        tier: where the weights were to be stored: ``disk`` or ``memory``.
        error: how wrong the result is; 0 is right. ``None`` if it raised.
        text: the same in words.
    """

    who: str
    tier: str
    error: float | None
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class FaultResult:
    """One fault: what the user does, and the outcome with each implementation."""

    name: str
    action: str
    device: str
    outcomes: tuple[Outcome, ...]


def run_faults(options: DemoOptions) -> list[FaultResult]:
    """Reproduce the faults on small transformers. Takes a few MB of disk during the call.

    On a device that safetensors does not know, stock disk offloading cannot run. Then the CPU is used.
    """
    with tempfile.TemporaryDirectory(prefix="offload-plus-demo-") as folder:
        if not _reads_to(options.device, Path(folder)):
            options = dataclasses.replace(options, device=torch.device("cpu"), use_stream=False)
        return [_mixed_up(options, Path(folder)), _saved(options, Path(folder))]


def _mixed_up(options: DemoOptions, folder: Path) -> FaultResult:
    expected = [_output(_model(seed).to(options.device), options) for seed in SEEDS]

    def second_of_two(enable: Callable[[nn.Module], None]) -> tuple[float, str]:
        models = [_model(seed) for seed in SEEDS]
        for model in models:
            enable(model)
        errors = [_error(_output(model, options), right) for model, right in zip(models, expected, strict=True)]
        return errors[1], f"second model's output is off by {_number(errors[1])}" if errors[
            1
        ] else "both outputs right"

    directory = str(folder / "shared")
    return FaultResult(
        name="mixed-up weights",
        action="two transformers of equal shape are offloaded to one directory",
        device=str(options.device),
        outcomes=(
            _outcome("diffusers", "disk", lambda: second_of_two(lambda model: _stock(model, options, directory))),
            _outcome("offload-plus", "disk", lambda: second_of_two(lambda model: _ours(model, options, directory))),
            _outcome("offload-plus", "memory", lambda: second_of_two(lambda model: _ours(model, options, None))),
        ),
    )


def _saved(options: DemoOptions, folder: Path) -> FaultResult:
    right = {name: tensor.clone() for name, tensor in _model(SEEDS[0]).state_dict().items()}

    def saved_while(name: str, enable: Callable[[nn.Module], None]) -> tuple[float, str]:
        model: Any = _model(SEEDS[0])
        enable(model)
        model.save_pretrained(str(folder / name))
        wrong = _differing(_read(folder / name), right)
        return float(
            wrong
        ), f"{wrong} of {len(right)} saved tensors are wrong" if wrong else f"all {len(right)} saved tensors right"

    directory = str(folder / "saving")
    return FaultResult(
        name="lost weights",
        action="save_pretrained is called while a transformer is offloaded",
        device=str(options.device),
        outcomes=(
            _outcome(
                "diffusers",
                "disk",
                lambda: saved_while("stock", lambda model: _stock(model, options, directory)),
            ),
            _outcome(
                "offload-plus",
                "disk",
                lambda: saved_while("ours-disk", lambda model: _ours(model, options, directory)),
            ),
            _outcome(
                "offload-plus",
                "memory",
                lambda: saved_while("ours-memory", lambda model: _ours(model, options, None)),
            ),
        ),
    )


def _outcome(who: str, tier: str, act: Callable[[], tuple[float, str]]) -> Outcome:
    try:
        error, text = act()
    except InvalidPolicyError as refusal:
        reason = str(refusal).split(". ")[0].split(", got ")[0]
        return Outcome(who=who, tier=tier, error=None, text=f"refused beforehand: InvalidPolicyError: {reason}")
    except Exception as failure:  # whatever stock code may raise is a result, too
        reason = (str(failure).strip().splitlines() or [""])[0]
        return Outcome(who=who, tier=tier, error=None, text=f"raised {type(failure).__name__}: {reason}")
    return Outcome(who=who, tier=tier, error=error, text=text)


def _model(seed: int) -> nn.Module:
    return flux_transformer(SMALL, seed, torch.float32)


def _stock(model: Any, options: DemoOptions, directory: str) -> None:
    model.enable_group_offload(
        onload_device=options.device,
        offload_type=OFFLOAD_TYPE,
        use_stream=options.use_stream,
        offload_to_disk_path=directory,
    )


def _ours(model: nn.Module, options: DemoOptions, directory: str | None) -> None:
    enable_group_offload(
        model,
        options.device,
        offload_type=OFFLOAD_TYPE,
        use_stream=options.use_stream,
        offload_to_disk_path=directory,
    )


@torch.no_grad()
def _output(model: nn.Module, options: DemoOptions) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(5)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(options.device)

    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    image_ids = torch.stack([torch.zeros(4, 4), rows, columns], dim=-1).reshape(16, 3)
    sample = model(
        hidden_states=noise(1, 16, 64),
        encoder_hidden_states=noise(1, 8, SMALL.t5_width),
        pooled_projections=noise(1, SMALL.clip_width),
        timestep=torch.tensor([0.5], device=options.device),
        img_ids=image_ids.to(options.device),
        txt_ids=torch.zeros(8, 3, device=options.device),
        return_dict=False,
    )[0]
    result: torch.Tensor = sample.cpu()
    return result


def _error(got: torch.Tensor, right: torch.Tensor) -> float:
    difference = float((got.double() - right.double()).abs().max())
    return math.inf if math.isnan(difference) else difference


def _differing(got: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> int:
    return sum(name not in got or not torch.equal(got[name], tensor) for name, tensor in right.items())


def _reads_to(device: torch.device, folder: Path) -> bool:
    file = folder / "probe.safetensors"
    save_file({"probe": torch.zeros(1)}, file)
    try:
        load_file(file, device=device.type)
    except Exception:  # its error type derives from Exception alone
        return False
    return True


def _read(directory: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def _number(value: float) -> str:
    return "NaN" if math.isinf(value) else f"{value:.3g}"
