"""A traceable wrapper tensor subclass that no list of class names knows, used two deep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

__all__ = ["Boxed", "box", "box_linears", "boxed_parameters", "leaves"]

ATEN = torch.ops.aten
ALIASES = (ATEN.detach.default, ATEN.alias.default, ATEN.clone.default)


class Boxed(torch.Tensor):
    """Stands for `core * factor`, plus `shift` where there is one. Both may be `Boxed` themselves."""

    core: torch.Tensor
    shift: torch.Tensor | None
    factor: float

    @staticmethod
    def __new__(cls, core: torch.Tensor, shift: torch.Tensor | None = None, factor: float = 2.0) -> Boxed:
        make: Any = torch.Tensor._make_wrapper_subclass
        found: Boxed = make(cls, core.size(), strides=core.stride(), dtype=core.dtype, device=core.device)
        return found

    def __init__(self, core: torch.Tensor, shift: torch.Tensor | None = None, factor: float = 2.0) -> None:
        self.core = core
        self.shift = shift
        self.factor = factor

    def __tensor_flatten__(self) -> tuple[list[str], float]:
        return ["core"] if self.shift is None else ["core", "shift"], self.factor

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, torch.Tensor], factor: float, size: Any, stride: Any) -> Boxed:
        return Boxed(inner["core"], inner.get("shift"), factor)

    def values(self) -> torch.Tensor:
        """The plain tensor it stands for."""
        core = plain(self.core) * self.factor
        return core if self.shift is None else core + plain(self.shift)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Boxed({self.core!r}, {self.shift!r}, {self.factor})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in ALIASES:
            return args[0].each(lambda t: func(t, **kwargs))
        if func is ATEN._to_copy.default and kwargs.get("dtype") in (None, args[0].dtype):
            moving = {name: value for name, value in kwargs.items() if name in ("device", "non_blocking")}
            return args[0].each(lambda t: func(t, **moving))
        if func is ATEN.copy_.default and isinstance(args[0], Boxed) and isinstance(args[1], Boxed):
            for name in args[0].__tensor_flatten__()[0]:
                getattr(args[0], name).copy_(getattr(args[1], name))
            return args[0]
        if func._schema.is_mutable and any(isinstance(arg, Boxed) for arg in args[:1]):
            raise NotImplementedError(f"{func} would write to a value that nothing holds")
        values, options = tree_map(plain, (args, kwargs))
        return func(*values, **options)

    def each(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Boxed:
        """The same with `function` applied to the inner tensors."""
        return Boxed(function(self.core), None if self.shift is None else function(self.shift), self.factor)


def plain(value: Any) -> Any:
    """What a `Boxed` stands for; anything else as it is."""
    return value.values() if isinstance(value, Boxed) else value


def box(values: torch.Tensor, *, shift: bool = True) -> Boxed:
    """`values`, up to rounding, as a box of a box, with an inner tensor that is there only if asked for."""
    extra = torch.full_like(values, 0.125) if shift else None
    core = values if extra is None else values - extra
    return Boxed(Boxed(core.clone() / 8, None, 2.0), extra, 4.0)


def box_linears(model: nn.Module) -> nn.Module:
    """Box the weight of every linear layer of `model`, every second one with the optional inner tensor."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    for number, layer in enumerate(layers):
        layer.weight = nn.Parameter(box(layer.weight.detach(), shift=number % 2 == 0), requires_grad=False)
    return model


def boxed_parameters(model: nn.Module) -> dict[str, Any]:
    """The parameters that are boxes, by name."""
    return {name: p for name, p in model.named_parameters() if isinstance(p, Boxed)}


def leaves(tensor: torch.Tensor | None) -> Iterator[torch.Tensor]:
    """The plain tensors inside a box, or the tensor itself if it is none."""
    if isinstance(tensor, Boxed):
        yield from leaves(tensor.core)
        yield from leaves(tensor.shift)
    elif tensor is not None:
        yield tensor
