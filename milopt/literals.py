"""When a constant of a program is the one a pattern wrote."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from milopt.mil import Operation, Var, constant

__all__ = ["default_of", "normalized", "same_number", "same_value"]

# inputs that count axes of the op's (first) input or, for expand_dims, of its output
_AXIS_INPUTS = ("axis", "axes", "perm")


def default_of(op: Operation, name: str) -> Any:
    """The value MIL gives ``name`` when it is left out, or ``None`` when there is none."""
    return dict(op.default_inputs().items()).get(name)


def same_number(wanted: float, found: Any) -> bool:
    """Relative equality at the precision of ``found``'s own dtype: a literal that rounds to it, or one step beside.

    The step is the dtype's machine epsilon: coremltools itself rounds constants once when it casts them.
    """
    number: Any = np.ravel(found)[0]
    if isinstance(number, np.bool_) or isinstance(wanted, bool):
        return isinstance(wanted, bool) and bool(cast("Any", number)) == wanted
    if not isinstance(number, np.floating):
        return bool(number == wanted)
    precision = np.finfo(cast("Any", number).dtype)
    rounded = precision.dtype.type(wanted)
    return bool(rounded == number or abs(float(cast("Any", number)) - wanted) <= float(precision.eps) * abs(wanted))


def _rank(op: Operation) -> int:
    if op.op_type == "expand_dims":
        return int(op.outputs[0].rank)
    first = next(iter(op.inputs.values()))
    if not isinstance(first, Var):
        first = first[0]
    return int(first.rank)


def normalized(op: Operation, name: str, value: Any) -> Any:
    """``value`` with negative axes counted from the front, where the input ``name`` of ``op`` holds axes."""
    if name not in _AXIS_INPUTS or value is None:
        return value
    return np.asarray(value) % max(_rank(op), 1)


def same_value(op: Operation, name: str, wanted: Any, var: Var) -> bool:
    """Whether the constant ``var``, input ``name`` of ``op``, is the literal ``wanted``."""
    found = constant(var)
    if found is None:
        return False
    if isinstance(wanted, str) or isinstance(found, str):
        return bool(wanted == found)
    wanted, found = normalized(op, name, wanted), normalized(op, name, found)
    expected, actual = np.asarray(wanted), np.asarray(found)
    if expected.size != actual.size or (expected.ndim > 1 and expected.shape != actual.shape):
        return False
    if expected.dtype.kind not in "fiub" or actual.dtype.kind not in "fiub":
        return bool(np.array_equal(expected, actual))
    if expected.size > 16:
        return bool(np.array_equal(expected.astype(actual.dtype).ravel(), actual.ravel()))
    pairs = zip(cast("list[Any]", expected.ravel().tolist()), actual.ravel(), strict=True)
    return all(same_number(a, b) for a, b in pairs)
