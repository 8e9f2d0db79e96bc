"""The catalogue: rules by code and by name, and what selectors such as ``MOD0`` mean among them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ...core.errors import SettingsError, nearest
from ...core.finding import Level
from .rule import Rule

__all__ = ["EVERYTHING", "Catalogue"]


EVERYTHING = "ALL"


_EXACT = 100  # longer than any prefix


class Catalogue:
    """All rules, and what a selector means among them."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(sorted(rules, key=lambda rule: rule.code))
        self.by_code = {rule.code: rule for rule in self.rules}
        # Codes by what people may write: a code in capitals or not, or a name.
        self._code_of = {word.lower(): rule.code for rule in self.rules for word in (rule.code, rule.name)}

    def rule(self, word: str, where: str) -> Rule:
        """The one rule called ``word``, by code or by name.

        Raises:
            SettingsError: there is no such rule.
        """
        code = self._code_of.get(word.lower())
        if code is None:
            raise SettingsError(f"{where}: no rule is called {word!r}.{self._suggestion(word)}")
        return self.by_code[code]

    def resolve(self, selector: str, where: str) -> tuple[frozenset[str], int]:
        """The codes of the rules that ``selector`` means, and how specific the selector is.

        Raises:
            SettingsError: the selector means no rule.
        """
        code = self._code_of.get(selector.lower(), selector.upper())
        if code == EVERYTHING:
            return frozenset(self.by_code), 0
        if code in self.by_code:
            return frozenset({code}), _EXACT
        found = frozenset(known for known in self.by_code if known.startswith(code)) if code else frozenset()
        if not found:
            raise SettingsError(
                f"{where}: {selector!r} is no rule. Expected {EVERYTHING}, a code such as MOD003, the beginning of "
                f"one, or a name such as guidance-scale-input; `offload-plus rule` lists them."
                f"{self._suggestion(selector)}"
            )
        return found, len(code)

    def levels(self, chosen: Mapping[str, Level], where: str) -> dict[str, Level]:
        """Levels by code or ``code:kind`` for those ``chosen`` by selector or ``selector:kind``; specific ones win.

        Raises:
            SettingsError: a selector means no rule, or the rule has no such kind.
        """
        found: dict[str, tuple[int, Level]] = {}
        for key, level in chosen.items():
            selector, _, kind = key.partition(":")
            codes, how = self.resolve(selector, where)
            for code in codes:
                if kind and kind not in self.by_code[code].kinds:
                    kinds = self.by_code[code].kinds
                    raise SettingsError(
                        f"{where}: {code} has no kind {kind!r}; its kinds are: {', '.join(kinds) or 'none'}."
                        f"{nearest(kind, kinds)}"
                    )
                name = f"{code}:{kind}" if kind else code
                if name not in found or how >= found[name][0]:
                    found[name] = (how, level)
        return {name: level for name, (_, level) in found.items()}

    def _suggestion(self, word: str) -> str:
        # Codes are suggested for words that look like a code, names for all others.
        if word.lower().startswith("m") and any(letter.isdigit() for letter in word):
            return nearest(word.upper(), self.by_code)
        return nearest(word.lower(), [rule.name for rule in self.rules])
