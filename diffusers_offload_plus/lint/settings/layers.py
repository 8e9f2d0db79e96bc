"""Settings of a run, in layers: from the file that another one extends up to the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..core.finding import Finding, Level
from ..rules.base.catalogue import Catalogue
from ..rules.base.rule import Rule
from .patterns import matches

__all__ = ["Layer", "Settings"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """The settings from one file, or from the command line.

    Attributes:
        where: the name of the file, or "command line", for messages.
        root: the directory that patterns are relative to.
        select: selectors of the rules that run, instead of those of the layers beneath; ``None`` keeps those.
        extend_select, ignore: selectors that add to and take away from what is selected so far.
        levels: levels by selector or ``selector:kind``.
        per_file_ignores: selectors by pattern. ``exclude``: patterns of files that are not read at all.
    """

    where: str
    root: Path
    select: tuple[str, ...] | None = None
    extend_select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    levels: Mapping[str, Level] = dataclasses.field(default_factory=dict)
    per_file_ignores: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    exclude: tuple[str, ...] = ()


class Settings:
    """All layers of settings of a run together.

    Within a layer the more specific selector wins, and of equally specific ones the one that ignores; a later layer
    wins over an earlier one. Levels, excluded paths and ignores per file add up.

    Attributes:
        codes: codes of the rules that run.
        levels: chosen levels by ``CODE`` or ``CODE:kind``; the latter wins. Both win over the rules' own levels.

    Raises:
        SettingsError: a selector means no rule, or a rule has no such kind.
    """

    def __init__(self, catalogue: Catalogue, layers: Sequence[Layer] = ()) -> None:
        self.catalogue = catalogue
        self._layers = tuple(layers)
        codes = set(catalogue.by_code)
        self.levels: dict[str, Level] = {}
        self._ignores: list[tuple[Path, str, frozenset[str]]] = []
        for layer in layers:
            codes = _selected(catalogue, layer, codes)
            self.levels |= catalogue.levels(layer.levels, f"{layer.where}: levels")
            for pattern, selectors in layer.per_file_ignores.items():
                where = f"{layer.where}: per-file-ignores: {pattern!r}"
                dropped = frozenset[str]().union(*(catalogue.resolve(selector, where)[0] for selector in selectors))
                self._ignores.append((layer.root, pattern, dropped))
        self.codes = frozenset(codes)

    def excluded(self, path: Path) -> bool:
        """Whether ``path`` is left out of the run."""
        return any(matches(pattern, path, layer.root) for layer in self._layers for pattern in layer.exclude)

    def unrestricted(self) -> Settings:
        """Settings for the same files with all rules at their own levels."""
        layers = [Layer(where=layer.where, root=layer.root, exclude=layer.exclude) for layer in self._layers]
        return Settings(self.catalogue, layers)

    def ignored_codes(self, path: str) -> frozenset[str]:
        """Codes of the rules that do not apply to the file at ``path``."""
        found = [codes for root, pattern, codes in self._ignores if matches(pattern, Path(path), root)]
        return frozenset[str]().union(*found)

    @property
    def rules(self) -> list[Rule]:
        """The rules that run, by code."""
        return [rule for rule in self.catalogue.rules if rule.code in self.codes]

    def level(self, finding: Finding) -> Level:
        """The level of ``finding`` in this run."""
        for key in (f"{finding.code}:{finding.kind}", finding.code):
            if key in self.levels:
                return self.levels[key]
        return finding.level


def _selected(catalogue: Catalogue, layer: Layer, beneath: set[str]) -> set[str]:
    """The codes of the selected rules after ``layer`` is applied to those selected ``beneath`` it."""
    added = [
        catalogue.resolve(selector, f"{layer.where}: select")
        for selector in (*(layer.select or ()), *layer.extend_select)
    ]
    removed = [catalogue.resolve(selector, f"{layer.where}: ignore") for selector in layer.ignore]
    codes = set(beneath) if layer.select is None else set()
    for how in sorted({how for _, how in (*added, *removed)}):
        codes.update(*(found for found, specific in added if specific == how))
        codes.difference_update(*(found for found, specific in removed if specific == how))
    return codes
