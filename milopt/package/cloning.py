"""An independent copy of a program that shares its weights.

The copy is structural: ops, values, blocks and function inputs are duplicated object by object, and nothing is
inferred anew. So it is exact (names, scopes, types, inferred values), works in the middle of a conversion, where a
program can't be written to a package, and costs nothing per weight.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, cast

import numpy as np

from milopt.mil import Block, Function, Operation, Program, Var
from milopt.package.collecting import uncollected
from milopt.package.weights import Packed

__all__ = ["clone_program"]

# Most of what attributes hold; none of it refers to anything else.
_AS_THEY_ARE = frozenset({type(None), bool, int, float, str, bytes, type, np.ndarray, np.float16, np.float32, np.str_})
_CONTAINERS: dict[Any, Callable[[Iterable[Any]], Any]] = {list: list, tuple: tuple, set: set}


def clone_program(program: Program) -> Program:
    """A copy of all functions; numpy arrays are the same objects as in ``program``."""
    clone = copy.copy(program)
    with uncollected():
        clone.functions = {name: _Cloner().function(function) for name, function in program.functions.items()}
    return clone


class _Cloner:
    """Copies one function. ``known`` maps the ids of what was copied to the copies."""

    def __init__(self) -> None:
        self.known: dict[int, Any] = {}
        self.vars: list[tuple[Var, Var]] = []

    def function(self, function: Function) -> Function:
        result = self.block(function)
        for var, clone in self.vars:
            self.link(var, clone)
        return cast("Function", result)

    def block(self, block: Block) -> Block:
        clone = cast("Any", object.__new__(type(block)))
        self.known[id(block)] = clone
        for name, value in _attributes(block).items():
            if name not in ("operations", "_internal_vars", "_block_inputs", "_outputs", "_input_dict"):
                setattr(clone, name, self.value(value))
        source = cast("Any", block)
        if isinstance(block, Function):
            clone._input_dict = {name: self.var(var) for name, var in source._input_dict.items()}
        clone._block_inputs = type(source._block_inputs)(self.var(var) for var in source._block_inputs)
        clone._internal_vars = {self.var(var) for var in source._internal_vars}
        clone.operations = type(source.operations)()
        for op in block.operations:
            clone.operations.insert_op_before(self.operation(op))
        clone._outputs = [self.var(var) for var in source._outputs]
        return cast("Block", clone)

    def operation(self, op: Operation) -> Operation:
        clone = object.__new__(type(op))
        self.known[id(op)] = clone
        for name, value in op.__dict__.items():
            clone.__dict__[name] = copy.deepcopy(value) if name == "scopes" else self.value(value)
        return clone

    def var(self, var: Var) -> Var:
        if id(var) not in self.known:
            clone = object.__new__(type(var))
            self.known[id(var)] = clone
            self.vars.append((var, clone))
            for name, value in _attributes(var).items():
                setattr(clone, name, value)
        return cast("Var", self.known[id(var)])

    def link(self, var: Var, clone: Var) -> None:
        """Point the copy of a value at the copies of what it refers to; to be called when all ops are copied."""
        for name, value in _attributes(var).items():
            setattr(clone, name, self.value(value))

    def value(self, value: Any) -> Any:
        """The copy of what an attribute holds: known objects are replaced by their copies, containers rebuilt."""
        if value.__class__ in _AS_THEY_ARE:
            return value
        if id(value) in self.known:
            return self.known[id(value)]
        if isinstance(value, Var):
            return self.var(value)
        if isinstance(value, Block):
            return self.block(value)
        kind = cast("Any", type(value))
        if kind in _CONTAINERS:
            return _CONTAINERS[kind](map(self.value, value))
        if issubclass(kind, dict):
            return self.entries(copy.copy(value))
        if (
            issubclass(kind, Packed)
            or hasattr(kind, "__type_info__")
            or (hasattr(kind, "set_name") and hasattr(value, "sym_shape"))
        ):
            # PyMIL's box around a value that is known before the program runs, or the placeholder of an input
            clone = self.known[id(value)] = copy.copy(value)
            clone.__dict__ = self.entries(dict(clone.__dict__))
            return clone
        return value

    def entries(self, entries: dict[Any, Any]) -> dict[Any, Any]:
        entries.update([(key, self.value(each)) for key, each in entries.items()])
        return entries


def _attributes(thing: Any) -> dict[str, Any]:
    """Everything that is set on an object, in slots and out of them."""
    values = {name: getattr(thing, name) for name in _slots(cast("Any", type(thing))) if hasattr(thing, name)}
    return {**values, **getattr(thing, "__dict__", {})}


@lru_cache(maxsize=64)
def _slots(kind: type) -> tuple[str, ...]:
    return tuple(name for each in kind.__mro__ for name in vars(each).get("__slots__", ()))
