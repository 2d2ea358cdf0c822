"""Small programs written for one test, and what a rule makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

from milopt.mil import Function, Program, flat, mb, target, types
from milopt.package import load
from milopt.pipeline import Pass
from milopt.reports import Report
from milopt.rules import Rule, apply
from milopt.text import text

from .support import assert_same

__all__ = ["Build", "One", "Two", "after", "bools", "fp16", "fp32", "ints", "lines", "program_of", "reasons"]

Rules: TypeAlias = Rule[Any] | Sequence[Rule[Any]] | Pass


class _ByName(Protocol):
    def __call__(self, **inputs: Any) -> Any: ...


One: TypeAlias = Callable[[Any], Any]
Two: TypeAlias = Callable[[Any, Any], Any]
# what a program is made by, of one input or several
Build: TypeAlias = One | Two | Callable[[Any, Any, Any], Any] | Callable[[Any, Any, Any, Any], Any] | _ByName


def fp32(*shape: Any) -> Any:
    return mb.placeholder(shape=shape, dtype=types.fp32)


def fp16(*shape: Any) -> Any:
    return mb.placeholder(shape=shape, dtype=types.fp16)


def ints(*shape: Any) -> Any:
    return mb.placeholder(shape=shape, dtype=types.int32)


def bools(*shape: Any) -> Any:
    return mb.placeholder(shape=shape, dtype=types.bool)


def program_of(build: Build, *, opset: Any = target.iOS18, **inputs: Any) -> Program:
    """What ``build`` makes of inputs, which it gets by name: ``program_of(build, x=fp32(1, 2))``."""
    program = Program()
    call: Callable[..., Any] = build
    with Function(inputs, opset_version=opset) as function:
        function.set_outputs(list(flat(call(**dict(function.inputs)))))
    program.add_function("main", function)
    program.validate()
    return program


def _run(rules: Rules, program: Program) -> Report:
    return rules.run(load(program)) if isinstance(rules, Pass) else apply(rules, program)


def lines(program: Program) -> list[str]:
    """The ops of the canonical text, one a line."""
    return [line.strip() for line in text(program).splitlines()[1:-1]]


def after(rules: Rules, program: Program, *, same: bool = True) -> list[str]:
    """The ops after ``rules``, which fire once at least; the program computes the same."""
    before = load(program).clone().program
    report = _run(rules, program)
    assert report, str(report)
    program.validate()
    if same:
        assert_same(before, program)
    return lines(program)


def reasons(rules: Rules, program: Program) -> list[tuple[str, str]]:
    """Where and why ``rules``, whose pattern is there, stay away; the program is as it was."""
    before = text(program)
    report = _run(rules, program)
    assert not report, str(report)
    assert text(program) == before
    return [(miss.place, miss.reason) for miss in report.misses if miss.declined]
