"""Cached tensors of a function that come in as inputs and go out as outputs, found by what flows where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from milopt.mil import Function, Operation, Var, constant, is_output, is_symbolic, shape_of
from milopt.signature import Combined, Returned, outer

__all__ = ["Pair", "find_pairs", "is_tail", "kind_of", "users_of", "with_casts"]


@dataclass(frozen=True)
class Pair:
    """One cached tensor, ``present = concat(past, new)`` along ``axis``: an input goes in, an output comes out.

    ``returned`` says what the output is: ``all`` columns; the last of them, ``kept``, as many as the past has; or the
    ``new`` ones alone. ``tails`` are ops on the way there that need no answer for the order of columns. Where an input
    holds several cached tensors, ``whole`` is it, and ``past`` and ``present`` are the names that this one has there.
    """

    past: str
    present: str
    concat: Operation
    new: Var
    axis: int
    returned: Returned
    tails: tuple[Operation, ...]
    whole: Combined | None = None

    @property
    def input(self) -> str:
        """The name of the input that holds the past."""
        return outer(self.past)

    @property
    def output(self) -> str:
        """The name of the output that holds the present."""
        return outer(self.present)

    @property
    def label(self) -> str:
        """The present's name, for values that are made of it."""
        return self.present.replace("[", "_").replace("]", "")

    @property
    def var(self) -> Var:
        """All columns, [past | new]."""
        return self.concat.outputs[0]

    @property
    def columns(self) -> Any:
        return shape_of(self.var)[self.axis]

    @property
    def query(self) -> Any:
        """How many columns are new."""
        return shape_of(self.new)[self.axis]

    @property
    def kept(self) -> int:
        """How many columns the past has, where it holds the last so many tokens only; else 0."""
        return self.columns - self.query if self.returned == "kept" else 0


def find_pairs(function: Function) -> Iterator[Pair]:
    """The cached tensors of a function, in program order; casts around the concat are seen through."""
    inputs = {id(var): name for name, var in function.inputs.items()}
    for op in function.operations:
        if op.op_type != "concat" or len(op.values) != 2 or constant(op.interleave):
            continue
        past, axis = inputs.get(id(_behind_casts(op.values[0]))), int(constant(op.axis)) % op.outputs[0].rank
        if past is not None and (found := _returned(function, op, axis)) is not None:
            yield Pair(past, found[0], op, op.values[1], axis, found[1], found[2])


def _returned(function: Function, concat: Operation, axis: int) -> tuple[str, Returned, tuple[Operation, ...]] | None:
    """The output that a concat's columns leave by: its name, what it holds, and the slices on the way."""
    whole, (past, new) = concat.outputs[0], concat.values
    if (name := _output_of(function, whole)) is not None:
        return name, "all", ()
    for user in users_of(whole):
        if user.op_type == "slice_by_index" and is_tail(user, axis, shape_of(past)[axis]):
            tail = user.outputs[0]
            name, ways = _output_of(function, tail), sum(map(is_output, with_casts(tail)))
            if name is not None and ways == 1 and not users_of(tail):
                return name, "kept", (user,)
    if (name := _output_of(function, new)) is not None and not is_output(whole):
        return name, "new", ()
    return None


def _output_of(function: Function, var: Var) -> str | None:
    return next((each.name for each in with_casts(var) if function in each.consuming_blocks), None)


def is_tail(op: Operation, axis: int, columns: Any) -> bool:
    """Whether a slice takes the last ``columns`` of ``axis`` and all of every other."""
    before, after = shape_of(op.x), shape_of(op.outputs[0])
    if len(before) != len(after) or after[axis] != columns or is_symbolic(columns) or is_symbolic(before[axis]):
        return False
    if any(dim != after[at] for at, dim in enumerate(before) if at != axis):
        return False
    begin, stride, first = (constant(op.inputs.get(name)) for name in ("begin", "stride", "begin_mask"))
    if (
        begin is None
        or (first is not None and first[axis])
        or (stride is not None and any(int(each) != 1 for each in stride))
    ):
        return False
    return int(begin[axis]) % int(before[axis]) == int(before[axis]) - int(columns)


def _behind_casts(var: Var) -> Var:
    while var.op is not None and var.op.op_type == "cast":
        var = var.op.x
    return var


def with_casts(var: Var) -> list[Var]:
    """``var`` and what is only a cast of it."""
    return [var, *(each for user in var.child_ops if user.op_type == "cast" for each in with_casts(user.outputs[0]))]


def users_of(var: Var) -> list[Operation]:
    """The ops that use a value, casts seen through."""
    users: list[Operation] = []
    for user in dict.fromkeys(var.child_ops):
        users += users_of(user.outputs[0]) if user.op_type == "cast" else [user]
    return users


_CONTRACTIONS = frozenset({"matmul", "einsum", "linear", "conv"})


def kind_of(var: Var) -> str:
    """``key`` where the products with a cached tensor meet a softmax, ``value`` where they don't, ``kv`` for both.

    Empty where it meets no product at all.
    """
    kinds: set[str] = set()
    todo, seen = [var], set[Var]()
    while todo:
        each = todo.pop()
        if each in seen:
            continue
        seen.add(each)
        for user in each.child_ops:
            if user.op_type == "scaled_dot_product_attention":
                kinds.update(side for side in ("key", "value") if user.inputs[side] is each)
            elif user.op_type in _CONTRACTIONS:
                kinds.add("key" if _meets_softmax(user.outputs[0]) else "value")
            elif user.op_type != "shape":
                todo += user.outputs
    return "kv" if len(kinds) == 2 else next(iter(kinds), "")


def _meets_softmax(var: Var) -> bool:
    """Whether a softmax comes before the next product."""
    todo, seen, kinds = [var], set[Var](), set[str]()
    while todo:
        each = todo.pop()
        if each in seen:
            continue
        seen.add(each)
        for user in each.child_ops:
            kinds.add(user.op_type)
            if user.op_type not in (*_CONTRACTIONS, "scaled_dot_product_attention"):
                todo += user.outputs
    return "softmax" in kinds
