"""Programs in processes of their own, with the stand-in: what ends a process, and what is decided when it starts."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

__all__ = ["run_program"]


def run_program(source: str, **settings: int) -> subprocess.CompletedProcess[str]:
    """Run a program, with these settings from its start."""
    environment = {f"STANDIN_CUDA_{name.upper()}": str(value) for name, value in settings.items()}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,
    )
