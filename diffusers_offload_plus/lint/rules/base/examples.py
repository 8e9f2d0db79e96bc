"""Example blocks that the rules' documentation and tests are made of."""

from __future__ import annotations

from typing import Any

from .rule import Example

__all__ = ["BODY_LINE", "blocks_example", "step_example"]

_HEADER = """\
import torch

from ..modular_pipeline import ModularPipelineBlocks, PipelineState
from ..modular_pipeline_utils import ComponentSpec, InputParam, OutputParam


class ToyStep(ModularPipelineBlocks):
    model_name = "toy"

    @property
    def expected_components(self):
        return [{components}]

    @property
    def inputs(self):
        return [{inputs}]

    @property
    def intermediate_outputs(self):
        return [{outputs}]

    def __call__(self, components, state: PipelineState):
        block_state = self.get_block_state(state)
"""


BODY_LINE = len(_HEADER.splitlines()) + 1


def blocks_example(body: str, *, inputs: str = "", outputs: str = "", components: str = "", end: bool = True) -> str:
    """Source of one leaf block whose ``__call__`` runs ``body``, which starts at :data:`BODY_LINE`."""
    lines = [f"        {line}" if line else "" for line in body.splitlines()]
    if end:
        lines += ["        self.set_block_state(state, block_state)", "        return components, state"]
    header = _HEADER.format(inputs=inputs, outputs=outputs, components=components)
    return header + "\n".join(lines) + "\n"


def step_example(
    body: str,
    *,
    at: tuple[int, ...] = (),
    lines: tuple[int, ...] = (),
    file: str = "denoise.py",
    note: str = "",
    **declared: Any,
) -> Example:
    """An example made of one leaf block, in ``file`` of the family ``toy``.

    Args:
        body: what its ``__call__`` runs.
        at: lines of ``body``, from 1, where the rule has to report; ``lines``: the same as lines of the whole source.
        declared: arguments of :func:`blocks_example`.
    """
    return Example(
        source=blocks_example(body, **declared),
        path=f"diffusers/modular_pipelines/toy/{file}",
        lines=lines or tuple(BODY_LINE + line - 1 for line in at),
        note=note,
    )
