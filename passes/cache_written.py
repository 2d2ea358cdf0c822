"""What a function writes to its states, and where attention reads it back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np

from milopt.mil import Function, Operation, Var, constant, is_constant, is_output, is_state, shape_of
from milopt.reports import require

__all__ = ["Written", "find_written"]


@dataclass(frozen=True)
class Written:
    """One cached tensor in rows ``row .. row+rows`` (axis 0) of ``state``: ``new`` goes in, ``read`` comes out.

    ``update`` is the ``coreml_update_state`` it is written by, ``writers`` the ops that put the new tokens in place;
    ``position`` is the input whose number is the first slot, where that is all that is done with it. With ``prefix``,
    ``read`` are the slots up to the new tokens, else all.
    """

    state: str
    row: int
    rows: int
    axis: int
    update: Operation
    new: Var
    read: Var
    writers: tuple[Operation, ...]
    position: str | None
    prefix: bool = False


def find_written(function: Function) -> list[Written]:
    """The cached tensors of a function in program order; NoMatch where a state is used otherwise."""
    found: list[Written] = []
    states = {name: var for name, var in function.inputs.items() if is_state(var)}
    for name, state in states.items():
        reads = [user for user in state.child_ops if user.op_type == "read_state"]
        require(len(reads) == 1, "state {} is read {} times", name, len(reads), at=state)
        current = reads[0].outputs[0]
        updates = [op for op in function.operations if op.op_type == "coreml_update_state" and op.state is state]
        require(updates, "nothing is written to state {}", name, at=state)
        chain: list[Written] = []
        for update in updates:
            chain.append(_written(function, name, state, current, update))
            current = update.outputs[0]
        first_writers = _writers_of(chain[0])
        alone = first_writers.issuperset(reads[0].outputs[0].child_ops) and not is_output(reads[0].outputs[0])
        require(alone, "state {} is read and used in another way", name, at=reads[0])
        for each, following in zip_longest(chain, chain[1:]):
            _check_users(each, following)
        found += chain
    order = {op: at for at, op in enumerate(function.operations)}
    return sorted(found, key=lambda each: order[each.update])


def _written(function: Function, name: str, state: Var, current: Var, update: Operation) -> Written:
    whole = [int(dim) for dim in shape_of(state)]
    row, rows = 0, whole[0]
    maker: Operation | None = update.value.op
    writers: list[Operation] = []
    computed: tuple[int, Any, Any] | None = None
    if maker is not None and maker.op_type == "slice_update":
        row, rows, computed = _sliced(maker, current, whole)
        writers.append(maker)
        maker = maker.update.op
    first, last = [row, *[0] * (len(whole) - 1)], [row + rows, *whole[1:]]
    if computed is None:
        new, axis, more = _blended(maker, update)
        require(_is_held(more[0].b, current, first, last), "what it keeps is not what the state held", at=more[0])
        found = Written(name, row, rows, axis, update, new, update.outputs[0], (*writers, *more), None)
    else:
        axis, start, _ = computed
        position, new = _position(function, start), writers[0].update
        found = Written(name, row, rows, axis, update, new, update.outputs[0], tuple(writers), position)
    if (read := _read(update, first, last)) is not None:
        return replace(found, read=read)
    if computed is not None:
        upto = [*last[:axis], computed[2], *last[axis + 1 :]]
        if (read := _read(update, first, upto)) is not None:
            return replace(found, read=read, prefix=True)
    require(rows == whole[0] and found.read.child_ops, "what it holds is not read back", at=update)
    return found


def _sliced(maker: Operation, current: Var, whole: list[int]) -> tuple[int, int, tuple[int, Any, Any] | None]:
    """The first row of a write by slice, how many, and the axis, begin and end that are computed, if any are."""
    require(maker.x is current, "it is not written to what the state holds", at=maker)
    begin, end = _entries(maker.begin), _entries(maker.end)
    which = _masked(maker)
    require(which is None, "its {} says more than where it is written", which, at=maker)
    require(isinstance(begin[0], int) and isinstance(end[0], int), "its rows are computed", at=maker)
    row, rows = int(begin[0]), int(end[0]) - int(begin[0])
    computed = [at for at, each in enumerate(begin) if not isinstance(each, int)]
    if not computed:
        return row, rows, None
    require(len(computed) == 1, "several of its axes are computed", at=maker)
    (axis,) = computed
    rest = [at for at in range(1, len(whole)) if at != axis]
    entire = all(begin[at] == 0 and end[at] == whole[at] for at in rest)
    require(entire, "it is written to part of an axis", at=maker)
    return row, rows, (axis, begin[axis], end[axis])


def _writers_of(written: Written) -> set[Operation | None]:
    """The ops that may use what a state held before this was written."""
    blends = (op.b.op for op in written.writers if op.op_type == "select")
    return {*written.writers, *blends}


def _check_users(written: Written, following: Written | None) -> None:
    """What a state holds is read back once, and then written to; nothing else may need it."""
    held = written.update.outputs[0]
    if written.read is held:
        return
    known = {written.read.op, *(() if following is None else _writers_of(following))}
    alone = known.issuperset(held.child_ops) and not is_output(held)
    require(alone, "what it holds is also used otherwise", at=written.update)


def _blended(op: Operation | None, update: Operation) -> tuple[Var, int, tuple[Operation, ...]]:
    """The new tokens of a write that selects in every slot, and the axis of the slots."""
    require(op is not None and op.op_type == "select", "it is not known how it is written", at=update)
    assert op is not None
    fresh = shape_of(op.cond)
    axes = [at for at, dim in enumerate(fresh) if dim != 1] or [len(fresh) - 2]
    require(len(axes) == 1, "several of its axes are chosen from", at=op)
    placed: Var = op.a
    maker = placed.op
    if maker is not None and maker.op_type == "matmul" and maker.outputs[0].name.endswith("_placed"):
        new = maker.x if bool(constant(maker.transpose_y)) else maker.y
        return new, axes[0], (op, maker)
    if maker is not None and maker.op_type == "gather" and maker.outputs[0].name.endswith("_placed"):
        return maker.x, axes[0], (op, maker)
    return placed, axes[0], (op,)


def _is_held(var: Var, current: Var, first: list[Any], last: list[Any]) -> bool:
    """Whether ``var`` is what the state holds in the rows from ``first`` to ``last``."""
    return var is current or (var.op is not None and var.op.inputs.get("x") is current and _takes(var.op, first, last))


def _read(update: Operation, first: list[Any], last: list[Any]) -> Var | None:
    """What attention sees of the rows just written: the slice from ``first`` to ``last``."""
    return next((user.outputs[0] for user in update.outputs[0].child_ops if _takes(user, first, last)), None)


def _takes(op: Operation, first: list[Any], last: list[Any]) -> bool:
    """Whether an op is the slice from ``first`` to ``last``."""
    known = op.op_type == "slice_by_index" and _masked(op) is None and all(map(_is_told, (op.begin, op.end)))
    return known and [_entries(op.begin), _entries(op.end)] == [first, last]


def _masked(op: Operation) -> str | None:
    """Which of a slice's inputs says more than begin and end do."""
    for name in ("begin_mask", "end_mask", "squeeze_mask"):
        if (mask := constant(op.inputs.get(name))) is not None and any(mask):
            return name
    stride = constant(op.inputs.get("stride"))
    return None if stride is None or all(int(each) == 1 for each in stride) else "stride"


def _is_told(vector: Var) -> bool:
    """Whether :func:`_entries` can say what it holds."""
    return is_constant(vector) or (vector.op is not None and vector.op.op_type == "concat")


def _entries(vector: Var) -> list[Any]:
    """The entries of an int32 vector: numbers, and values of one entry where they are computed."""
    if (known := constant(vector)) is not None:
        return [int(each) for each in known]
    op = vector.op
    require(op is not None and op.op_type == "concat", "its place is not put together from numbers", at=vector)
    assert op is not None
    entries: list[Any] = []
    for part in op.values:
        if is_constant(part):
            entries += [int(each) for each in np.ravel(constant(part))]
        else:
            require(shape_of(part) in ((1,), ()), "its place is not put together from numbers", at=vector)
            entries.append(part)
    return entries


def _position(function: Function, var: Var) -> str | None:
    """The input that is the first slot; a slice takes int32."""
    while var.op is not None and var.op.op_type in ("squeeze", "reshape", "expand_dims", "identity"):
        var = var.op.x
    known = next((name for name, each in function.inputs.items() if each is var), None)
    return known if shape_of(var) == (1,) else None
