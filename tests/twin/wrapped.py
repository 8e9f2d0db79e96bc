"""A traceable tensor subclass nobody's list of class names knows, used two deep."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

__all__ = ["Wrapped", "wrap_linear_weight"]


class Wrapped(torch.Tensor):
    """Holds its values, halved, in an inner tensor, and a second inner tensor that may be absent."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor, offset: torch.Tensor | None = None) -> Wrapped:
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined, no-any-return]
            cls, inner.size(), strides=inner.stride(), dtype=inner.dtype, device=inner.device
        )

    def __init__(self, inner: torch.Tensor, offset: torch.Tensor | None = None) -> None:
        self.inner = inner
        self.offset = offset

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"] if self.offset is None else ["inner", "offset"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, torch.Tensor], meta: Any, size: Any, stride: Any) -> Wrapped:
        return Wrapped(inner["inner"], inner.get("offset"))

    def values(self) -> torch.Tensor:
        """What the tensor stands for."""
        inner = self.inner.values() if isinstance(self.inner, Wrapped) else self.inner
        return inner * 2 if self.offset is None else inner * 2 + self.offset

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Wrapped({self.inner!r}, {self.offset!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        kwargs = kwargs or {}
        if func in (aten.detach.default, aten.alias.default, aten.clone.default, aten._to_copy.default):
            converts = kwargs.get("dtype") not in (None, args[0].dtype)
            if not converts:
                kept = {name: value for name, value in kwargs.items() if name in ("device", "non_blocking")}
                return args[0]._map(lambda t: func(t, **kept))
        if func is aten.copy_.default and isinstance(args[0], Wrapped) and isinstance(args[1], Wrapped):
            for name in args[0].__tensor_flatten__()[0]:
                getattr(args[0], name).copy_(getattr(args[1], name))
            return args[0]
        plain = tree_map(lambda v: v.values() if isinstance(v, Wrapped) else v, (args, kwargs))
        return func(*plain[0], **plain[1])

    def _map(self, function: Any) -> Wrapped:
        return Wrapped(function(self.inner), None if self.offset is None else function(self.offset))


def wrap_linear_weight(linear: nn.Linear, *, offset: bool = True) -> None:
    """Replace the weight of ``linear`` by a wrapper of a wrapper of half its values."""
    half = linear.weight.detach() / 4
    inner = Wrapped(half.clone())
    extra = torch.full_like(half, 0.01) if offset else None
    linear.weight = nn.Parameter(Wrapped(inner, extra), requires_grad=False)
