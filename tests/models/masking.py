"""Packages whose weights are made up: what their masks put in the place of scores, which is no weight."""

from __future__ import annotations

from typing import Any

import numpy as np

from milopt.building import Builder
from milopt.mil import Operation, Var, constant, operations, value_names
from milopt.package import Model
from milopt.passes.masks import leads_to_softmax

__all__ = ["fill_masks"]

# What transformers masked with before it took the least number of a format.
_MASKED = -1e4


def fill_masks(model: Model) -> int:
    """Let selects before a softmax choose -1e4 where they have an array of made-up numbers; how many there are."""
    count = 0
    for function in model.functions.values():
        taken = value_names(function)
        for op in [each for each in operations(function) if each.op_type == "select"]:
            for name in ("a", "b"):
                if (array := _made_up(op, op.inputs[name])) is not None:
                    held = Builder(op, taken).const(val=np.full_like(array, _MASKED), name=f"{op.name}_{name}")
                    op.set_inputs(**{name: held})
                    count += 1
    return count


def _made_up(op: Operation, var: Var) -> Any:
    array = constant(var)
    large = array is not None and np.size(array) > 1 and np.asarray(array).dtype.kind == "f"
    return array if large and leads_to_softmax(op.outputs[0]) else None
