"""The settings of the demonstration."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

from ..offload.api.checks import policy_for
from ..offload.policy import supports_streams

__all__ = ["DemoOptions", "device_name"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """The arguments of the demonstration, checked, with defaults filled in.

    Attributes:
        model: directory of a checkpoint; ``None`` for the pipeline built in code, in its ``small`` size or not.
        height, width: of the image; ``None`` for what the pipeline takes by default.
        dtypes: ``bf16``, ``int8``.
    """

    device: torch.device
    model: Path | None
    small: bool
    steps: int
    height: int | None
    width: int | None
    prompt: str
    seed: int
    dtypes: tuple[str, ...]
    output: Path

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> DemoOptions:
        """Check the device and fill in defaults.

        Raises:
            InvalidPolicyError: there is no such device.
        """
        best = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        side = None if arguments.model is not None else 32 if arguments.small else 128
        height = arguments.height or side
        given = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(cls)}
        filled_in = {
            "device": policy_for(onload_device=best.type if arguments.device is None else arguments.device).device,
            "steps": arguments.steps or (3 if arguments.small else 5),
            "height": height,
            "width": arguments.width or height,
            "dtypes": tuple(dict.fromkeys(arguments.dtypes)),
        }
        return cls(**{**given, **filled_in})

    @property
    def moves(self) -> bool:
        """Whether weights have to move: they do not where the CPU computes."""
        return self.device.type != "cpu"

    @property
    def use_stream(self) -> bool:
        """Whether both kinds of offloading copy on a stream of their own: wherever the device has streams."""
        return supports_streams(self.device)


def device_name(device: torch.device) -> str:
    """The product name of the device, or torch's name for it."""
    if device.type == "cpu":
        return "CPU"
    named = getattr(torch.get_device_module(device.type), "get_device_name", None)
    return str(named(device)) if named is not None else str(device)
