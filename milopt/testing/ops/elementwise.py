"""Arithmetic on elements, comparisons, logic, clip, cast and select."""

from __future__ import annotations

import math
from typing import Any

from milopt.testing.ops.comparing import EXACT, Oracle, Within
from milopt.testing.ops.drawing import F16, F32, FLOATS, I32, NUMBERS, Draw
from milopt.testing.ops.framework import SINCE_17, UNTIL_16, Call, Cases
from milopt.testing.ops.untyped import np

__all__ = ["cases", "erf"]

cases = Cases()


def erf(x: Any) -> Any:
    """libm's error function of each element."""
    return np.reshape([math.erf(each) for each in np.ravel(x)], np.shape(x)).astype(np.float64)


# torch's vectorized functions and libm's are within 4 units in the last place of the exact value, each within 2
FUNCTION = Within(8)

UNARY: dict[str, Oracle] = {
    "acos": lambda a: np.arccos(a.x),
    "asin": lambda a: np.arcsin(a.x),
    "atan": lambda a: np.arctan(a.x),
    "atanh": lambda a: np.arctanh(a.x),
    "cos": lambda a: np.cos(a.x),
    "cosh": lambda a: np.cosh(a.x),
    "erf": lambda a: erf(a.x),
    "exp": lambda a: np.exp(a.x),
    "sin": lambda a: np.sin(a.x),
    "sinh": lambda a: np.sinh(a.x),
    "sqrt": lambda a: np.sqrt(a.x),
    "tan": lambda a: np.tan(a.x),
    "tanh": lambda a: np.tanh(a.x),
}
UNARY_EXACT: dict[str, Oracle] = {
    "ceil": lambda a: np.ceil(a.x),
    "floor": lambda a: np.floor(a.x),
    "round": lambda a: np.rint(a.x),  # halves to even, as value inference has it
}
UNARY_WITH_INT: dict[str, Oracle] = {
    "abs": lambda a: np.abs(a.x),
    "sign": lambda a: np.sign(a.x),
    "square": lambda a: a.x * a.x,
}


def _unary(oracle: Oracle, dtypes: tuple[Any, ...], within: Within) -> Any:
    def draws(d: Draw) -> Call:
        dtype = d.pick(*dtypes)
        x = d.array(d.shape(0), dtype)
        # value inference of erf can't do without elements
        inferred = x.size > 0 or oracle is not UNARY["erf"]
        return Call({"x": x}, {}, oracle, within if dtype.kind == "f" else EXACT, inferred)

    return draws


for _name, _oracle in UNARY.items():
    cases(_name)(_unary(_oracle, FLOATS, FUNCTION))
for _name, _oracle in UNARY_EXACT.items():
    cases(_name)(_unary(_oracle, FLOATS, EXACT))
for _name, _oracle in UNARY_WITH_INT.items():
    cases(_name)(_unary(_oracle, NUMBERS, Within(1)))


@cases("exp2")
def _(d: Draw) -> Call:
    """Powers of integers are cut to integers; those beyond int32 are its smallest number."""
    dtype = d.pick(*NUMBERS)
    x = d.array(d.shape(0), dtype)
    if dtype.kind == "f":
        return Call({"x": x}, {}, lambda a: np.exp2(a.x), FUNCTION)
    return Call({"x": x}, {}, lambda a: np.where(a.x < 0, 0, 1 << np.clip(a.x, 0, 31)))


def _divided(a: Any) -> Any:
    """int32: the quotient cut to an integer, 0 where the divisor is 0."""
    if a.x.dtype.kind == "f":
        return a.x / a.y
    quotient = np.abs(a.x) // np.where(a.y == 0, 1, np.abs(a.y)) * np.sign(a.x) * np.sign(a.y)
    return np.where(a.y == 0, 0, quotient)


BINARY: dict[str, Oracle] = {
    "add": lambda a: a.x + a.y,
    "floor_div": lambda a: a.x // a.y,
    "maximum": lambda a: np.maximum(a.x, a.y),
    "minimum": lambda a: np.minimum(a.x, a.y),
    "mod": lambda a: a.x % a.y,
    "mul": lambda a: a.x * a.y,
    "sub": lambda a: a.x - a.y,
}


def _pair(d: Draw, dtype: Any, min_rank: int = 0) -> dict[str, Any]:
    shape = d.shape(min_rank)
    pair = [d.array(shape, dtype), d.array(d.broadcastable(shape), dtype)]
    return dict(zip("xy" if d.flag() else "yx", pair, strict=True))


def _binary(oracle: Oracle, dtypes: tuple[Any, ...] = NUMBERS) -> Any:
    def draws(d: Draw) -> Call:
        dtype = d.pick(*dtypes)
        # one rounding, of the result; a quotient is rounded before it is cut to an integer, and again after
        return Call(_pair(d, dtype), {}, oracle, Within(2) if dtype.kind == "f" else EXACT)

    return draws


for _name, _oracle in BINARY.items():
    cases(_name)(_binary(_oracle))
cases("real_div", not_inferred="of integers it infers floats")(_binary(_divided))


def _power(a: Any) -> Any:
    """int32: wrapping powers; negative ones cut to integers, so 0 unless the base is 1 or -1."""
    if a.x.dtype.kind == "f":
        return np.power(a.x, a.y)
    inverse = np.where(a.x == 1, 1, np.where(a.x == -1, 1 - 2 * (a.y % 2), 0))
    return np.where(a.y < 0, inverse, _wrapping_power(a.x, np.maximum(a.y, 0)))


def _wrapping_power(base: Any, exponent: Any) -> Any:
    powers = [pow(int(b), int(e), 2**32) for b, e in np.broadcast(base, exponent)]
    return np.reshape(np.array(powers, np.int64), np.broadcast_shapes(base.shape, exponent.shape))


@cases("pow", not_inferred="numpy has no negative powers of integers")
def _(d: Draw) -> Call:
    dtype = d.pick(*NUMBERS)
    return Call(_pair(d, dtype, 1), {}, _power, FUNCTION if dtype.kind == "f" else EXACT)


COMPARISONS: dict[str, Oracle] = {
    "equal": lambda a: a.x == a.y,
    "greater": lambda a: a.x > a.y,
    "greater_equal": lambda a: a.x >= a.y,
    "less": lambda a: a.x < a.y,
    "less_equal": lambda a: a.x <= a.y,
    "not_equal": lambda a: a.x != a.y,
}
LOGICAL: dict[str, Oracle] = {
    "logical_and": lambda a: a.x & a.y,
    "logical_or": lambda a: a.x | a.y,
    "logical_xor": lambda a: a.x ^ a.y,
}
BOOL = np.dtype(bool)

for _name, _oracle in COMPARISONS.items():
    cases(_name)(_binary(_oracle))
for _name, _oracle in LOGICAL.items():
    cases(_name)(_binary(_oracle, (BOOL,)))
cases("logical_not")(_unary(lambda a: ~a.x, (BOOL,), EXACT))


def _clipped(a: Any) -> Any:
    return np.minimum(np.maximum(a.x, a.alpha), a.beta)


@cases("clip")
def _(d: Draw) -> Call:
    dtype = d.pick(*FLOATS)
    bounds = {"alpha": d.scalar(dtype, -2, 0), "beta": d.scalar(dtype, 0.5, 2)}
    return Call({"x": d.array(d.shape(0), dtype)}, bounds, _clipped)


@cases("threshold")
def _(d: Draw) -> Call:
    dtype = d.pick(*FLOATS)
    return Call({"x": d.array(d.shape(0), dtype)}, {"alpha": d.scalar(dtype)}, lambda a: np.maximum(a.x, a.alpha))


def _shifted(function: Any, default: float, condition: Any) -> Any:
    """``function(x + epsilon)``; ``condition`` is by how much it magnifies the rounding of the sum."""

    def draws(d: Draw) -> Call:
        dtype = d.pick(*FLOATS)
        given = d.some(epsilon=d.scalar(d.other_float(dtype), 0.0, 0.5))
        small = float(dtype.type(default))  # 1e-45 is 0 as fp16, and 1.4e-45 as fp32

        def oracle(a: Any) -> Any:
            return function(a.x + a("epsilon", small))

        def scale(a: Any) -> Any:
            return condition(a.x + a("epsilon", small))

        return Call({"x": d.array(d.shape(0), dtype)}, given, oracle, Within(8, scale))

    return draws


def _inverse_root(x: Any) -> Any:
    return 1 / np.sqrt(x)


def _log_and_one(x: Any) -> Any:
    return 1 + np.abs(np.log(x))


cases("inverse")(_shifted(np.reciprocal, 1e-4, np.reciprocal))
cases("log")(_shifted(np.log, 1e-45, _log_and_one))
cases("rsqrt")(_shifted(_inverse_root, 1e-12, _inverse_root))


OLD_TYPES = {"int32": I32, "fp16": F16, "fp32": F32, "bool": BOOL}
TYPES = OLD_TYPES | {name: np.dtype(name) for name in ("int8", "uint8", "int16", "uint16")}


def _cast(types: dict[str, Any]) -> Any:
    def draws(d: Draw) -> Call:
        x, to = d.array(d.shape(0), d.pick(*types.values())), d.pick(*types)

        def oracle(a: Any) -> Any:
            if to == "bool":
                return a.x != 0
            if types[to].kind == "f":
                return a.x.astype(np.float64)
            if a.x.dtype.kind != "f":
                return a.x
            # beyond int32 and NaN: its smallest number, as numpy's astype does on x86; narrower types wrap
            inside = np.trunc(np.where((a.x >= -(2.0**31)) & (a.x < 2.0**31), a.x, -(2.0**31)))
            return inside.astype(np.int64)

        return Call({"x": x}, {"dtype": to}, oracle)

    return draws


cases("cast", opsets=UNTIL_16)(_cast(OLD_TYPES))
cases("cast", opsets=SINCE_17, label="iOS17")(_cast(TYPES))


@cases("select")
def _(d: Draw) -> Call:
    dtype = d.pick(F16, F32, I32, BOOL)
    shape = d.shape(1)
    return Call(
        {"cond": d.array(d.broadcastable(shape), bool), "a": d.array(shape, dtype), "b": d.array(shape, dtype)},
        {},
        lambda a: np.where(a.cond, a.a, a.b),
    )
