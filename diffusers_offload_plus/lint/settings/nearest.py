"""Settings by file: those of the nearest ``pyproject.toml``, whichever other files are linted with it."""

from __future__ import annotations

import os
from pathlib import Path

from ..core.finding import Finding, Level
from ..rules.base.catalogue import Catalogue
from ..rules.base.rule import Rule
from .file import nearest_settings, read_settings
from .layers import Layer, Settings

__all__ = ["NearestSettings"]


class NearestSettings:
    """Answers for each file what :class:`Settings` from the nearest settings file would.

    Args:
        catalogue: all rules.
        last: the settings of the command line, which win over every file's.
    """

    def __init__(self, catalogue: Catalogue, last: Layer | None = None, *, unrestricted: bool = False) -> None:
        self.catalogue = catalogue
        self._last = [last] if last is not None else []
        self._unrestricted = unrestricted
        self._by_file: dict[Path | None, Settings] = {}
        self._by_directory: dict[Path, Settings] = {}

    def of(self, path: Path) -> Settings:
        """The settings of the file at ``path``, or of those right in it.

        Raises:
            SettingsError: the settings file is broken.
        """
        directory = Path(os.path.abspath(path)).parent
        if directory not in self._by_directory:
            file = nearest_settings(directory)
            if file not in self._by_file:
                layers = [*(read_settings(file) if file is not None else []), *self._last]
                made = Settings(self.catalogue, layers)
                self._by_file[file] = made.unrestricted() if self._unrestricted else made
            self._by_directory[directory] = self._by_file[file]
        return self._by_directory[directory]

    def excluded(self, path: Path) -> bool:
        """Whether ``path`` is left out of the run."""
        return self.of(path).excluded(path)

    def ignored_codes(self, path: str) -> frozenset[str]:
        """Codes of the rules that do not apply to the file at ``path``."""
        own = self.of(Path(path))
        return own.ignored_codes(path) | (self.codes - own.codes)

    def level(self, finding: Finding) -> Level:
        """The level of ``finding`` in this run."""
        return self.of(Path(finding.path)).level(finding)

    def unrestricted(self) -> NearestSettings:
        """Settings for the same files with all rules at their own levels."""
        last = self._last[0] if self._last else None
        return NearestSettings(self.catalogue, last, unrestricted=True)

    @property
    def codes(self) -> frozenset[str]:
        """Codes of the rules that run for any file seen so far."""
        seen = self._by_file.values() or [self.of(Path.cwd() / "x")]
        return frozenset[str]().union(*(one.codes for one in seen))

    @property
    def rules(self) -> list[Rule]:
        """The rules that run for any file seen so far, by code."""
        codes = self.codes
        return [rule for rule in self.catalogue.rules if rule.code in codes]
