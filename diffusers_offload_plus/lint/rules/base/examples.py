"""Example blocks that the rules' documentation and tests are made of."""

from __future__ import annotations

__all__ = ["BODY_LINE", "blocks_example"]

_HEADER = """\
import torch

from ..modular_pipeline import ModularPipelineBlocks, PipelineState
from ..modular_pipeline_utils import ComponentSpec, InputParam, OutputParam


class {name}(ModularPipelineBlocks):
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


def blocks_example(
    body: str,
    *,
    name: str = "ToyStep",
    inputs: str = "",
    outputs: str = "",
    components: str = "",
    end: bool = True,
) -> str:
    """Source of one leaf block whose ``__call__`` runs ``body``, which starts at :data:`BODY_LINE`."""
    lines = [f"        {line}" if line else "" for line in body.splitlines()]
    if end:
        lines += ["        self.set_block_state(state, block_state)", "        return components, state"]
    header = _HEADER.format(name=name, inputs=inputs, outputs=outputs, components=components)
    return header + "\n".join(lines) + "\n"
