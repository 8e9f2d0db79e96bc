"""The guider is shared, and not for blocks to change."""

from __future__ import annotations

from collections.abc import Iterator

from ...core.finding import Finding, Level
from ...project.project import Project
from ..base.accesses import is_restored, is_restoring
from ..base.declared import guiders
from ..base.examples import step_example
from ..base.report import report
from ..base.rule import Rule

__all__ = ["GuiderMutation"]


class GuiderMutation(Rule):
    """A block changes an attribute of a guider."""

    code = "MOD004"
    name = "guider-mutation"
    level = Level.ERROR
    why = "The guider is shared: pipelines that use it after this block, and the user who set it up, see the change."
    instead = "Let users configure the guider, or register a second guider as a component of its own."
    allowed = (
        "The guider's protocol: `set_state`, `prepare_inputs`, `prepare_models` and the like.",
        "Writes to what a guider returns, such as `guider_state_batch.noise_pred`.",
        "Storing a guider on the block state.",
        "Saving an attribute and restoring it in `finally`.",
    )
    gotcha = "Blocks do not set the guider's parameters by hand; its configuration is the user's."
    invalid = (
        step_example(
            "components.guider.guidance_scale = block_state.scale\nguider = components.guider\nguider.enabled = False",
            inputs='InputParam("scale", description="A scale.")',
            components='ComponentSpec("guider", torch.nn.Module)',
            at=(1, 3),
            note="directly and through an alias",
        ),
        step_example('setattr(components.guider, "guidance_scale", 1.0)', at=(1,)),
    )
    valid = (
        step_example(
            "components.guider.set_state(step=0, num_inference_steps=1, timestep=None)\n"
            "for batch in components.guider.prepare_inputs({}):\n    batch.noise_pred = None",
            note="the protocol",
        ),
        step_example(
            "saved = components.guider.zero_init_steps\ntry:\n    components.guider.zero_init_steps = 0\n"
            "finally:\n    components.guider.zero_init_steps = saved",
            note="restored whatever happens",
        ),
    )

    def check(self, project: Project) -> Iterator[Finding]:
        for block in project.blocks:
            known = guiders(project, block.source.group)
            for access in project.flow(block.info).changes:
                place = access.place
                if place[0] != "components" or len(place) < 3:
                    continue
                if place[1] not in known or is_restoring(access) or is_restored(access):
                    continue
                what = f"`{'.'.join(place)}`"
                node = access.source.statement(access.node)
                yield from report(self, access.source, node, f"writes {what}: the guider is shared")
