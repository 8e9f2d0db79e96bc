"""Values of the evaluator. An unknown value is :data:`UNKNOWN`; containers say when they are incomplete."""

from __future__ import annotations

import ast
import dataclasses
import functools
from typing import Any, Protocol

from ..reading.nodes import Function
from ..reading.source import Source
from ..resolution.classes import ClassInfo

__all__ = [
    "UNKNOWN",
    "Attributes",
    "Choice",
    "ClassValue",
    "Constant",
    "Dictionary",
    "External",
    "FunctionValue",
    "Instance",
    "Items",
    "ModuleValue",
    "Spec",
    "Value",
    "View",
    "choice",
    "elements",
]

LARGEST = 2000  # of elements a container keeps


class Value:
    """Anything the evaluator can hold."""


class _Unknown(Value):
    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN = _Unknown()


@dataclasses.dataclass(frozen=True)
class Constant(Value):
    """A number, string, boolean or ``None``."""

    value: Any


@dataclasses.dataclass(eq=False)
class Items(Value):
    """A list, tuple or set (``kind``); ``open`` if it may hold more than what is listed."""

    items: list[Value]
    open: bool = False
    kind: str = "list"

    def __post_init__(self) -> None:
        if len(self.items) > LARGEST:  # a list that doubles itself in a loop
            self.items, self.open = self.items[:LARGEST], True

    def extend(self, items: list[Value], whole: bool) -> None:
        """Add ``items``; ``whole`` says that there are no others."""
        room = max(LARGEST - len(self.items), 0)
        self.open = self.open or not whole or len(items) > room
        self.items += items[:room]


@dataclasses.dataclass(eq=False)
class Dictionary(Value):
    """A dictionary with constant keys, in order."""

    items: dict[Any, Value]
    open: bool = False

    def update(self, other: Value) -> None:
        """Take over what ``other`` holds, as ``dict.update`` does."""
        if isinstance(other, Dictionary):
            self.items.update(other.items)
            self.open = self.open or other.open
        else:
            self.open = True

    def insert(self, key: Any, value: Value, index: int) -> None:
        """Put ``key`` at the place ``index``, as ``InsertableDict.insert`` does: an existing key moves."""
        rest = [(k, v) for k, v in self.items.items() if k != key]
        rest.insert(index, (key, value))
        self.items.clear()
        self.items.update(rest)


@dataclasses.dataclass(eq=False)
class View(Value):
    """Keys, values or items of a dictionary, which follow its changes."""

    mapping: Dictionary
    of: str

    def listed(self) -> Items:
        items = self.mapping.items
        if self.of == "keys":
            found: list[Value] = [Constant(key) for key in items]
        elif self.of == "values":
            found = list(items.values())
        else:
            found = [Items([Constant(key), value]) for key, value in items.items()]
        return Items(found, self.mapping.open)


@dataclasses.dataclass(frozen=True)
class Choice(Value):
    """One of several values, depending on what is not known."""

    options: tuple[Value, ...]


@dataclasses.dataclass(frozen=True)
class ClassValue(Value):
    """A class whose definition is known."""

    info: ClassInfo


@dataclasses.dataclass(frozen=True)
class External(Value):
    """Something defined in code that is not read, by its dotted name."""

    dotted: str


@dataclasses.dataclass(frozen=True)
class ModuleValue(Value):
    """A module whose source is known."""

    source: Source


@dataclasses.dataclass(eq=False)
class FunctionValue(Value):
    """A function, bound to ``instance`` if it was looked up on one."""

    source: Source
    node: Function | ast.Lambda
    owner: ClassInfo | None = None
    instance: Value | None = None
    closure: dict[str, Value] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(eq=False)
class Instance(Value):
    """An object of a class whose definition is known.

    Attributes:
        attributes: the attributes that ``__init__`` assigned.
        node, source: the call that made the instance, and its file, if there is one.
        opaque: whether ``__init__`` takes arguments that are not known; ``settled``: whether it has run.
    """

    info: ClassInfo
    attributes: dict[str, Value] = dataclasses.field(default_factory=dict)
    node: ast.AST | None = None
    source: Source | None = None
    opaque: bool = False
    settled: bool = False
    cache: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(eq=False)
class Spec(Value):
    """An ``InputParam``, ``OutputParam``, ``ComponentSpec`` or ``ConfigSpec``.

    Attributes:
        kind: ``"input"``, ``"output"``, ``"component"`` or ``"config"``.
        fields: the fields that are given or taken from the template; ``given``: names of those in the call itself.
        template: name of the template, ``None`` for a plain call.
        call, source: the call that declares it, and its file.
        open: whether the call has arguments that cannot be read, such as ``**overrides``.
    """

    kind: str
    fields: dict[str, Value]
    call: ast.Call
    source: Source
    given: frozenset[str] = frozenset()
    template: str | None = None
    open: bool = False

    def constant(self, name: str, default: Any = None) -> Any:
        """The value of the field ``name`` if that is a constant."""
        value = self.fields.get(name)
        return value.value if isinstance(value, Constant) else default

    def known(self, name: str) -> bool:
        """Whether the value of the field ``name`` is certain, be it given or left at its default."""
        value = self.fields.get(name)
        return isinstance(value, Constant) if value is not None else not self.open

    @property
    def type_name(self) -> str:
        """The dotted name of the declared type, ``""`` if it is none that can be named."""
        hint = self.fields.get("type_hint")
        return hint.info.dotted if isinstance(hint, ClassValue) else hint.dotted if isinstance(hint, External) else ""

    @functools.cached_property
    def name(self) -> str | None:
        name = self.constant("name")
        return name if isinstance(name, str) else None


class Attributes(Protocol):
    """The part of the evaluator that the framework's answers need."""

    def attribute(self, value: Value, name: str) -> Value:
        """The value of ``value.name``."""

    def default_instance(self, info: ClassInfo) -> Instance:
        """The instance that ``info()`` makes, with arguments left at their defaults."""


def choice(values: list[Value]) -> Value:
    """One value that stands for all of ``values``."""
    flat: list[Value] = []
    for value in values:
        for option in value.options if isinstance(value, Choice) else (value,):
            if not any(option is kept or _same(option, kept) for kept in flat):
                flat.append(option)
    if not flat:
        return UNKNOWN
    return flat[0] if len(flat) == 1 else Choice(tuple(flat[:32]))


def _same(one: Value, other: Value) -> bool:
    if isinstance(one, Constant) and isinstance(other, Constant):
        return type(one.value) is type(other.value) and bool(one.value == other.value)
    return isinstance(one, ClassValue | External) and one == other


def elements(value: Value) -> tuple[list[Value], bool]:
    """The values that iterating over ``value`` may yield, and whether the list is complete."""
    if isinstance(value, View):
        value = value.listed()
    if isinstance(value, Items):
        return list(value.items), not value.open
    if isinstance(value, Dictionary):
        return [Constant(key) for key in value.items], not value.open
    if isinstance(value, Constant) and isinstance(value.value, str):
        return [Constant(character) for character in value.value[:64]], len(value.value) <= 64
    if isinstance(value, Choice):
        found: list[Value] = []
        whole = True
        for option in value.options:
            if isinstance(option, Constant) and option.value is None:
                continue
            below, all_known = elements(option)
            found += [item for item in below if not any(item is kept or _same(item, kept) for kept in found)]
            whole = whole and all_known
        return found, whole
    return [], False
