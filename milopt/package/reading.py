"""A model's specification becomes a PyMIL program.

The types of all values are those the package gives; PyMIL's inference is asked for what the package leaves open, and
decides nothing. An op is of PyMIL's class for the function's opset where there is one that takes its inputs, else an
:class:`~milopt.opaque.Opaque`. What PyMIL has no place for is kept in an :class:`~milopt.package.origin.Origin`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, cast

from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

from milopt.errors import MiloptError, PackageError
from milopt.mil import Block, Function, Operation, Program, Target, Var, is_state, operations, types, value_names
from milopt.package.arguments import Arguments, Scope, const_class
from milopt.package.inferring import infer_types, infer_values
from milopt.package.making import boxed, new_constant, new_op, new_value
from milopt.package.naming import make_names_unique
from milopt.package.origin import FunctionOrigin, Origin, function_origin, origin_of
from milopt.package.parts import copied, name_of, names_in, quoted
from milopt.package.placing import new_block, new_function
from milopt.package.symbols import Symbols
from milopt.package.values import ValueReader
from milopt.package.weights import Weights

__all__ = ["OPSETS", "read_program"]

# what PyMIL, protobuf and numpy raise when they are given what makes no sense
_PYMIL_SAYS_NO = (
    *(ValueError, TypeError, AttributeError, KeyError, IndexError, ArithmeticError, AssertionError),
    *(RecursionError, NotImplementedError),
)
OPSETS = {f"CoreML{int(each) - 1}": each for each in Target}


def read_program(proto: Any, weights: Weights, order: Iterable[str], where: str) -> Program:
    """The program in ``proto`` (a ``MIL.Program``); functions in ``order``, those it doesn't name behind, sorted."""
    if proto.version != 1:
        raise PackageError(f"{where} has a program of version {proto.version}; 1 is known")
    program = Program()
    names = [name for name in order if name in proto.functions]
    names += sorted(set(proto.functions) - set(names))
    values = ValueReader(weights)
    for name in dict.fromkeys(names):
        place = f"{where}: function {quoted(name)}"
        try:
            program.functions[name] = _FunctionReader(values, place).function(proto.functions[name])
        except MiloptError:
            raise
        except _PYMIL_SAYS_NO as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise PackageError(f"{place} can't be read: {reason}") from error
    weights.check()
    make_names_unique(program)
    for function in program.functions.values():
        _note_names(function)
    return program


def _note_names(function: Function) -> None:
    """Remember the names that things were given, so that it shows when they are renamed."""
    for op in operations(function):
        origin = origin_of(op)
        if origin is not None:
            origin.assigned = op.name
    whole = function_origin(function)
    assert whole is not None
    whole.names |= value_names(function)


class _FunctionReader:
    """Reads one function. ``taken`` holds every name in it, so that invented ones are new."""

    def __init__(self, values: ValueReader, where: str) -> None:
        self.values = values
        self.where = where
        self.symbols = Symbols()
        self.taken: set[str] = set()
        self.counts: dict[str, int] = {}
        self.types: dict[str, tuple[Any, Any]] = {}

    def function(self, proto: Any) -> Function:
        if proto.opset not in OPSETS:
            raise PackageError(f"{self.where} has the unknown opset {quoted(proto.opset)}")
        if len(proto.block_specializations) != 1:
            raise PackageError(f"{self.where} has {len(proto.block_specializations)} specializations; one is supported")
        if proto.opset not in proto.block_specializations:
            raise PackageError(f"{self.where} has no block for its opset {proto.opset}")
        self.opset = OPSETS[proto.opset]
        block = proto.block_specializations[proto.opset]
        self.taken = {each.name for each in proto.inputs} | set(names_in(block))
        names = frozenset(self.taken)
        scope = Scope(None)
        inputs: list[Var] = []
        for each in proto.inputs:
            inputs.append(self.declared(each, f"{self.where}: input {quoted(each.name)}"))
            scope.define(each.name, inputs[-1], self.where)
        function = new_function({var.name: var for var in inputs}, self.opset)
        self.arguments = Arguments(self.values, self.symbols, self.unique)
        if block.inputs:
            raise PackageError(f"{self.where}: its block has inputs of its own")
        self.block(block, function, scope)
        origin = FunctionOrigin(names, self.types, copied(block.attributes, self.where))
        cast("Any", function).package_origin = origin
        return function

    def declared(self, proto: Any, where: str) -> Var:
        """An input of the function or of a block."""
        kind, exact = self.values.type(proto.type, self.symbols, where)
        if not exact:
            self.types[proto.name] = kind, copy.deepcopy(proto.type)
        return new_value(proto.name, kind)

    def unique(self, stem: str) -> str:
        name = stem
        while name in self.taken:
            self.counts[stem] = self.counts.get(stem, -1) + 1
            name = f"{stem}_{self.counts[stem]}"
        self.taken.add(name)
        return name

    def block(self, proto: Any, block: Block, scope: Scope) -> None:
        updates: list[Operation] = []  # the last op, if it is a write_state that a read_state may follow
        for op in proto.operations:
            where = f"{self.where}: op {quoted(name_of(op))}"
            if op.type == "const":
                self.constant(op, block, scope, where)
            elif op.type == "write_state" and self.is_update(op, scope, where):
                updates = [self.update(op, block, scope, where)]
                continue
            elif op.type == "read_state" and updates and self.reads_back(op, updates[0], scope, where):
                pass
            else:
                self.operation(op, block, scope, where)
            updates = []
        block.set_outputs([scope.find(name, f"{self.where}: a block's output") for name in proto.outputs])

    def constant(self, proto: Any, block: Block, scope: Scope, where: str) -> None:
        if "val" not in proto.attributes or len(proto.outputs) != 1 or proto.inputs or proto.blocks:
            raise PackageError(f"{where} is a const that does not consist of one value and one output")
        held = self.values.read(proto.attributes["val"], self.symbols, where)
        kind, exact = self.values.type(proto.outputs[0].type, self.symbols, where)
        if proto.outputs[0].type != proto.attributes["val"].type and not _same(kind, held.kind):
            raise PackageError(f"{where} has a value of another type than its output")
        name = proto.outputs[0].name
        op = new_constant(const_class(), name, block, held.kind, held.value)
        origin = self.remember(op, proto, ("name", "val"))
        origin.path = held.path
        if not held.exact:
            origin.value, origin.held = copy.deepcopy(proto.attributes["val"]), held.value
        if not exact:
            origin.types[0] = held.kind, copy.deepcopy(proto.outputs[0].type)
        scope.define(name, op.outputs[0], where)

    def remember(self, op: Operation, proto: Any, known: Iterable[str]) -> Origin:
        """Keep what the package says of the op beyond ``known`` attributes, and name the op as it does."""
        further = {name: value for name, value in proto.attributes.items() if name not in known}
        origin = Origin(attributes=copied(further, f"{self.where}: op {quoted(name_of(proto))}"))
        if "name" in proto.attributes:
            strings = proto.attributes["name"].immediateValue.tensor.strings.values
            origin.name = strings[0] if len(strings) == 1 else None
            if origin.name is None:
                origin.attributes["name"] = copy.deepcopy(proto.attributes["name"])
        if origin.name:
            op.name = origin.name
        cast("Any", op).package_origin = origin
        return origin

    def operation(self, proto: Any, block: Block, scope: Scope, where: str) -> None:
        stem = proto.outputs[0].name if proto.outputs else self.unique(proto.type or "op")
        found = self.arguments.read(proto, stem, block, scope, self.opset, where)
        kind: Any = self.arguments.fitting_class(proto.type, stem, found, self.opset)
        op = new_op(kind, stem, block, found.inputs(kind.input_spec.input_types))
        origin = self.remember(op, proto, ("name", *found.attributes))
        origin.inline = found.attributes
        for _, literal in found.literals:
            literal.owner = origin
        self.arguments.add_internals(op)
        for index, each in enumerate(proto.blocks):
            self.nested(each, op, index, scope, origin)
        self.arguments.add_defaults(op, origin)
        self.outputs(op, proto.outputs, scope, origin, where)

    def nested(self, proto: Any, op: Operation, index: int, scope: Scope, origin: Origin) -> None:
        inner = Scope(scope)
        inputs = [
            self.declared(each, f"{self.where}: an input of a block of {quoted(op.name)}") for each in proto.inputs
        ]
        for var in inputs:
            inner.define(var.name, var, self.where)
        block = new_block(f"{op.name}_block{index}", inputs, op)
        op.blocks.append(block)
        origin.blocks.append(copied(proto.attributes, self.where))
        self.block(proto, block, inner)

    def outputs(self, op: Operation, protos: Any, scope: Scope, origin: Origin, where: str) -> None:
        kinds: list[Any] = []
        for index, each in enumerate(protos):
            kind, exact = self.values.type(each.type, self.symbols, where)
            kinds.append(kind)
            if not exact:
                origin.types[index] = kind, copy.deepcopy(each.type)
        inferred = infer_types(op, kinds, self.symbols)
        for index in origin.types:
            origin.types[index] = inferred[index], origin.types[index][1]
        known = infer_values(op, inferred, self.symbols)
        for each, kind, value in zip(protos, inferred, known, strict=True):
            box = None if value is None else boxed(kind, value)
            scope.define(each.name, new_value(each.name, kind, op, box), where)

    def is_update(self, proto: Any, scope: Scope, where: str) -> bool:
        """Whether a ``write_state`` is the one that PyMIL has an op for."""
        if set(proto.inputs) != {"input", "data"} or proto.outputs or proto.blocks:
            return False
        bindings = [each for value in proto.inputs.values() for each in value.arguments]
        if len(bindings) != 2 or any(each.WhichOneof("binding") != "name" for each in bindings):
            return False
        return is_state(scope.find(proto.inputs["input"].arguments[0].name, where))

    def update(self, proto: Any, block: Block, scope: Scope, where: str) -> Operation:
        """``write_state``: PyMIL's ``coreml_update_state``, whose result is what the state then holds."""
        state, value = (scope.find(proto.inputs[key].arguments[0].name, where) for key in ("input", "data"))
        kind: Any = SSAOpRegistry.dialect_ops["coreml_update_state"]
        name = self.unique(f"{name_of(proto)}_value")
        op = new_op(kind, name, block, {"state": state, "value": value})
        written = self.remember(op, proto, ("name",))
        op.name = name
        cast("Any", op).package_origin = Origin(write=written)
        new_value(name, state.sym_type.wrapped_type(), op)
        return op

    def reads_back(self, proto: Any, update: Operation, scope: Scope, where: str) -> bool:
        """Let a ``read_state`` right after the update be its result, if it reads the same state."""
        bindings = [each for value in proto.inputs.values() for each in value.arguments]
        if len(bindings) != 1 or len(proto.outputs) != 1 or bindings[0].WhichOneof("binding") != "name":
            return False
        if scope.find(bindings[0].name, where) is not update.inputs["state"]:
            return False
        before = origin_of(update)
        assert before is not None
        var = update.outputs[0]
        kind, exact = self.values.type(proto.outputs[0].type, self.symbols, where)
        if kind is not var.sym_type:
            return False
        read = self.remember(update, proto, ("name",))
        read.write, read.reads = before.write, True
        if not exact:
            read.types[0] = kind, copy.deepcopy(proto.outputs[0].type)
        var.name = proto.outputs[0].name
        if not read.name:
            update.name = var.name
        scope.define(var.name, var, where)
        return True


def _same(kind: Any, other: Any) -> bool:
    return bool(kind is other or (types.is_list(kind) and types.is_list(other)))
