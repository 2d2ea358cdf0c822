"""Other sizes for an axis that runs through many values of a function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from milopt.building import Builder
from milopt.mil import Function, Operation, Var, arguments, constant, shape_of, types
from milopt.reports import NoMatch, require

__all__ = ["require_resizable", "resize"]


def require_resizable(axes: Mapping[Var, int]) -> None:
    """Raise NoMatch where the size of these axes is used otherwise than as a size of the values.

    ``axes`` says which axis of a value is to get another size, as :func:`milopt.passes.slots.follow` finds it.
    """
    for var in axes:
        for user in var.child_ops:
            require(user.op_type != "shape", "its size is computed with, and another is wanted", at=user)
    for op in _makers(axes):
        if op.op_type == "reshape":
            require(constant(op.shape) is not None, "its shape is computed, and another is wanted", at=op)
        if op.op_type == "slice_by_index":
            require(constant(op.end) is not None, "its end is computed, and another is wanted", at=op)


def resize(function: Function, axes: Mapping[Var, int], size: int, taken: set[str]) -> None:
    """Give these axes ``size`` entries: inputs are declared anew, and every op that makes one of the values adapts.

    ``axes`` are all values that hold the axis; :func:`require_resizable` holds, and what uses the values otherwise
    contracts or reduces the axis. New constants get names that are not in ``taken``.
    """
    old = {var: shape_of(var)[axis] for var, axis in axes.items()}
    for name, var in function.inputs.items():
        if var in axes:
            _declare(function, name, var, axes[var], size)
    for op in _makers(axes):
        (axis,) = {axes[out] for out in op.outputs if out in axes}
        (before,) = {old[out] for out in op.outputs if out in axes}
        if op.op_type == "reshape":
            _set_entry(op, "shape", axis, before, size, taken)
        elif op.op_type == "slice_by_index":
            (source,) = {axes[var] for _, var in arguments(op) if var in axes} or {axis}
            _set_entry(op, "end", source, before, size, taken)
        try:
            op.type_value_inference(overwrite_output=True)
        except (ValueError, TypeError, AssertionError, IndexError) as error:
            raise NoMatch("MIL refuses {} slots here: {}", size, str(error).strip(), at=op) from error


def _makers(axes: Mapping[Var, int]) -> list[Operation]:
    """The ops that make these values, in program order."""
    made = dict.fromkeys(var.op for var in axes if var.op is not None)
    blocks = dict.fromkeys(op.enclosing_block for op in made)
    return [op for block in blocks for op in block.operations if op in made]


def _declare(function: Function, name: str, var: Var, axis: int, size: int) -> None:
    shape = [*shape_of(var)]
    shape[axis] = size
    placeholder = function.placeholder_inputs[name]
    placeholder.sym_shape = tuple(shape)
    cast("Any", var)._sym_type = types.tensor(var.dtype, tuple(shape))
    # what the author declared for it, with the old size; the description is made of the value
    function.input_types = type(function.input_types)(each for each in function.input_types if each.name != name)


def _set_entry(op: Operation, which: str, axis: int, before: Any, size: int, taken: set[str]) -> None:
    """Put ``size`` where a constant vector of the op has ``before``."""
    numbers = np.array(constant(op.inputs[which]))
    if int(numbers[axis]) != before:
        return  # -1, or everything up to the end
    numbers[axis] = size
    fresh = Builder(op, taken).const(val=numbers, name=f"{op.name}_{which}")
    op.set_inputs(**{which: fresh})
