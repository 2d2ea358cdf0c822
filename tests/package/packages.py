"""Packages with what PyMIL has no place for: made by hand, in the specification."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from coremltools.proto import MIL_pb2

from milopt.package import load

from .support import linear, spec_of, write_spec

__all__ = ["block_of", "edited", "op_named", "text_value"]


def text_value(text: str) -> Any:
    """A ``MIL.Value`` that holds a string."""
    value = MIL_pb2.Value()
    value.type.tensorType.dataType = MIL_pb2.DataType.STRING
    value.immediateValue.tensor.strings.values.append(text)
    return value


def block_of(spec: Any, function: str = "main") -> Any:
    (block,) = spec.mlProgram.functions[function].block_specializations.values()
    return block


def op_named(block: Any, output: str) -> Any:
    return next(op for op in block.operations if any(each.name == output for each in op.outputs))


def edited(folder: Path, change: Callable[[Any], None], program: Any = None) -> Path:
    """A saved package of ``program`` (a linear layer) whose specification ``change`` was applied to."""
    package = load(linear() if program is None else program).save(folder / "edited.mlpackage")
    spec = spec_of(package)
    change(spec)
    write_spec(package, spec)
    return package
