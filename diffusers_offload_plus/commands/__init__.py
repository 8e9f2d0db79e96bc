"""The commands of ``offload-plus``, one module each, and what they share.

A command module defines ``add_arguments(parser)``, and ``run(arguments)``, which returns the exit code. It is imported
when its command is asked for, help included; what is heavy (torch, diffusers) it imports inside ``run``. To add a
command, write ``commands/<name>.py`` and put ``<name>`` into :data:`COMMANDS`.
"""

from __future__ import annotations

import logging
import os

from ..errors import OffloadPlusError

__all__ = ["COMMANDS", "CommandError", "quiet_libraries"]

COMMANDS = {
    "demo": "run one pipeline un-offloaded, with stock and with our offloading, and compare",
    "plan": "what stays on the device, what streams and what a pass takes, for several budgets of device memory",
    "store": "list, verify or clean a directory of weights kept on disk",
    "lint": "check modular pipelines against the conventions of diffusers",
    "rule": "explain a rule of the linter, or list all rules",
}
"""Names of the commands and what each does, in the order in which the help lists them."""


class CommandError(OffloadPlusError):
    """The arguments of a command ask for something that it cannot do."""


def quiet_libraries() -> None:
    """Keep notes about optional parts that are not installed from hiding the figures. What the user has set stays."""
    for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
