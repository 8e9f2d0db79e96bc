"""The entry doors of an autoencoder: forward, encode and decode, each also in tiles or in slices of the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from .case import Call, Device, Draw, flat

Shape = tuple[int, ...]

REPEATS = frozenset({"tiled encode", "tiled decode", "sliced encode", "sliced decode"})
"""The calls that use the weights of other calls once more."""


def doors(
    sample: Shape,
    code: Shape,
    wide_sample: Shape,
    wide_code: Shape,
    tiles: Mapping[str, int] | None = None,
    timed: bool = False,
) -> dict[str, Call]:
    """All calls of an autoencoder, from the shapes of one sample and its code, and of ones that need several tiles.

    `tiles` goes to `enable_tiling`; a `timed` decoder is also given a timestep.
    """
    several = {} if tiles is None else tiles
    calls = {
        "forward": forward(sample, timed),
        "encode": encode(2, sample),
        "decode": decode(2, code, timed),
        "tiled encode": switched(encode(1, wide_sample), "tiling", several),
        "tiled decode": switched(decode(1, wide_code, timed), "tiling", several),
        "sliced encode": switched(encode(2, sample), "slicing", {}),
        "sliced decode": switched(decode(2, code, timed), "slicing", {}),
    }
    return calls


def forward(shape: Shape, timed: bool) -> Call:
    """The call that encodes and decodes two samples."""

    def call(model: nn.Module, device: Device, seed: int) -> list[torch.Tensor]:
        draw = Draw(model, device, seed)
        return flat(model(draw.uniform(2, *shape, low=-1.0), **time(draw, 2, timed)))

    return call


def encode(count: int, shape: Shape) -> Call:
    """The call that encodes samples, to the parameters of the distribution if there is one, else to the latents."""

    def call(model: nn.Module, device: Device, seed: int) -> list[torch.Tensor]:
        encoded = model.encode(Draw(model, device, seed).uniform(count, *shape, low=-1.0))
        posterior = getattr(encoded, "latent_dist", None)
        return flat(encoded) if posterior is None else [posterior.parameters]

    return call


def decode(count: int, shape: Shape, timed: bool) -> Call:
    """The call that decodes latents."""

    def call(model: nn.Module, device: Device, seed: int) -> list[torch.Tensor]:
        draw = Draw(model, device, seed)
        return flat(model.decode(draw.normal(count, *shape), **time(draw, count, timed)))

    return call


def time(draw: Draw, count: int, timed: bool) -> dict[str, torch.Tensor]:
    """The timestep for a decoder that wants one."""
    return {"temb": draw.uniform(count)} if timed else {}


def switched(call: Call, what: str, sizes: Mapping[str, int]) -> Call:
    """The same call with tiling or slicing on, and off again after."""

    def switched_call(model: nn.Module, device: Device, seed: int) -> list[torch.Tensor]:
        enable: Callable[..., Any] = getattr(model, f"enable_{what}")
        enable(**sizes)
        try:
            return call(model, device, seed)
        finally:
            getattr(model, f"disable_{what}")()

    return switched_call
