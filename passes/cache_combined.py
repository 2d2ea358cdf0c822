"""Cached tensors of which one input holds several, such as those of all layers, and one output what they become."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from math import prod
from typing import Any, NamedTuple

import numpy as np

from milopt.mil import Function, Operation, Var, constant, is_output, is_symbolic, shape_of
from milopt.passes.cache_pairs import Pair, is_tail
from milopt.reports import NoMatch, require
from milopt.signature import Combined, Returned

__all__ = ["find_combined", "read_combined"]

# how an input that holds several pasts is taken apart, and how their presents are put together again
_PARTS = frozenset({"gather", "slice_by_index", "slice_by_size", "split"})
_MOVES = frozenset({"cast", "expand_dims", "identity", "reshape", "squeeze", "transpose"})
_JOINS = frozenset({"concat", "stack"})
# of these, what leaves elements in the order in which they are stored
_KEEPING = _MOVES - {"transpose"}

_ELSEWHERE = "the past is also used elsewhere"


def find_combined(function: Function) -> Iterator[tuple[str, list[Operation]]]:
    """Inputs of which parts are pasts, ``present = concat(part, new)``, that go out beside others, and the concats."""
    found: dict[str, list[Operation]] = {}
    for op in function.operations:
        if op.op_type != "concat" or len(op.values) != 2 or constant(op.interleave):
            continue
        var: Var = op.values[0]
        cut = False
        while var.op is not None and var.op.op_type in _PARTS | _MOVES:
            cut, var = cut or var.op.op_type in _PARTS, var.op.x
        if cut and function.inputs.get(var.name) is var and _goes_out(op.values[1]):
            found.setdefault(var.name, []).append(op)
    yield from found.items()


def _goes_out(var: Var) -> bool:
    """Whether a value, moved, beside others or the last of it, is an output."""
    kinds = _MOVES | _JOINS | {"slice_by_index"}
    onwards = (user.outputs[0] for user in dict.fromkeys(var.child_ops) if user.op_type in kinds)
    return is_output(var) or any(map(_goes_out, onwards))


def read_combined(function: Function, past: str, concats: list[Operation]) -> list[Pair]:
    """The cached tensors that the input ``past`` holds, in the order in which it holds them.

    Each must be a run of the input's elements as they are stored, all of them the whole of it, and one output must hold
    what they become in the same order. NoMatch says what is otherwise.
    """
    held = function.inputs[past]
    runs = sorted(((*_run(op.values[0]), op) for op in concats), key=lambda run: run[:2])
    parts = [op for *_, op in runs]
    shares = [(Fraction(at, len(parts)), Fraction(at + 1, len(parts))) for at in range(len(parts))]
    complete = [run[:2] for run in runs] == shares
    require(complete, "its parts overlap, differ in size, or are not all of it", at=held)
    _require_alone(held, {id(op) for op in parts})
    axes = {int(constant(op.axis)) % op.outputs[0].rank for op in parts}
    shapes = {_closed(shape_of(op.outputs[0]), next(iter(axes))) for op in parts}
    require(len(axes) == len(shapes) == 1, "its parts grow along different axes, or differ in shape", at=held)
    (axis,), (part,) = axes, shapes
    joined = _joined(function, parts, axis)
    whole = _whole(held, joined.var, part, axis, shape_of(parts[0].values[0])[axis])
    return [
        Pair(f"{past}[{at}]", f"{joined.var.name}[{at}]", op, op.values[1], axis, joined.returned, joined.ops, whole)
        for at, op in enumerate(parts)
    ]


def _closed(shape: tuple[Any, ...], axis: int) -> tuple[Any, ...]:
    """A shape with 0 where the slots are."""
    return (*shape[:axis], 0, *shape[axis + 1 :])


def _run(var: Var) -> tuple[Fraction, Fraction]:
    """Which run of an input's elements a value is: where it begins and ends, as shares of all."""
    op = var.op
    if op is None:
        return Fraction(0), Fraction(1)
    require(op.op_type != "transpose", "a part of it is transposed before it grows", at=op)
    begin, end = _run(op.x)
    if op.op_type in _KEEPING:
        return begin, end
    outermost = True
    for low, high, size in _cuts(op, var):
        if (low, high) != (0, size):
            require(outermost, "a part of it is no run of its elements", at=op)
            begin, end = begin + (end - begin) * Fraction(low, size), begin + (end - begin) * Fraction(high, size)
        outermost = outermost and high - low == 1  # an open size is none
    return begin, end


def _cuts(op: Operation, var: Var) -> Iterator[tuple[int, Any, Any]]:
    """Of each axis where the part begins and ends, and its size; an axis of open size is not cut."""
    shape = shape_of(op.x)
    if op.op_type in ("split", "gather"):
        axis = int(constant(op.axis)) % len(shape)
        begin, end = _of_split(op, var, axis) if op.op_type == "split" else _of_gather(op, shape[axis])
        yield from ((begin, end, size) if at == axis else (0, size, size) for at, size in enumerate(shape))
        return
    sized = op.op_type == "slice_by_size"
    first, last = constant(op.begin), constant(op.inputs["size" if sized else "end"])
    require(first is not None and last is not None, "a part of it is cut at a computed place", at=op)
    assert first is not None
    assert last is not None
    masks = [constant(op.inputs.get(name)) for name in ("begin_mask", "end_mask")]
    stride = constant(op.inputs.get("stride"))
    for at, size in enumerate(shape):
        low, high = (mask is not None and bool(mask[at]) for mask in masks)
        require(stride is None or int(stride[at]) == 1, "a part of it is cut with steps", at=op)
        if is_symbolic(size):
            rest = int(last[at]) == -1 if sized else high
            require((low or int(first[at]) == 0) and rest, "its slots are cut", at=op)
            yield 0, size, size
        else:
            begin = 0 if low else int(first[at]) % size
            if sized:
                end = size if int(last[at]) == -1 else begin + int(last[at])
            else:
                end = size if high else range(size)[: int(last[at])].stop
            yield begin, end, size


def _of_split(op: Operation, var: Var, axis: int) -> tuple[int, int]:
    require(not is_symbolic(shape_of(op.x)[axis]), "its slots are cut", at=op)
    sizes = [shape_of(out)[axis] for out in op.outputs]
    at = op.outputs.index(var)
    return sum(sizes[:at]), sum(sizes[: at + 1])


def _of_gather(op: Operation, size: Any) -> tuple[int, int]:
    at = constant(op.indices)
    one = at is not None and np.size(at) == 1 and not is_symbolic(size)
    require(one, "a part of it is chosen", at=op)
    number = int(np.asarray(at).item()) % size
    return number, number + 1


def _require_alone(held: Var, concats: set[int]) -> None:
    """The input is used for its parts alone, and each for its concat, as its past."""
    todo = [held]
    while todo:
        var = todo.pop()
        require(not is_output(var), _ELSEWHERE, at=held)
        for user in dict.fromkeys(var.child_ops):
            if user.op_type in _PARTS | _KEEPING and user.x is var:
                todo += user.outputs
            else:
                require(id(user) in concats and user.values[1] is not var, _ELSEWHERE, at=user)


class _Joined(NamedTuple):
    """The output that holds what the parts become, what that is, and the ops that put it together."""

    var: Var
    returned: Returned
    ops: tuple[Operation, ...]


def _joined(function: Function, concats: list[Operation], axis: int) -> _Joined:
    wholes, news = [op.outputs[0] for op in concats], [op.values[1] for op in concats]
    kinds: tuple[tuple[list[Var], Returned], ...] = ((wholes, "all"), (news, "new"))
    columns = shape_of(concats[0].values[0])[axis]
    for output in function.outputs:
        for leaves, returned in kinds:
            tails: list[Operation] = []
            ops: list[Operation] = []
            found = _leaves(output, {id(leaf): leaf for leaf in leaves}, ops, tails, axis, columns)
            if found is None:
                continue
            require(found == leaves, "its presents are put together in another order, or not all", at=output)
            require(len(tails) in (0, len(leaves)), "some of its presents are cut", at=output)
            _require_inside([*ops, *tails], output)
            return _Joined(output, "kept" if tails else returned, (*ops, *tails))
    raise NoMatch("no output holds what its parts become, one behind another")


def _leaves(
    var: Var, leaves: Mapping[int, Var], ops: list[Operation], tails: list[Operation], axis: int, columns: Any
) -> list[Var] | None:
    """The cached tensors whose elements ``var`` holds one behind another; ``None`` where it is something else.

    ``ops`` gets what puts them together, from the output on, and ``tails`` the slices that keep their last columns.
    """
    if (leaf := leaves.get(id(var))) is not None:
        return [leaf]
    op = var.op
    if op is None:
        return None
    if op.op_type == "slice_by_index" and (leaf := leaves.get(id(op.x))) is not None:
        tails.append(op)
        return [leaf] if is_tail(op, axis, columns) else None
    ops.append(op)
    if op.op_type in _KEEPING:
        return _leaves(op.x, leaves, ops, tails, axis, columns)
    if op.op_type not in _JOINS or constant(op.inputs.get("interleave")):
        return None
    found: list[Var] = []
    at = int(constant(op.axis)) % var.rank
    for each in op.values:
        inner = _leaves(each, leaves, ops, tails, axis, columns)
        # behind one another as they are stored: nothing stands before the axis
        if inner is None or any(dim != 1 for dim in shape_of(each)[:at]):
            return None
        found += inner
    return found


def _require_inside(ops: list[Operation], output: Var) -> None:
    """What puts the presents together does nothing else."""
    for op in ops:
        for var in op.outputs:
            inside = all(user in ops for user in var.child_ops) and (var is output or not is_output(var))
            require(inside, "its presents, put together, are also used elsewhere", at=op)


def _whole(held: Var, present: Var, part: tuple[Any, ...], axis: int, slots: Any) -> Combined:
    """The shapes of the input and of its parts, with 0 where the slots are, of which a part has ``slots``."""
    before, after = shape_of(held), shape_of(present)
    require(len(before) == len(after), "what goes out has another rank than what comes in", at=present)
    changed = [at for at, dim in enumerate(before) if dim != after[at]]
    fits = [
        at
        for at, dim in enumerate(before)
        if (dim == slots or (is_symbolic(dim) and is_symbolic(slots)))
        and prod(before[at + 1 :]) == prod(part[axis + 1 :])
        and changed in ([], [at])
    ]
    require(len(fits) == 1, "it can't be told which of its axes holds the slots", at=held)
    shape = _closed(before, fits[0])
    require(not any(map(is_symbolic, (*shape, *part))), "its shape is not static", at=held)
    return Combined(held.name, present.name, tuple(map(int, shape)), tuple(map(int, part)))
