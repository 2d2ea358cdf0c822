"""Repetitions whose number is computed from shapes -> repetitions by a number."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from milopt.building import Builder
from milopt.matching import Match
from milopt.mil import Operation, Var, constant, is_symbolic, shape_of
from milopt.passes.attention_products import with_symbols
from milopt.pattern import Ops, Value
from milopt.reports import Report, require
from milopt.rules import Rule

__all__ = ["FoldTile", "known_size", "numbers_of", "sizes_of", "told"]

sympy: Any = importlib.import_module("sympy")  # it carries no types

# What an element of a vector of sizes may be: one expression, or several where a select chooses
Choices = tuple[Any, ...]

# Ops between a size and where it is told; in one layer there are fewer
_FARTHEST = 60

_CONSTANT = "its repetitions are constant"

# how a number is called that the program computes of more than sizes
_UNKNOWN = "value of "


class FoldTile(Rule[list[int]]):
    """``reshape(tile(x, reps=...))`` with reps computed from shapes that cancel  ->  the same with constant reps.

    torch's ``expand`` of a value of flexible shape becomes ``shape, gather, concat, equal(-1), select, real_div``, and
    all of it is [1, 1, n, 1, 1] in the end. It stays away where a quotient can't be told. That a slice reaches as far
    as it is asked to is taken for granted: a cache shorter than the tokens in it has no meaning.
    """

    def pattern(self, op: Ops, /, x: Value, reps: Value) -> Any:
        return op.reshape(x=op.tile(x=x, reps=reps), shape=...)

    def check(self, m: Match, /) -> list[int]:
        require(constant(m.reps) is None, _CONSTANT)
        found = numbers_of(m.reps)
        require(found is not None, "its repetitions depend on more than shapes", at=m.reps)
        assert found is not None
        require(constant(m.root.inputs["shape"]) is not None, "the shape it then has is computed")
        return found

    def rewrite(self, op: Builder, m: Match, facts: list[int], /) -> Var:
        wide = op.tile(x=m.x, reps=facts)
        made = op.reshape(x=wide, shape=constant(m.root.inputs["shape"]))
        return with_symbols(made, shape_of(m.root.outputs[0]))


def numbers_of(var: Var) -> list[int] | None:
    """The elements of a vector of integers that depend on no input; ``None`` where one does, or can't be told."""
    elements = sizes_of(var)
    if elements is None or not all(isinstance(each, int) for each in elements):
        return None
    return elements


def sizes_of(var: Var) -> list[Any] | None:
    """The elements of a vector of integers: numbers, or expressions in sizes, or ``None`` for what can't be told.

    ``None`` altogether where it is not even known how many there are.
    """
    elements = _Reader(trusting=True).elements(var)
    return None if elements is None else [_only(choices) for choices in elements]


def _only(choices: Choices) -> Any:
    """The one value of an element; ``None`` where it has several, or one that is no size."""
    values = {int(each) if getattr(each, "is_Integer", isinstance(each, int)) else each for each in choices}
    (value, *others) = values or {None}
    unknown = others or any(str(each).startswith(_UNKNOWN) for each in getattr(value, "free_symbols", ()))
    return None if unknown else value


def known_size(var: Var, axis: int) -> Any:
    """A dimension, as a number where that can be told though coremltools has a symbol for it."""
    return _Reader(trusting=False).size(var, axis % var.rank)


def _equal(one: Choices, other: Choices) -> bool | None:
    if len(one) != 1 or len(other) != 1:
        return None
    difference = sympy.simplify(one[0] - other[0])
    return bool(difference == 0) if difference.is_number else None


def told(report: Report) -> Report:
    """``report`` without the places where there was nothing to fold."""
    report.misses = [miss for miss in report.misses if miss.text != _CONSTANT]
    return report


# op type -> the method that reads what it makes
_READERS: dict[str, str] = {
    "shape": "_shape",
    "concat": "_concat",
    "gather": "_gather",
    "slice_by_index": "_slice",
    "cast": "_cast",
    "expand_dims": "_same",
    "squeeze": "_same",
    "identity": "_same",
    "select": "_select",
    "real_div": "_divide",
    "floor_div": "_divide",
}


class _Reader:
    """Reads sizes; each is read once, since many ways lead to one value, and none from far away.

    A ``trusting`` one takes a slice to reach as far as it is asked to.
    """

    def __init__(self, *, trusting: bool) -> None:
        self._trusting = trusting
        self._known: dict[tuple[Var, int], Any] = {}
        self._depth = 0

    def elements(self, var: Var) -> list[Choices] | None:
        """The elements of a vector (or a number: one element) as expressions in sizes and in unknown numbers."""
        if var.rank > 1:
            return None
        known = constant(var)
        if known is not None:
            return [(int(each),) for each in np.ravel(known)] if np.asarray(known).dtype.kind in "iub" else None
        op = var.op
        made: list[Choices] | None = None
        if op is not None and op.op_type in _READERS:
            made = getattr(self, _READERS[op.op_type])(op)
        if made is None and var.rank == 0:
            return [(sympy.Symbol(f"{_UNKNOWN}{var.name}"),)]
        return made

    def _shape(self, op: Operation) -> list[Choices]:
        x: Var = op.inputs["x"]
        return [(self.size(x, axis),) for axis in range(x.rank)]

    def size(self, var: Var, axis: int) -> Any:
        """A dimension, as the number that a slice was asked for where it is cut."""
        at = (var, axis)
        if at not in self._known:
            self._known[at] = shape_of(var)[axis]
            self._depth += 1
            if self._depth < _FARTHEST:
                self._known[at] = self._size(var, axis)
            self._depth -= 1
        return self._known[at]

    def _size(self, var: Var, axis: int) -> Any:
        dim = shape_of(var)[axis]
        op = var.op
        if not is_symbolic(dim) or op is None:
            return dim
        if op.op_type in ("add", "mul", "sub"):
            return self._widest(op, axis - var.rank, dim)
        if op.op_type == "reshape":
            return self._inferred(op, axis, dim)
        if op.op_type == "concat" and int(constant(op.inputs["axis"])) % var.rank != axis:
            return self.size(op.inputs["values"][0], axis)
        if op.op_type in ("linear", "softmax", "relu", "cast", "silu"):
            return self.size(op.inputs["x"], axis)
        if op.op_type == "expand_dims":
            added = {int(each) % var.rank for each in constant(op.inputs["axes"])}
            return dim if axis in added else self.size(op.inputs["x"], axis - sum(each < axis for each in added))
        if op.op_type == "transpose":
            return self.size(op.inputs["x"], int(constant(op.inputs["perm"])[axis]) % var.rank)
        if op.op_type == "slice_by_index" and op.inputs["x"].rank == var.rank:
            return self._cut(op, axis, dim)
        return dim

    def _widest(self, op: Operation, axis: int, dim: Any) -> Any:
        """What operands broadcast to along an axis counted from the end: a number above 1, of either."""
        sides = [op.inputs[name] for name in "xy" if op.inputs[name].rank >= -axis]
        sizes = [self.size(each, axis % each.rank) for each in sides]
        told = [size for size in sizes if not is_symbolic(size) and size != 1]
        wide = [size for size in sizes if size != 1]
        return told[0] if told else wide[0] if len(wide) == 1 else dim

    def _inferred(self, op: Operation, axis: int, dim: Any) -> Any:
        """The dimension that a reshape leaves open, of what it reshapes."""
        wanted, x = self.elements(op.inputs["shape"]), op.inputs["x"]
        if wanted is None or any(len(each) != 1 for each in wanted):
            return dim
        sizes = [each[0] for each in wanted]
        if 0 in sizes:  # a size that is copied
            return dim
        if sizes[axis] != -1:
            return sizes[axis]
        whole = sympy.prod([self.size(x, each) for each in range(x.rank)])
        found = sympy.simplify(whole / sympy.prod([size for size in sizes if size != -1]))
        return int(found) if found.is_Integer else found

    def _cut(self, op: Operation, axis: int, dim: Any) -> Any:
        begin, end = op.inputs["begin"], op.inputs["end"]
        first, last, stride = (constant(op.inputs.get(name)) for name in ("begin_mask", "end_mask", "stride"))
        if stride is not None and stride[axis] != 1:
            return dim
        if not (first is not None and first[axis]) and not (constant(begin) is not None and constant(begin)[axis] == 0):
            return dim
        if last is not None and last[axis]:
            return self.size(op.inputs["x"], axis)
        if not self._trusting:
            return dim
        ends, whole = self.elements(end), shape_of(op.inputs["x"])[axis]
        if ends is None:
            return dim
        stops = ends[axis]
        # of one slot or none the quotient could be the number of repetitions itself
        return stops[0] if len(stops) == 1 and (is_symbolic(whole) or whole > 1) else dim

    def _concat(self, op: Operation) -> list[Choices] | None:
        found: list[Choices] = []
        for each in op.inputs["values"]:
            if (part := self.elements(each)) is None:
                return None
            found += part
        return found

    def _gather(self, op: Operation) -> list[Choices] | None:
        source, indices = self.elements(op.inputs["x"]), constant(op.inputs["indices"])
        if source is None or indices is None:
            return None
        return [source[int(each)] for each in np.ravel(indices)]

    def _slice(self, op: Operation) -> list[Choices] | None:
        source, begin, end = self.elements(op.inputs["x"]), constant(op.inputs["begin"]), constant(op.inputs["end"])
        if source is None or begin is None or end is None or op.outputs[0].rank != 1:
            return None
        masks = (constant(op.inputs.get(name)) for name in ("begin_mask", "end_mask"))
        (first, last), stride = (
            (mask is not None and bool(mask[0]) for mask in masks),
            constant(op.inputs.get("stride")),
        )
        step = 1 if stride is None else int(stride[0])
        return source[None if first else int(begin[0]) : None if last else int(end[0]) : step]

    def _same(self, op: Operation) -> list[Choices] | None:
        return self.elements(op.inputs["x"])

    def _cast(self, op: Operation) -> list[Choices] | None:
        return (
            self.elements(op.inputs["x"]) if str(constant(op.inputs["dtype"])) in ("int32", "int16", "uint16") else None
        )

    def _select(self, op: Operation) -> list[Choices] | None:
        """Either, where the condition is not known: a quotient that both give is sure."""
        one, other = self.elements(op.inputs["a"]), self.elements(op.inputs["b"])
        if one is None or other is None or len(one) != len(other):
            return None
        cond = self._condition(op.inputs["cond"], len(one))
        sides = zip(cond, one, other, strict=True)
        return [a if sure is True else b if sure is False else (*a, *b) for sure, a, b in sides]

    def _condition(self, var: Var, count: int) -> list[bool | None]:
        known = constant(var)
        if known is not None:
            return [bool(each) for each in np.broadcast_to(known, (count,))]
        op = var.op
        if op is None or op.op_type != "equal":
            return [None] * count
        x, y = self.elements(op.inputs["x"]), self.elements(op.inputs["y"])
        if x is None or y is None:
            return [None] * count
        wide = [(each * count)[:count] if len(each) == 1 else each for each in (x, y)]
        return [_equal(a, b) for a, b in zip(*wide, strict=True)]

    def _divide(self, op: Operation) -> list[Choices] | None:
        x, y = self.elements(op.inputs["x"]), self.elements(op.inputs["y"])
        if x is None or y is None or len(x) != len(y):
            return None
        made: list[Choices] = []
        for above, below in zip(x, y, strict=True):
            quotients = {sympy.simplify(sympy.sympify(a) / b) for a in above for b in below if b != 0}
            made.append(tuple(quotients))
        return made
