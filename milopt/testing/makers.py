"""One maker per op: draws its inputs among the values a program has, and builds it.

A maker takes hypothesis' ``draw`` and the values, and returns the new value, or ``None`` where none of them fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from milopt.mil import Var, dtype_name, mb, shape_of
from milopt.testing.control import CONTROL, LISTS, RECURRENT, SELECTING, STATES
from milopt.testing.op_makers import case_makers
from milopt.testing.scope import Draw, Maker, Scope, is_fixed, numpy_type

__all__ = [
    "ELEMENTWISE",
    "LINEAR",
    "MAKERS",
    "MOVEMENT",
    "REDUCTION",
    "Draw",
    "Maker",
    "held",
    "numbers",
    "shapes",
    "tensors",
]


def shapes(*, min_rank: int = 1, max_rank: int = 4, min_side: int = 1, max_side: int = 4) -> st.SearchStrategy[Any]:
    """Shapes as tuples of ints."""
    return st.lists(st.integers(min_side, max_side), min_size=min_rank, max_size=max_rank).map(tuple)


def numbers(dtype: str = "fp32") -> st.SearchStrategy[Any]:
    """Multiples of a quarter from -2 to 2: exact in every format, and zero, one and minus one are among them.

    Of an integer type, integers from -2 (or 0) to 2; of ``bool``, both.
    """
    kind = numpy_type(dtype)
    if kind.kind == "b":
        return st.booleans().map(kind.type)
    if kind.kind in "iu":
        return st.integers(-2 if kind.kind == "i" else 0, 2).map(kind.type)
    return (st.sampled_from([0, 4, -4]) | st.integers(-8, 8)).map(lambda n: kind.type(n / 4))


def tensors(shape: tuple[int, ...], *, dtype: str = "fp32") -> st.SearchStrategy[Any]:
    """Arrays of :func:`numbers`."""
    return hnp.arrays(numpy_type(dtype), shape, elements=numbers(dtype))


def held(draw: Draw, values: Sequence[Var], array: Any) -> Any:
    """The array, or a constant of the program that several ops share."""
    return values.constant(draw, array) if isinstance(values, Scope) else array


_FLOATS = frozenset({"fp16", "fp32"})
_NUMBERS = _FLOATS | {"int32"}


def _any(draw: Draw, values: Sequence[Var], *, min_rank: int = 0, kinds: frozenset[str] = _NUMBERS) -> Var | None:
    fitting = [var for var in values if len(shape_of(var)) >= min_rank and dtype_name(var) in kinds]
    found: Var | None = draw(st.sampled_from(fitting)) if fitting else None
    return found


def _axis(draw: Draw, var: Var) -> int:
    rank = len(shape_of(var))
    axis: int = draw(st.integers(-rank, rank - 1))
    return axis


def _unary(op_type: str, **inputs: Any) -> Maker:
    kinds = _NUMBERS if op_type in ("abs", "identity", "square") else _FLOATS

    def make(draw: Draw, values: Sequence[Var]) -> Var | None:
        x = _any(draw, values, kinds=kinds)
        return None if x is None else getattr(mb, op_type)(x=x, **inputs)

    return make


def _binary(op_type: str) -> Maker:
    """With another value that broadcasts, a number or an array, on either side."""

    def make(draw: Draw, values: Sequence[Var]) -> Var | None:
        x = _any(draw, values)
        if x is None:
            return None
        kind = dtype_name(x)
        partners = [var for var in values if dtype_name(var) == kind and _broadcast(shape_of(x), shape_of(var))]
        how = draw(st.sampled_from(["number", "array", "value"]))
        shape = shape_of(x) if is_fixed(x) else ()
        y = (
            draw(st.sampled_from(partners))
            if how == "value"
            else held(draw, values, draw(numbers(kind) if how == "number" else tensors(shape, dtype=kind)))
        )
        x, y = (y, x) if draw(st.booleans()) else (x, y)
        made: Var = getattr(mb, op_type)(x=x, y=y)
        return made

    return make


def _broadcast(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return all(a == b or 1 in (a, b) for a, b in zip(reversed(one), reversed(other), strict=False))


def _clip(draw: Draw, values: Sequence[Var]) -> Var | None:
    x = _any(draw, values, kinds=_FLOATS)
    if x is None:
        return None
    low: int = draw(st.integers(-4, 3))
    high: int = draw(st.integers(low + 1, 4))
    number = numpy_type(dtype_name(x)).type
    made: Var = mb.clip(x=x, alpha=number(low), beta=number(high))
    return made


def _transpose(draw: Draw, values: Sequence[Var]) -> Var | None:
    x = _any(draw, values, min_rank=1)
    if x is None:
        return None
    perm = draw(st.permutations(range(len(shape_of(x)))))
    made: Var = mb.transpose(x=x, perm=list(perm))
    return made


def _reshape(draw: Draw, values: Sequence[Var]) -> Var | None:
    """Two axes become one, one becomes two, or all become one."""
    x = _any(draw, [var for var in values if is_fixed(var)], min_rank=1)
    if x is None:
        return None
    shape = list(shape_of(x))
    how = draw(st.sampled_from(["join", "split", "flatten"]))
    at: int = draw(st.integers(0, len(shape) - 1))
    if how == "flatten":
        shape = [-1]
    elif how == "join" and at + 1 < len(shape):
        shape[at : at + 2] = [shape[at] * shape[at + 1]]
    elif len(shape) < 5:
        factor = draw(st.sampled_from([n for n in range(1, shape[at] + 1) if shape[at] % n == 0]))
        shape[at : at + 1] = [factor, shape[at] // factor]
    made: Var = mb.reshape(x=x, shape=shape)
    return made


def _expand_dims(draw: Draw, values: Sequence[Var]) -> Var | None:
    fitting = [var for var in values if len(shape_of(var)) < 5]
    x = _any(draw, fitting)
    if x is None:
        return None
    made: Var = mb.expand_dims(x=x, axes=[draw(st.integers(0, len(shape_of(x))))])
    return made


def _squeeze(draw: Draw, values: Sequence[Var]) -> Var | None:
    fitting = [var for var in values if 1 in shape_of(var) and len(shape_of(var)) > 1]
    x = _any(draw, fitting)
    if x is None:
        return None
    made: Var = mb.squeeze(x=x, axes=[draw(st.sampled_from([i for i, dim in enumerate(shape_of(x)) if dim == 1]))])
    return made


def _slice_by_index(draw: Draw, values: Sequence[Var]) -> Var | None:
    x = _any(draw, [var for var in values if is_fixed(var)], min_rank=1)
    if x is None:
        return None
    begin = [draw(st.integers(0, dim - 1)) for dim in shape_of(x)]
    end = [draw(st.integers(low + 1, dim)) for low, dim in zip(begin, shape_of(x), strict=True)]
    made: Var = mb.slice_by_index(x=x, begin=begin, end=end)
    return made


def _concat(draw: Draw, values: Sequence[Var]) -> Var | None:
    x = _any(draw, values, min_rank=1)
    if x is None:
        return None
    axis = _axis(draw, x)
    partners = [var for var in values if dtype_name(var) == dtype_name(x) and shape_of(var) == shape_of(x)]
    several = draw(st.lists(st.sampled_from(partners), min_size=0, max_size=2))
    made: Var = mb.concat(values=(x, *several), axis=axis)
    return made


def _reduction(op_type: str) -> Maker:
    def make(draw: Draw, values: Sequence[Var]) -> Var | None:
        x = _any(draw, values, min_rank=1)
        if x is None:
            return None
        axes = [_axis(draw, x)]
        keep = len(shape_of(x)) == 1 or draw(st.booleans())  # a scalar is of no use to the other makers
        made: Var = getattr(mb, op_type)(x=x, axes=axes, keep_dims=keep)
        return made

    return make


def _softmax(draw: Draw, values: Sequence[Var]) -> Var | None:
    x = _any(draw, values, min_rank=1, kinds=_FLOATS)
    return None if x is None else mb.softmax(x=x, axis=_axis(draw, x))


def _matmul(draw: Draw, values: Sequence[Var]) -> Var | None:
    """With another value where one fits, else with a matrix; transposed or not."""
    x = _any(draw, values, min_rank=2)
    if x is None:
        return None
    flip, other = draw(st.booleans()), draw(st.booleans())
    inner = shape_of(x)[-2 if flip else -1]
    partners = [
        var
        for var in values
        if len(shape_of(var)) >= 2
        and dtype_name(var) == dtype_name(x)
        and shape_of(var)[-1 if other else -2] == inner
        and _broadcast(shape_of(x)[:-2], shape_of(var)[:-2])
    ]
    width: int = draw(st.integers(1, 4))
    if partners and draw(st.booleans()):
        y = draw(st.sampled_from(partners))
    else:
        y = held(draw, values, draw(tensors((width, inner) if other else (inner, width), dtype=dtype_name(x))))
    made: Var = mb.matmul(x=x, y=y, transpose_x=flip, transpose_y=other)
    return made


def _linear(draw: Draw, values: Sequence[Var]) -> Var | None:
    x = _any(draw, [var for var in values if len(shape_of(var)) <= 3], min_rank=1)
    if x is None:
        return None
    width, kind = draw(st.integers(1, 4)), dtype_name(x)
    bias = draw(st.none() | tensors((width,), dtype=kind))
    inputs = {} if bias is None else {"bias": bias}
    weight = held(draw, values, draw(tensors((width, shape_of(x)[-1]), dtype=kind)))
    made: Var = mb.linear(x=x, weight=weight, **inputs)
    return made


_UNARY = ("abs", "erf", "exp2", "gelu", "identity", "relu", "sigmoid", "silu", "square", "tanh")
_BINARY = ("add", "maximum", "minimum", "mul", "sub")
_REDUCTIONS = ("reduce_max", "reduce_mean", "reduce_min", "reduce_sum")

MAKERS: dict[str, Maker] = {
    **case_makers(),
    **CONTROL,
    **LISTS,
    **RECURRENT,
    **SELECTING,
    **STATES,
    **{name: _unary(name) for name in _UNARY},
    **{name: _binary(name) for name in _BINARY},
    **{name: _reduction(name) for name in _REDUCTIONS},
    "clip": _clip,
    "concat": _concat,
    "expand_dims": _expand_dims,
    "linear": _linear,
    "matmul": _matmul,
    "reshape": _reshape,
    "slice_by_index": _slice_by_index,
    "softmax": _softmax,
    "squeeze": _squeeze,
    "transpose": _transpose,
}

ELEMENTWISE = frozenset({*_UNARY, *_BINARY, "clip"})
MOVEMENT = frozenset({"concat", "expand_dims", "identity", "reshape", "slice_by_index", "squeeze", "transpose"})
REDUCTION = frozenset({*_REDUCTIONS, "softmax"})
LINEAR = frozenset({"linear", "matmul"})
