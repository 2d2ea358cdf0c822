"""Programs in a line, and what a pattern finds in them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from milopt.matching import Match, Matcher
from milopt.mil import Operation, Program, Var, mb, operations, target, types
from milopt.pattern import Ops, build
from milopt.reports import Report

__all__ = ["Unbound", "X", "find", "kinds", "op_of", "program", "reason", "reasons"]

X = (2, 3, 4)


def find(pattern: Callable[..., Any], program: Program, at: int = 0) -> tuple[list[Match], Matcher]:
    """All matches that have the op of the program's output number ``at`` as a root."""
    root, names = build(Unbound(pattern))
    matcher = Matcher(root, names)
    return list(matcher.matches(op_of(program.functions["main"].outputs[at]))), matcher


def reason(matcher: Matcher) -> str:
    """Why the nearest try was none."""
    text, arguments = matcher.why
    return text.format(*arguments)


def reasons(report: Report) -> list[str]:
    """Why rules stayed away."""
    return [miss.reason for miss in report.misses]


def op_of(var: Var) -> Operation:
    assert var.op is not None
    return var.op


def kinds(program: Program, function: str = "main") -> list[str]:
    """The types of all ops but constants, in program order."""
    return [op.op_type for op in operations(program.functions[function]) if op.op_type != "const"]


class Unbound:
    """A pattern written as a plain function stands in for a rule's bound method."""

    def __init__(self, pattern: Callable[..., Any]) -> None:
        self.pattern = pattern
        self.__signature__ = inspect.signature(pattern)
        self.__wrapped__ = pattern
        self.__name__ = pattern.__name__

    def __call__(self, op: Ops, **variables: Any) -> Any:
        return self.pattern(op, **variables)


def program(
    body: Callable[[Any], Any] | Callable[[Any, Any], Any],
    *shapes: tuple[Any, ...],
    dtype: type = types.fp32,
    opset: target = target.iOS18,
) -> Program:
    """A program of the inputs a and, where there are two shapes, b."""
    call: Callable[..., Any] = body

    def one(a: Any) -> Any:
        return call(a)

    def two(a: Any, b: Any) -> Any:
        return call(a, b)

    specs = [mb.TensorSpec(shape, dtype) for shape in shapes]
    return mb.program(input_specs=specs, opset_version=opset)(one if len(shapes) == 1 else two)
