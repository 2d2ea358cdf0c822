"""What tests of refusals share: every reason with its place, and a program that is as it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from milopt.mil import Program, Target, mb, target
from milopt.package import load
from milopt.pipeline import Pass
from milopt.reports import Report
from milopt.rules import Rule, apply
from milopt.text import text

__all__ = ["body", "declined", "program_of", "refusals"]


def program_of(build: Callable[..., Any], *specs: tuple[Sequence[Any], type], opset: Target = target.iOS18) -> Program:
    """A program of one function whose inputs have these shapes and types."""
    made: Program = mb.program(input_specs=[mb.TensorSpec(*each) for each in specs], opset_version=opset)(build)
    return made


def declined(report: Report) -> list[tuple[str, str]]:
    """The reasons for which matches were refused, and where."""
    return [(miss.reason, miss.place) for miss in report.misses if miss.declined]


def refusals(what: Pass | Rule[Any], program: Program) -> list[tuple[str, str]]:
    """Why a pass or a rule stays away from the program; it must leave it as it is."""
    before = text(program)
    report = apply(what, program) if isinstance(what, Rule) else what.run(load(program))
    assert (report.applied, text(program)) == (0, before)
    return declined(report)


def body(program: Program) -> list[str]:
    """The lines of the canonical text between the function's head and its outputs."""
    return [line.strip() for line in text(program).splitlines() if line.startswith("  %")]
