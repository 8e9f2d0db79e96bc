"""Blocks: what they declare, and which other blocks they run."""

from __future__ import annotations

import dataclasses
import functools

from ..evaluation.evaluator import Evaluator
from ..evaluation.framework import DECLARED, sub_blocks
from ..evaluation.values import Constant, Instance, Spec, Value, elements
from ..reading.source import Source
from ..resolution.classes import ClassInfo

__all__ = ["Block", "Declared", "descendants"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Declared:
    """The inputs, outputs, components or configs of a block; ``whole`` unless some could not be read."""

    specs: tuple[Spec, ...]
    whole: bool

    @functools.cached_property
    def names(self) -> frozenset[str]:
        return frozenset(spec.name for spec in self.specs if spec.name is not None)

    @functools.cached_property
    def kwargs_types(self) -> frozenset[str]:
        """The ``kwargs_type`` of declarations without a name."""
        found = (spec.constant("kwargs_type") for spec in self.specs if spec.name is None)
        return frozenset(kind for kind in found if isinstance(kind, str))

    def named(self, name: str) -> list[Spec]:
        return [spec for spec in self.specs if spec.name == name]


class Block:
    """A block class."""

    def __init__(self, evaluator: Evaluator, info: ClassInfo) -> None:
        self.info = info
        self._evaluator = evaluator
        self._declared: dict[tuple[str, bool], Declared] = {}
        self._own: dict[str, list[Spec]] = {}

    def __repr__(self) -> str:
        return f"<block {self.info.dotted}>"

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def source(self) -> Source:
        return self.info.source

    @property
    def kind(self) -> str:
        return self.info.kind

    @functools.cached_property
    def instance(self) -> Instance:
        """The block with its arguments left at their defaults."""
        return self._evaluator.default_instance(self.info)

    @property
    def variants(self) -> list[Instance]:
        """The instances of the block, one for each call that creates it, the default one first."""
        return [self.instance, *self._evaluator.instances.get(self.info, ())]

    def declared(self, what: str, *, anywhere: bool = False) -> Declared:
        """The declarations of the property ``what``; with ``anywhere`` those of all :attr:`variants`."""
        key = (what, anywhere)
        if key not in self._declared:
            specs: list[Spec] = []
            whole = True
            for instance in self.variants if anywhere else [self.instance]:
                values, known = elements(self._evaluator.attribute(instance, what))
                read = [value for value in values if isinstance(value, Spec)]
                specs += [spec for spec in read if spec not in specs]
                whole = whole and known and len(read) == len(values) and not instance.opaque
                whole = whole and all(spec.name is not None or spec.constant("kwargs_type") for spec in read)
            self._declared[key] = Declared(specs=tuple(specs), whole=whole)
        return self._declared[key]

    def of_variant(self, index: int, what: str) -> Declared:
        """The declarations of one of :attr:`variants`."""
        values, known = elements(self._evaluator.attribute(self.variants[index], what))
        return Declared(specs=tuple(value for value in values if isinstance(value, Spec)), whole=known)

    @property
    def inputs(self) -> Declared:
        return self.declared("inputs")

    @property
    def outputs(self) -> Declared:
        return self.declared("intermediate_outputs")

    @property
    def components(self) -> Declared:
        return self.declared("expected_components")

    @property
    def configs(self) -> Declared:
        return self.declared("expected_configs")

    def own(self, what: str) -> list[Spec]:
        """The declarations that the class itself lists in the property ``what``, or in its form for loops."""
        if what not in self._own:
            self._own[what] = self._listed(what)
        return self._own[what]

    def _listed(self, what: str) -> list[Spec]:
        found: list[Spec] = []
        for name in (what, DECLARED.get(what)):
            if not name:
                continue
            # Without a property of its own, a class may list them in its body for one that it inherits.
            has_property = self.info.own_method(name) is not None
            for spec in self.declared(name, anywhere=True).specs:
                inside = spec.source is self.source and self.source.is_inside(spec.call, self.info.node)
                beside = has_property and self.kind == "leaf" and spec.source.group == self.source.group
                if (inside or beside) and spec not in found:
                    found.append(spec)
        return found

    @functools.cached_property
    def sub_blocks(self) -> tuple[list[tuple[object, Instance]], bool]:
        """The names and instances of the blocks that this one runs, and whether the list is complete."""
        found, whole = sub_blocks(self._evaluator, self.instance)
        return [(name, value) for name, value in found if isinstance(value, Instance)], whole

    @functools.cached_property
    def descendants(self) -> list[Instance]:
        """All blocks that this one runs, directly or through others."""
        return descendants(self._evaluator, self.instance)

    def attribute(self, name: str) -> Value:
        """The value of the attribute ``name`` of the block."""
        return self._evaluator.attribute(self.instance, name)

    def text(self, name: str) -> str | None:
        """The value of the attribute ``name`` if that is a known string."""
        value = self.attribute(name)
        return value.value if isinstance(value, Constant) and isinstance(value.value, str) else None


def descendants(evaluator: Evaluator, instance: Instance) -> list[Instance]:
    """All blocks that ``instance`` runs, directly or through others, each once."""
    found: list[Instance] = []
    stack = [instance]
    while stack:
        for _, value in sub_blocks(evaluator, stack.pop())[0]:
            if isinstance(value, Instance) and value is not instance and value not in found:
                found.append(value)
                stack.append(value)
    return found
