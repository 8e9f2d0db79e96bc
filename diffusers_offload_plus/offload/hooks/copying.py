"""Copies of an offloaded module: ``copy.copy``, ``copy.deepcopy``, pickling and ``torch.save`` make a plain module.

A hooked forward is bound to its module, so a copy that had it would run with the original's weights. The copy is of
the original class, without hooks, with all weights in host memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import nn

from ..model.partition import COMPILED_BENEATH

__all__ = ["install_reducer", "plain_state", "uninstall_reducer"]

_HOOKING = (
    "__reduce_ex__", COMPILED_BENEATH, "compile", "forward", "_old_forward", "_diffusers_hook", "_hf_hook",
)  # fmt: skip


def install_reducer(module: nn.Module, to_host: Callable[[], None]) -> None:
    """Make copies of ``module`` plain; ``to_host`` brings its weights to the host first."""

    def reduce(protocol: Any) -> Any:
        to_host()
        make, args, state, *rest = cast("tuple[Any, ...]", type(module).__reduce_ex__(module, protocol))
        return make, args, plain_state(state), *rest

    module.__dict__["__reduce_ex__"] = reduce


def uninstall_reducer(module: nn.Module) -> None:
    """Undo :func:`install_reducer`."""
    module.__dict__.pop("__reduce_ex__", None)


def plain_state(state: dict[str, Any]) -> dict[str, Any]:
    """``state`` of a module without what hooks have put there, such as the ``forward`` of diffusers or accelerate."""
    return {name: value for name, value in state.items() if name not in _HOOKING}
