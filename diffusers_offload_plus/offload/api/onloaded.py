"""``onloaded``: the whole of a module on the device, for code that touches weights without calling forward."""

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
    """Keep all weights below ``module`` on the onload device inside the ``with`` block.

    Whatever is written to them there is kept: every byte is compared before the device copies are dropped. Other
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
            f"first, or use it as it is."
        )
    with engine.keep_onloaded(module):
        yield module


def _engine_of(module: nn.Module) -> OffloadEngine | None:
    attachment = attachment_of(module)
    if attachment is not None:
        attachment.restore()
        return attachment.engine
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            if isinstance(held, OffloadedDict) and isinstance(held.engine, OffloadEngine):
                return held.engine
    return None
