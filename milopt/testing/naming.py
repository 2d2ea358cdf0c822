"""Names of drawn values."""

from __future__ import annotations

from typing import Any

from milopt.mil import Function, Operation, Var, operations

__all__ = ["rename", "rename_all"]


def rename(op: Operation, name: str) -> None:
    """Name an op, its value and its constants: PyMIL counts through the process, an example must not depend on it."""
    op.name = name
    for index, var in enumerate(op.outputs):
        var.name = name if len(op.outputs) == 1 else f"{name}_{index}"
    inputs: dict[str, Any] = op.inputs
    for key, each in inputs.items():
        if isinstance(each, Var) and each.op is not None and each.op.op_type == "const":
            each.name = each.op.name = f"{name}_{key}"


def rename_all(function: Function) -> None:
    """Name every op ``v0``, ``v1``... in program order, constants aside."""
    for index, op in enumerate(each for each in operations(function) if each.op_type != "const"):
        rename(op, f"v{index}")
