"""Fixes that rewrite one call: defensive reads, raw noise, templates and required inputs with defaults."""

from __future__ import annotations

import keyword
from collections.abc import Sequence

import libcst as cst
import libcst.matchers as m

from ..core.finding import Finding
from ..evaluation.values import Constant, External
from .edits import CannotFix, Edits

__all__ = [
    "argument",
    "defensive_read",
    "literal_text",
    "raw_noise",
    "required_with_default",
    "template_semantics",
    "without_argument",
]

_LINE_LENGTH = 119


def defensive_read(edits: Edits, finding: Finding) -> None:
    """``getattr(components, "vae", None)`` becomes ``components.vae``."""
    call = edits.at(finding, cst.Call, _is_getattr_none)
    target, name = call.args[0].value, literal_text(call.args[1].value)
    if name is None or not name.isidentifier() or keyword.iskeyword(name):
        raise CannotFix("the attribute is not a plain name")
    if not isinstance(target, cst.Name | cst.Attribute):
        raise CannotFix("the object is not a plain name")
    edits.refuse_comments(call)

    def plain(node: cst.Call) -> cst.Attribute:
        return cst.Attribute(node.args[0].value, cst.Name(name), lpar=node.lpar, rpar=node.rpar)

    edits.change(call, plain)


def _is_getattr_none(call: cst.Call) -> bool:
    plain = m.Arg(keyword=None, star="")
    return m.matches(
        call,
        m.Call(
            func=m.Name("getattr"),
            args=[plain, m.Arg(m.SimpleString(), None), m.Arg(m.Name("None"), None)],
        ),
    )


def raw_noise(edits: Edits, finding: Finding) -> None:
    """``torch.randn(shape, generator=g, device=d, dtype=t)`` becomes ``randn_tensor(...)``."""
    call = edits.at(finding, cst.Call, _draws_noise)
    named = {arg.keyword.value: arg for arg in call.args if arg.keyword is not None}
    if any(arg.star == "**" for arg in call.args) or not {"generator", "device"} <= set(named):
        raise CannotFix("generator and device are not both given by name")
    if odd := sorted(set(named) - {"size", "generator", "device", "dtype", "layout"}):
        raise CannotFix(f"randn_tensor has no argument {odd[0]}")
    edits.refuse_comments(call)
    shape = _shape(call, named.get("size"))
    edits.require_import("diffusers.utils.torch_utils", "randn_tensor")

    def drawn(node: cst.Call) -> cst.Call:
        rest = [arg for arg in node.args if arg.keyword is not None and arg.keyword.value != "size"]
        last = [arg for arg in node.args if arg not in rest][-1]
        first = cst.Arg(shape, comma=last.comma)
        return node.with_changes(func=cst.Name("randn_tensor"), args=[first, *rest])

    edits.change(call, drawn)


def _draws_noise(call: cst.Call) -> bool:
    name = call.func.attr if isinstance(call.func, cst.Attribute) else call.func
    return isinstance(name, cst.Name) and any(arg.keyword and arg.keyword.value == "device" for arg in call.args)


def _shape(call: cst.Call, size: cst.Arg | None) -> cst.BaseExpression:
    """The size of the noise as one tuple or list."""
    given = [arg for arg in call.args if arg.keyword is None]
    if size is not None:
        given = [size]
    if len(given) == 1 and not given[0].star:
        value = given[0].value
        if isinstance(value, cst.Tuple | cst.List) or (
            isinstance(value, cst.Attribute) and value.attr.value == "shape"
        ):
            return value
        name = value.attr if isinstance(value, cst.Attribute) else value
        if isinstance(name, cst.Name) and name.value.endswith(("shape", "size")):
            return value
        raise CannotFix("the size may be a single number, which randn_tensor does not accept")
    if not given:
        raise CannotFix("the size is not given")
    elements: list[cst.BaseElement] = [
        (cst.StarredElement if arg.star else cst.Element)(arg.value, comma=_COMMA) for arg in given
    ]
    if len(elements) > 1:
        elements[-1] = elements[-1].with_changes(comma=cst.MaybeSentinel.DEFAULT)
    return cst.Tuple(elements)


_COMMA = cst.Comma(whitespace_after=cst.SimpleWhitespace(" "))


def required_with_default(edits: Edits, finding: Finding) -> None:
    """``required=True`` beside a default is removed. It has no effect, so nothing else changes."""
    call = edits.at(finding, cst.Call, lambda node: _true(argument(node, "required")))
    required = argument(call, "required")
    assert required is not None
    edits.refuse_comments(required)
    edits.change(call, lambda node: without_argument(node, "required"))


def _true(arg: cst.Arg | None) -> bool:
    return arg is not None and isinstance(arg.value, cst.Name) and arg.value.value == "True"


# The description that replaces the template's, by class and name of the template.
_DESCRIPTIONS = {
    ("OutputParam", "latents"): "Latents before denoising.",
    ("OutputParam", "image_latents"): "Latents of the image, with noise added.",
    ("InputParam", "latents"): "Denoised latents.",
}


def template_semantics(edits: Edits, finding: Finding) -> None:
    """A template whose words are wrong becomes a plain declaration with the same type and kind."""
    call = edits.at(finding, cst.Call, _is_template)
    assert isinstance(call.func, cst.Attribute)
    owner = call.func.value
    name = owner.attr.value if isinstance(owner, cst.Attribute) else getattr(owner, "value", "")
    template = literal_text(call.args[0].value) if call.args and call.args[0].keyword is None else None
    class_name = _original_name(edits, name)
    fields = edits.project.declarations.templates.get(class_name, {}).get(template or "")
    description = _DESCRIPTIONS.get((class_name, template or ""))
    if template is None or fields is None or description is None:
        raise CannotFix("the template does not tell what the value is")
    if any(arg.star for arg in call.args) or len([arg for arg in call.args if arg.keyword is None]) > 1:
        raise CannotFix("its arguments are not given by name")
    edits.refuse_comments(call)
    given = {arg.keyword.value: arg.value for arg in call.args if arg.keyword is not None}
    note = literal_text(given.pop("note")) if "note" in given else None
    if note:
        description = f"{description[:-1]} ({note})."
    shown = edits.module.code_for_node
    chosen = given.pop("name", call.args[0].value)
    words = {field: shown(value) for field, value in given.items()}
    for field, value in fields.items():
        if field in words or field in ("name", "description"):
            continue
        if isinstance(value, External):
            words[field] = _importable(edits, value.dotted)
        elif isinstance(value, Constant):
            words[field] = repr(value.value) if not isinstance(value.value, str) else f'"{value.value}"'
        else:
            raise CannotFix(f"the template's {field} cannot be written as source")
    words.setdefault("description", '"' + description.replace("\\", "\\\\").replace('"', '\\"') + '"')
    arguments = [shown(chosen), *(f"{field}={value}" for field, value in sorted(words.items(), key=_field_order))]
    text = _call_text(shown(owner), arguments, edits.start(call), edits)
    edits.change(call, lambda node: cst.parse_expression(text, edits.module.config_for_parsing))


def _is_template(call: cst.Call) -> bool:
    return isinstance(call.func, cst.Attribute) and call.func.attr.value == "template"


def _original_name(edits: Edits, name: str) -> str:
    symbol = edits.project.modules.lookup(edits.source, name)
    return symbol.dotted.rpartition(".")[2] if symbol is not None else name


def _importable(edits: Edits, dotted: str) -> str:
    if dotted.startswith("torch.") and dotted.replace(".", "").isidentifier():
        edits.require_import("torch", "")
        return dotted
    if dotted in ("str", "int", "float", "bool"):
        return dotted
    raise CannotFix(f"the type {dotted} may not be imported here")


def _field_order(item: tuple[str, str]) -> int:
    order = ("required", "type_hint", "default", "kwargs_type", "metadata", "description")
    return order.index(item[0]) if item[0] in order else len(order)


def _call_text(function: str, arguments: Sequence[str], start: tuple[int, int], edits: Edits) -> str:
    line = edits.source.lines[start[0] - 1]
    flat = f"{function}({', '.join(arguments)})"
    if start[1] + len(flat) + 1 <= _LINE_LENGTH:
        return flat
    indent = line[: len(line) - len(line.lstrip())]
    inner = "".join(f"\n{indent}    {argument}," for argument in arguments)
    return f"{function}({inner}\n{indent})"


def argument(call: cst.Call, name: str) -> cst.Arg | None:
    """The argument of ``call`` that is given by ``name``."""
    return next((arg for arg in call.args if arg.keyword is not None and arg.keyword.value == name), None)


def without_argument(call: cst.Call, name: str) -> cst.Call:
    """The call without the argument ``name``. What follows the last argument stays as it is."""
    kept = [arg for arg in call.args if arg.keyword is None or arg.keyword.value != name]
    if kept and call.args[-1] not in kept:
        last = call.args[-1]
        kept[-1] = kept[-1].with_changes(comma=last.comma, whitespace_after_arg=last.whitespace_after_arg)
    return call.with_changes(args=kept)


def literal_text(node: cst.BaseExpression) -> str | None:
    """The value of a plain string."""
    if isinstance(node, cst.SimpleString) and isinstance(node.evaluated_value, str):
        return node.evaluated_value
    return None
