"""Names of drawn values."""

from __future__ import annotations

from typing import Any

from milopt.mil import Operation, Var

__all__ = ["rename"]


def rename(op: Operation, name: str) -> None:
    """Name an op, its value and its constants: PyMIL counts through the process, an example must not depend on it."""
    op.name = name
    for index, var in enumerate(op.outputs):
        var.name = name if len(op.outputs) == 1 else f"{name}_{index}"
    inputs: dict[str, Any] = op.inputs
    for key, each in inputs.items():
        if isinstance(each, Var) and each.op is not None and each.op.op_type == "const":
            each.name = each.op.name = f"{name}_{key}"
