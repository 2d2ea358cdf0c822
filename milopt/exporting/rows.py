"""Tables of rows are numbers: integers with scales that an embedding is made of become what they decode to."""

from __future__ import annotations

from typing import Any

import numpy as np

from milopt.building import Builder
from milopt.mil import Operation, is_compressed, operations, value_names
from milopt.package import Model
from milopt.passes.compressing import put_in_place
from milopt.passes.decompression import decoded
from milopt.passes.uses import Place

__all__ = ["rows_as_numbers"]


def rows_as_numbers(model: Model) -> int:
    """Let the matrices in which ``model`` looks rows up be constants, bit for bit what they decode to; how many were.

    Those that look-up tables make stay as they are: every number of theirs is in a table.
    """
    found: list[Any] = []
    for name, function in model.functions.items():
        taken = value_names(function)
        for op in [each for each in operations(function) if _looks_up(each)]:
            table = op.inputs["x"]
            if table.op is None or table.op.op_type != "constexpr_blockwise_shift_scale":
                continue
            rows = decoded(table)
            same = next((each for each in found if np.array_equal(each, rows)), None)
            if same is None:
                found.append(rows)
            numbers = rows if same is None else same
            put_in_place(Place(name, table.op), Builder(table.op, taken).const(val=numbers))
    return len(found)


def _looks_up(op: Operation) -> bool:
    return op.op_type == "gather" and is_compressed(op.inputs.get("x"))
