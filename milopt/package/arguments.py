"""The inputs of an op: what a package binds to them, as values of a PyMIL program.

PyMIL has every input as a value. In a package an input may also be written inside the op, as a literal or (of
``constexpr_*`` before iOS18) as an attribute, and may be left out where the op has a default. Such values become
``const`` ops that remember it, so that they are written the same way again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from coremltools.converters.mil.mil.input_type import InternalInputType, TupleInputType
from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

from milopt.errors import PackageError
from milopt.mil import Block, Operation, Target, Var, is_constexpr, types
from milopt.opaque import Opaque, opaque_class
from milopt.package.making import connect, internal, new_constant, set_type_domains
from milopt.package.origin import Origin, Role
from milopt.package.symbols import Symbols
from milopt.package.values import ValueReader

__all__ = ["Arguments", "Found", "Scope", "add_defaults", "const_class", "op_class"]


class Scope:
    """The values that a block sees: its own, and those of the blocks around it."""

    def __init__(self, outer: Scope | None) -> None:
        self._outer = outer
        self._own: dict[str, Var] = {}

    def define(self, name: str, var: Var, where: str) -> None:
        if name in self._own:
            raise PackageError(f"{where}: the value {name[:80]!r} is defined twice")
        self._own[name] = var

    def find(self, name: str, where: str) -> Var:
        scope: Scope | None = self
        while scope is not None:
            if name in scope._own:
                return scope._own[name]
            scope = scope._outer
        raise PackageError(f"{where}: the value {name[:80]!r} is used and not defined before")


def op_class(op_type: str, opset: Target) -> Any:
    """PyMIL's class of the op in that opset, or ``None``."""
    variants: dict[Any, Any] = SSAOpRegistry.core_ops.get(op_type, {})
    if not variants or op_type.startswith("_"):
        return None
    newest = max(variants)
    return variants.get(min(opset, newest) if opset > newest else opset)


def const_class() -> Any:
    """PyMIL's ``const``, which is the same in every opset."""
    return op_class("const", Target.iOS15)


@dataclass
class Found:
    """What the package binds to the inputs of one op; ``attributes`` are those of them that it writes as attributes.

    ``literals`` are the ``const`` ops made for the values that are written inside the op.
    """

    bound: dict[str, list[Var]] = field(default_factory=dict[str, list[Var]])
    attributes: tuple[str, ...] = ()
    literals: list[tuple[Operation, Origin]] = field(default_factory=list[tuple[Operation, Origin]])

    def inputs(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs as PyMIL has them: a value, or a list of values where the op takes several."""
        return {
            name: values if len(values) != 1 or isinstance(spec.get(name), TupleInputType) else values[0]
            for name, values in self.bound.items()
        }


class Arguments:
    """Reads the inputs of a function's ops; ``unique`` makes a name from a stem."""

    def __init__(self, values: ValueReader, symbols: Symbols, unique: Callable[[str], str]) -> None:
        self._values = values
        self._symbols = symbols
        self._unique = unique

    def read(self, proto: Any, stem: str, block: Block, scope: Scope, opset: Target, where: str) -> Found:
        """The op's inputs; for literals, ``const`` ops are added to ``block``."""
        found = Found()
        for name, argument in sorted(proto.inputs.items()):  # protobuf's own order is another every time
            values: list[Var] = []
            for binding in argument.arguments:
                form = binding.WhichOneof("binding")
                if form == "name":
                    values.append(scope.find(binding.name, where))
                elif form == "value":
                    values.append(self._literal(found, name, stem, binding.value, block, where))
                else:
                    raise PackageError(f"{where}: its input {name[:80]!r} is bound to nothing")
            found.bound[name] = values
        spec = _spec(op_class(proto.type, opset)) if is_constexpr(proto.type) else {}
        found.attributes = tuple(
            name
            for name, value in sorted(proto.attributes.items())
            if name not in found.bound and name != "name" and (name in spec or value.HasField("blobFileValue"))
        )
        for name in found.attributes:
            found.bound[name] = [self._literal(found, name, stem, proto.attributes[name], block, where)]
        return found

    def _literal(self, found: Found, argument: str, stem: str, proto: Any, block: Block, where: str) -> Var:
        held = self._values.read(proto, self._symbols, f"{where}: its input {argument[:80]!r}")
        op = new_constant(const_class(), self._unique(f"{stem}_{argument}"), block, held.kind, held.value)
        origin = Origin(role=Role.LITERAL, argument=argument, path=held.path)
        if not held.exact:
            origin.value, origin.held = copy.deepcopy(proto), held.value
        cast("Any", op).package_origin = origin
        found.literals.append((op, origin))
        return op.outputs[0]

    def fitting_class(self, op_type: str, name: str, found: Found, opset: Target) -> type[Operation]:
        """PyMIL's class for the op if it takes these inputs, else the class of opaque ops of that type."""
        kind = op_class(op_type, opset)
        if kind is None or op_type == "const":
            return opaque_class(op_type)
        set_type_domains(kind)
        spec = _spec(kind)
        if not _names_fit(spec, found):
            return opaque_class(op_type)
        try:
            kind.input_spec.validate_inputs(name, op_type, found.inputs(spec))
        except (ValueError, TypeError, AttributeError, KeyError, IndexError):  # PyMIL's many ways to say no
            return opaque_class(op_type)
        result: type[Operation] = kind
        return result

    def add_internals(self, op: Operation) -> None:
        """What PyMIL wants of an op with nested blocks: the functions that would have made them."""
        if isinstance(op, Opaque):
            return
        spec: dict[str, Any] = cast("Any", op).input_spec.input_types
        for name, each in spec.items():
            if isinstance(each, InternalInputType):
                value = op.blocks if name == "_existing_blocks" else _no_function
                connect(op, {name: internal(f"{op.name}{name}", value)})

    def add_defaults(self, op: Operation, origin: Origin) -> None:
        """Give the op the inputs that it has by default, as PyMIL's builder does."""
        add_defaults(op, origin, self._unique)


def add_defaults(op: Operation, origin: Origin | None, unique: Callable[[str], str]) -> None:
    """Give the op the inputs that it has by default; one whose defaults PyMIL can't tell becomes opaque.

    ``origin`` is the op's own, ``unique`` makes a name from a stem.
    """
    if isinstance(op, Opaque):
        return
    try:
        defaults: dict[str, Any] = dict(op.default_inputs().items())
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, ArithmeticError, AssertionError):
        _make_opaque(op)  # they depend on inputs, which are not what PyMIL expects
        return
    spec: dict[str, Any] = cast("Any", op).input_spec.input_types
    for name, value in defaults.items():
        if value is None or isinstance(value, Var) or name not in spec or name in op.inputs:
            continue
        if isinstance(spec[name], (InternalInputType, TupleInputType)):
            continue
        kind, held = _typed(value)
        made = new_constant(const_class(), unique(f"{op.name}_{name}"), op.enclosing_block, kind, held)
        operations: Any = op.enclosing_block.operations
        operations.remove(made)
        operations.insert_op_before(made, op)
        cast("Any", made).package_origin = Origin(role=Role.DEFAULT, owner=origin, argument=name)
        connect(op, {name: made.outputs[0]})


def _make_opaque(op: Any) -> None:
    op.__class__ = opaque_class(op.op_type)
    op._input_vars = {name: value for name, value in op._input_vars.items() if value is not None}
    op.name_inputs(op._input_vars)


def _no_function(*_: Any) -> None:
    """Stands for a function that made a nested block."""


def _spec(kind: Any) -> dict[str, Any]:
    return {} if kind is None else kind.input_spec.input_types


def _names_fit(spec: Mapping[str, Any], found: Found) -> bool:
    """Whether the op has all these inputs, takes as many values for each, and none that it needs is missing."""
    for name, values in found.bound.items():
        if name not in spec or isinstance(spec[name], InternalInputType):
            return False
        if len(values) != 1 and not isinstance(spec[name], TupleInputType):
            return False
    needed = (name for name, each in spec.items() if not each.optional and not isinstance(each, InternalInputType))
    return all(name in found.bound for name in needed)


def _typed(value: Any) -> tuple[Any, Any]:
    """PyMIL's type of a default, and the default in that type (coremltools 9.0, ``Const._get_type_val``)."""
    if isinstance(value, bool):
        return types.bool, value
    if isinstance(value, str):
        return types.str, value
    if isinstance(value, int):
        return types.int32, np.int32(value)
    if isinstance(value, float):
        return types.fp32, np.float32(value)
    array: Any = np.asarray(value)
    narrow = {"int64": np.int32, "float64": np.float32}.get(array.dtype.name)
    array = array if narrow is None else array.astype(narrow)
    element = types.numpy_type_to_builtin_type(array.dtype)
    if array.ndim == 0:
        return element, array[()]
    return types.tensor(element, array.shape), array
