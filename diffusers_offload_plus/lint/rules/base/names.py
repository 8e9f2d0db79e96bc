"""Names that tell what a value is for."""

from __future__ import annotations

import re

__all__ = ["is_scale_name"]

_SCALE = re.compile(
    r"guidance|(^|_)(true_)?cfg(_?(\d|re)?(scale|strength|weight|factor)\w*)?$|(^|_)(pag|stg|cads|apg|slg)_(re)?scale"
)
_NO_SCALE = re.compile(
    r"^control|controlnet|(interval|start|end|steps?|embeds?|image|images|type|mode|latents?|tensor|method|schedule)$"
    r"|(^|_)(is|use|do|has|enable)_"
)


def is_scale_name(name: str) -> bool:
    """Whether a name is typical of the strength of guidance. Names of ControlNet are not meant."""
    lowered = name.lower()
    return _SCALE.search(lowered) is not None and _NO_SCALE.search(lowered) is None
