"""All or nothing: several models are attached, or each is as it was.

[Note: undoing]
To attach a model gives up its memory group by group, for there is no room for two copies of it. So what has been done
cannot always be undone by pointing at old values; they are copied back, group by group as well. Where old values take
no memory besides (they are on disk, or go there) they are held until all is done. An error while undoing does not end
it: what is left of the weights is in the model, wherever it is, and a note on the error says so.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from types import TracebackType

import torch
from torch import nn

from ..failures import Failures
from ..memory.device_budget import DeviceBudget
from ..model.originals import Devices, Originals
from ..policy import OffloadPolicy
from .attachment import Attachment, attachment_of

__all__ = ["Changeover"]

logger = logging.getLogger("diffusers_offload_plus")


class Changeover:
    """A ``with`` block in which models change hands. If it ends with an error, all that was done in it is undone."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []
        self._settle: list[Callable[[], object]] = []

    def __enter__(self) -> Changeover:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            for settle in self._settle:
                settle()
            return
        failures = Failures()
        for undo in reversed(self._undo):
            failures.attempt(undo, "not everything is as it was before")
        failures.note_on(error)

    def undo_with(self, undo: Callable[[], object]) -> None:
        """Have ``undo`` called if the block fails."""
        self._undo.append(undo)

    def prepare(self, module: nn.Module, policy: OffloadPolicy, label: str, budget: DeviceBudget | None) -> Attachment:
        """The attachment for ``module``: the present one if its settings are the same, else a new one, prepared. No
        hook and no value is changed."""
        present = attachment_of(module)
        if present is not None:
            if present.policy == policy:
                return present
            if not present.engine.persistent.on_host:
                self.undo_with(present.engine.onload_residents)
            present.engine.to_host()
            present.engine.wait_for_copies()
        attachment = Attachment(module, policy, label, budget)
        self.undo_with(attachment.abandon)
        attachment.prepare()
        return attachment

    def attach(self, attachment: Attachment) -> None:
        """Attach what was prepared, in place of the present attachment if there is one."""
        root = attachment.root
        present = attachment_of(root)
        if present is attachment:
            present.restore()
            return
        if present is None:
            self.undo_with(Devices(root).bring_back)
        else:
            logger.info("Group offloading of '%s' is planned anew: its settings have changed.", attachment.label)
            self._replace(present)
        self.undo_with(functools.partial(attachment.detach, leave=present is None))
        self._settle.append(attachment.settle)
        attachment.attach()

    def move(self, module: nn.Module, device: torch.device) -> None:
        """Put a module on ``device`` whole, offloaded or not."""
        present = attachment_of(module)
        if present is not None:
            self._replace(present, leave=device.type == "cpu")  # else it goes there from where it is stored
        self.undo_with(Originals.of(module).give_back)
        module.to(device)

    def _replace(self, present: Attachment, *, leave: bool = False) -> None:
        self._settle.append(present.abandon)
        self.undo_with(functools.partial(_take_back, present))
        present.detach(leave=leave)


def _take_back(present: Attachment) -> None:
    try:
        present.take_back()
    except BaseException:
        present.detach()
        raise
