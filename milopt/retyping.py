"""Other sizes for the inputs and states of a function: what its ops make follows.

PyMIL infers the types anew, op by op and in place, and with them the values that are known once sizes are: shapes, and
what is computed of shapes. Ops that make nothing else then become constants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from milopt.errors import MiloptError
from milopt.mil import (
    Function,
    Operation,
    Var,
    arguments,
    building_in,
    is_constant_like,
    is_output,
    is_removed,
    is_state,
    is_symbolic,
    mb,
    remove_if_dead,
    replace_uses,
    shape_of,
    types,
)
from milopt.opaque import Opaque

__all__ = ["RetypingError", "fold", "open_values", "set_shapes"]

# What PyMIL raises about inputs that an op does not take.
_REFUSALS = (ValueError, TypeError, AssertionError, NotImplementedError, IndexError, KeyError, AttributeError)
# Of a value that becomes a constant: more elements are no shape, and would make the program larger.
_MOST_ELEMENTS = 4096


class RetypingError(MiloptError):
    """The function can't have inputs of these sizes."""


def set_shapes(function: Function, shapes: Mapping[str, Sequence[Any]]) -> None:
    """Give inputs and states these shapes, of the rank they had, in place; everything computed of them follows.

    :class:`RetypingError` names the first op that does not take what it is given then; the function is not to be used
    any more. What was declared of the sizes of these inputs (ranges) is forgotten.
    """
    changed = {_declared(function, name, tuple(shape)) for name, shape in shapes.items()}
    function.input_types = type(function.input_types)(t for t in function.input_types if t.name not in shapes)
    with building_in(function):
        for op in function.operations:
            if is_constant_like(op) or not any(var in changed for var in _reads(op)):
                continue
            if op.blocks or isinstance(op, Opaque):
                raise RetypingError(f"{op.op_type} {op.name!r} has blocks, or is unknown: its sizes can't be set")
            try:
                op.type_value_inference(overwrite_output=True)
            except _REFUSALS as error:
                said = " ".join(str(error).split()) or type(error).__name__
                raise RetypingError(f"{op.op_type} {op.name!r} does not take the new sizes: {said}") from error
            changed.update(op.outputs)


def fold(function: Function) -> int:
    """Make constants of all values that are known before the function runs, and that are not large; how many."""
    count, makers = 0, list[Operation]()
    for op in list(function.operations):
        if is_removed(op) or is_constant_like(op) or op.blocks:
            continue
        for var in op.outputs:
            value = cast("Any", var).val
            if value is None or np.size(value) > _MOST_ELEMENTS or is_output(var) or not var.child_ops:
                continue
            with building_in(function):
                made = mb.const(val=value, name=f"{var.name}_known", before_op=op)
            replace_uses(var, made)
            makers.append(op)
            count += 1
    remove_if_dead(makers)
    return count


def open_values(function: Function) -> list[Var]:
    """The values some size of which is only known when the function runs."""
    return [
        var
        for op in function.operations
        for var in op.outputs
        if types.is_tensor(var.sym_type) and any(map(is_symbolic, shape_of(var)))
    ]


def _declared(function: Function, name: str, shape: tuple[Any, ...]) -> Var:
    if name not in function.inputs:
        raise RetypingError(f"there is no input {name!r}: there are {', '.join(function.inputs)}")
    var: Any = function.inputs[name]
    if len(shape_of(var)) != len(shape):
        raise RetypingError(f"input {name!r} is {list(shape_of(var))}: {list(shape)} is of another rank")
    placeholder: Any = function.placeholder_inputs[name]
    placeholder.sym_shape = shape
    if is_state(var):
        var._sym_type = types.state(types.tensor(var.dtype, shape))
    else:
        var._sym_type = types.tensor(var.dtype, shape)
    return cast("Var", var)


def _reads(op: Operation) -> list[Var]:
    return [var for _, var in arguments(op)]
