"""``extend``: make one pipeline's or model's own ``enable_group_offload`` method go through this package."""

from __future__ import annotations

import functools
from typing import Any, TypeVar

from .enable import disable_group_offload, enable_group_offload
from .report import OffloadReport, offload_report

__all__ = ["extend"]

T = TypeVar("T")


class _Extended:
    """The methods that an extended object gains. Its class becomes a new subclass of this one and of its old class.

    Copying and pickling give an object of the original class, not offloaded.
    """

    @functools.wraps(enable_group_offload, assigned=("__doc__",))
    def enable_group_offload(self, *args: Any, **kwargs: Any) -> None:
        enable_group_offload(self, *args, **kwargs)

    @functools.wraps(disable_group_offload, assigned=("__doc__",))
    def disable_group_offload(self, *, missing_ok: bool = False) -> None:
        disable_group_offload(self, missing_ok=missing_ok)

    @functools.wraps(offload_report, assigned=("__doc__",))
    def offload_report(self) -> OffloadReport:
        return offload_report(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        original: Any = type(self).__mro__[2]
        reduced: tuple[Any, ...] = original.__reduce_ex__(self, protocol)
        make, (kind, *args), *rest = reduced
        return make, (original if kind is type(self) else kind, *args), *rest


def extend(target: T) -> T:
    """Make ``target.enable_group_offload(...)`` go through this package; returns ``target``.

    Only this one object changes: it gets a subclass of its own class with the same name and module, so
    ``isinstance`` checks, its saved configuration and ``save_pretrained`` are what they were. Copies and pickles are
    of the original class. Extending twice does nothing.
    """
    original: type[Any] = type(target)
    if issubclass(original, _Extended):
        return target
    members = {"__module__": original.__module__, "__qualname__": original.__qualname__, "__doc__": original.__doc__}
    target.__class__ = type(original.__name__, (_Extended, original), members)
    return target
