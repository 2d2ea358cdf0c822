"""Takes back what was begun and refused: MIL leaves traces of ops that it does not build."""

from __future__ import annotations

from typing import Any

from milopt.mil import Block, Function, Operation, operations, remove_ops

__all__ = ["forget_lost", "last_of", "take_back"]


def last_of(block: Block) -> Operation | None:
    """The op that comes last so far."""
    return block.operations[-1] if len(block.operations) else None


def take_back(block: Block, last: Operation | None) -> None:
    """Remove the ops of ``block`` behind ``last``."""
    ops = list(block.operations)
    gone = ops[ops.index(last) + 1 if last is not None else 0 :]
    for op in gone:
        unfinished: Any = op
        if unfinished.outputs is None:  # coremltools can't remove an op that has no outputs yet
            unfinished._output_vars = []
    for op in gone:  # the blocks of an op that was refused are not its own yet
        for var in op.outputs:
            var.child_ops[:] = [user for user in var.child_ops if user in gone]
    remove_ops(gone)


def forget_lost(function: Function) -> None:
    """Let values know only users that are in the function: those of blocks built in vain are not."""
    ops = list(operations(function))
    known = set(ops)
    inner = [var for op in ops for block in op.blocks for var in block.inputs]
    for var in [*function.inputs.values(), *inner, *(var for op in ops for var in op.outputs)]:
        var.child_ops[:] = [user for user in var.child_ops if user in known]
