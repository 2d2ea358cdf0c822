"""Data movements made twice -> made once."""

from __future__ import annotations

from typing import Any

from milopt.mil import Block, Operation, Program, Var, constant, named_blocks, remove_if_dead, replace_uses

__all__ = ["share_moves"]

_MOVES = frozenset({"transpose", "expand_dims", "squeeze", "reshape"})


def share_moves(program: Program) -> int:
    """Let equal movements of one value be one op; returns how many went. Results that are outputs stay."""
    return sum(_share_in(block) for _, block in named_blocks(program.functions))


def _share_in(block: Block) -> int:
    first: dict[Any, Operation] = {}
    removed = 0
    for op in list(block.operations):
        if op.op_type not in _MOVES or (key := _key(op)) is None:
            continue
        earlier = first.setdefault(key, op)
        if earlier is op or op.outputs[0].consuming_blocks:
            continue
        replace_uses(op.outputs[0], earlier.outputs[0])
        remove_if_dead([op])
        removed += 1
    return removed


def _key(op: Operation) -> Any:
    """What two ops must have in common to be the same; ``None`` where an argument is computed."""
    parts: list[Any] = [op.op_type]
    for name, value in op.inputs.items():
        if name == "x":
            parts.append(id(value))
        elif not isinstance(value, Var) or (number := constant(value)) is None:
            return None
        else:
            parts.append((name, tuple(number.ravel().tolist()) if hasattr(number, "ravel") else number))
    return tuple(parts)
