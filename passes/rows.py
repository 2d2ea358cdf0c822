"""Linear layers on (B·S, C) between reshapes -> the same on (B, S, C)."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any, TypeAlias

import numpy as np

from milopt.axes import axes_of
from milopt.building import Builder
from milopt.mil import (
    Block,
    Function,
    Operation,
    Var,
    arguments,
    constant,
    dtype_name,
    is_constant_like,
    is_output,
    is_symbolic,
    operations,
    refine_shape,
    remove_if_dead,
    replace_uses,
    shape_of,
    value_names,
)

__all__ = ["lift_rows"]

Shape: TypeAlias = tuple[Any, ...]

_UNARY = frozenset(
    {"abs", "cast", "clip", "elu", "erf", "exp", "gelu", "identity", "leaky_relu", "log", "relu", "relu6", "rsqrt"}
    | {"sigmoid", "sigmoid_hard", "silu", "softplus", "softsign", "sqrt", "square", "tanh"}
)
_BINARY = frozenset({"add", "maximum", "minimum", "mul", "pow", "real_div", "sub"})
_LAYERS = frozenset({"linear", "matmul"})


def lift_rows(function: Function) -> int:
    """Give (B, S, C) back to layers that a model computes on rows, ``reshape(x, (B·S, C))``; returns how many places.

    A place is a group of ops on each row by itself, a linear layer of fp16 or fp32 among them, that begins at such
    reshapes and ends at reshapes back to the same (B, S, ...): both go, but for those that also join heads, which
    become ``reshape(x, (B, S, C))``. Where something else uses a value in between, or one of them is an output, all of
    the group stays as it is.
    """
    taken = value_names(function)
    count = 0
    for block in _blocks(function):
        seen: set[Var] = set()
        for op in list(block.operations):
            if op.op_type == "reshape" and op.outputs[0] not in seen:
                group = _Group()
                group.spread(op.outputs[0])
                seen |= group.values
                if group.whole:
                    group.lift(taken)
                    count += 1
    return count


def _blocks(function: Function) -> Iterator[Block]:
    yield function
    for op in operations(function):
        yield from op.blocks


def _makes_rows(op: Operation) -> bool:
    """Whether a reshape makes what it gives, rows where a layer is beside it, of something of a higher rank."""
    return len(shape_of(op.inputs["x"])) > 2


def _restores(op: Operation) -> bool:
    """Whether a reshape gives something of a higher rank again; with the sizes that the rows are made of, its last is
    theirs."""
    return op.op_type == "reshape" and len(shape_of(op.outputs[0])) > 2


class _Group:
    """Values of shape (B·S, C), connected by ops that treat each row alike."""

    def __init__(self) -> None:
        self.values: set[Var] = set()
        self.inside: dict[Operation, None] = {}
        self.starts: dict[Operation, None] = {}
        self.ends: dict[Operation, None] = {}
        self.whole = True

    @property
    def lead(self) -> Shape:
        """The leading sizes (B, S) that the group's ends give back."""
        return shape_of(next(iter(self.ends)).outputs[0])[:-1]

    def spread(self, first: Var) -> None:
        todo = [first]
        while todo:
            value = todo.pop()
            if value in self.values:
                continue
            self.values.add(value)
            if value.op is None:  # rows that the function is given
                self.whole = False
                continue
            todo += self._before(value)
            todo += self._behind(value)
        self.whole = self.whole and bool(self.ends) and any(map(_is_layer, self.inside)) and self._agree()

    def _agree(self) -> bool:
        """Whether all reshapes are of the same (B, S)."""
        lead = self.lead
        ends = all(shape_of(op.outputs[0])[:-1] == lead for op in self.ends)
        return ends and all(self._opens(shape_of(op.inputs["x"]), shape_of(op.outputs[0])[1]) for op in self.starts)

    def _opens(self, before: Shape, channels: int) -> bool:
        lead, rest = before[: len(self.lead)], before[len(self.lead) :]
        joined = len(rest) > 1
        return lead == self.lead and prod(rest) == channels and (not joined or sum(map(is_symbolic, lead)) <= 1)

    def _before(self, value: Var) -> list[Var]:
        """What must be rows for ``value`` to be."""
        op = value.op
        assert op is not None
        if op.op_type == "reshape":
            self.whole = self.whole and _makes_rows(op)
            self.starts[op] = None
            return []
        if not _by_row(op):
            self.whole = False
            return []
        self.inside[op] = None
        return _row_operands(op)

    def _behind(self, value: Var) -> list[Var]:
        self.whole = self.whole and not is_output(value)
        found: list[Var] = []
        for user in dict.fromkeys(value.child_ops):
            if _restores(user):
                self.ends[user] = None
            elif user.enclosing_block is not self._block(value) or not _by_row(user):
                self.whole = False
            else:
                found += user.outputs
        return found

    @staticmethod
    def _block(value: Var) -> Block:
        assert value.op is not None
        return value.op.enclosing_block

    def lift(self, taken: set[str]) -> None:
        """Compute the group on (B, S, C), in program order, and take its reshapes away."""
        lifted: dict[Var, Var] = {}
        lead, block = self.lead, self._block(next(iter(self.values)))
        ops = [op for op in block.operations if op.outputs[0] in self.values]
        for op in ops:
            old = op.outputs[0]
            if op in self.starts:
                lifted[old] = self._start(op, lead, taken)
                continue
            inputs: dict[str, Any] = {name: lifted.get(value, value) for name, value in op.inputs.items()}
            if "axes" in inputs:
                inputs["axes"] = np.array([-1], np.int32)
            new: Var = getattr(Builder(op, taken), op.op_type)(**inputs)
            lifted[old] = new
        for end in self.ends:
            source = lifted[end.inputs["x"]]
            result = end.outputs[0]
            if is_output(result):  # an output keeps its name
                source = Builder(end, taken).identity(x=source)
            replace_uses(result, source)
            if is_output(source):
                assert source.op is not None
                source.name = source.op.name = result.name
            remove_if_dead([end])
        remove_if_dead(reversed(ops))

    @staticmethod
    def _start(op: Operation, lead: Shape, taken: set[str]) -> Var:
        """What the rows are made of, as (B, S, C)."""
        source: Var = op.inputs["x"]
        if len(shape_of(source)) == len(lead) + 1:
            return source
        sizes = [-1 if is_symbolic(size) else size for size in lead]
        made: Var = Builder(op, taken).reshape(x=source, shape=[*sizes, shape_of(op.outputs[0])[1]])
        return refine_shape(made, (*lead, shape_of(op.outputs[0])[1]))


def _is_layer(op: Operation) -> bool:
    """A linear layer that may become a convolution."""
    return op.op_type in _LAYERS and dtype_name(op.inputs["x"]) in ("fp16", "fp32")


def _row_operands(op: Operation) -> list[Var]:
    """The operands that are rows; weights and constants are none."""
    return [var for _, var in arguments(op) if not (var.op is not None and is_constant_like(var.op))]


def _by_row(op: Operation) -> bool:
    """Whether each row of the result, of rank 2, is made of the same row of the operands alone."""
    operands = _row_operands(op)
    if not operands or any(len(shape_of(each)) != 2 for each in (*operands, *op.outputs)):
        return False
    if op.op_type in _UNARY:
        return len(operands) == 1
    if op.op_type in _BINARY:
        return all(_along_channels(var) for _, var in arguments(op) if var not in operands)
    if op.op_type == "layer_norm":
        return axes_of(op, "axes") == (1,)
    if op.op_type == "linear":
        return True
    if op.op_type == "matmul":
        return len(operands) == 1 and op.inputs["x"] in operands and not constant(op.inputs.get("transpose_x"))
    return False


def _along_channels(var: Var) -> bool:
    """Whether a constant operand is the same for every row."""
    return all(size == 1 for size in shape_of(var)[:-1])
