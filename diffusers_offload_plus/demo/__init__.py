"""The demonstration behind ``offload-plus demo``.

``options`` has its settings, ``models`` builds the pipelines, ``measure`` measures memory, copies and time,
``scenarios`` and ``faults`` run them, ``table`` and ``plot`` show results, ``run`` puts all of this together.
"""

from __future__ import annotations

from ..errors import OffloadPlusError

__all__ = ["DemoError"]


class DemoError(OffloadPlusError):
    """The demonstration cannot run with these settings."""
