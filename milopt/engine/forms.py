"""The forms that a pattern is made of. :mod:`milopt.pattern` says what they mean, and writes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, cast

from milopt.errors import PatternError

__all__ = [
    "KINDS",
    "Chain",
    "Const",
    "OneOf",
    "OpPattern",
    "Output",
    "Pat",
    "Scalar",
    "Value",
    "Values",
    "Variable",
    "Weight",
    "knots_of",
    "parts_of",
    "root_op",
    "root_ops",
    "root_types",
    "roots_of",
    "walk",
]


class Pat:
    """A pattern for one value, or for several."""


@dataclass(frozen=True, eq=False)
class Variable(Pat):
    """A named hole of a pattern."""

    name: str


class Value(Variable):
    """Any value."""


class Scalar(Variable):
    """A constant that is one number; bound to the number as a numpy scalar.

    Where the op broadcasts, an array of equal numbers is one number too, unless it makes the result larger.
    """


class Const(Variable):
    """A constant (``const``); bound to the value in the program, whose array is ``.val``."""


class Weight(Variable):
    """A constant, or what ``constexpr_`` ops make of constants; bound to the value in the program.

    ``.val`` is ``None`` for a compressed one: nothing is decompressed.
    """


class Values(Variable):
    """Any number of the values of a variadic input: ``values=parts`` or ``values=(x, *rest)``; bound to a tuple."""

    def __iter__(self) -> Iterator[Values]:
        yield self


@dataclass(frozen=True, eq=False)
class OpPattern(Pat):
    """The only output of an op of type ``op_type``; ``where`` is the place in the source that wrote it."""

    op_type: str
    inputs: dict[str, Any]
    where: str
    shared: bool = False

    def __getitem__(self, index: int | EllipsisType) -> Output:
        return Output(self, index)

    def __iter__(self) -> Iterator[Output]:
        raise PatternError(f"how many outputs {self.op_type} has is not known here: write [0], [1]... ({self.where})")


@dataclass(frozen=True, eq=False)
class Output(Pat):
    """Output number ``index`` of an op, counted from its end where negative; ``...`` is any of them."""

    op: OpPattern
    index: int | EllipsisType


@dataclass(frozen=True, eq=False)
class OneOf(Pat):
    """Alternatives, tried in order. One may be a literal, ``...`` or ``None``, as an input of an op may."""

    tag: str
    choices: dict[str, Any]
    where: str


@dataclass(frozen=True, eq=False)
class Chain(Pat):
    """``value``, or what ops make of it, each applied to the last one's result.

    ``links`` are the ops that may come last; each has somewhere among its inputs the same chain with one op less
    (``value`` itself in the end), so that a chain of up to n ops is n of these, nested.
    """

    tag: str
    value: Any
    links: tuple[OpPattern | Output, ...]
    where: str


KINDS: dict[str, type[Variable]] = {each.__name__: each for each in (Value, Scalar, Const, Weight, Values)}


def parts_of(pattern: Any) -> tuple[Any, ...]:
    """What a pattern is directly made of: the inputs of an op, alternatives, the members of a sequence."""
    if isinstance(pattern, OpPattern):
        return tuple(pattern.inputs.values())
    if isinstance(pattern, Output):
        return (pattern.op,)
    if isinstance(pattern, OneOf):
        return tuple(pattern.choices.values())
    if isinstance(pattern, Chain):
        return (*pattern.links, pattern.value)
    return tuple(cast("tuple[Any, ...]", pattern)) if isinstance(pattern, (list, tuple)) else ()


def walk(pattern: Any) -> Iterator[Any]:
    """Every form and literal in a pattern, each once however often it is used, in the order written."""
    seen: set[int] = set()
    todo = [pattern]
    while todo:
        each = todo.pop()
        if id(each) not in seen:
            seen.add(id(each))
            yield each
            todo.extend(reversed(parts_of(each)))


def knots_of(root: Any) -> set[Variable | OpPattern]:
    """What another root may have in common with this one. A constant is none: equal ones may be several ops."""
    return {each for each in walk(root) if isinstance(each, (Value, Values, OpPattern))}


def roots_of(root: Any) -> tuple[Any, ...]:
    """The roots of what a ``pattern`` method returned: several where it is a tuple."""
    return tuple(cast("tuple[Any, ...]", root)) if isinstance(root, (list, tuple)) else (root,)


def root_op(root: Any) -> OpPattern | None:
    """The op of a root that is no alternative; ``None`` for other forms."""
    if isinstance(root, Output):
        return root.op
    return root if isinstance(root, OpPattern) else None


def root_ops(root: Any) -> Iterator[OpPattern]:
    """The ops a pattern can end in; of several roots, those of each."""
    if (op := root_op(root)) is not None:
        yield op
    elif isinstance(root, (OneOf, Chain, list, tuple)):
        for part in parts_of(cast("Any", root)):
            yield from root_ops(part)


def root_types(root: Any) -> Iterator[str]:
    """The types of :func:`root_ops`."""
    return (op.op_type for op in root_ops(root))
