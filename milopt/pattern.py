"""Patterns of MIL ops, written as the builder calls that would make them.

The rules of the language:

1. An op is a call with MIL's own input names: ``op.matmul(x=q, y=k, transpose_y=True)``.
2. The parameters of :meth:`Rule.pattern` are the variables; their annotation says the kind: :class:`Value` is any
   value, :class:`Scalar` a constant that is one number (bound to it), :class:`Const` a constant and :class:`Weight`
   one that may be compressed (both bound to the value in the program), :class:`Values` any number of the values of a
   variadic input (bound to a tuple). A variable used twice is the same value twice: the same result of the same op, or
   two constants with the same type, shape and bits. ``Scalar | None`` may be left out of the pattern.
3. An input left out must have the op's default. A literal must be equal, at the precision of the constant's own
   dtype: one that the dtype holds exactly, as 0.5, to the bit, any other as it is rounded or a step beside. 0.0 (and 0)
   is not -0.0, as in a repeated scalar: 1 / 0.0 and max(x, 0.0) are not what they are with -0.0. A rule that is right
   with both says so with ``op.one_of``. Axes are equal to their non-negative form, and sets of axes in any order.
   ``...`` is anything; ``None`` is absent.
4. Where operands broadcast, an array of equal numbers is that number, unless it makes the result larger.
5. Commutative ops match with their inputs in either order.
6. ``op.one_of(tag, name=pattern, ...)`` are alternatives, tried in the order written; the match says under ``tag``
   which one it was. Two with the same tag choose the same.
7. ``op.optional(tag, x, lambda x: op.cast(x=x, dtype=...))`` is ``x``, or what such ops make of it, the longest chain
   first; the match has the chain's ops under ``tag``, from ``x`` on: a tuple, empty where there are none.
8. ``op.split(...)[1]`` is the second output of an op with several, ``[...]`` any of them.
9. ``op.concat(values=(x, *rest))``: a :class:`Values` variable stands for any number of values, none included.
10. A value inside the match may not be used outside it, unless its pattern is in ``op.shared(...)``: such an op stays
    where something else needs it. Variables may be bound to values of an outer block; matched ops may not lie there,
    but for those in ``op.shared``.
11. The pattern returns the op whose outputs are replaced; one output of it (``op.split(...)[0]``), when nothing needs
    the others; or a tuple of these, ops of one block which are found, and replaced, together.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, overload

from milopt.engine.authoring import check_op, check_pattern
from milopt.engine.forms import (
    KINDS,
    Chain,
    Const,
    OneOf,
    OpPattern,
    Output,
    Pat,
    Scalar,
    Value,
    Values,
    Variable,
    Weight,
    root_types,
    roots_of,
)
from milopt.errors import PatternError

__all__ = [
    "Chain",
    "Const",
    "OneOf",
    "OpPattern",
    "Ops",
    "Output",
    "Pat",
    "Scalar",
    "Value",
    "Values",
    "Variable",
    "Weight",
    "build",
    "root_types",
    "roots_of",
]


def _caller() -> str:
    """The file and line of the pattern that is being written."""
    frame = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


class Ops:
    """What a pattern is written with: an attribute is a MIL op type, a call of it a pattern."""

    def __getattr__(self, op_type: str) -> Callable[..., OpPattern]:
        if op_type.startswith("__"):
            raise AttributeError(op_type)
        where = _caller()

        def call(**inputs: Any) -> OpPattern:
            check_op(op_type, inputs, where)
            return OpPattern(op_type, inputs, where)

        return call

    @overload
    def shared(self, pattern: OpPattern, /) -> OpPattern: ...
    @overload
    def shared(self, pattern: Output, /) -> Output: ...
    def shared(self, pattern: OpPattern | Output, /) -> OpPattern | Output:
        """``pattern``, whose op may be used outside the match, and be an output."""
        if isinstance(pattern, Output):
            return replace(pattern, op=replace(pattern.op, shared=True))
        return replace(pattern, shared=True)

    def one_of(self, tag: str, /, **choices: Any) -> OneOf:
        """Alternatives, tried in the order written."""
        if len(choices) < 2:
            raise PatternError(f"one_of({tag!r}) needs at least two alternatives ({_caller()})")
        return OneOf(tag, dict(choices), _caller())

    def optional(self, tag: str, value: Any, /, *links: Callable[[Any], OpPattern | Output], most: int = 1) -> Chain:
        """``value``, or up to ``most`` ops behind it, each one of those that ``links`` write.

        ``op.optional("moves", x, lambda x: op.transpose(x=x, perm=...), lambda x: op.squeeze(x=x, axes=...), most=3)``
        """
        where = _caller()
        if not links or most < 1:
            raise PatternError(f"optional({tag!r}) needs at least one op that may be there ({where})")
        chain = Chain(tag, value, tuple(link(value) for link in links), where)
        for _ in range(most - 1):
            chain = Chain(tag, value, tuple(link(chain) for link in links), where)
        return chain


def build(pattern: Callable[..., Any]) -> tuple[Any, tuple[str, ...]]:
    """Call a rule's ``pattern`` method with fresh variables; returns the root pattern and the variables' names.

    The root is a tuple where the pattern has several (:func:`roots_of`). Raises PatternError, which names the rule and
    the line, where the pattern is wrong.
    """
    try:
        return _build(pattern)
    except PatternError as error:
        rule = getattr(pattern, "__self__", None)
        name = getattr(rule, "name", None) or getattr(pattern, "__name__", "a pattern")
        text = str(error)
        raise PatternError(
            f"{name}: {text}" if text.endswith(")") else f"{name}: {text} ({_line_of(pattern)})"
        ) from None


def _line_of(pattern: Any) -> str:
    code = getattr(inspect.unwrap(pattern), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else "no file"


def _build(pattern: Callable[..., Any]) -> tuple[Any, tuple[str, ...]]:
    variables: dict[str, Variable] = {}
    needed: dict[str, Variable] = {}
    for parameter in list(inspect.signature(pattern).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise PatternError(f"the variables of a pattern are named one by one, not {parameter}")
        kind, may_be_out = _kind_of(parameter)
        variables[parameter.name] = kind(parameter.name)
        if not may_be_out:
            needed[parameter.name] = variables[parameter.name]
    root = pattern(Ops(), **variables)
    check_pattern(root, variables, needed)
    return root, tuple(variables)


def _kind_of(parameter: inspect.Parameter) -> tuple[type[Variable], bool]:
    """The kind of variable that an annotation names, and whether the pattern may do without it."""
    annotation = parameter.annotation if parameter.annotation is not inspect.Parameter.empty else Value
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", None) or str(annotation)
    names = [each.strip().rpartition(".")[2] for each in re.split(r"\|", text)]
    kind = names[0]
    if kind not in KINDS or names[1:] not in ([], ["None"]):
        raise PatternError(f"{parameter.name}: a pattern variable is one of {', '.join(KINDS)}, not {text}")
    return KINDS[kind], len(names) > 1
