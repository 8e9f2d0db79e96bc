"""Facts about an instantiated block, as plain data: what it declares, and which blocks it runs."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["DECLARATIONS", "BlockFacts", "Parameter", "facts_of"]

DECLARATIONS = ("inputs", "intermediate_outputs", "expected_components", "expected_configs")
_DEEPEST = 20
_PLAIN = (str, int, float, bool, type(None))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameter:
    """An input, output, component or config as declared.

    Attributes:
        default: only meaningful if ``has_plain_default``; other defaults cannot leave the process.
    """

    name: str | None
    required: bool = False
    default: Any = None
    has_plain_default: bool = True
    kwargs_type: str | None = None
    description: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockFacts:
    """The declarations of one instance of a block.

    Attributes:
        module, name: module and name of the block's class.
        declared: declarations by property name; ``errors``: messages of the properties that raised instead.
        sub_blocks: facts about the blocks that it runs, by name.
    """

    module: str
    name: str
    model_name: str | None = None
    declared: Mapping[str, tuple[Parameter, ...]] = dataclasses.field(default_factory=dict)
    errors: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sub_blocks: Mapping[str, BlockFacts] = dataclasses.field(default_factory=dict)

    def as_data(self) -> dict[str, Any]:
        """The facts as a dictionary for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> BlockFacts:
        """The facts from a dictionary that :meth:`as_data` made."""
        return cls(
            module=data["module"],
            name=data["name"],
            model_name=data["model_name"],
            declared={what: tuple(Parameter(**item) for item in items) for what, items in data["declared"].items()},
            errors=data["errors"],
            sub_blocks={name: cls.from_data(below) for name, below in data["sub_blocks"].items()},
        )


def facts_of(block: Any, depth: int = 0) -> BlockFacts:
    """The facts about an instantiated block. Its exceptions are noted instead of raised."""
    declared: dict[str, tuple[Parameter, ...]] = {}
    errors: dict[str, str] = {}
    for what in (*DECLARATIONS, "description"):
        try:
            value = getattr(block, what)
            if what != "description":
                declared[what] = tuple(_parameters(value))
        except Exception as error:
            errors[what] = f"{type(error).__name__}: {error}"
    below = getattr(block, "sub_blocks", None)
    blocks = dict(below) if isinstance(below, Mapping) and depth < _DEEPEST else {}
    model_name = getattr(block, "model_name", None)
    return BlockFacts(
        module=type(block).__module__,
        name=type(block).__qualname__,
        model_name=model_name if isinstance(model_name, str) else None,
        declared=declared,
        errors=errors,
        sub_blocks={str(name): facts_of(one, depth + 1) for name, one in blocks.items() if not inspect.isclass(one)},
    )


def _parameters(values: Iterable[Any]) -> Iterable[Parameter]:
    for value in values:
        name, kwargs_type = getattr(value, "name", None), getattr(value, "kwargs_type", None)
        default, description = getattr(value, "default", None), getattr(value, "description", None)
        plain = isinstance(default, _PLAIN)
        yield Parameter(
            name=name if isinstance(name, str) else None,
            required=bool(getattr(value, "required", False)),
            default=default if plain else None,
            has_plain_default=plain,
            kwargs_type=kwargs_type if isinstance(kwargs_type, str) else None,
            description=description if isinstance(description, str) else "",
        )
