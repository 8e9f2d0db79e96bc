"""The demonstration behind ``offload-plus demo``.

``options`` is what was asked for, ``models`` builds the pipelines, ``measure`` has the instruments, ``scenarios`` and
``faults`` run and measure, ``table`` and ``plot`` show, ``run`` puts them together.
"""

from __future__ import annotations

from ..errors import OffloadPlusError

__all__ = ["DemoError"]


class DemoError(OffloadPlusError):
    """The demonstration cannot be run as asked."""
