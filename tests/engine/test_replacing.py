"""Replacements that have to do with one another: several roots, roots that stay, matched ops that stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import milopt
from milopt.building import Builder
from milopt.matching import Match
from milopt.mil import Program, mb, operations
from milopt.pattern import Ops, Value
from milopt.reports import Report
from milopt.rules import Rule, apply

from .support import kinds, program, reasons


class Neutral(Rule[None]):
    """``p = x + 0`` and ``q = p * 1``, replaced together by what is given."""

    def __init__(self, made: Callable[[Builder, Match], tuple[Any, Any]]) -> None:
        self.made = made

    def pattern(self, op: Ops, /, x: Value) -> Any:
        p = op.add(x=x, y=0.0)
        return p, op.mul(x=p, y=1.0)

    def check(self, m: Match, /) -> None:
        """It holds anywhere."""

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
        return self.made(op, m)


def neutral(*, outputs: bool = False) -> Program:
    def body(a: Any) -> Any:
        p = mb.add(x=a, y=np.float32(0), name="p")
        q = mb.mul(x=p, y=np.float32(1), name="q")
        return (p, q) if outputs else (mb.exp(x=p, name="e"), mb.abs(x=q, name="f"))

    return program(body, (2, 3))


def applied(rule: Rule[Any], program: Program) -> Report:
    """Apply the rule; whatever it does, the program stays valid and computes the same."""
    before = milopt.load(program).clone()
    report = apply(rule, program)
    program.functions["main"].validate(force_validate=True)
    names = [var.name for op in operations(program.functions["main"]) for var in op.outputs]
    assert len(names) == len(set(names))
    assert milopt.compare(before, milopt.load(program))
    return report


@pytest.mark.parametrize("outputs", [False, True])
def test_an_output_given_for_another_is_what_that_one_becomes(outputs: bool) -> None:
    program = neutral(outputs=outputs)
    assert applied(Neutral(lambda op, m: (m.x, m.replaced[0])), program).applied == 1
    assert kinds(program) == (["identity", "identity"] if outputs else ["exp", "abs"])


def _itself(op: Builder, m: Match) -> tuple[Any, Any]:
    return op.identity(x=m.replaced[0]), m.x


def _built_of_the_first(op: Builder, m: Match) -> tuple[Any, Any]:
    late = op.real_div(x=m.replaced[0], y=np.float32(1))
    return op.sub(x=m.x, y=np.float32(0)), late


@pytest.mark.parametrize("made", [_itself, _built_of_the_first])
def test_nothing_is_made_of_what_it_replaces(made: Callable[[Builder, Match], tuple[Any, Any]]) -> None:
    program = neutral()
    report = applied(Neutral(made), program)
    assert "its replacement needs a value that it replaces" in reasons(report)
    assert kinds(program) == ["add", "mul", "exp", "abs"]


class KeepsOne(Rule[None]):
    """Of the halves of a value, the second becomes a slice; time and again, if the engine did not see the end."""

    def pattern(self, op: Ops, /, x: Value) -> Any:
        return op.split(x=x, num_splits=2, axis=0)

    def check(self, m: Match, /) -> None:
        """It holds anywhere."""

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
        return m.replaced[0], op.slice_by_index(x=m.x, begin=[1, 0], end=[2, 3])


def test_an_output_that_leaves_an_op_which_stays_takes_its_name_along() -> None:
    program_ = program(lambda a: tuple(mb.split(x=a, num_splits=2, axis=0, name="s")), (2, 3))
    report = applied(KeepsOne(), program_)
    assert report.applied == 1
    assert reasons(report) == ["the replacement is the same"]
    assert [var.name for var in program_.functions["main"].outputs] == ["s_0", "s_1"]


class Halves(Rule[None]):
    """The first half of a value, and the exponential of the other's positive part, which may be needed elsewhere."""

    def __init__(self, shared: bool) -> None:
        self.shared = shared

    def pattern(self, op: Ops, /, x: Value) -> Any:
        halves = op.split(x=x, num_splits=2, axis=0)
        positive = op.relu(x=halves[1])
        return halves[0], op.exp(x=op.shared(positive) if self.shared else positive)

    def check(self, m: Match, /) -> None:
        """It holds anywhere."""

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
        first, second = op.split(x=m.x, num_splits=2, axis=-2)
        return first, op.exp(x=op.clamped_relu(x=second, alpha=np.float32(0), beta=np.float32(1e9)))


def halves(*, shared: bool) -> Program:
    def body(a: Any) -> Any:
        first, second = mb.split(x=a, num_splits=2, axis=0)
        positive = mb.relu(x=second)
        more = [mb.cos(x=positive)] if shared else []
        return mb.abs(x=first), mb.exp(x=positive), *more

    return program(body, (2, 3))


def test_an_output_of_a_root_may_lead_to_another_root() -> None:
    program = halves(shared=False)
    assert applied(Halves(False), program).applied == 1
    assert kinds(program) == ["split", "clamped_relu", "exp", "abs"]


def test_an_output_of_a_root_may_not_lead_to_what_stays() -> None:
    program = halves(shared=True)
    assert "a matched op that stays uses an output that goes" in reasons(applied(Halves(True), program))


class AroundShared(Rule[None]):
    def pattern(self, op: Ops, /, x: Value) -> Any:
        p = op.add(x=x, y=0.0)
        return p, op.mul(x=op.shared(op.relu(x=p)), y=1.0)

    def check(self, m: Match, /) -> None:
        """It holds anywhere."""

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
        return op.sub(x=m.x, y=np.float32(0)), op.relu(x=m.x)


def test_a_replacement_comes_before_a_matched_op_that_stays() -> None:
    def body(a: Any) -> Any:
        positive = mb.relu(x=mb.add(x=a, y=np.float32(0)))
        return mb.exp(x=positive), mb.abs(x=mb.mul(x=positive, y=np.float32(1)))

    program_ = program(body, (2, 3))
    assert applied(AroundShared(), program_).applied == 1
    assert kinds(program_) == ["sub", "relu", "relu", "exp", "abs"]


class Third(Rule[None]):
    def pattern(self, op: Ops, /, x: Value) -> Any:
        return op.split(x=x, num_splits=..., axis=0)[2]

    def check(self, m: Match, /) -> None:
        """It holds anywhere."""

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
        return m.x


def test_an_output_that_the_op_does_not_have() -> None:
    report = applied(Third(), program(lambda a: mb.split(x=a, num_splits=2, axis=0), (2, 3)))
    assert reasons(report) == ["split has 2 outputs, of which none is number 2"]
