"""One maker per op: draws its inputs among the values a program has, and builds it.

A maker takes hypothesis' ``draw`` and the values, and returns the new value, or ``None`` where none of them fits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from milopt.mil import Var, dtype_name, mb, shape_of

__all__ = ["ELEMENTWISE", "LINEAR", "MAKERS", "MOVEMENT", "REDUCTION", "Draw", "Maker", "numbers", "shapes", "tensors"]

Draw: TypeAlias = Callable[[st.SearchStrategy[Any]], Any]
Maker: TypeAlias = Callable[[Draw, Sequence[Var]], "Var | None"]

_NUMPY: dict[str, Any] = {"fp16": np.float16, "fp32": np.float32}


def shapes(*, min_rank: int = 1, max_rank: int = 4, min_side: int = 1, max_side: int = 4) -> st.SearchStrategy[Any]:
    """Shapes as tuples of ints."""
    return st.lists(st.integers(min_side, max_side), min_size=min_rank, max_size=max_rank).map(tuple)


def numbers(dtype: str = "fp32") -> st.SearchStrategy[Any]:
    """Multiples of a quarter from -2 to 2: exact in every format, and zero, one and minus one are among them."""
    return (st.sampled_from([0, 4, -4]) | st.integers(-8, 8)).map(lambda n: _NUMPY[dtype](n / 4))


def tensors(shape: tuple[int, ...], *, dtype: str = "fp32") -> st.SearchStrategy[Any]:
    """Arrays of :func:`numbers`."""
    return hnp.arrays(_NUMPY[dtype], shape, elements=numbers(dtype))


def _any(draw: Draw, values: Sequence[Var], *, min_rank: int = 0) -> Var | None:
    fitting = [var for var in values if len(shape_of(var)) >= min_rank]
    found: Var | None = draw(st.sampled_from(fitting)) if fitting else None
    return found


def _axis(draw: Draw, var: Var) -> int:
    rank = len(shape_of(var))
    axis: int = draw(st.integers(-rank, rank - 1))
    return axis


def _unary(op_type: str, **inputs: Any) -> Maker:
    def make(draw: Draw, values: Sequence[Var]) -> Var | None:
        x = _any(draw, values)
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
        y = (
            draw(st.sampled_from(partners))
            if how == "value"
            else draw(numbers(kind) if how == "number" else tensors(shape_of(x), dtype=kind))
        )
        x, y = (y, x) if draw(st.booleans()) else (x, y)
        made: Var = getattr(mb, op_type)(x=x, y=y)
        return made

    return make


def _broadcast(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return all(a == b or 1 in (a, b) for a, b in zip(reversed(one), reversed(other), strict=False))


def _clip(draw: Draw, values: Sequence[Var]) -> Var | None:
    x = _any(draw, values)
    if x is None:
        return None
    low: int = draw(st.integers(-4, 3))
    high: int = draw(st.integers(low + 1, 4))
    number = _NUMPY[dtype_name(x)]
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
    x = _any(draw, values, min_rank=1)
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
    x = _any(draw, values, min_rank=1)
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
    x = _any(draw, values, min_rank=1)
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
        y = draw(tensors((width, inner) if other else (inner, width), dtype=dtype_name(x)))
    made: Var = mb.matmul(x=x, y=y, transpose_x=flip, transpose_y=other)
    return made


def _linear(draw: Draw, values: Sequence[Var]) -> Var | None:
    x = _any(draw, [var for var in values if len(shape_of(var)) <= 3], min_rank=1)
    if x is None:
        return None
    width, kind = draw(st.integers(1, 4)), dtype_name(x)
    bias = draw(st.none() | tensors((width,), dtype=kind))
    inputs = {} if bias is None else {"bias": bias}
    made: Var = mb.linear(x=x, weight=draw(tensors((width, shape_of(x)[-1]), dtype=kind)), **inputs)
    return made


_UNARY = ("abs", "erf", "exp2", "gelu", "identity", "relu", "sigmoid", "silu", "square", "tanh")
_BINARY = ("add", "maximum", "minimum", "mul", "sub")
_REDUCTIONS = ("reduce_max", "reduce_mean", "reduce_min", "reduce_sum")

MAKERS: dict[str, Maker] = {
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
