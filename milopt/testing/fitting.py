"""Shapes, types and parameters that let an op take a value beside those it has already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

import numpy as np
from hypothesis import strategies as st

from milopt.mil import Var, dtype_name, flat, is_symbolic, shape_of
from milopt.testing.scope import Draw

__all__ = ["BINARY", "SETTINGS", "setting_for", "shape_for"]

Shape: TypeAlias = tuple[Any, ...]
Given: TypeAlias = Mapping[str, Any]

BINARY = frozenset(
    {
        *("add", "sub", "mul", "real_div", "floor_div", "mod", "pow", "maximum", "minimum"),
        *("equal", "not_equal", "greater", "greater_equal", "less", "less_equal"),
        *("logical_and", "logical_or", "logical_xor"),
    }
)


def _first(given: Given, *names: str) -> Shape | None:
    for name in names:
        value = given.get(name)
        if isinstance(value, Var):
            return shape_of(value)
        if isinstance(value, np.ndarray):
            return tuple(cast("Any", value).shape)
    return None


def _broadcasting(draw: Draw, other: Shape) -> Shape:
    """The same shape, mostly; else one that broadcasts to it."""
    how = draw(st.sampled_from(["same", "same", "same", "ones", "last", "some", "scalar"]))
    if how == "ones":
        return tuple(1 for _ in other[:-1]) + other[-1:]
    if how == "last":
        return other[draw(st.integers(0, len(other))) :] or other[-1:]
    if how == "some":
        return tuple(1 if draw(st.integers(0, 3)) == 3 else dim for dim in other)
    if how == "scalar":
        return (1,) * len(other)
    return other


def _number(draw: Draw, low: int, high: int) -> int:
    made: int = draw(st.integers(low, high))
    return made


def _binary(draw: Draw, name: str, given: Given) -> Shape | None:
    other = _first(given, "y" if name == "x" else "x")
    return None if other is None else _broadcasting(draw, other)


def _matmul(draw: Draw, name: str, given: Given) -> Shape | None:
    other = _first(given, "y" if name == "x" else "x")
    if other is None or len(other) < 2:
        return None
    # the summed axis is the last of x and the last but one of y, unless they are transposed
    here, there = ("x", "y") if name == "x" else ("y", "x")
    last = {"x": -2 if given.get("transpose_x") is True else -1, "y": -1 if given.get("transpose_y") is True else -2}
    inner, free = other[last[there]], _number(draw, 1, 4)
    matrix = (free, inner) if last[here] == -1 else (inner, free)
    batch = draw(st.sampled_from([other[:-2], other[:-2], other[:-2], tuple(1 for _ in other[:-2]), ()]))
    return (*batch, *matrix)


def _attention(draw: Draw, name: str, given: Given) -> Shape | None:
    query, key = _first(given, "query"), _first(given, "key")
    if name == "key" and query is not None:
        return (*query[:-2], _number(draw, 1, 4), query[-1])
    if name == "value" and key is not None:
        return (*key[:-1], _number(draw, 1, 4))
    if name == "attn_mask" and query is not None and key is not None:
        return (query[-2], key[-2])
    return None


def _linear(draw: Draw, name: str, given: Given) -> Shape | None:
    x, weight = _first(given, "x"), _first(given, "weight")
    if name == "weight" and x:
        return (_number(draw, 1, 4), x[-1])
    if name == "bias" and weight is not None:
        return weight[:1]
    if name == "x" and weight is not None:
        return (*(_number(draw, 1, 3) for _ in range(_number(draw, 0, 2))), weight[1])
    return None


def _conv(draw: Draw, name: str, given: Given) -> Shape | None:
    x, weight = _first(given, "x"), _first(given, "weight")
    if name == "weight" and x is not None and len(x) > 2:
        kernel = (_number(draw, 1, 2) if is_symbolic(dim) or dim > 1 else 1 for dim in x[2:])
        return (_number(draw, 1, 3), x[1], *kernel)
    if name == "bias" and weight is not None:
        return weight[:1]
    return None


def _channels(draw: Draw, name: str, given: Given) -> Shape | None:
    x = _first(given, "x")
    return x[1:2] if x is not None and name != "x" else None


def _normalized(draw: Draw, name: str, given: Given) -> Shape | None:
    x, axes = _first(given, "x"), given.get("axes")
    if not x or name == "x" or axes is None or isinstance(axes, Var):
        return None
    return tuple(x[axis] for axis in sorted(int(each) % len(x) for each in flat(axes)))


def _gather(draw: Draw, name: str, given: Given) -> Shape | None:
    if name == "indices":
        return tuple(_number(draw, 1, 3) for _ in range(_number(draw, 0, 2)))
    return tuple(_number(draw, 1, 4) for _ in range(_number(draw, 1, 3)))


def _einsum(draw: Draw, name: str, given: Given) -> Shape | None:
    """What the next term of the equation has letters for; a letter is one size wherever it stands."""
    equation = given.get("equation")
    if not isinstance(equation, str):
        return None
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    members = [shape_of(var) for key, var in given.items() if key.startswith("_")]
    if len(members) >= len(terms):
        return None
    sizes = {
        letter: dim
        for term, shape in zip(terms, members, strict=False)
        for letter, dim in zip(term, shape, strict=False)
    }
    for letter in terms[len(members)]:
        sizes.setdefault(letter, _number(draw, 1, 4))
    return tuple(sizes[letter] for letter in terms[len(members)])


def _alike(draw: Draw, name: str, given: Given) -> Shape | None:
    return next((shape_of(var) for var in given.values() if isinstance(var, Var)), None)


_SHAPES: dict[str, Callable[[Draw, str, Given], Shape | None]] = {
    **dict.fromkeys(BINARY, _binary),
    "matmul": _matmul,
    "scaled_dot_product_attention": _attention,
    "linear": _linear,
    "conv": _conv,
    "batch_norm": _channels,
    "instance_norm": _channels,
    "prelu": _channels,
    "layer_norm": _normalized,
    "gather": _gather,
    "einsum": _einsum,
    "select": _alike,
    "concat": _alike,
    "stack": _alike,
}


def shape_for(draw: Draw, op_type: str, name: str, given: Given) -> Shape | None:
    """A shape for the input ``name`` of an op that has ``given`` already; ``None`` where any is as good."""
    fit = _SHAPES.get(op_type)
    return fit(draw, name, given) if fit is not None else None


def _axis_of(draw: Draw, rank: int) -> int:
    return _number(draw, -rank, rank - 1)


def _strides(draw: Draw, x: Shape) -> Any:
    return [_number(draw, 1, 2) for _ in x[2:]] if len(x) > 2 and draw(st.booleans()) else None


def _perm(draw: Draw, x: Shape) -> list[int]:
    return [axis - len(x) * draw(st.booleans()) for axis in draw(st.permutations(range(len(x))))]


def _axes(draw: Draw, x: Shape) -> list[int]:
    count = draw(st.sampled_from([1, 1, 1, 2]))
    return [axis - len(x) * draw(st.booleans()) for axis in draw(st.permutations(range(len(x))))[:count]]


def _new_shape(draw: Draw, x: Shape) -> Any:
    fixed = [-1 if is_symbolic(dim) else int(dim) for dim in x]
    options = [fixed, [-1], [*fixed[:-2], -1], [1, *fixed], fixed[::-1], [-1, *fixed[1:]]]
    return draw(st.sampled_from([each for each in options if each.count(-1) < 2]))


def _begin(draw: Draw, x: Shape) -> list[int]:
    return [0 if is_symbolic(dim) else _number(draw, 0, dim - 1) for dim in x]


def _end(draw: Draw, x: Shape) -> list[int]:
    return [1 if is_symbolic(dim) else int(dim) for dim in x]


def _size(draw: Draw, x: Shape, begin: Any) -> list[int]:
    """How much of ``x`` is taken from ``begin`` on; -1 is the rest."""
    starts = np.zeros(len(x), np.int64) if begin is None else np.resize(np.asarray(begin), len(x))
    rooms = [1 if is_symbolic(dim) else max(int(dim) - int(start), 1) for dim, start in zip(x, starts, strict=True)]
    return [draw(st.sampled_from([-1, room, _number(draw, 1, room)])) for room in rooms]


def _split_sizes(draw: Draw, x: Shape, axis: Any) -> list[int]:
    at = _axis_of(draw, len(x)) if axis is None else int(axis)
    whole = 1 if not -len(x) <= at < len(x) or is_symbolic(x[at]) else int(x[at])
    first = _number(draw, 1, whole)
    return [first, whole - first] if first < whole else [whole]


def _known(given: Given, name: str) -> Any:
    value = given.get(name)
    return value.val if isinstance(value, Var) else value


SETTINGS: dict[str, Callable[[Draw, Shape], Any]] = {
    "axes": _axes,
    "axis": lambda draw, x: _axis_of(draw, len(x)),
    "begin": _begin,
    "dilations": lambda draw, x: None,
    "dtype": lambda draw, x: draw(st.sampled_from(["fp16", "fp32", "int32"])),
    "end": _end,
    "exclusive": lambda draw, x: draw(st.booleans()),
    "interleave": lambda draw, x: draw(st.sampled_from([False, False, True])),
    "keep_dims": lambda draw, x: draw(st.booleans()),
    "kernel_sizes": lambda draw, x: [_number(draw, 1, 2) for _ in x[2:]] or None,
    "pad": lambda draw, x: [_number(draw, 0, 1) for _ in range(2 * max(len(x) - 2, 1))],
    "pad_type": lambda draw, x: draw(st.sampled_from(["valid", "same"])),
    "perm": _perm,
    "reps": lambda draw, x: [_number(draw, 1, 2) for _ in x],
    "reverse": lambda draw, x: draw(st.booleans()),
    "shape": _new_shape,
    "strides": _strides,
    "transpose_x": lambda draw, x: draw(st.booleans()),
    "transpose_y": lambda draw, x: draw(st.booleans()),
}


def setting_for(draw: Draw, op_type: str, name: str, given: Given) -> Any:
    """A value for a parameter that a pattern leaves open; ``None`` leaves it at its default."""
    var = next((each for value in given.values() for each in flat(value) if isinstance(each, Var)), None)
    if var is None or not shape_of(var):
        return None
    x = shape_of(var)
    if op_type == "slice_by_size" and name == "size":
        return _size(draw, x, _known(given, "begin"))
    if op_type == "split" and name == "split_sizes":
        return _split_sizes(draw, x, _known(given, "axis"))
    if name not in SETTINGS:
        return None
    if op_type == "expand_dims" and name == "axes":
        x = (*x, 1)
        return [_axis_of(draw, len(x))]
    if op_type == "squeeze" and name == "axes":
        ones = [axis - len(x) * draw(st.booleans()) for axis, dim in enumerate(x) if dim == 1]
        return [draw(st.sampled_from(ones))] if ones else None
    if name == "dtype" and op_type == "cast" and dtype_name(var) == "bool":
        return draw(st.sampled_from(["fp16", "fp32", "int32", "bool"]))
    return SETTINGS[name](draw, x)
