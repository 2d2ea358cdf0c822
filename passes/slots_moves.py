"""Which axis holds the slots of a cache behind an op that moves axes about, and which held them before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from milopt.mil import Operation, Var, constant, flat, shape_of
from milopt.reports import require

__all__ = ["MOVES", "axis_before", "kept_by_reshape"]

# fmt: off
_REDUCTIONS = frozenset(
    {
        "reduce_l1_norm", "reduce_l2_norm", "reduce_log_sum", "reduce_log_sum_exp", "reduce_max",
        "reduce_mean", "reduce_min", "reduce_prod", "reduce_sum", "reduce_sum_square",
    }
)
# fmt: on


def _reduction(var: Var, op: Operation, axis: int) -> int | None:
    axes = _axes(op, var.rank)
    if axis in axes:
        return None  # a sum over all slots: the order is gone
    kept = bool(constant(op.keep_dims))
    return axis if kept else axis - sum(each < axis for each in axes)


def _transpose(var: Var, op: Operation, axis: int) -> int:
    perm = [int(each) % var.rank for each in constant(op.perm)]
    return perm.index(axis)


def _expand_dims(var: Var, op: Operation, axis: int) -> int:
    rank = op.outputs[0].rank
    added = {each % rank for each in flat_ints(constant(op.axes))}
    return [at for at in range(rank) if at not in added][axis]


def _squeeze(var: Var, op: Operation, axis: int) -> int:
    gone = _squeezed(op)
    require(axis not in gone, "there is one slot", at=op)
    return axis - sum(each < axis for each in gone)


def _reshape(var: Var, op: Operation, axis: int) -> int:
    at = kept_by_reshape(var, op.outputs[0], axis)
    require(at is not None, "reshape mixes the slots with another axis", at=op)
    assert at is not None
    return at


def _tile(var: Var, op: Operation, axis: int) -> int:
    reps = constant(op.reps)
    require(reps is not None and int(reps[axis]) == 1, "tile repeats the slots", at=op)
    return axis


def _slicing(var: Var, op: Operation, axis: int) -> int:
    squeezed = flat_bools(constant(op.inputs.get("squeeze_mask")), var.rank)
    require(not squeezed[axis], "it takes one of the slots", at=op)
    at = axis - sum(squeezed[:axis])
    whole = shape_of(op.outputs[0])[at] == shape_of(var)[axis]
    stride = constant(op.inputs.get("stride"))
    require(whole and (stride is None or int(stride[axis]) == 1), "it takes some of the slots", at=op)
    return at


def _split(var: Var, op: Operation, axis: int) -> int:
    require(int(constant(op.axis)) % var.rank != axis, "it takes some of the slots", at=op)
    return axis


def kept_by_reshape(before: Var, after: Var, axis: int) -> int | None:
    """Which axis of ``after`` is ``axis`` of ``before``, where a reshape leaves that axis whole and in its place."""
    old, new = shape_of(before), shape_of(after)
    lead = prod(old[:axis])
    return next((at for at, dim in enumerate(new) if dim == old[axis] and prod(new[:at]) == lead), None)


def flat_bools(mask: Any, rank: int) -> list[bool]:
    return [False] * rank if mask is None else [bool(each) for each in mask]


def flat_ints(axes: Any) -> list[int]:
    return [int(each) for each in (axes.ravel() if hasattr(axes, "ravel") else flat(axes))]


def _axes(op: Operation, rank: int) -> set[int]:
    axes = constant(op.inputs.get("axes"))
    return set(range(rank)) if axes is None else {each % rank for each in flat_ints(axes)}


def axis_before(op: Operation, axis: int) -> int:
    """Which axis of the operand of a transpose, expand_dims or squeeze became ``axis``."""
    rank = op.outputs[0].rank
    if op.op_type == "transpose":
        return int(constant(op.perm)[axis]) % rank
    if op.op_type == "expand_dims":
        added = {each % rank for each in flat_ints(constant(op.axes))}
        require(axis not in added, "an added axis meets the slots", at=op)
        return axis - sum(each < axis for each in added)
    gone = _squeezed(op)
    return [at for at in range(op.x.rank) if at not in gone][axis]


def _squeezed(op: Operation) -> set[int]:
    """Which axes of its operand a squeeze takes away."""
    axes = constant(op.inputs.get("axes"))
    if axes is None:
        return {at for at, dim in enumerate(shape_of(op.x)) if dim == 1}
    return {each % op.x.rank for each in flat_ints(axes)}


MOVES: Mapping[str, Callable[[Var, Operation, int], int | None]] = {
    **dict.fromkeys(_REDUCTIONS, _reduction),
    "transpose": _transpose,
    "expand_dims": _expand_dims,
    "squeeze": _squeeze,
    "reshape": _reshape,
    "tile": _tile,
    "slice_by_index": _slicing,
    "split": _split,
}
"""op type -> the axis behind it, of a value (one of its inputs) whose axis is given; ``None`` where it is summed away.

NoMatch where the slots do not stay together, in their order.
"""
