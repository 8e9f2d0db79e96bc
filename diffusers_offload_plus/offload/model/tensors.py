"""The plain tensors inside of any parameter, for TorchAO and every other traceable tensor subclass.

A *plain* tensor has memory itself. A wrapper subclass has none; its memory is that of the inner tensors that
``__tensor_flatten__`` names, which may be wrappers too. That protocol, unlike a list of attribute names, also finds
optional inner tensors and those of subclasses that this package does not know.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

__all__ = [
    "alias",
    "cast_tensor",
    "default_dtype",
    "has_memory",
    "inner_names",
    "is_packable",
    "is_wrapper",
    "map_plain",
    "plain_bytes",
    "plain_tensors",
    "relocate",
    "renew",
    "repoint",
    "same_bits",
    "span",
]


def is_wrapper(tensor: torch.Tensor) -> bool:
    """Whether ``tensor`` is a wrapper subclass, with its data in inner tensors."""
    # Nearly all tensors are plain tensors and parameters, so those are spared the protocol check.
    kind = type(tensor)
    if kind is torch.Tensor or kind is torch.nn.Parameter:
        return False
    return bool(is_traceable_wrapper_subclass(tensor))


def plain_tensors(tensor: torch.Tensor, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield ``(path, plain tensor)`` for each plain tensor in ``tensor``. The path of a plain ``tensor`` itself is
    ``prefix``."""
    if not is_wrapper(tensor):
        yield prefix, tensor
        return
    names, _ = _flatten(tensor)
    for name in names:
        yield from plain_tensors(getattr(tensor, name), f"{prefix}.{name}" if prefix else name)


def plain_bytes(tensor: torch.Tensor) -> int:
    """Bytes of all plain tensors in ``tensor``. Bytes that plain tensors share count for each of them."""
    return sum(t.numel() * t.element_size() for _, t in plain_tensors(tensor))


def map_plain(tensor: torch.Tensor, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """``tensor`` rebuilt with ``function`` applied to each plain tensor in it. ``tensor`` itself is not changed."""
    if not is_wrapper(tensor):
        return function(tensor)
    names, context = _flatten(tensor)
    inner = {name: map_plain(getattr(tensor, name), function) for name in names}
    rebuild: Any = type(tensor)
    result: torch.Tensor = rebuild.__tensor_unflatten__(inner, context, tensor.size(), tensor.stride())
    return result


def alias(tensor: torch.Tensor) -> torch.Tensor:
    """What ``tensor`` points at now, with the same inner tensor objects if it is a wrapper."""
    return map_plain(tensor, lambda t: t) if is_wrapper(tensor) else tensor.data


def repoint(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Point ``tensor`` (a parameter or buffer) at the memory of ``value``. It stays the same object.

    For a wrapper the outer tensor and the inner attributes are both set, because with either alone the device of the
    tensor and the device of its data differ. Unlike ``torch.utils.swap_tensors`` this works with weak references.
    """
    tensor.data = value
    if is_wrapper(value):
        for name in inner_names(value):
            setattr(tensor, name, getattr(value, name))


def cast_tensor(tensor: torch.Tensor, dtype: torch.dtype | None) -> None:
    """Cast a parameter or buffer to ``dtype``; it stays the same object.

    Wrappers and tensors that are not floating-point are left as they are, and so is everything if ``dtype`` is None.
    """
    if dtype is not None and tensor.dtype != dtype and tensor.is_floating_point() and not is_wrapper(tensor):
        repoint(tensor, tensor.detach().to(dtype))


def renew(tensor: torch.Tensor) -> None:
    """Make a tensor that was made in inference mode one like any other: writes to it are counted, and it can be used
    in every mode. Its identity stays. No effect on others, nor where somebody holds a weak reference to it."""
    if not tensor.is_inference():
        return
    with torch.inference_mode(False), torch.no_grad():
        fresh = tensor.detach().clone()
        if isinstance(tensor, torch.nn.Parameter):
            fresh = torch.nn.Parameter(fresh, requires_grad=tensor.requires_grad)
        with contextlib.suppress(RuntimeError):
            torch.utils.swap_tensors(tensor, fresh)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Within the block new tensors are of ``dtype``, if that is a dtype that can be the default."""
    before = torch.get_default_dtype()
    if dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def has_memory(tensor: torch.Tensor) -> bool:
    """Whether a plain tensor has values: it is neither on the meta device nor uninitialised."""
    return not tensor.is_meta and not is_lazy(tensor)


def is_packable(tensor: torch.Tensor) -> bool:
    """Whether a plain tensor is a view of dense bytes, so that a copy of its bytes is a copy of the tensor."""
    return tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_conj() and not tensor.is_neg()


def relocate(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy of a plain tensor on ``device`` with the same strides, or ``tensor`` itself if it is there already.

    ``Tensor.to`` would make expanded and strided tensors contiguous. This copies the bytes that they span.
    """
    if tensor.device == device:
        return tensor
    if not is_packable(tensor) or tensor.numel() == 0:
        return tensor.to(device)
    return span(tensor).to(device).as_strided(tensor.size(), tensor.stride(), 0)


def span(tensor: torch.Tensor) -> torch.Tensor:
    """The elements from the first to the last of a packable tensor, gaps included, as a one-dimensional view."""
    if tensor.numel() == 0:
        return tensor.detach().reshape(0)
    last = sum((size - 1) * stride for size, stride in zip(tensor.size(), tensor.stride(), strict=True))
    return tensor.detach().as_strided((last + 1,), (1,))


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors have the same structure, dtypes, sizes and bits. NaN equals NaN; -0.0 differs from 0.0."""
    mine, theirs = list(plain_tensors(a)), list(plain_tensors(b))
    if [path for path, _ in mine] != [path for path, _ in theirs]:
        return False
    for (_, x), (_, y) in zip(mine, theirs, strict=True):
        if x.dtype != y.dtype or x.size() != y.size() or not (is_packable(x) and is_packable(y)):
            return False
        if x.numel() and not torch.equal(_bytes_of(x), _bytes_of(y)):
            return False
    return True


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def inner_names(tensor: torch.Tensor) -> list[str]:
    """The attribute names of the inner tensors of a wrapper."""
    return _flatten(tensor)[0]


def _flatten(tensor: torch.Tensor) -> tuple[list[str], Any]:
    protocol: Any = tensor
    names, context = protocol.__tensor_flatten__()
    return names, context
