"""A PyMIL program becomes a specification and weight files. The one place that uses coremltools' private writer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from coremltools.converters.mil.backend.mil.helper import create_file_value_tensor, types_to_proto_primitive
from coremltools.converters.mil.backend.mil.load import MILProtoExporter

from milopt.errors import MiloptError, PackageError
from milopt.mil import Function, Operation, Program, Target, Var, digest, dtype_name, operations, types
from milopt.package.carried import Carried
from milopt.package.naming import temporarily_unique_names

__all__ = ["write_program"]

_FILE = "weight.bin"
_STEM = re.compile(r"[A-Za-z0-9_-]+")
# Names of the writer's methods where they are not write_<dtype>_data, and the type their buffer must have.
_METHODS = {"fp32": ("write_float_data", np.float32), "fp16": ("write_fp16_data", np.uint16)}


def write_program(program: Program, spec_version: int, carried: Carried, weights: Path) -> Any:
    """The ``MIL.Program`` proto; its weights are written to files in the existing folder ``weights``.

    Identical bytes are stored once, whatever the shapes and in however many functions they appear.
    """
    _check(program, spec_version)
    with temporarily_unique_names(program):
        exporter = _Exporter(program, weights, spec_version)
        try:
            proto = exporter.export()
        except (AssertionError, NotImplementedError, TypeError, ValueError) as error:
            if isinstance(error, MiloptError):
                raise
            raise PackageError(f"the program can't be written: {' '.join(str(error).split())}") from error
        exporter.blob_writers.clear()  # closes the files
    proto.docString = carried.doc
    for name, value in carried.attributes.items():
        proto.attributes[name].CopyFrom(value)
    for function, attributes in carried.function_attributes.items():
        if function in proto.functions:
            for name, value in attributes.items():
                proto.functions[function].attributes[name].CopyFrom(value)
    return proto


def _check(program: Program, spec_version: int) -> None:
    if not program.functions:
        raise PackageError("the program has no function")
    for name, function in program.functions.items():
        for key, var in function.inputs.items():
            if var.name != key:
                raise PackageError(f"function {name!r}: its input {key!r} is called {var.name!r} inside")
        outer = {*function.inputs.values(), *function.outputs}
        names = sorted(var.name for var in outer)
        if len(set(names)) < len(names):
            raise PackageError(f"function {name!r} has two different inputs or outputs of one name: {', '.join(names)}")
        for op in operations(function):
            namespace = getattr(op, "_dialect_namespace", "coreml")
            if namespace != "coreml":
                raise PackageError(f"op {op.name!r} is {namespace}'s {op.op_type}, which Core ML doesn't know")
            if namespace == "coreml" and _needs(op) > spec_version:
                raise PackageError(
                    f"op {op.name!r} ({op.op_type}) needs {Target(_needs(op)).name}, the model is for "
                    f"{Target(spec_version).name}; raise spec_version to save it"
                )
    try:
        program.validate()
    except Exception as error:
        raise PackageError(f"the program is inconsistent: {' '.join(str(error).split())}") from error


def _needs(op: Operation) -> int:
    """The specification version that the op's class belongs to; 0 where it says none."""
    # For a dialect's op, such as coreml_update_state, the variants are no dict.
    return int(op.opset_version or 0) if isinstance(getattr(op, "_op_variants", None), dict) else 0


class _Exporter(MILProtoExporter):
    def __init__(self, program: Program, weights: Path, spec_version: int) -> None:
        # Not the parent's: it refuses ops without the torch scopes that only fresh conversions have.
        self.prog = program
        self.weights_dir = str(weights)
        self.specification_version = spec_version
        self.blob_writers = {}
        self.weight_id_to_file_value = {}
        self._stored: dict[tuple[str, bytes], tuple[str, int]] = {}

    def convert_function(self, function: Function, opset: str) -> Any:
        """With the function's own opset: a package's specification may be newer than its functions."""
        own = max(int(Target.iOS15), int(function.opset_version))
        return super().convert_function(function, f"CoreML{own - 1}")

    def get_weight_path(self, op: Operation) -> str:
        """The file the weight came from, where there are several."""
        stem = getattr(op, "weight_key", None)
        known = isinstance(stem, str) and _STEM.fullmatch(stem)
        return str(Path(self.weights_dir) / (f"{stem}.bin" if known else _FILE))

    def create_file_value(self, var: Var) -> Any:
        values: Any = np.ascontiguousarray(var.val)
        # Reading and writing are by element type, so the same bytes as another type are another entry.
        key = (dtype_name(var), digest(values))
        if key not in self._stored:
            assert var.op is not None
            self._stored[key] = self._write(values.reshape(-1), dtype_name(var), self.get_weight_path(var.op))
        name, offset = self._stored[key]
        primitive = var.sym_type.get_primitive() if types.is_tensor(var.sym_type) else var.sym_type
        return create_file_value_tensor(
            f"@model_path/weights/{name}", offset, var.val.shape, types_to_proto_primitive(primitive)
        )

    def _write(self, values: Any, dtype: str, path: str) -> tuple[str, int]:
        method, buffer = _METHODS.get(dtype, (f"write_{dtype}_data", values.dtype))
        try:
            offset = getattr(self.get_blob_writer(path), method)(values.view(buffer))
        except RuntimeError as error:
            raise PackageError(f"{Path(path).name} can't be written: {' '.join(str(error).split())}") from error
        return Path(path).name, int(offset)
