"""Functions and blocks, made empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coremltools.converters.mil.mil.program import Placeholder, StateTensorPlaceholder

from milopt.mil import Block, Function, Operation, Target, Var, is_state, types

__all__ = ["new_block", "new_function"]


def new_function(inputs: Mapping[str, Var], opset: Target) -> Function:
    """A function whose inputs are these values; PyMIL's own placeholders would refuse scalars."""
    return Function({name: _placeholder(var) for name, var in inputs.items()}, opset)


def _placeholder(var: Var) -> Any:
    placeholder: Any = object.__new__(StateTensorPlaceholder if is_state(var) else Placeholder)
    listed = types.is_list(var.sym_type)
    placeholder.sym_shape = () if listed else tuple(var.shape)
    placeholder.dtype = var.sym_type if listed else var.dtype
    placeholder.name = var.name
    placeholder.outputs = [var]
    return placeholder


def new_block(name: str, inputs: Sequence[Var], outer: Operation) -> Block:
    """A block nested in the op ``outer``."""
    kind: Any = Block
    block: Block = kind(block_inputs=tuple(inputs), outer_op=outer, name=name)
    return block
