"""Items of the conversion checklist, and how they are shown."""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Iterator, Sequence

from ..core.text import printable

__all__ = ["Item", "State", "render_checklist"]

_SHOWN = 3  # places of an item


class State(enum.StrEnum):
    """Whether an item is done, as far as that can be told from the source."""

    DONE = "done"
    MISSING = "missing"
    UNDECIDABLE = "by hand"


@dataclasses.dataclass(frozen=True)
class Item:
    """A step of the conversion.

    Attributes:
        places: where the step is done, or where something is missing.
        note: what is missing, or what a person has to look at.
    """

    title: str
    state: State
    places: tuple[str, ...] = ()
    note: str = ""

    @property
    def missing(self) -> bool:
        """Whether the item is known not to be done."""
        return self.state is State.MISSING


def render_checklist(items: Sequence[Item], *, colour: bool = False, as_json: bool = False) -> str:
    """The items as text, one or a few lines each, or as a JSON list of objects."""
    if as_json:
        return json.dumps([dataclasses.asdict(item) for item in items], indent=2) + "\n"
    lines = [line for item in items for line in _lines(item, colour)]
    counts = ", ".join(f"{sum(item.state is state for item in items)} {state}" for state in State)
    return "\n".join([*lines, "", f"{len(items)} items: {counts}."]) + "\n"


_STYLES = {State.DONE: "32", State.MISSING: "31", State.UNDECIDABLE: "33"}


def _lines(item: Item, colour: bool) -> Iterator[str]:
    state = f"{item.state:<7}"
    yield f"{f'{chr(27)}[{_STYLES[item.state]}m{state}{chr(27)}[0m' if colour else state}  {item.title}"
    for text in (*filter(None, [item.note]), *item.places[:_SHOWN]):
        yield f"         {printable(text)}"
    if len(item.places) > _SHOWN:
        yield f"         and {len(item.places) - _SHOWN} more"
