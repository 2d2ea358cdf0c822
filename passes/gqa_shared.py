"""Keys and values that are repeated for the query heads that share them: what is repeated, and how often."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np

from milopt.mil import Operation, Var, constant, is_symbolic, shape_of

__all__ = ["Shared", "shared_heads"]


class Shared(NamedTuple):
    """Keys or values before they are repeated, (B, Hkv, S, D) or (B, Hkv, 1, S, D), and how often they are."""

    source: Var
    groups: int


def shared_heads(var: Var) -> Shared | None:
    """What ``var`` (B, H, S, D) repeats, each head ``groups`` times in a row; ``None`` where it repeats nothing.

    It may be written as ``tile`` or ``concat`` of copies along an axis behind the heads, then ``reshape``; as ``tile``
    of one head; as ``gather`` of heads; or as any moves of a value of known shape that come to the same.
    """
    op = var.op
    if op is None or var.rank != 4 or is_symbolic(shape_of(var)[1]):
        return None
    found = (read(op, var) for read in (_expanded, _one_head, _gathered, _moved))
    return next((each for each in found if each is not None and each.groups > 1), None)


def _expanded(op: Operation, var: Var) -> Shared | None:
    """``reshape(tile(x5, [1, 1, G, 1, 1]))`` or of a concat of G times x5, with x5 of shape (B, Hkv, 1, S, D)."""
    if op.op_type != "reshape":
        return None
    wide = op.inputs["x"].op
    if wide is None or op.inputs["x"].rank != 5 or wide.op_type not in ("tile", "concat"):
        return None
    source: Var
    if wide.op_type == "tile":
        reps, source = constant(wide.inputs["reps"]), wide.inputs["x"]
        if reps is None or [*reps[:2], *reps[3:]] != [1] * 4:
            return None
        groups = int(reps[2])
    else:
        source, *others = wide.inputs["values"]
        if any(each is not source for each in others) or int(constant(wide.inputs["axis"])) % 5 != 2:
            return None
        groups = 1 + len(others)
    shape, after = shape_of(source), shape_of(var)
    if shape[2] != 1 or shape[1] * groups != after[1]:
        return None
    # heads and features are as they were, so the rows are as well: the reshape joins axes 1 and 2
    return Shared(source, groups) if (shape[0], shape[4]) == (after[0], after[3]) else None


def _one_head(op: Operation, var: Var) -> Shared | None:
    """``tile(x, [1, H, 1, 1])`` or a concat of copies, of x with one head."""
    if op.op_type == "tile":
        reps: Any = constant(op.inputs["reps"])
        right = reps[0] == reps[2] == reps[3] == 1 == shape_of(op.inputs["x"])[1]
        return Shared(op.inputs["x"], int(reps[1])) if right else None
    if op.op_type != "concat" or int(constant(op.inputs["axis"])) % var.rank != 1:
        return None
    source, *others = op.inputs["values"]
    copies = shape_of(source)[1] == 1 and all(each is source for each in others)
    return Shared(source, 1 + len(others)) if copies else None


def _gathered(op: Operation, var: Var) -> Shared | None:
    """A gather of heads: along another axis there are as many heads as before."""
    if op.op_type != "gather":
        return None
    source, indices = op.inputs["x"], constant(op.inputs["indices"])
    if np.ndim(indices) != 1 or is_symbolic(shape_of(source)[1]):
        return None
    heads = int(shape_of(source)[1])
    groups = int(shape_of(var)[1]) // heads
    wanted = [head for head in range(heads) for _ in range(groups)]
    return Shared(source, groups) if list(indices) == wanted else None


# Arrays of more elements than this are not moved to see where they end
_MOST = 2**23
_FIXED = ("expand_dims", "squeeze", "reshape", "transpose", "tile", "concat")


def _moved(op: Operation, var: Var) -> Shared | None:
    """Any moves of one value, run on the numbers of its elements."""
    ops: list[Operation] = []
    shape = shape_of(var)
    at: Operation | None = op
    if any(map(is_symbolic, shape)) or prod(shape) > _MOST:
        return None
    while at is not None and at.op_type in _FIXED and len(ops) < 10:
        values = at.inputs["values"] if at.op_type == "concat" else [at.inputs["x"]]
        if any(each is not values[0] for each in values):
            return None
        ops.append(at)
        source: Var = values[0]
        before = shape_of(source)
        if any(map(is_symbolic, before)):
            return None
        if source.rank == 4 and before[1] < shape[1]:
            groups = shape[1] // before[1]
            if _repeats(ops, before, groups):
                return Shared(source, groups)
        at = source.op
    return None


def _repeats(ops: list[Operation], shape: tuple[int, ...], groups: int) -> bool:
    counted: Any = np.arange(prod(shape), dtype=np.int32)
    numbers = counted.reshape(shape)
    wanted = np.repeat(numbers, groups, axis=1)
    for op in reversed(ops):
        if op.op_type == "reshape" and prod(shape_of(op.outputs[0])) != numbers.size:
            return False  # its types disagree
        numbers = _run(op, numbers)
    return np.array_equal(numbers, wanted)


def _run(op: Operation, x: Any) -> Any:
    if op.op_type in ("expand_dims", "squeeze", "reshape"):
        return x.reshape(shape_of(op.outputs[0]))
    if op.op_type == "transpose":
        return x.transpose([int(axis) % x.ndim for axis in constant(op.inputs["perm"])])
    if op.op_type == "tile":
        return np.tile(x, constant(op.inputs["reps"]))
    count, axis = len(op.inputs["values"]), int(constant(op.inputs["axis"]))
    return np.repeat(x, count, axis) if constant(op.inputs["interleave"]) else np.concatenate([x] * count, axis)
