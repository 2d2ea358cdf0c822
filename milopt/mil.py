"""MIL as milopt sees it: coremltools' program classes under one roof, and the few questions asked of them everywhere.

``mb`` is coremltools' own MIL builder; tests and examples write programs with it. Rules build with the builder they
are handed (:class:`milopt.building.Builder`), which places, names and scopes what it makes.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple, cast

import numpy as np
from coremltools import target
from coremltools.converters.mil.mil import Block, Function, ListVar, Operation, Program, Var, get_new_symbol, types
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry
from coremltools.converters.mil.mil.program import Placeholder, StateTensorPlaceholder

from milopt.opaque import Opaque

__all__ = [
    "Block",
    "Function",
    "InputKind",
    "ListVar",
    "Operation",
    "Program",
    "Target",
    "Var",
    "add_input",
    "arguments",
    "building_in",
    "constant",
    "declare_range",
    "digest",
    "dtype_name",
    "enumerate_shapes",
    "first_opset",
    "flat",
    "function_of",
    "get_new_symbol",
    "is_compressed",
    "is_constant",
    "is_constant_like",
    "is_constexpr",
    "is_dead",
    "is_output",
    "is_removed",
    "is_state",
    "is_symbolic",
    "is_used",
    "mb",
    "named_blocks",
    "new_ops",
    "op_inputs",
    "op_types",
    "operations",
    "opset_of",
    "preceding",
    "producers",
    "refine_shape",
    "remove_if_dead",
    "remove_input",
    "remove_ops",
    "rename_input",
    "replace_input",
    "replace_uses",
    "set_ranges",
    "shape_of",
    "target",
    "types",
    "value_names",
    "weight_key",
]

Target = target
_block_module: Any = importlib.import_module("coremltools.converters.mil.mil.block")
_input_types: Any = importlib.import_module("coremltools.converters.mil.mil.input_type")
_declarations: Any = importlib.import_module("coremltools.converters.mil.input_types")
_input_types_of: Any = importlib.import_module("coremltools.converters.mil.input_types")
_registry: Any = importlib.import_module("coremltools.converters.mil.mil.ops.registry").SSAOpRegistry


def operations(block: Block) -> Iterator[Operation]:
    """Every op of ``block`` and of the blocks nested in it, outer ops before their inner ones, in program order."""
    for op in block.operations:
        yield op
        for inner in op.blocks:
            yield from operations(inner)


def arguments(op: Operation) -> Iterator[tuple[str, Var]]:
    """``(input name, value)`` for every input of ``op``; a variadic input yields once per value."""
    for name, value in op.inputs.items():
        if isinstance(value, Var):
            yield name, value
        else:
            for each in value:
                yield name, each


def dtype_name(var: Var) -> str:
    """MIL's name of the value's element type: ``fp16``, ``int32``, ``bool``, ``string``..."""
    return str(types.builtin_to_string(var.dtype))


def is_state(var: Var) -> bool:
    return bool(types.is_state(var.sym_type))


def is_symbolic(dim: object) -> bool:
    """Whether a dimension is a symbol (known when the program runs) and not a number."""
    return not isinstance(dim, (int, np.integer))


def shape_of(var: Var) -> tuple[Any, ...]:
    """The value's shape with plain ``int`` dimensions; symbols stay as they are."""
    return tuple(dim if is_symbolic(dim) else int(dim) for dim in var.shape)


def is_constant(var: Var | None) -> bool:
    """Whether the value is written in the program (a ``const``), not computed by it nor decompressed."""
    return var is not None and var.op is not None and var.op.op_type == "const"


def is_constexpr(op_type: str) -> bool:
    """Whether an op of that type makes a weight of compressed constants, at compile time."""
    return op_type.startswith("constexpr_")


def is_compressed(var: Var | None) -> bool:
    """Whether the value is what a ``constexpr_`` op makes."""
    return var is not None and var.op is not None and is_constexpr(var.op.op_type)


def is_constant_like(op: Operation) -> bool:
    """Whether the op is a constant, written out or compressed: it goes with what uses it."""
    return op.op_type == "const" or is_constexpr(op.op_type)


def constant(var: Var | None) -> Any:
    """The numpy value of a ``const``; ``None`` for anything else (folded values of other ops do not count)."""
    if var is None or var.op is None or var.op.op_type != "const":
        return None
    return var.val


def is_output(var: Var) -> bool:
    """Whether some block, a function or a nested one, returns this value."""
    return bool(var.consuming_blocks)


def weight_key(array: np.ndarray[Any, Any]) -> tuple[object, ...]:
    """The same for two arrays that view the same bytes, in the same order, as the same type, whatever their shapes.

    Weights shared between functions, or reshaped by a pass, are recognised by it without reading them. It is valid
    while one of the arrays is alive.
    """
    # Strides matter where the elements are not in order: an array and its transpose begin at the same address.
    layout = () if array.flags.c_contiguous else (array.shape, array.strides)
    return int(array.__array_interface__["data"][0]), array.nbytes, array.dtype.str, layout


def digest(array: np.ndarray[Any, Any], size: int = 20) -> bytes:
    """A hash of ``size`` bytes of the array's elements in order, whatever its shape and element type."""
    elements: Any = np.ascontiguousarray(array)
    return hashlib.blake2b(elements.reshape(-1).view(np.uint8), digest_size=size).digest()


def named_blocks(functions: Mapping[str, Function]) -> Iterator[tuple[str, Block]]:
    """``(function name, block)`` for every function and each block nested in it."""
    for name, function in functions.items():
        yield name, function
        for op in operations(function):
            for block in op.blocks:
                yield name, block


def flat(values: Any) -> tuple[Any, ...]:
    """A tuple of what was given alone or in a sequence."""
    return tuple(cast("Sequence[Any]", values)) if isinstance(values, (list, tuple)) else (values,)


def preceding(op: Operation) -> Operation | None:
    """The op right before ``op`` in its block."""
    # coremltools keeps a block's ops in a linked list, and offers no other way than the node to step in it
    node = cast("Any", op.enclosing_block.operations)._get_node_from_op(op).prev
    return None if node is None else node.op


def new_ops(anchor: Operation, since: Operation | None) -> list[Operation]:
    """The ops between ``since`` (what preceded ``anchor`` earlier) and ``anchor``, in program order."""
    ops: list[Operation] = []
    op = preceding(anchor)
    while op is not None and op is not since:
        ops.append(op)
        op = preceding(op)
    return ops[::-1]


class _Blocks(list[Block]):
    """coremltools' stack of blocks, and all that were ever put on it: it takes blocks off by slicing."""

    def __init__(self, blocks: Iterable[Block], opened: list[Block]) -> None:
        super().__init__(blocks)
        self.opened = opened

    def append(self, block: Block) -> None:
        super().append(block)
        self.opened.append(block)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return _Blocks(list(self)[at], self.opened)
        return list(self)[int(at)]


@contextmanager
def building_in(block: Block) -> Generator[list[Block]]:
    """Make ``block`` the one that ``mb`` adds to; gives a list that gets the nested blocks which are built meanwhile.

    ``with block:`` would do, but on leaving it coremltools walks over the whole block, once for every op built.
    """
    chain = [block]
    while (outer := chain[-1].outer_op) is not None:
        chain.append(outer.enclosing_block)
    saved = _block_module.BLOCK_STACK
    opened: list[Block] = []
    _block_module.BLOCK_STACK = _Blocks([*saved, *reversed(chain)], opened)
    try:
        yield opened
    finally:
        _block_module.BLOCK_STACK = saved


def replace_uses(old: Var, new: Var, after: Operation | None = None) -> None:
    """Let everything that uses ``old``, outputs included, use ``new``. Their types must be equal.

    For an input, what comes behind the op ``after``.
    """
    anchor = old.op or after
    assert anchor is not None
    # anchored at the producer, coremltools visits its users alone; forced, because it would not let constexpr ops go
    anchor.enclosing_block.replace_uses_of_var_after_op(anchor, old, new, force_replace=True, no_check_var_types=True)


def is_removed(op: Operation) -> bool:
    return cast("Any", op).enclosing_block is None


def remove_ops(ops: Iterable[Operation]) -> None:
    """Take ops out of their blocks; ``ops`` is in program order, and nothing else needs their values."""
    for op in reversed(list(ops)):
        op.enclosing_block.remove_ops([op])


_SIDE_EFFECTS = frozenset({"coreml_update_state", "write_state", "print"})


def is_used(op: Operation) -> bool:
    """Whether an op or a block uses what ``op`` computes."""
    return any(var.child_ops or is_output(var) for var in op.outputs)


def is_dead(op: Operation) -> bool:
    """Whether nothing uses what ``op`` computes, and running it has no other effect."""
    if is_used(op):
        return False
    inner = (each for block in op.blocks for each in operations(block))
    # of an op that PyMIL does not know it is not known what it does either
    return not any(each.op_type in _SIDE_EFFECTS or isinstance(each, Opaque) for each in (op, *inner))


def producers(op: Operation) -> list[Operation]:
    """The ops that make what ``op``, and the ops nested in it, use."""
    inner = (each for block in op.blocks for each in operations(block))
    return [var.op for each in (op, *inner) for _, var in arguments(each) if var.op is not None]


def remove_if_dead(ops: Iterable[Operation]) -> int:
    """Remove those of ``ops`` that nothing uses, and what then is unused of their inputs; returns how many went."""
    todo, count = list(ops), 0
    while todo:
        op = todo.pop()
        if is_removed(op) or not is_dead(op):
            continue
        todo += producers(op)
        op.enclosing_block.remove_ops([op])
        count += 1
    return count


def function_of(op: Operation) -> Function:
    """The function that holds ``op``, in whatever nested block."""
    block = op.enclosing_block
    while block.outer_op is not None:
        block = block.outer_op.enclosing_block
    return cast("Function", block)


def value_names(function: Function) -> set[str]:
    """The names of the function's inputs, values and ops: those that a new value can't have."""
    names = set(function.inputs)
    for op in operations(function):
        names.add(op.name)
        names.update(var.name for var in op.outputs)
    return names


def opset_of(op: Operation) -> target:
    """The opset of the function that holds ``op``."""
    return function_of(op).opset_version


def op_types() -> tuple[str, ...]:
    """Every op type that ``mb`` can build, of all opsets."""
    return (*_registry.core_ops, *_registry.dialect_ops, *_registry.custom_ops)


class InputKind(NamedTuple):
    """What MIL says of an op's input: whether it takes several values, and whether it has to be given."""

    variadic: bool
    required: bool


@lru_cache(maxsize=1024)
def op_inputs(op_type: str) -> dict[str, InputKind] | None:
    """The inputs of an op, in whichever opset; ``None`` where MIL has no such op."""
    if op_type in _registry.core_ops:
        classes: list[Any] = list(dict.fromkeys(_registry.core_ops[op_type].values()))
    elif (known := _registry.dialect_ops.get(op_type) or _registry.custom_ops.get(op_type)) is not None:
        classes = [known]
    else:
        return None
    found: dict[str, list[Any]] = {}
    for each in classes:
        for name, kind in each.input_spec.input_types.items():
            found.setdefault(name, []).append(kind)
    return {
        name: InputKind(
            isinstance(kinds[-1], _input_types.TupleInputType),
            len(kinds) == len(classes) and not any(kind.optional for kind in kinds),
        )
        for name, kinds in found.items()
    }


def first_opset(op_type: str) -> target | None:
    """The opset that brought the op type; ``None`` for one that is of none, such as a dialect's."""
    variants: dict[target, Any] = SSAOpRegistry.core_ops.get(op_type, {})
    return min(variants, default=None)


def add_input(function: Function, name: str, shape: Sequence[Any], dtype: str, *, state: bool = False) -> Var:
    """Give ``function`` a new input, or state, and return its value."""
    kind = types.string_to_builtin(dtype)
    holder: Any = StateTensorPlaceholder if state else Placeholder
    placeholder = holder(sym_shape=tuple(shape), dtype=kind, name=name)
    placeholder.set_name(name)
    function.placeholder_inputs[name] = placeholder
    var: Var = placeholder.outputs[0]
    function._input_dict[name] = var
    return var


def declare_range(function: Function, name: str, axis: int, lower: int, upper: int, usual: int) -> None:
    """Say which sizes an input takes along ``axis``, whose dimension is a symbol; all others are numbers."""
    var = function.inputs[name]
    sizes: list[Any] = [*shape_of(var)]
    sizes[axis] = _declarations.RangeDim(lower, upper, default=usual)
    declared = _declarations.TensorType(name, _declarations.Shape(sizes), dtype=var.dtype)
    function.input_types = type(function.input_types)((*function.input_types, declared))


def remove_input(function: Function, name: str) -> None:
    """Take away an input that nothing uses."""
    unused = [user for user in function.inputs[name].child_ops if is_dead(user)]
    remove_if_dead(unused)
    assert not function.inputs[name].child_ops, f"input {name} is in use"
    del function.placeholder_inputs[name]
    del function._input_dict[name]
    function.input_types = type(function.input_types)(t for t in function.input_types if t.name != name)


def replace_input(function: Function, old: str, new: str) -> None:
    """Let the input ``new`` have the name and the place of ``old``, which nothing uses any more."""
    order = [name for name in function.inputs if name != new]
    remove_input(function, old)
    rename_input(function, new, old)
    for held in (cast("Any", function).placeholder_inputs, function._input_dict):
        entries = {name: held[name] for name in order}
        held.clear()
        held.update(entries)


def refine_shape(var: Var, shape: Sequence[Any]) -> Var:
    """Give ``var`` symbols that its op's type inference lost; ``shape`` must agree with every known dimension."""
    known = [(old, new) for old, new in zip(shape_of(var), shape, strict=True) if not is_symbolic(old)]
    assert all(old == new for old, new in known), f"{var.name} is {shape_of(var)}, not {tuple(shape)}"
    cast("Any", var)._sym_type = types.tensor(var.dtype, tuple(shape))
    return var


def declare_shape(function: Function, name: str, shape: Sequence[Any]) -> None:
    """Let an input take another shape of equal rank; what uses it keeps its type."""
    placeholder: Any = function.placeholder_inputs[name]
    placeholder.sym_shape = tuple(shape)
    var: Any = function.inputs[name]
    var._sym_type = types.tensor(var.dtype, tuple(shape))


def rename_input(function: Function, old: str, new: str) -> None:
    """Give an input another name, which no value of the function has. Its place among the inputs stays."""
    if old == new:
        return
    function.placeholder_inputs[old].set_name(new)
    for held in (cast("Any", function).placeholder_inputs, function._input_dict):
        entries = [(new if name == old else name, value) for name, value in held.items()]
        held.clear()
        held.update(entries)
    function.inputs[new].name = new
    function.input_types = type(function.input_types)(t for t in function.input_types if t.name != old)


def set_ranges(function: Function, name: str, bounds: Sequence[tuple[int, int]], *, default: int) -> None:
    """Declare which sizes an input takes, from ``(lower, upper)`` of each axis; ``default`` where these differ.

    Without it coremltools describes open sizes as 1 to 2.
    """
    dims = [low if low == high else _input_types_of.RangeDim(low, high, default=default) for low, high in bounds]
    kind = types.nptype_from_builtin(function.inputs[name].dtype)
    declared = _input_types_of.TensorType(name, shape=_input_types_of.Shape(dims), dtype=kind)
    others = [each for each in function.input_types if each.name != name]
    function.input_types = type(function.input_types)([*others, declared])


def enumerate_shapes(function: Function, name: str, shapes: Sequence[Sequence[int]]) -> None:
    """Declare the shapes that an input takes, of which the first is the default."""
    kind = types.nptype_from_builtin(function.inputs[name].dtype)
    several = _input_types_of.EnumeratedShapes([tuple(each) for each in shapes], default=tuple(shapes[0]))
    declared = _input_types_of.TensorType(name, shape=several, dtype=kind)
    others = [each for each in function.input_types if each.name != name]
    function.input_types = type(function.input_types)([*others, declared])
