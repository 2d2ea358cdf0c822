"""The embedding as an array of rows, which a client maps into memory and looks up by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from milopt.mil import Operation, constant, is_constant_like, is_constexpr, shape_of
from milopt.package import Model
from milopt.sets.deployment import Step, Table
from milopt.sets.errors import SetError
from milopt.sets.stream import reads

__all__ = ["table_of"]

# Compressed forms that decode to numbers of the table's own type, without rounding.
_EXACT = frozenset({"constexpr_lut_to_dense", "constexpr_sparse_to_dense", "constexpr_lut_to_sparse"})


def table_of(model: Model, steps: Mapping[str, Step]) -> tuple[Table, dict[str, Step]]:
    """The table in which the part ``model`` looks rows up, and steps that do so.

    SetError where the part does anything else, or where the table is quantized in a way that would be rounded.
    """
    found: dict[str, Step] = {}
    gathers: list[Operation] = []
    for name, step in steps.items():
        ops = [op for op in model.function(name).operations if not is_constant_like(op)]
        if len(ops) != 1 or not _looks_up(ops[0]):
            said = ", ".join(op.op_type for op in ops)
            raise SetError(f"the embedding is more than a look-up in a table ({said}): make it a package")
        gathers.append(ops[0])
        indices, (output,) = ops[0].inputs["indices"].name, step.gives
        found[name] = Step("", {"indices": step.takes[indices]}, {"rows": step.gives[output]})
    return Table(_rows(gathers[0])), found


def _looks_up(op: Operation) -> bool:
    table, indices = op.inputs.get("x"), op.inputs.get("indices")
    return (
        op.op_type == "gather"
        and table is not None
        and table.op is not None
        and is_constant_like(table.op)
        and len(shape_of(table)) == 2
        and indices is not None
        and indices.op is None
        and int(constant(op.inputs["axis"])) == 0
        and not int(constant(op.inputs.get("batch_dims")) or 0)
    )


def _rows(op: Operation) -> np.ndarray[Any, Any]:
    from milopt.passes.decompression import decoded

    table = op.inputs["x"]
    assert table.op is not None
    if not is_constexpr(table.op.op_type):
        return np.asarray(constant(table))
    todo, kinds = [table.op], set[str]()
    while todo:
        each = todo.pop()
        kinds.add(each.op_type)
        todo += [var.op for var in reads(each) if var.op is not None and is_constexpr(var.op.op_type)]
    if not kinds <= _EXACT:
        raise SetError(
            f"the embedding is quantized ({', '.join(sorted(kinds))}): rows would be rounded; make it a package"
        )
    return np.asarray(decoded(table))
