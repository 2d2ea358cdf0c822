"""When two values of a program are known to be the same: one value, or two constants alike to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np

from milopt.mil import ListVar, Var, arguments, constant, dtype_name, is_compressed, is_constant, shape_of, weight_key

__all__ = ["is_weight", "same_numbers", "same_var"]

Array = Any  # numpy.ndarray; its generic form is more than pyright strict can follow

# bytes of two arrays that are compared before all of them are
_FIRST = 4096


def is_weight(var: Var) -> bool:
    """Whether the value is a constant, or what ``constexpr_`` ops alone make of constants."""
    if var.op is None or is_constant(var):
        return var.op is not None
    return is_compressed(var) and all(is_weight(each) for _, each in arguments(var.op))


def same_var(one: Var, other: Var) -> bool:
    """Whether both are one value: the same result of one op, or weights with the same type, shape and bits."""
    if one is other:
        return True
    if one.op is None or other.op is None or one.op.op_type != other.op.op_type:
        return False
    if is_constant(one):
        return _same_constant(one, other)
    if not is_compressed(one) or one.op_output_idx != other.op_output_idx:
        return False
    inputs, others = dict(arguments(one.op)), dict(arguments(other.op))
    return inputs.keys() == others.keys() and all(
        is_weight(inputs[name]) and same_var(inputs[name], others[name]) for name in inputs
    )


def _same_constant(one: Var, other: Var) -> bool:
    if isinstance(one, ListVar) or isinstance(other, ListVar):
        return False
    if dtype_name(one) != dtype_name(other) or shape_of(one) != shape_of(other):
        return False
    if isinstance(constant(one), str):
        return bool(constant(one) == constant(other))
    a, b = np.asarray(constant(one)), np.asarray(constant(other))
    if a.dtype.kind not in "fiub" or a.dtype.itemsize != b.dtype.itemsize:
        return False
    return weight_key(a) == weight_key(b) or _same_bits(a, b)


def _same_bits(one: Array, other: Array) -> bool:
    ones, others = _bytes(one), _bytes(other)
    return bool(np.array_equal(ones[:_FIRST], others[:_FIRST]) and np.array_equal(ones, others))


def _bytes(array: Array) -> Array:
    elements: Array = np.ascontiguousarray(array)
    return elements.reshape(-1).view(np.uint8)


def same_numbers(one: Any, other: Any) -> bool:
    """Whether two numpy scalars are one number exactly, of whichever types; NaN is NaN, and 0 is not -0."""
    a, b = np.asarray(one), np.asarray(other)
    if (a.dtype.kind == "b") != (b.dtype.kind == "b"):
        return False
    if a.dtype.kind == "f" and b.dtype.kind == "f" and np.isnan(a):
        return bool(np.isnan(b))
    return bool(a == b) and bool(np.signbit(np.float64(a)) == np.signbit(np.float64(b)))
