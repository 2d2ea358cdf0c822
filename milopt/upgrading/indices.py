"""Indices below zero: up to iOS16 they count from the end, from iOS17 on they are out of bounds.

Indices that may be negative get what coremltools' documentation of iOS17 says to write then:
``select(index >= 0, index, index + size)``. Constants get it at once, and what can't be negative stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from milopt.building import Builder
from milopt.mil import Operation, Var, constant, dtype_name, flat, is_symbolic, shape_of
from milopt.reports import require
from milopt.upgrading.editing import Edit

__all__ = ["count_from_start", "never_negative"]

_DEPTH = 32  # ops that are looked at before an index

# Their results are places or sizes.
_PLACES = frozenset({"argsort", "list_length", "non_zero", "reduce_argmax", "reduce_argmin", "shape"})
# Every element of the result is one of the input ``x`` (``values`` of some).
_MOVES = frozenset(
    {
        *("concat", "expand_dims", "flatten2d", "gather", "gather_along_axis", "gather_nd", "identity", "reduce_max"),
        *("reduce_min", "reshape", "reshape_like", "reverse", "slice_by_index", "slice_by_size", "sliding_windows"),
        *("split", "squeeze", "stack", "tile", "transpose"),
    }
)
_WHOLE = frozenset({"bool", "int8", "uint8", "int16", "uint16", "int32"})


def count_from_start(op: Operation, edit: Edit) -> bool:
    """Let the ``indices`` of a gather or scatter be what they mean, where they may be negative."""
    indices: Var = op.inputs["indices"]
    if never_negative(indices):
        return False
    sizes = _sizes(op)
    known = constant(indices)
    if known is not None and not any(map(is_symbolic, sizes.dims)):
        array: Any = np.asarray(known)
        ends = np.array(sizes.dims if sizes.several else sizes.dims[0])
        counted = cast("Any", np).where(array < 0, array + ends, array)
        new = edit.builder(op).const(val=counted.astype(np.int32)[()])
    else:
        key = (indices, op.enclosing_block, sizes if not any(map(is_symbolic, sizes.dims)) else (sizes, sizes.table))
        if key not in edit.guarded:
            edit.guarded[key] = _guarded(edit.builder(op), indices, sizes)
        new = edit.guarded[key]
    edit.rebind(op, "indices", new)
    return True


@dataclass(frozen=True)
class _Sizes:
    """What counting from the end adds to an index: one size, or ``several``, one for each place of its last dimension.

    They are the dimensions of ``table`` from ``first`` on.
    """

    dims: tuple[Any, ...]
    several: bool
    first: int = field(compare=False)
    table: Var = field(compare=False)


def _sizes(op: Operation) -> _Sizes:
    table: Var = op.inputs["x" if "x" in op.inputs else "data"]
    shape = shape_of(table)
    if op.op_type.endswith("_nd"):
        batch = constant(op.inputs.get("batch_dims"))
        first, depth = 0 if batch is None else int(batch), shape_of(op.inputs["indices"])[-1]
        require(not is_symbolic(depth), "it is not known how many dimensions its indices point into")
        return _Sizes(shape[first : first + depth], True, first, table)
    axis = constant(op.inputs.get("axis"))
    require(axis is not None, "its axis is not known")
    first = int(axis) % len(shape)
    return _Sizes(shape[first : first + 1], False, first, table)


def _guarded(op: Builder, indices: Var, sizes: _Sizes) -> Var:
    """``select(indices >= 0, indices, indices + sizes)``, in int32: sizes need not fit into 16 bits."""
    wide = indices if dtype_name(indices) == "int32" else op.cast(x=indices, dtype="int32")
    if any(map(is_symbolic, sizes.dims)):
        begin, end = [sizes.first], [sizes.first + len(sizes.dims)]
        shape = op.shape(x=sizes.table)
        ends = op.slice_by_index(x=shape, begin=begin, end=end, squeeze_mask=[not sizes.several])
    else:
        ends = np.array(sizes.dims if sizes.several else sizes.dims[0], np.int32)[()]
    chosen: Var = op.select(
        cond=op.greater_equal(x=wide, y=np.int32(0)), a=wide, b=op.add(x=wide, y=ends), name=f"{indices.name}_counted"
    )
    return chosen


def never_negative(var: Var, depth: int = _DEPTH) -> bool:
    """Whether the program shows that no element of an integer value is below zero."""
    if dtype_name(var).startswith("uint") or dtype_name(var) == "bool":
        return True
    op = var.op
    if var.val is not None:
        return bool(np.all(np.asarray(var.val) >= 0))
    if op is None or depth == 0:
        return False
    if op.op_type in _PLACES or (op.op_type == "topk" and var is not op.outputs[0]):
        return True
    if op.op_type in _MOVES:
        source = op.inputs["values" if "values" in op.inputs else "x"]
        return all(never_negative(each, depth - 1) for each in flat(source))
    if op.op_type == "cast":  # an int32 that doesn't fit into 16 bits may be anything there
        narrow = dtype_name(var) not in ("int32", "uint16", "uint8")
        return not narrow and dtype_name(op.x) in _WHOLE and never_negative(op.x, depth - 1)
    if op.op_type == "select":
        return all(never_negative(op.inputs[name], depth - 1) for name in ("a", "b"))
    if op.op_type == "maximum":
        return any(never_negative(op.inputs[name], depth - 1) for name in ("x", "y"))
    if op.op_type in ("mod", "floor_div"):
        divisor = constant(op.y)
        if divisor is None or not np.all(np.asarray(divisor) > 0):
            return False
        return op.op_type == "mod" or never_negative(op.x, depth - 1)  # the sign of a remainder is the divisor's
    if op.op_type == "range_1d":
        start, step = (constant(op.inputs[name]) for name in ("start", "step"))
        return start is not None and step is not None and bool(start >= 0 and step > 0)
    return False
