"""The pipeline classes of the linted files, by model family."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..reading.nodes import Function
from ..reading.source import Source
from ..resolution.classes import ClassInfo
from ..resolution.modules import parameters

__all__ = ["Pipelines"]


class Pipelines:
    """Subclasses of ``ModularPipeline``, and what blocks of the same family reach through them."""

    def __init__(self, infos: Iterable[ClassInfo]) -> None:
        self._by_group: dict[str, list[ClassInfo]] = {}
        for info in infos:
            self._by_group.setdefault(info.source.group, []).append(info)
        self._properties: dict[str, dict[str, list[tuple[ClassInfo, Function]]]] = {}

    def of(self, source: Source) -> Sequence[ClassInfo]:
        """The pipelines of the family that ``source`` belongs to."""
        return self._by_group.get(source.group, ())

    def properties_of(self, source: Source) -> dict[str, list[tuple[ClassInfo, Function]]]:
        """Decorated methods of the pipelines of the family that ``source`` belongs to, by name."""
        if source.group not in self._properties:
            self._properties[source.group] = _properties(self.of(source))
        return self._properties[source.group]


def _properties(pipelines: Sequence[ClassInfo]) -> dict[str, list[tuple[ClassInfo, Function]]]:
    properties: dict[str, list[tuple[ClassInfo, Function]]] = {}
    for pipeline in pipelines:
        own = [info for info in pipeline.mro if not info.source.in_framework]
        for name in dict.fromkeys(name for info in own for name in info.members):
            found = pipeline.method(name)
            if found is not None and found[0] in own and found[1].decorator_list and parameters(found[1]):
                properties.setdefault(name, []).append(found)
    return properties
