"""The layer that makes the logits, and what is done to them on the way to the output."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from milopt.axes import axes_of
from milopt.mil import (
    Function,
    Operation,
    Var,
    arguments,
    constant,
    is_compressed,
    is_constant,
    is_output,
    is_symbolic,
    shape_of,
)
from milopt.passes.kernels import key_of
from milopt.reports import NoMatch, require

__all__ = ["Head", "find_head"]

_UNARY = frozenset({"cast", "clip", "gelu", "relu", "sigmoid", "silu", "softplus", "tanh"})
_BINARY = frozenset({"add", "maximum", "minimum", "mul", "pow", "real_div", "sub"})
_MOVES = frozenset({"expand_dims", "identity", "squeeze", "transpose"})


@dataclass(frozen=True)
class Head:
    """A layer ``op`` whose ``weight`` has the vocabulary on ``weight_axis``, and the ``path`` from it to an output.

    ``axes`` are those of the vocabulary in the layer's result and after each op of the path; ``size`` is its length.
    ``tied`` is the name of a look-up in the same weight.
    """

    op: Operation
    argument: str
    weight_axis: int
    path: tuple[Operation, ...]
    axes: tuple[int, ...]
    output: Var
    tied: str | None

    @property
    def weight(self) -> Var:
        weight: Var = self.op.inputs[self.argument]
        return weight

    @property
    def size(self) -> int:
        return int(self.weight.shape[self.weight_axis])


def find_head(function: Function) -> Head:
    """The head of ``function``: of ``logits`` if it has such an output, else the longest. Raises NoMatch."""
    tries = {output.name: _tried(output) for output in function.outputs}
    if isinstance(named := tries.get("logits"), NoMatch):
        raise named
    found = [each for each in tries.values() if isinstance(each, Head)]
    require(found, "no output comes from a layer with a constant weight")
    return named or max(found, key=lambda head: head.size)


def _tried(output: Var) -> Head | NoMatch:
    try:
        return _to(output)
    except NoMatch as why:
        return why


def _to(output: Var) -> Head:
    path: list[Operation] = []
    value = output
    while True:
        op = value.op
        require(op is not None, "it is an input", at=output)
        assert op is not None
        last = not path
        require(last or not is_output(value), "a value before the output is an output too", at=value)
        require(last or len(value.child_ops) == 1, "a value before the output is used otherwise", at=value)
        if (layer := _layer(op)) is not None:
            break
        known = op.op_type in _UNARY | _BINARY | _MOVES or _shifts_units(op)
        require(known, "{} comes before it, and no layer", op.op_type, at=op)
        path.append(op)
        value = _operand(op)
    argument, weight_axis, axis = layer
    path.reverse()
    weight = op.inputs[argument]
    require(weight.shape[weight_axis] != 1, "it is a single number", at=op)
    axes = tuple(_followed(path, axis))
    rows = next((each.name for each in _holders(weight) if each.op_type == "gather"), None)
    return Head(op, argument, weight_axis, tuple(path), axes, output, rows)


def _shifts_units(op: Operation) -> bool:
    """Whether a reshape puts axes of length 1 elsewhere and nothing else."""
    if op.op_type != "reshape" or constant(op.inputs["shape"]) is None:
        return False
    before, after = (
        [dim for dim in shape_of(var) if is_symbolic(dim) or dim != 1] for var in (op.inputs["x"], op.outputs[0])
    )
    return before == after


def _holders(weight: Var) -> Iterator[Operation]:
    """The ops that read the same bytes."""
    assert weight.op is not None
    key = key_of(weight)
    for op in weight.op.enclosing_block.operations:
        if op.op_type == "gather" and _is_weight(table := op.inputs["x"]) and key_of(table) == key:
            yield op


def _layer(op: Operation) -> tuple[str, int, int] | None:
    """The name of a layer's weight, the axis of the output channels there, and in the result."""
    rank = len(op.outputs[0].shape)
    if op.op_type == "linear" and _is_weight(op.inputs["weight"]):
        return "weight", 0, rank - 1
    if op.op_type == "conv" and _is_weight(op.inputs["weight"]) and constant(op.inputs["groups"]) == 1:
        return "weight", 0, 1
    if op.op_type != "matmul":
        return None
    for argument, flag, other, last in (("y", "transpose_y", "x", True), ("x", "transpose_x", "y", False)):
        weight = op.inputs[argument]
        if _is_weight(weight) and len(shape_of(weight)) > 1 and not _is_weight(op.inputs[other]):
            turned = bool(constant(op.inputs.get(flag)))
            wide = len(shape_of(weight))
            return argument, wide - 1 if last != turned else wide - 2, rank - 1 if last else rank - 2
    return None


def _is_weight(var: Var) -> bool:
    return is_constant(var) or is_compressed(var)


def _operand(op: Operation) -> Var:
    """The computed operand of an op that has one."""
    computed = [var for _, var in arguments(op) if not is_constant(var)]
    require(len(computed) == 1, "{} of {} computed values comes before it", op.op_type, len(computed), at=op)
    moves = op.op_type in _MOVES or op.op_type == "reshape"
    require(len(computed[0].shape) == len(op.outputs[0].shape) or moves, "it is enlarged", at=op)
    return computed[0]


def _followed(path: list[Operation], axis: int) -> Iterator[int]:
    """Where the vocabulary is in the layer's result, and after each op of the path."""
    yield axis
    for op in path:
        if op.op_type == "transpose":
            axis = [int(each) % len(op.outputs[0].shape) for each in constant(op.inputs["perm"])].index(axis)
        elif op.op_type == "squeeze":
            given = axes_of(op, "axes")
            gone = [at for at, size in enumerate(op.inputs["x"].shape) if size == 1] if given is None else given
            axis -= sum(each < axis for each in gone)
        elif op.op_type == "reshape":
            long = [at for at, dim in enumerate(op.inputs["x"].shape) if dim != 1]
            axis = [at for at, dim in enumerate(op.outputs[0].shape) if dim != 1][long.index(axis)]
        elif op.op_type == "expand_dims":
            for each in sorted(axes_of(op, "axes") or ()):
                axis += each <= axis
        yield axis
