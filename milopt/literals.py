"""When a constant of a program is the one a pattern wrote."""

from __future__ import annotations

from math import isfinite, isnan
from typing import Any, cast

import numpy as np

from milopt.axes import normalized
from milopt.engine.sameness import same_numbers
from milopt.mil import Operation, Var, constant, shape_of

__all__ = ["broadcasts", "default_of", "enlarges", "one_number", "same_number", "same_value"]

Array = Any  # numpy.ndarray; its generic form is more than pyright strict can follow

# op type -> the inputs that broadcast to one another: an array of equal numbers is the same there as the number
_BROADCAST = {
    **dict.fromkeys(
        (
            "add",
            "equal",
            "floor_div",
            "greater",
            "greater_equal",
            "less",
            "less_equal",
            "logical_and",
            "logical_or",
            "logical_xor",
            "maximum",
            "minimum",
            "mod",
            "mul",
            "not_equal",
            "pow",
            "real_div",
            "sub",
        ),
        ("x", "y"),
    ),
    "select": ("cond", "a", "b"),
}
# elements of an array that are looked at before all of them are
_FIRST = 64


def default_of(op: Operation, name: str) -> Any:
    """The value MIL gives ``name`` when it is left out, or ``None`` when there is none."""
    return dict(op.default_inputs().items()).get(name)


def same_number(wanted: Any, found: Any) -> bool:
    """Relative equality at the precision of ``found``'s own dtype: a literal that rounds to it, or one step beside.

    The step is the dtype's machine epsilon: coremltools itself rounds constants once when it casts them. What the dtype
    holds exactly, infinities and NaN equal themselves alone, and a bool no number. 0 is not -0.
    """
    if isinstance(wanted, (bool, np.bool_)) or isinstance(found, (bool, np.bool_)):
        return isinstance(wanted, (bool, np.bool_)) and isinstance(found, (bool, np.bool_)) and wanted == found
    if wanted == 0 and found == 0:
        return same_numbers(wanted, found)
    if not isinstance(found, (float, np.floating)):
        return bool(wanted == found)
    exact, actual = float(wanted), float(cast("Any", found))
    if not (isfinite(exact) and isfinite(actual)):
        return exact == actual or (isnan(exact) and isnan(actual))
    if exact == 0 or actual == 0:
        return False
    kind: Any = np.asarray(found).dtype
    precision = np.finfo(kind)
    near = abs(actual - exact) <= float(precision.eps) * abs(exact)
    if abs(exact) > float(precision.max):
        return near
    rounded = float(kind.type(exact))
    if rounded == exact:  # nothing has rounded 2.0: the fp16 number beside it is another one
        return actual == exact
    return near or rounded == actual  # a subnormal number may lie further off


def same_value(op: Operation, name: str, wanted: Any, var: Var) -> bool:
    """Whether the constant ``var``, input ``name`` of ``op``, is the literal ``wanted``."""
    found = constant(var)
    if found is None:
        return False
    if isinstance(wanted, str) or isinstance(found, str):
        return isinstance(wanted, str) and isinstance(found, str) and wanted == found
    expected: Array = np.asarray(normalized(op, name, wanted))
    if expected.dtype.kind not in "fiub":
        return False
    if expected.size == 1 and expected.ndim < 2 and broadcasts(op, name):
        number = one_number(op, name, var)
        return number is not None and same_number(expected.flat[0], number)
    actual: Array = np.asarray(normalized(op, name, found))
    if actual.dtype.kind not in "fiub" or expected.size != actual.size:
        return False
    if expected.shape != actual.shape and (expected.size != 1 or not _is_setting(op, name)):
        return False
    return all(map(same_number, expected.flat, actual.flat))


def broadcasts(op: Operation, name: str) -> bool:
    """Whether ``name`` is an operand of an op whose operands are broadcast to one shape."""
    return name in _BROADCAST.get(op.op_type, ())


def _is_setting(op: Operation, name: str) -> bool:
    """Whether the input is a constant by MIL's definition of the op: one of one element is its number in any rank."""
    return bool(op.input_spec.input_types[name].const)


def one_number(op: Operation, name: str, var: Var) -> Any:
    """The number that the constant ``var`` is as the input ``name`` of ``op``; ``None`` if it is none.

    Where operands broadcast that is one whose elements are all equal, and that does not make the result larger than the
    other operands do; elsewhere one of rank 0, or of one element where MIL wants a constant.
    """
    found: Array = np.asarray(constant(var))
    if found.dtype.kind not in "fiub" or found.size == 0:
        return None
    if broadcasts(op, name):
        uniform = found.size == 1 or (_equal(found.flat[:_FIRST]) and _equal(found))
        return found.flat[0] if uniform and not enlarges(op, var) else None
    return found.flat[0] if found.size == 1 and (found.ndim == 0 or _is_setting(op, name)) else None


def _equal(elements: Array) -> bool:
    """Whether all are the same to the bit."""
    elements = np.ascontiguousarray(elements)
    bits: Array = elements.reshape(-1).view(f"u{elements.dtype.itemsize}")
    return bool(np.all(bits == bits[0]))


def enlarges(op: Operation, var: Var) -> bool:
    """Whether the operand ``var`` may make the result of ``op`` larger than its other operands alone would be."""
    if var.rank == 0:
        return False
    # by value and not by name: what commutes is looked at in either place
    others = [op.inputs[each] for each in _BROADCAST[op.op_type] if op.inputs[each] is not var]
    rest = _joint([shape_of(other) for other in others or [var]])
    return rest is None or _joint([rest, shape_of(var)]) != rest


def _joint(shapes: list[tuple[Any, ...]]) -> tuple[Any, ...] | None:
    """The shape that all are broadcast to; ``None`` where that depends on symbols."""
    rank = max(map(len, shapes))
    joint: list[Any] = []
    for dims in zip(*((1,) * (rank - len(shape)) + shape for shape in shapes), strict=True):
        others = list(dict.fromkeys(dim for dim in dims if dim != 1))
        if len(others) > 1:
            return None
        joint += others or [1]
    return tuple(joint)
