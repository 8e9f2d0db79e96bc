"""Two faults of stock disk offloading, reproduced, and what this package does in the same cases.

Stock hooks name files after modules only, so that two models overwrite each other's files: the first fault. They put a
placeholder without values in place of a weight, so that saving writes wrong values: the second fault.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ..errors import InvalidPolicyError
from ..offload.formatting import first_line
from .models import SMALL, flux_transformer
from .options import DemoOptions
from .scenarios import Method, offload

__all__ = ["FaultResult", "Outcome", "run_faults"]

SEEDS = (11, 12)
TIERS = ((Method.STOCK, "disk"), (Method.OURS, "disk"), (Method.OURS, "memory"))

_model = functools.partial(flux_transformer, SMALL, dtype=torch.float32)

Offload = Callable[[nn.Module], None]


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
    if not _reads_to(options.device):
        options = dataclasses.replace(options, device=torch.device("cpu"))
    return [
        FaultResult(
            name=name,
            action=action,
            device=str(options.device),
            outcomes=tuple(_outcome(act, options, method, tier) for method, tier in TIERS),
        )
        for name, action, act in (
            ("mixed-up weights", "two transformers of equal shape are offloaded to one directory", _second_of_two),
            ("lost weights", "save_pretrained is called while a transformer is offloaded", _saved),
        )
    ]


def _outcome(
    act: Callable[[Offload, DemoOptions], tuple[float, str]], options: DemoOptions, method: Method, tier: str
) -> Outcome:
    outcome = functools.partial(Outcome, who=str(method), tier=tier)
    with tempfile.TemporaryDirectory(prefix="offload-plus-demo-") as folder:
        directory = {"offload_to_disk_path": folder} if tier == "disk" else {}
        try:
            error, text = act(lambda model: offload(method, model, options, **directory), options)
        except InvalidPolicyError as refusal:
            reason = str(refusal).split(". ")[0].split(", got ")[0]
            return outcome(error=None, text=f"refused beforehand: InvalidPolicyError: {reason}")
        except Exception as failure:  # whatever stock code may raise is a result, too
            return outcome(error=None, text=f"raised {type(failure).__name__}: {first_line(failure)}")
        return outcome(error=error, text=text)


def _second_of_two(enable: Offload, options: DemoOptions) -> tuple[float, str]:
    expected = [_output(_model(seed).to(options.device), options) for seed in SEEDS]
    models = [_model(seed) for seed in SEEDS]
    for model in models:
        enable(model)
    differences = [_output(model, options) - right for model, right in zip(models, expected, strict=True)]
    errors = [float(difference.abs().max().nan_to_num(math.inf)) for difference in differences]
    if not any(errors):
        return 0.0, "both outputs right"
    error = max(errors)
    which = ("first", "second")[errors.index(error)]
    return error, f"{which} model's output is off by {'NaN' if math.isinf(error) else f'{error:.3g}'}"


def _saved(enable: Offload, options: DemoOptions) -> tuple[float, str]:
    right = _model(SEEDS[0]).state_dict()
    model = _model(SEEDS[0])
    enable(model)
    with tempfile.TemporaryDirectory(prefix="offload-plus-demo-") as folder:
        model.save_pretrained(folder)
        saved = {name: part for file in Path(folder).glob("*.safetensors") for name, part in load_file(file).items()}
    wrong = sum(name not in saved or not torch.equal(saved[name], tensor) for name, tensor in right.items())
    count = f"{wrong} of {len(right)} saved tensors are wrong" if wrong else f"all {len(right)} saved tensors right"
    return float(wrong), count


@torch.no_grad()
def _output(model: nn.Module, options: DemoOptions) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(5)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(options.device)

    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    image_ids = torch.stack([torch.zeros(4, 4), rows, columns], dim=-1).reshape(16, 3)
    sample: torch.Tensor = model(
        hidden_states=noise(1, 16, 64),
        encoder_hidden_states=noise(1, 8, SMALL.width),
        pooled_projections=noise(1, SMALL.width),
        timestep=torch.tensor([0.5], device=options.device),
        img_ids=image_ids.to(options.device),
        txt_ids=torch.zeros(8, 3, device=options.device),
        return_dict=False,
    )[0]
    return sample.cpu().double()


def _reads_to(device: torch.device) -> bool:
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        save_file({"probe": torch.zeros(1)}, file.name)
        try:
            load_file(file.name, device=device.type)
        except Exception:  # its error type derives from Exception alone
            return False
    return True
