"""Each state of a function is read once: later reads are what was written last."""

from __future__ import annotations

from milopt.mil import Function, Operation, Var, arguments, is_state, operations, remove_ops, replace_uses

__all__ = ["read_once"]


def read_once(function: Function) -> int:
    """``read_state`` behind a read or a ``coreml_update_state`` of the same state  ->  that op's value; how many went.

    A state that an op in a nested block uses stays as it is.
    """
    inner = {
        var for op in function.operations for block in op.blocks for each in operations(block) for var in _states(each)
    }
    current: dict[Var, Var] = {}
    gone = 0
    for op in list(function.operations):
        for state in _states(op):
            if state in inner or op.op_type not in ("read_state", "coreml_update_state"):
                continue
            if op.op_type == "read_state" and state in current:
                replace_uses(op.outputs[0], current[state])
                remove_ops([op])
                gone += 1
            else:
                current[state] = op.outputs[0]
    return gone


def _states(op: Operation) -> list[Var]:
    return [var for _, var in arguments(op) if is_state(var)]
