"""Ops in the blocks of ops: what an op holds, what it needs from outside, and which op holds it."""

from __future__ import annotations

from collections.abc import Iterator

from milopt.mil import Block, Operation, Var, arguments, operations

__all__ = ["holder", "needs", "nested"]


def nested(op: Operation) -> Iterator[Operation]:
    """``op``, and every op in its blocks."""
    yield op
    for block in op.blocks:
        yield from operations(block)


def needs(op: Operation) -> Iterator[Var]:
    """What ``op`` and the blocks in it use that is not made there."""
    for _, var in arguments(op):
        yield var
    for block in op.blocks:
        inner = list(block.operations)
        made = set(inner)
        for each in inner:
            yield from (var for var in needs(each) if var.op not in made)
        yield from (var for var in block.outputs if var.op is not None and var.op not in made)


def holder(op: Operation, block: Block) -> Operation:
    """The op of ``block`` that is ``op``, or holds it in a nested block."""
    while op.enclosing_block is not block:
        outer = op.enclosing_block.outer_op
        assert outer is not None, f"{op.name} uses a value of a block it is not in"
        op = outer
    return op
