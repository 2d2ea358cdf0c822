"""MIL as milopt sees it: coremltools' program classes under one roof, and the few questions asked of them everywhere.

``mb`` is coremltools' own MIL builder; tests and examples write programs with it. Rules build with the builder they
are handed (:class:`milopt.building.Builder`), which places, names and scopes what it makes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
from coremltools import target
from coremltools.converters.mil.mil import Block, Function, ListVar, Operation, Program, Var, types
from coremltools.converters.mil.mil import Builder as _Builder

__all__ = [
    "Block",
    "Function",
    "ListVar",
    "Operation",
    "Program",
    "Target",
    "Var",
    "arguments",
    "constant",
    "dtype_name",
    "flat",
    "is_constant",
    "is_output",
    "is_state",
    "is_symbolic",
    "mb",
    "named_blocks",
    "operations",
    "shape_of",
    "target",
    "types",
    "weight_key",
]

Target = target
mb: Any = _Builder


def operations(block: Block) -> Iterator[Operation]:
    """Every op of ``block`` and of the blocks nested in it, outer ops before their inner ones, in program order."""
    for op in block.operations:
        yield op
        for inner in op.blocks:
            yield from operations(inner)


def arguments(op: Operation) -> Iterator[tuple[str, Var]]:
    """``(input name, value)`` for every input of ``op``; a variadic input yields once per value."""
    for name, value in op.inputs.items():
        if isinstance(value, Var):
            yield name, value
        else:
            for each in value:
                yield name, each


def dtype_name(var: Var) -> str:
    """MIL's name of the value's element type: ``fp16``, ``int32``, ``bool``, ``string``..."""
    return str(types.builtin_to_string(var.dtype))


def is_state(var: Var) -> bool:
    return bool(types.is_state(var.sym_type))


def is_symbolic(dim: object) -> bool:
    """Whether a dimension is a symbol (known when the program runs) and not a number."""
    return not isinstance(dim, (int, np.integer))


def shape_of(var: Var) -> tuple[Any, ...]:
    """The value's shape with plain ``int`` dimensions; symbols stay as they are."""
    return tuple(dim if is_symbolic(dim) else int(dim) for dim in var.shape)


def is_constant(var: Var | None) -> bool:
    """Whether the value is written in the program (a ``const``), not computed by it nor decompressed."""
    return var is not None and var.op is not None and var.op.op_type == "const"


def constant(var: Var | None) -> Any:
    """The numpy value of a ``const``; ``None`` for anything else (folded values of other ops do not count)."""
    if var is None or var.op is None or var.op.op_type != "const":
        return None
    return var.val


def is_output(var: Var) -> bool:
    """Whether some block, a function or a nested one, returns this value."""
    return bool(var.consuming_blocks)


def weight_key(array: np.ndarray[Any, Any]) -> tuple[int, int, str]:
    """The same for two arrays that view the same bytes as the same type, whatever their shapes.

    Weights shared between functions, or reshaped by a pass, are recognised by it without reading them. It is valid
    while one of the arrays is alive.
    """
    return int(array.__array_interface__["data"][0]), array.nbytes, array.dtype.str


def named_blocks(functions: Mapping[str, Function]) -> Iterator[tuple[str, Block]]:
    """``(function name, block)`` for every function and each block nested in it."""
    for name, function in functions.items():
        yield name, function
        for op in operations(function):
            for block in op.blocks:
                yield name, block


def flat(values: Any) -> tuple[Any, ...]:
    """A tuple of what was given alone or in a sequence."""
    return tuple(cast("Sequence[Any]", values)) if isinstance(values, (list, tuple)) else (values,)
