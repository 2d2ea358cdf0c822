"""A function of a package as a graph that does not depend on the names of its values.

Constants belong to the ops that use them; what else an op uses are values of other ops. The key of an op is all that
it says without the names: its type, its arguments, and the types of its results.
"""

from __future__ import annotations

import hashlib
from collections import ChainMap
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from coremltools.proto import MIL_pb2

from milopt.difference.facts import quoted
from milopt.difference.opening import Opened
from milopt.difference.tensors import Tensor, tensor_of
from milopt.errors import PackageError
from milopt.package.parts import name_of
from milopt.package.symbols import Symbols
from milopt.package.values import ValueReader

__all__ = ["Constant", "Graph", "Node", "Value", "read_graph", "type_text"]

_INLINE = 16  # elements
_LONGEST = 200  # characters of a value that is written out
_TYPES = {
    "FLOAT16": "fp16",
    "FLOAT32": "fp32",
    "FLOAT64": "fp64",
    "BFLOAT16": "bf16",
}


@dataclass(eq=False)
class Value:
    """What an op or a block's caller provides."""

    name: str
    type: str
    proto: Any


@dataclass(eq=False)
class Constant:
    """What is written in the package; ``owner`` is the proto of its ``const``, ``None`` where it is inside an op."""

    text: str
    proto: Any
    owner: Any
    value: Value | None
    tensor: Tensor | None
    held: Any


@dataclass(eq=False)
class Node:
    """An op: its arguments by label, a list of values that several names may appear in, and its blocks."""

    proto: Any
    key: str
    arguments: list[tuple[str, Value | Constant]]
    outputs: list[Value]
    blocks: list[Graph] = field(default_factory=list["Graph"])

    @property
    def name(self) -> str:
        return name_of(self.proto)

    @property
    def type(self) -> str:
        return str(self.proto.type)

    def __str__(self) -> str:
        told = ", ".join(
            f"{label}={each.text if isinstance(each, Constant) else f'%{each.name}'}" for label, each in self.arguments
        )
        results = ", ".join(f"%{each.name}: {each.type}" for each in self.outputs)
        return f"{results} = {self.type}({told})" if results else f"{self.type}({told})"


@dataclass(eq=False)
class Graph:
    """A block."""

    inputs: list[Value]
    nodes: list[Node]
    outputs: list[Value]

    def all_nodes(self) -> Iterator[Node]:
        for node in self.nodes:
            yield node
            for inner in node.blocks:
                yield from inner.all_nodes()


def read_graph(package: Opened, function: str) -> Graph:
    """The graph of a function that ``load`` accepts."""
    proto = package.spec.mlProgram.functions[function]
    block = proto.block_specializations[proto.opset]
    return _Reader(package, block).graph(proto.inputs, block, ChainMap())


def type_text(proto: Any) -> str:
    """A type in MIL's notation; dimensions that are known at run time are ``?``, any number of them ``...``."""
    form = proto.WhichOneof("type")
    if form == "tensorType":
        tensor = proto.tensorType
        dims = ["..."] if tensor.rank < 0 and not tensor.dimensions else [_dim(each) for each in tensor.dimensions]
        return _element(tensor) + (f"[{', '.join(dims)}]" if dims else "")
    if form == "stateType":
        return f"state<{type_text(proto.stateType.wrappedType)}>"
    if form == "listType":
        return f"list<{type_text(proto.listType.type)}, {_dim(proto.listType.length)}>"
    if form == "dictionaryType":
        return f"dict<{type_text(proto.dictionaryType.keyType)}, {type_text(proto.dictionaryType.valueType)}>"
    if form == "tupleType":
        return f"({', '.join(type_text(each) for each in proto.tupleType.types)})"
    return "no type"


def _element(tensor: Any) -> str:
    name = str(MIL_pb2.DataType.Name(tensor.dataType))
    return _TYPES.get(name) or name.lower()


def _dim(proto: Any) -> str:
    if proto.WhichOneof("dimension") == "constant":
        return str(proto.constant.size)
    return "..." if proto.unknown.variadic else "?"


class _Reader:
    def __init__(self, package: Opened, block: Any) -> None:
        self.values = ValueReader(package.weights)
        self.symbols = Symbols()
        self.used: set[str] = set()
        self.returned: set[str] = set()
        self.note(block)

    def note(self, block: Any) -> None:
        self.returned.update(block.outputs)
        for op in block.operations:
            for argument in op.inputs.values():
                self.used.update(each.name for each in argument.arguments if each.name)
            for inner in op.blocks:
                self.note(inner)

    def graph(self, inputs: Any, block: Any, outer: ChainMap[str, Value | Constant]) -> Graph:
        scope = outer.new_child()
        given = [Value(each.name, type_text(each.type), each) for each in inputs]
        scope.update({each.name: each for each in given})
        nodes: list[Node] = []
        for op in block.operations:
            if op.type == "const":
                nodes += self.constant(op, scope)
            else:
                nodes.append(self.node(op, scope))
        outputs = [found for name in block.outputs if (found := _value(scope[name]))]
        return Graph(given, nodes, outputs)

    def constant(self, op: Any, scope: ChainMap[str, Value | Constant]) -> Iterator[Node]:
        result = op.outputs[0]
        value = Value(result.name, type_text(result.type), result)
        constant = self.read(op.attributes["val"], op, value)
        scope[result.name] = constant
        if result.name in self.returned or result.name not in self.used:
            extra = [(name, self.attribute(op, name)) for name in _further(op, "val")]
            yield _node(op, [("val", constant), *extra], [value])

    def node(self, op: Any, scope: ChainMap[str, Value | Constant]) -> Node:
        arguments: list[tuple[str, Value | Constant]] = []
        for label, argument in sorted(op.inputs.items()):
            several = len(argument.arguments) > 1
            for index, binding in enumerate(argument.arguments):
                named = binding.WhichOneof("binding") == "name"
                found = scope[binding.name] if named else self.read(binding.value, None, None)
                arguments.append((f"{label}[{index}]" if several else label, found))
        arguments += [(name, self.attribute(op, name)) for name in _further(op)]
        outputs = [Value(each.name, type_text(each.type), each) for each in op.outputs]
        node = _node(op, arguments, outputs)
        scope.update({each.name: each for each in outputs})
        node.blocks = [self.graph(inner.inputs, inner, scope) for inner in op.blocks]
        return node

    def attribute(self, op: Any, name: str) -> Constant:
        """An attribute, whose value need not be one that the reader of inputs understands."""
        proto = op.attributes[name]
        try:
            return self.read(proto, None, None)
        except PackageError:
            digest = hashlib.blake2b(proto.SerializeToString(deterministic=True), digest_size=8).hexdigest()
            return Constant(f"{type_text(proto.type)} #{digest}", proto, None, None, None, None)

    def read(self, proto: Any, owner: Any, value: Value | None) -> Constant:
        held = self.values.read(proto, self.symbols, "a constant")
        kind = type_text(proto.type)
        if proto.type.WhichOneof("type") != "tensorType":
            return Constant(_shortened(kind, _plain(held.value)), proto, owner, value, None, held.value)
        shape = tuple(int(each.constant.size) for each in proto.type.tensorType.dimensions)
        dtype = _element(proto.type.tensorType)
        tensor = None
        if dtype != "string" and (held.path is not None or prod(shape) > _INLINE):
            place = None if held.path is None else (held.path, int(proto.blobFileValue.offset))
            tensor = tensor_of(held.value, dtype, shape, place)
        if prod(shape) > _INLINE:
            text = kind if tensor is not None else _shortened(kind, _plain(held.value.tolist()))
        else:
            opened = held.value if not hasattr(held.value, "val") else held.value.val
            text = _literal(kind, np.asarray(opened))
        return Constant(text, proto, owner, value, tensor, held.value)


def _node(op: Any, arguments: list[tuple[str, Value | Constant]], outputs: list[Value]) -> Node:
    told = ", ".join(f"{label}={_key(op.type, label, each)}" for label, each in arguments)
    blocks = "".join(f" block({', '.join(type_text(each.type) for each in block.inputs)})" for block in op.blocks)
    return Node(op, f"{op.type}({told}){blocks} -> {', '.join(each.type for each in outputs)}", arguments, outputs)


def _key(op_type: str, label: str, argument: Value | Constant) -> str:
    if isinstance(argument, Value):
        return "%"  # whatever its type: what makes it says so
    return "labels" if op_type == "classify" and label == "classes" else argument.text


def _value(found: Value | Constant) -> Value | None:
    return found.value if isinstance(found, Constant) else found


def _further(op: Any, *known: str) -> list[str]:
    return [name for name in sorted(op.attributes) if name not in ("name", *known)]


def _shortened(kind: str, text: str) -> str:
    if len(text) <= _LONGEST:
        return f"{kind}({text})"
    return f"{kind} #{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def _plain(value: Any) -> str:
    kind: Any = value.__class__
    if kind is list:
        return f"[{', '.join(map(_plain, value))}]"
    if kind is dict:
        return f"{{{', '.join(f'{_plain(key)}: {_plain(value[key])}' for key in value)}}}"
    return quoted(str(value)) if issubclass(kind, str) else str(value)


def _literal(kind: str, array: Any) -> str:
    items = [_plain(each) for each in array.reshape(-1)]
    return f"{kind}({items[0] if array.ndim == 0 else ', '.join(items)})"
