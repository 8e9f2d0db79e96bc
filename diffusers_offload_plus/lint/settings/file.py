"""The settings file: ``[tool.diffusers-offload-plus.lint]`` of a ``pyproject.toml``, or a TOML file of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import SettingsError, nearest
from ..core.finding import Level
from .layers import Layer

__all__ = ["KEYS", "TABLE", "find_settings", "nearest_settings", "parse_level", "read_settings"]

TABLE = ("tool", "diffusers-offload-plus", "lint")
_SHOWN = f"[{'.'.join(TABLE)}]"

KEYS = (
    "select",
    "extend-select",
    "ignore",
    "extend-ignore",
    "levels",
    "per-file-ignores",
    "exclude",
    "extend",
)


def find_settings(paths: Sequence[Path]) -> Path | None:
    """The nearest ``pyproject.toml`` with settings of the linter, at or above the directory that holds ``paths``."""
    if not paths:
        return None
    try:
        common = Path(os.path.commonpath([os.path.abspath(path) for path in paths]))
    except ValueError:  # on several drives
        return None
    return nearest_settings(common)


def nearest_settings(directory: Path) -> Path | None:
    """The nearest ``pyproject.toml`` with settings of the linter, in ``directory`` or above it.

    Raises:
        SettingsError: a ``pyproject.toml`` on the way cannot be read.
    """
    for above in (directory, *directory.parents):
        candidate = above / "pyproject.toml"
        if candidate.is_file() and _table(_load(candidate), candidate) is not None:
            return candidate
    return None


def read_settings(path: Path) -> list[Layer]:
    """The layers of settings in the file at ``path``, on top of those in the files that it extends.

    Raises:
        SettingsError: a file is missing or not valid TOML, or a key or value is wrong.
    """
    layers: list[Layer] = []
    seen: list[Path] = []
    current: Path | None = path
    while current is not None:
        resolved = current.resolve()
        if resolved in seen:
            chain = " extends ".join(str(step) for step in (*seen, resolved))
            raise SettingsError(f"{path}: extend: the files extend each other in a circle: {chain}.")
        seen.append(resolved)
        data = _load(current)
        table = _table(data, current)
        if table is None:
            if current.name == "pyproject.toml" or "tool" in data:
                raise SettingsError(f"{current}: expected a table {_SHOWN}, found none.")
            table = data  # a file of its own holds the keys at its top
        layers.insert(0, _layer(table, current))
        extended = table.get("extend")
        if extended is not None and not isinstance(extended, str):
            raise SettingsError(f"{current}: extend: expected the path of a TOML file, got {extended!r}.")
        current = None if extended is None else current.parent / Path(extended).expanduser()
    return layers


def parse_level(text: object, where: str) -> Level:
    """The level called ``text``.

    Raises:
        SettingsError: there is no such level.
    """
    if not isinstance(text, str) or text not in {level.value for level in Level}:
        known = ", ".join(level.value for level in Level)
        hint = nearest(text, [level.value for level in Level]) if isinstance(text, str) else ""
        raise SettingsError(f"{where}: expected a level ({known}), got {text!r}.{hint}")
    return Level(text)


def _load(path: Path) -> dict[str, Any]:
    import tomllib  # many runs find no file

    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror or error}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: is not valid TOML: {error}.") from error


def _table(data: Mapping[str, Any], path: Path) -> Mapping[str, Any] | None:
    table: Any = data
    for depth, name in enumerate(TABLE, 1):
        if not isinstance(table, Mapping):
            raise SettingsError(f"{path}: expected {'.'.join(TABLE[: depth - 1])} to be a table, got {table!r}.")
        if name not in table:
            return None
        table = table[name]
    if not isinstance(table, Mapping):
        raise SettingsError(f"{path}: expected {_SHOWN} to be a table, got {table!r}.")
    return table


def _layer(table: Mapping[str, Any], path: Path) -> Layer:
    for key in table:
        if key not in KEYS:
            raise SettingsError(
                f"{path}: {_SHOWN} has no key {key!r}.{nearest(key, KEYS)} The keys are: {', '.join(KEYS)}."
            )
    per_file = _mapping(table, "per-file-ignores", path)
    levels = _mapping(table, "levels", path)
    return Layer(
        where=str(path),
        root=path.resolve().parent,
        select=_strings(table["select"], f"{path}: select") if "select" in table else None,
        extend_select=_strings(table.get("extend-select", []), f"{path}: extend-select"),
        ignore=(
            *_strings(table.get("ignore", []), f"{path}: ignore"),
            *_strings(table.get("extend-ignore", []), f"{path}: extend-ignore"),
        ),
        levels={key: parse_level(value, f"{path}: levels: {key}") for key, value in levels.items()},
        per_file_ignores={
            pattern: _strings(codes, f"{path}: per-file-ignores: {pattern!r}") for pattern, codes in per_file.items()
        },
        exclude=_strings(table.get("exclude", []), f"{path}: exclude"),
    )


def _strings(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
        raise SettingsError(f"{where}: expected a list of strings, got {value!r}.")
    return tuple(value)


def _mapping(table: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, Mapping):
        raise SettingsError(f"{path}: {key}: expected a table, got {value!r}.")
    return value
