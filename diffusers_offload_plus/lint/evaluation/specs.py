"""Calls of ``InputParam`` and the like as values: what they declare, with what their template adds."""

from __future__ import annotations

import ast

from ..reading.source import Source
from .templates import SPEC_KINDS, Declarations
from .values import UNKNOWN, Constant, Dictionary, Items, Spec, Value

__all__ = ["declared", "from_template"]


def declared(
    declarations: Declarations, name: str, node: ast.Call, source: Source, arguments: Items, keywords: Dictionary
) -> Spec:
    """What ``name(*arguments, **keywords)`` declares; ``name`` is that of the class, such as ``"InputParam"``."""
    fields = dict(zip(declarations.fields[name], arguments.items, strict=False)) | keywords.items
    unread = arguments.open or keywords.open
    return Spec(SPEC_KINDS[name], fields, node, source, frozenset(fields), open=unread)


def from_template(
    declarations: Declarations, name: str, node: ast.Call, source: Source, arguments: Items, keywords: Dictionary
) -> Spec:
    """What ``name.template(*arguments, **keywords)`` declares."""
    given: dict[str, Value] = dict(zip(("template_name", "note"), arguments.items, strict=False)) | keywords.items
    template = given.pop("template_name", UNKNOWN)
    note = given.pop("note", None)
    key = template.value if isinstance(template, Constant) and isinstance(template.value, str) else None
    known = declarations.templates.get(name, {}).get(key) if key is not None else None
    fields: dict[str, Value] = {"name": template if key is not None else UNKNOWN}
    fields.update(known or {})
    if note is not None:
        fields["note"] = note
    fields.update(given)
    unread = arguments.open or keywords.open or known is None
    return Spec(SPEC_KINDS[name], fields, node, source, frozenset(given), template=key or "?", open=unread)
