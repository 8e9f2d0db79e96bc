"""The settings of the demonstration."""

from __future__ import annotations

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
        model: directory of a checkpoint; ``None`` for the pipeline that is built in code.
        small: build that pipeline in its small size.
        height, width: pixels of the image; ``None`` for the pipeline's defaults.
        dtypes: ``bf16``, ``int8``, or both.
        use_stream: both kinds of offloading copy on a side stream. True if the device has streams.
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
    use_stream: bool

    @classmethod
    def from_arguments(
        cls,
        *,
        device: str | None,
        model: Path | None,
        small: bool,
        steps: int | None,
        height: int | None,
        width: int | None,
        prompt: str,
        seed: int,
        dtypes: tuple[str, ...],
        output: Path,
    ) -> DemoOptions:
        """Check the device and fill in defaults.

        Raises:
            InvalidPolicyError: there is no such device.
        """
        found = policy_for(onload_device=device if device is not None else _best_device()).device
        side = None if model is not None else 32 if small else 128
        return cls(
            device=found,
            model=model,
            small=small,
            steps=steps if steps is not None else 3 if small else 5,
            height=height if height is not None else side,
            width=width if width is not None else height if height is not None else side,
            prompt=prompt,
            seed=seed,
            dtypes=dtypes,
            output=output,
            use_stream=supports_streams(found),
        )

    @property
    def moves(self) -> bool:
        """Whether weights have to move: they do not where the CPU computes."""
        return self.device.type != "cpu"


def device_name(device: torch.device) -> str:
    """The product name of the device, or torch's name for it."""
    if device.type == "cpu":
        return "CPU"
    named = getattr(torch.get_device_module(device.type), "get_device_name", None)
    return str(named(device)) if named is not None else str(device)


def _best_device() -> str:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if accelerator is None else accelerator.type
