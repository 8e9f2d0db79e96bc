"""Tiny models with weights quantised by TorchAO: parameters that are tensor subclasses of several kinds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torchao.quantization import (
    Float8WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    PerGroup,
    quantize_,
)
from torchao.utils import TorchAOBaseTensor

GROUP = 32
"""The number of weights that share a scale in the grouped kinds; only layers whose width it divides are quantised."""

Quantise = Callable[[nn.Module], nn.Module]


def fits(module: nn.Module, name: str) -> bool:
    """Whether a module is a linear layer that every kind below can quantise."""
    return isinstance(module, nn.Linear) and module.in_features % GROUP == 0


def int8_weight_only(model: nn.Module) -> nn.Module:
    """Weights in int8, one scale per output."""
    quantize_(model, Int8WeightOnlyConfig(set_inductor_config=False), filter_fn=fits)
    return model


def int8_dynamic(model: nn.Module) -> nn.Module:
    """Weights in int8, activations quantised to int8 as they come."""
    quantize_(model, Int8DynamicActivationInt8WeightConfig(set_inductor_config=False), filter_fn=fits)
    return model


def float8_weight_only(model: nn.Module) -> nn.Module:
    """Weights in float8, one scale per output."""
    quantize_(model, Float8WeightOnlyConfig(set_inductor_config=False), filter_fn=fits)
    return model


def int4_weight_only(model: nn.Module) -> nn.Module:
    """Weights in int4, kept in int8, one scale per group."""
    quantize_(model, IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(GROUP)), filter_fn=fits)
    return model


def int8_dynamic_int4(model: nn.Module) -> nn.Module:
    """Weights in int4 with one scale per group, activations quantised to int8 as they come."""
    config = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(GROUP))
    quantize_(model, config, filter_fn=fits)
    return model


QUANTISERS: dict[str, Quantise] = {
    function.__name__: function
    for function in (int8_weight_only, int8_dynamic, float8_weight_only, int4_weight_only, int8_dynamic_int4)
}
"""The ways to quantise a model in place, by name; each returns the model."""


def quantised_parameters(model: nn.Module) -> list[str]:
    """The names of the parameters that are TorchAO tensors."""
    return [name for name, parameter in model.named_parameters() if isinstance(parameter, TorchAOBaseTensor)]
