"""``onloaded``: a whole module on the device, for code that uses weights without calling forward."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from ...errors import NotOffloadedError
from ..hooks.attachment import attachment_of
from ..runtime.engine import OffloadEngine
from ..runtime.lookups import OffloadedDict

__all__ = ["onloaded"]


@contextlib.contextmanager
def onloaded(module: nn.Module) -> Iterator[nn.Module]:
    """Bring all weights below ``module`` to the onload device for the time of the ``with`` block.

    No write to them is lost: every byte is compared with the host copy before the device copy is dropped. Other
    threads that use the model wait until the block ends.

    Args:
        module: an offloaded model or any part of one.

    Raises:
        NotOffloadedError: ``module`` is no part of an offloaded model.
    """
    engine = _engine_of(module)
    if engine is None:
        raise NotOffloadedError(
            f"{type(module).__name__} is not offloaded by diffusers_offload_plus. Call `enable_group_offload` "
            "first, or use it as it is."
        )
    with engine.keep_onloaded(module):
        yield module


def _engine_of(module: nn.Module) -> OffloadEngine | None:
    attachment = attachment_of(module)
    if attachment is not None:
        attachment.restore()
        return attachment.engine
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            if isinstance(tensors, OffloadedDict) and isinstance(tensors.engine, OffloadEngine):
                return tensors.engine
    return None
