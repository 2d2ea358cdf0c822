"""A PyMIL program becomes a specification and weight files.

What came from a package and was left alone is written as it was there; everything else as coremltools 9.0 writes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry
from coremltools.proto import MIL_pb2

from milopt.errors import PackageError
from milopt.mil import Block, Function, Operation, Program, Target, Var, flat, operations, types
from milopt.opaque import Opaque
from milopt.package.blobs import element_named
from milopt.package.carried import Carried
from milopt.package.collecting import uncollected
from milopt.package.naming import temporarily_unique_names
from milopt.package.origin import Role, function_origin, origin_of
from milopt.package.proto_types import TypeWriter
from milopt.package.storing import Store
from milopt.package.values import file_value, immediate_value
from milopt.package.weights import PREFIX, Packed, packed_of
from milopt.package.wording import Form, Forms

__all__ = ["FILE", "weight_file", "write_program"]

FILE = "weights/weight.bin"
_STEM = re.compile(r"[A-Za-z0-9_-]+")
# coremltools 9.0, should_use_weight_file: which constants of 10 elements and more lie in the weight file
_IN_FILE = frozenset({"fp16", "fp32", "uint8", "int8", "int4", "uint1", "uint2", "uint3", "uint4", "uint6"})
_IN_FILE_FROM_IOS18 = frozenset({"uint16", "int16", "int32", "uint32"})
_FEWEST = 10


def write_program(program: Program, spec_version: int, carried: Carried, folder: Path) -> tuple[Any, tuple[str, ...]]:
    """``(proto, paths)``: the ``MIL.Program`` proto, and the weight files written below the existing ``folder``.

    Tensors of one file with identical bytes are stored once, whatever their shapes and in however many functions they
    appear.
    """
    check_program(program, spec_version)
    writer = _Writer(spec_version)
    proto = MIL_pb2.Program(version=1, docString=carried.doc)
    with uncollected(), temporarily_unique_names(program):
        for name, function in program.functions.items():
            writer.function(function, proto.functions[name], f"function {name!r}")
    _set_attributes(proto, carried.attributes)
    for name, attributes in carried.function_attributes.items():
        if name in proto.functions:
            _set_attributes(proto.functions[name], attributes)
    writer.store.write(folder)
    return proto, writer.store.paths


def check_program(program: Program, spec_version: int) -> None:
    """Refuse what no package can hold; PackageError says which part."""
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
            if (needs := _needs(op)) > spec_version:
                raise PackageError(
                    f"op {op.name!r} ({op.op_type}) needs {Target(needs).name}, the model is for "
                    f"{Target(spec_version).name}; raise spec_version to save it"
                )


def _needs(op: Operation) -> int:
    """The specification version that the op's class belongs to; 0 where it says none."""
    # For a dialect's op, such as coreml_update_state, the variants are no dict.
    return int(op.opset_version or 0) if isinstance(getattr(op, "_op_variants", None), dict) else 0


def _set_attributes(proto: Any, attributes: dict[str, Any]) -> None:
    for name, value in attributes.items():
        proto.attributes[name].CopyFrom(value)


class _Writer:
    """Writes functions; ``visible`` holds the values that the op being written may use."""

    def __init__(self, spec_version: int) -> None:
        self.spec_version = spec_version
        self.store = Store()
        self.types = TypeWriter()
        self.forms = Forms()
        self.visible: set[Var] = set()
        self.declared: dict[str, tuple[Any, Any]] = {}
        self.where = ""

    def function(self, function: Function, proto: Any, where: str) -> None:
        self.where = where
        # a package's specification may be newer than its functions
        proto.opset = f"CoreML{max(int(Target.iOS15), int(function.opset_version)) - 1}"
        origin = function_origin(function)
        self.declared = {} if origin is None else origin.types
        self.visible = set(function.inputs.values())
        self.inputs(function.inputs.values(), proto.inputs)
        block = proto.block_specializations[proto.opset]
        self.block(function, block)
        if origin is not None:
            _set_attributes(block, origin.attributes)

    def inputs(self, values: Iterable[Var], protos: Any) -> None:
        for var in values:
            known = self.declared.get(var.name)
            kind = known[1] if known is not None and known[0] is var.sym_type else self.types.write(var.sym_type)
            protos.add(name=var.name, type=kind)

    def block(self, block: Block, proto: Any) -> None:
        mine: list[Var] = []
        for op in block.operations:
            self.check_inputs(op)
            if op.op_type != "const" or isinstance(op, Opaque):
                self.operation(op, proto.operations)
            elif self.forms.has_op(op):
                self.constant(op, proto.operations.add())
            mine += op.outputs
            self.visible.update(op.outputs)
        for var in block.outputs:
            if var not in self.visible:
                raise PackageError(f"the program is inconsistent: {self.where} returns {var.name!r}, unknown to it")
            proto.outputs.append(var.name)
        self.visible.difference_update(mine)

    def check_inputs(self, op: Operation) -> None:
        for var in op.get_flattened_inputs():
            if var not in self.visible:
                raise PackageError(
                    f"the program is inconsistent: {self.where}: op {op.name!r} ({op.op_type}) uses {var.name!r}, "
                    "which is not defined before it"
                )

    def constant(self, op: Operation, proto: Any) -> None:
        proto.type = "const"
        self.set_name(op, proto)
        self.value(op, proto.attributes["val"])
        self.outputs(op, proto)

    def set_name(self, op: Operation, proto: Any) -> None:
        """The op's attributes, the name among them: the package's own, unless the op was renamed since."""
        origin = origin_of(op)
        if origin is None or op.name != origin.assigned or origin.role is not Role.OP:
            self.text(proto.attributes["name"], op.name)
        elif origin.name is not None:
            self.text(proto.attributes["name"], origin.name)
        if origin is not None:
            _set_attributes(proto, origin.attributes)

    def text(self, proto: Any, text: str) -> None:
        proto.type.CopyFrom(self.types.write(types.str))
        proto.immediateValue.tensor.strings.values.append(text)

    def outputs(self, op: Operation, proto: Any) -> None:
        origin = origin_of(op)
        known = {} if origin is None else origin.types
        for index, var in enumerate(op.outputs):
            kind = known.get(index)
            same = kind is not None and kind[0] is var.sym_type
            proto.outputs.add(
                name=var.name, type=kind[1] if kind is not None and same else self.types.write(var.sym_type)
            )

    def operation(self, op: Operation, protos: Any) -> None:
        if op.op_type == "coreml_update_state" and not isinstance(op, Opaque):
            self.update(op, protos)
            return
        proto = protos.add(type=op.op_type)
        self.set_name(op, proto)
        for name, value in op.inputs.items():
            if not name.startswith("_") or isinstance(op, Opaque):
                self.argument(op, name, flat(value), proto)
        origin = origin_of(op)
        for index, inner in enumerate(op.blocks):
            nested = proto.blocks.add()
            self.visible.update(inner.inputs)
            self.inputs(inner.inputs, nested.inputs)
            self.block(inner, nested)
            self.visible.difference_update(inner.inputs)
            if origin is not None and index < len(origin.blocks):
                _set_attributes(nested, origin.blocks[index])
        self.outputs(op, proto)
        if op.op_type in SSAOpRegistry.custom_ops and not isinstance(op, Opaque):
            self.custom(op, proto)

    def argument(self, op: Operation, name: str, values: tuple[Var, ...], proto: Any) -> None:
        forms = [self.forms.of(op, name, var) for var in values]
        if Form.OMITTED in forms:
            return
        if Form.ATTRIBUTE in forms:
            self.value(cast("Operation", values[0].op), proto.attributes[name])
            return
        argument = proto.inputs[name]
        for var, form in zip(values, forms, strict=True):
            if form is Form.VALUE:
                self.value(cast("Operation", var.op), argument.arguments.add().value)
            else:
                argument.arguments.add(name=var.name)

    def update(self, op: Operation, protos: Any) -> None:
        """``write_state``, and ``read_state`` where something uses what the state then holds."""
        origin = origin_of(op)
        written = None if origin is None else origin.write
        proto = protos.add(type="write_state")
        if written is None:
            self.text(proto.attributes["name"], f"{op.name}_write_state")
        else:
            if written.name is not None:
                self.text(proto.attributes["name"], written.name)
            _set_attributes(proto, written.attributes)
        proto.inputs["input"].arguments.add(name=op.inputs["state"].name)
        proto.inputs["data"].arguments.add(name=op.inputs["value"].name)
        result = op.outputs[0]
        if not result.child_ops and not result.consuming_blocks and not (origin is not None and origin.reads):
            return
        read = protos.add(type="read_state")
        self.set_name(op, read)
        read.inputs["input"].arguments.add(name=op.inputs["state"].name)
        self.outputs(op, read)

    def custom(self, op: Operation, proto: Any) -> None:
        """An op that a user registered with PyMIL (coremltools 9.0, ``translate_generic_op``)."""
        proto.type = "custom_layer"
        bindings = cast("Any", op).bindings
        for name, default in (("class_name", op.name), ("description", "")):
            self.text(proto.attributes[name], bindings.get(name, default))
        for name in ("input_order", "parameters", "weights"):
            texts = list(bindings.get(name, []))
            proto.attributes[name].CopyFrom(immediate_value(types.list(types.str, len(texts)), texts, self.types))

    def value(self, op: Operation, proto: Any) -> None:
        """The value of a ``const`` op, in the specification or a weight file."""
        var = op.outputs[0]
        box = cast("Any", var)._sym_val
        if box is None:
            raise PackageError(f"const {op.name!r} has no value")
        value = packed_of(var) or var.val
        origin = origin_of(op)
        path = weight_file(op, self.spec_version)
        if origin is not None and origin.value is not None and (origin.held is box or origin.held is value):
            proto.CopyFrom(origin.value)
        elif path is None:
            opened = value.val if isinstance(value, Packed) else value
            proto.CopyFrom(immediate_value(var.sym_type, opened, self.types))
        else:
            proto.CopyFrom(file_value(var.sym_type, f"{PREFIX}{path}", self.types))
        if path is not None:
            element = element_named(_dtype(var))
            assert element is not None, op.name
            self.store.add(path, element, _size(var, value), value, proto.blobFileValue)


def weight_file(op: Operation, spec_version: int) -> str | None:
    """The weight file for a ``const``, ``None`` where its value lies in the specification."""
    var = op.outputs[0]
    if types.is_list(var.sym_type) or types.is_dict(var.sym_type) or element_named(_dtype(var)) is None:
        return None
    origin = origin_of(op)
    if origin is not None and origin.role is not Role.DEFAULT:
        return origin.path
    dtype = _dtype(var)
    in_file = dtype in _IN_FILE or (spec_version >= Target.iOS18 and dtype in _IN_FILE_FROM_IOS18)
    if not in_file or prod(map(int, var.shape)) < _FEWEST:
        return None
    # coremltools notes on an op which of several files it was loaded from
    stem = getattr(op, "weight_key", None)
    return f"weights/{stem}.bin" if isinstance(stem, str) and _STEM.fullmatch(stem) else FILE


def _dtype(var: Var) -> str:
    kind = var.sym_type
    return str(types.builtin_to_string(kind.get_primitive() if types.is_tensor(kind) else kind))


def _size(var: Var, value: Any) -> int:
    if isinstance(value, Packed):
        return int(np.prod(cast("Any", var.shape), dtype=object))
    return int(np.size(value))
