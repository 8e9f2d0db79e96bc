"""Whether code that looks a tensor up only asks for its dtype, its shape or its device.

[Note: questions]
``self.proj.weight.dtype`` hands the whole parameter out, and what the caller does with it decides what it costs. The
next instruction of the caller tells: reading an attribute that says something *about* a tensor needs no values, no
copy and no wait. Whatever is not recognised counts as a use of the values, which is always right, if slower.
"""

from __future__ import annotations

import dis
import enum
from types import CodeType, FrameType

__all__ = ["Question", "question_of"]

_ABOUT_LAYOUT = frozenset(
    {
        *("dtype", "shape", "ndim", "size", "dim", "numel", "nelement", "stride", "layout", "itemsize", "nbytes"),
        *("element_size", "is_floating_point", "is_complex", "requires_grad", "is_leaf", "is_sparse", "is_quantized"),
    }
)
_ABOUT_DEVICE = frozenset({"device", "is_cuda", "is_cpu", "is_meta", "get_device"})
_ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD")
_LIBRARIES = ("diffusers", "transformers", "diffusers_offload_plus")
_ASKERS = frozenset({"device", "dtype", "get_parameter_device", "get_parameter_dtype"})


class Question(enum.Enum):
    """What is asked of a tensor."""

    VALUES = "values"
    DEVICE = "device"
    METADATA = "metadata"  # nothing that depends on where it is


def question_of(frame: FrameType | None) -> Question:
    """What the code that waits for a lookup will do with the result.

    Args:
        frame: the innermost frame of that code. Frames of ``torch`` between it and the lookup are passed over.
    """
    while frame is not None and _library(frame) == "torch":
        frame = frame.f_back
    if frame is None:
        return Question.VALUES
    if frame.f_code.co_name in _ASKERS and _library(frame) in _LIBRARIES:
        return Question.METADATA  # a property that goes through all parameters for the first dtype or device
    code = frame.f_code
    known, answers = _answers.setdefault(id(code), (code, {}))
    place = frame.f_lasti
    if place not in answers:
        answers[place] = _read(known, place)
    return answers[place]


# By identity: comparing two code objects compares all that is in them. Each is held, so that its id stays its own.
_answers: dict[int, tuple[CodeType, dict[int, Question]]] = {}


def _library(frame: FrameType) -> str:
    name: str = frame.f_globals.get("__name__", "")
    return name.split(".", 1)[0]


def _read(code: CodeType, place: int) -> Question:
    steps = [step for step in dis.get_instructions(code) if step.opname not in ("CACHE", "EXTENDED_ARG", "NOP")]
    here = next((index for index, step in enumerate(steps) if step.offset >= place), len(steps))
    if here + 1 < len(steps) and steps[here].opname == "PRECALL":
        here += 1  # Python 3.11 calls builtins from there once it has seen them often
    following = [*steps[here + 1 : here + 3], None, None]
    first, second = following[0], following[1]
    if first is None:
        return Question.VALUES
    if first.opname in _ATTRIBUTE:
        if first.argval in _ABOUT_LAYOUT:
            return Question.METADATA
        return Question.DEVICE if first.argval in _ABOUT_DEVICE else Question.VALUES
    if first.opname.startswith("POP_JUMP") and "NONE" in first.opname:
        return Question.METADATA
    if first.opname == "LOAD_CONST" and first.argval is None and second is not None and second.opname == "IS_OP":
        return Question.METADATA
    return Question.METADATA if _is_first_of_isinstance(steps[:here]) else Question.VALUES


def _is_first_of_isinstance(before: list[dis.Instruction]) -> bool:
    for step in reversed(before):
        if step.opname == "LOAD_GLOBAL" and step.argval == "isinstance":
            return True
        if step.opname not in _ATTRIBUTE and not step.opname.startswith(("LOAD_FAST", "LOAD_DEREF")):
            return False
    return False
