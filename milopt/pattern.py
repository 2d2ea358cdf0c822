"""Patterns of MIL ops, written as the builder calls that would make them.

The rules of the language:

1. An op is a call with MIL's own input names: ``op.matmul(x=q, y=k, transpose_y=True)``.
2. The parameters of :meth:`Rule.pattern` are the variables; their annotation says the kind: :class:`Value` is any
   value, :class:`Scalar` a constant of one element (bound to the number), :class:`Const` a constant (bound to its
   value in the program). A variable used twice is the same value twice.
3. An input left out must have the op's default. A literal must be equal, at the precision of the constant's own
   dtype; negative axes and perms are equal to their non-negative form. ``...`` is anything; ``None`` is absent.
4. Commutative ops match with their inputs in either order.
5. ``op.one_of(tag, name=pattern, ...)`` are alternatives, tried in the order written; the match says under ``tag``
   which one it was.
6. ``op.split(...)[1]`` is the second output of an op with several.
7. A value inside the match may not be used outside it, unless its pattern is in ``op.shared(...)``: such an op stays
   where something else needs it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import EllipsisType
from typing import Any

__all__ = ["Const", "OneOf", "OpPattern", "Ops", "Output", "Pat", "Scalar", "Value", "Variable", "build", "root_types"]


class Pat:
    """A pattern for one value."""


@dataclass(frozen=True, eq=False)
class Variable(Pat):
    """A named hole of a pattern."""

    name: str


class Value(Variable):
    """Any value."""


class Scalar(Variable):
    """A constant of one element; bound to the number as a numpy scalar."""


class Const(Variable):
    """A constant (``const``); bound to the value in the program, whose array is ``.val``."""


@dataclass(frozen=True, eq=False)
class OpPattern(Pat):
    """The only output of an op of type ``op_type``; ``where`` is the place in the source that wrote it."""

    op_type: str
    inputs: dict[str, Any]
    where: str
    shared: bool = False

    def __getitem__(self, index: int) -> Output:
        return Output(self, index)


@dataclass(frozen=True, eq=False)
class Output(Pat):
    """Output number ``index`` of an op."""

    op: OpPattern
    index: int


@dataclass(frozen=True, eq=False)
class OneOf(Pat):
    """Alternatives, tried in order."""

    tag: str
    choices: dict[str, Any]


@dataclass(frozen=True)
class Ops:
    """What a pattern is written with: an attribute is a MIL op type, a call of it a pattern."""

    _written: list[OpPattern] = field(default_factory=list[OpPattern])

    def __getattr__(self, op_type: str) -> Callable[..., OpPattern]:
        if op_type.startswith("__"):
            raise AttributeError(op_type)
        frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
        where = f"{frame.f_code.co_filename}:{frame.f_lineno}"

        def call(**inputs: Any) -> OpPattern:
            return OpPattern(op_type, inputs, where)

        return call

    def shared(self, pattern: OpPattern) -> OpPattern:
        """``pattern``, whose value may be used outside the match, and be an output."""
        return replace(pattern, shared=True)

    def one_of(self, tag: str, **choices: Pat | EllipsisType | None) -> OneOf:
        if len(choices) < 2:
            raise ValueError(f"one_of({tag!r}) needs at least two alternatives")
        return OneOf(tag, dict(choices))


_KINDS: dict[str, type[Variable]] = {"Value": Value, "Scalar": Scalar, "Const": Const}


def build(pattern: Callable[..., Any]) -> tuple[Any, tuple[str, ...]]:
    """Call a rule's ``pattern`` method with fresh variables; returns the root pattern and the variables' names."""
    variables: dict[str, Variable] = {}
    names = list(inspect.signature(pattern).parameters.values())[1:]
    for parameter in names:
        annotation = parameter.annotation if parameter.annotation is not inspect.Parameter.empty else "Value"
        kind = (annotation if isinstance(annotation, str) else annotation.__name__).rpartition(".")[2]
        if kind not in _KINDS:
            raise TypeError(f"{parameter.name}: a pattern variable is a Value, a Scalar or a Const, not {kind}")
        variables[parameter.name] = _KINDS[kind](parameter.name)
    root = pattern(Ops(), **variables)
    if not list(root_types(root)):
        raise TypeError("a pattern must return an op (or alternatives that are ops)")
    return root, tuple(variables)


def root_types(root: Any) -> Iterator[str]:
    """The op types a pattern can end in."""
    if isinstance(root, OpPattern):
        yield root.op_type
    elif isinstance(root, Output):
        yield root.op.op_type
    elif isinstance(root, OneOf):
        for choice in root.choices.values():
            yield from root_types(choice)
