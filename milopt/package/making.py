"""PyMIL's objects, made as they are described: nothing is inferred, checked, renamed or added.

PyMIL's own constructors infer the types of what they make and may refuse. Here the package has said what the types
are; the attributes set are those that ``Operation.__init__`` and ``Var.__init__`` of coremltools 9.0 set.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from coremltools.converters.mil.mil import InternalVar, ListVar, Operation, Var
from coremltools.converters.mil.mil.input_type import TensorInputType
from coremltools.converters.mil.mil.operation import mil_list

from milopt.mil import Block, flat, is_constexpr, types
from milopt.opaque import Opaque
from milopt.package.weights import Packed

__all__ = ["boxed", "connect", "hold", "internal", "new_constant", "new_op", "new_value", "set_type_domains"]

_ready: set[type[Operation]] = set()


def new_op(kind: type[Operation], name: str, block: Block, inputs: Mapping[str, Any]) -> Operation:
    """An op of PyMIL's class ``kind``, with no outputs yet, at the end of ``block``."""
    op: Any = object.__new__(kind)
    set_type_domains(kind)
    spec: Any = kind.input_spec
    op._input_types = spec.input_types
    op._type_domains = kind.type_domains
    op.name = name
    op._output_vars = []
    op._input_vars = dict.fromkeys(op._input_types)
    op.blocks = []
    op.enclosing_block = block
    op.scopes = defaultdict(list)
    for key in op._input_types:
        setattr(op, key, None)
    connect(op, inputs)
    block.operations.insert_op_before(op)  # type: ignore[attr-defined]
    result: Operation = op
    return result


def connect(op: Any, inputs: Mapping[str, Any]) -> None:
    """Set inputs that the op does not have yet."""
    opaque = isinstance(op, Opaque)
    for key, value in inputs.items():
        op._input_vars[key] = value
        if not opaque:
            setattr(op, key, value)
        for var in flat(value):
            if isinstance(var, InternalVar):
                op.enclosing_block._internal_vars.add(var)
            var.add_child_op(op)
    if opaque:
        op.name_inputs(op._input_vars)


def set_type_domains(kind: type[Operation]) -> None:
    """What PyMIL does when the first op of a class is made: tell its inputs which element types they take."""
    if kind in _ready or issubclass(kind, Opaque):
        return
    spec: Any = kind.input_spec
    for each in spec.input_types.values():
        if isinstance(each, TensorInputType) and not each.type_domain:
            each.type_domain = kind.type_domains[each.type_domain_id]
    _ready.add(kind)


def new_value(name: str, kind: Any, op: Operation | None = None, box: Any = None) -> Var:
    """A value of type ``kind``; the next output of ``op``, if one is given."""
    listed = types.is_list(kind)
    var: Any = object.__new__(ListVar if listed else Var)
    var.name = name
    var._sym_type = kind
    var._sym_val = box
    var._op = op
    var._child_ops = []
    var.consuming_blocks = []
    if listed:
        var._elem_type, var.init_length, var.dynamic_length = kind.T
    if op is None:
        var.op_output_idx = None
        var._nonreplaceable_vars_upstream = set()
        var.is_descendant_of_const = False
    else:
        var.op_output_idx = len(op.outputs)
        before = op.get_flattened_inputs()
        compressed = is_constexpr(op.op_type)
        var._nonreplaceable_vars_upstream = {var} if compressed else _compressed_before(op, before)
        var.is_descendant_of_const = compressed or box is not None or all(v.is_descendant_of_const for v in before)
        op.outputs.append(var)
    result: Var = var
    return result


def _compressed_before(op: Operation, inputs: Iterable[Any]) -> set[Var]:
    """The ``constexpr_*`` values that the op depends on; a set is shared where nothing is added to it."""
    result: set[Var] = set()
    if op.op_type == "shape":
        return result
    for var in inputs:
        more: set[Var] = var.nonreplaceable_vars_upstream
        if not more <= result:
            result = more if result <= more else result | more
    return result


def boxed(kind: Any, value: Any) -> Any:
    """PyMIL's box around a value of type ``kind``; :class:`Packed` is one already."""
    if isinstance(value, Packed):
        return value
    box = kind()
    # the property would convert
    setattr(box, "_val" if hasattr(box, "_val") else "val", value)
    return box


def new_constant(kind: type[Operation], name: str, block: Block, type_: Any, value: Any) -> Operation:
    """A ``const`` op with its output, which is called like the op."""
    held: Any = object.__new__(InternalVar)
    box = value if isinstance(value, Packed) else types.unknown(mil_list(value) if types.is_list(type_) else value)
    _fill_internal(held, f"{name}_val", box)
    op: Any = new_op(kind, name, block, {"val": held})
    op._weight_id = None
    new_value(name, type_, op, boxed(type_, value))
    result: Operation = op
    return result


def internal(name: str, value: Any) -> InternalVar:
    """What PyMIL keeps for itself as an input: a function, a list of blocks."""
    var: Any = object.__new__(InternalVar)
    _fill_internal(var, name, types.unknown(value))
    result: InternalVar = var
    return result


def _fill_internal(var: Any, name: str, box: Any) -> None:
    var.name = name
    var._sym_type = types.unknown
    var._sym_val = box
    var._op = None
    var.op_output_idx = None
    var._child_ops = []
    var.consuming_blocks = []
    var._nonreplaceable_vars_upstream = set()
    var.is_descendant_of_const = False


def hold(var: Var, box: Packed) -> Var:
    """Let a new constant hold packed elements, of its own type and shape, in place of the value it was made with."""
    constant: Any = var
    assert (constant.op.op_type, tuple(constant.shape)) == ("const", box.shape)
    constant._sym_val = constant.op.val._sym_val = box
    return var
