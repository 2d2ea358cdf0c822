"""What every rule and every pass must hold to, checked on many programs."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from milopt.errors import EvaluationError, UnsupportedOps
from milopt.metrics import Exact, Metric
from milopt.mil import Program, is_dead, operations
from milopt.package import Model, load
from milopt.pipeline import Pass
from milopt.reports import Miss, Report
from milopt.rules import Rule, apply, rules_of
from milopt.testing.notes import note_of
from milopt.testing.sourcing import ops_of, script_of
from milopt.text import text
from milopt.verify import compare

__all__ = ["check_pass", "check_rule", "holds"]

# Two draws of ordinary inputs and one of arbitrary ones between them are what compare() does by default; here the
# programs are many, and one of each finds what three find.
_TRIALS = 2


def check_rule(
    rule: Rule[Any] | Sequence[Rule[Any]],
    programs: st.SearchStrategy[Program],
    *,
    max_examples: int = 200,
    metric: Metric | None = None,
    must_fire: bool = True,
) -> None:
    """Apply the rule to each drawn program, and assert that

    the result validates, keeps its signature, computes the same and has no dead op that was not there before; that a
    second application does nothing; that where the rule did not fire, the program's text is unchanged, and where it
    did, it is not. A rule that never fires fails too, unless ``must_fire`` is false: the test would be vacuous.
    ``metric`` is :class:`~milopt.metrics.Exact` by default. A failure is shrunk to few ops; its message ends with a
    script that repeats it.

    A rule that takes a rounded number for the one it stands for, 0.707 in fp16 for the root of 1/2, is not exact
    there: draw programs of ``dtypes=("fp32",)``, or give a :class:`~milopt.metrics.Lossy`.
    """
    _check(_Subject.of(rule, metric), programs, max_examples, must_fire)


def check_pass(
    each: Pass, programs: st.SearchStrategy[Program], *, max_examples: int = 100, must_fire: bool = True
) -> None:
    """The same of a pass, judged by the metric it declares; its report may say that it changed the signature."""
    _check(_Subject.of(each), programs, max_examples, must_fire)


def holds(subject: Rule[Any] | Sequence[Rule[Any]] | Pass, program: Program, *, metric: Metric | None = None) -> bool:
    """Check a rule, rules or a pass on one program, which stays as it is; whether it fired.

    AssertionError says what does not hold; EvaluationError that the program itself can't be run.
    """
    return _holds(_Subject.of(subject, metric), program)


@dataclass(frozen=True)
class _Subject:
    parts: tuple[Any, ...]
    name: str
    run: Callable[[Model], Report]
    metric: Metric
    reasons: Counter[str] = field(default_factory=Counter[str])
    """Why it did not fire, of each program the reason that came nearest."""

    @classmethod
    def of(cls, subject: Rule[Any] | Sequence[Rule[Any]] | Pass, metric: Metric | None = None) -> _Subject:
        if isinstance(subject, Pass):
            return cls((subject,), str(subject), subject.run, metric or subject.metric)
        rules = rules_of(subject)
        name = " + ".join(each.name for each in rules)
        return cls(rules, name, lambda model: apply(rules, model), metric or Exact())


# how many times as many programs are drawn before a rule that did not fire in the first ones is called vacuous
_PATIENCE = 10


def _check(subject: _Subject, programs: st.SearchStrategy[Program], max_examples: int, must_fire: bool) -> None:
    fired = _tried(subject, programs, max_examples)
    if not must_fire or any(fired):
        return
    # the first programs are the simplest: one value, which is the output
    fired += _tried(subject, programs, _PATIENCE * max_examples)
    if not any(fired):
        raise AssertionError(
            f"vacuous: {subject.name} never fired in {len(fired)} programs; draw programs that it applies to"
            f"{_why(subject.reasons)}"
        )


# how many reasons a vacuous test tells
_TOLD = 3


def _told_of(miss: Miss) -> str:
    return f"{miss.reason} ({PurePath(miss.source).name})" if miss.source else miss.reason


def _why(reasons: Counter[str]) -> str:
    told = [f"  {count} times: {reason}" for reason, count in reasons.most_common(_TOLD)]
    return "\n".join(["; it stayed away because", *told]) if told else ""


def _tried(subject: _Subject, programs: st.SearchStrategy[Program], max_examples: int) -> list[bool]:
    """Whether the subject fired, for each program; it holds for all of them."""
    fired: list[bool] = []

    @settings(
        max_examples=max_examples,
        deadline=None,  # the first comparison of a process takes a hundred times as long as the others
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],  # the lines of milopt that ran explain nothing
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
    @given(program=programs)
    def check(program: Program) -> None:
        try:
            fired.append(_holds(subject, program))
        except UnsupportedOps:
            raise
        except EvaluationError:
            reject()  # MIL's type inference lets programs pass that can't run

    try:
        with np.errstate(all="ignore"):  # coremltools computes constants as it draws: 1 / 0 is no news there
            check()
    except Unsatisfiable:
        raise AssertionError(
            f"no program could be drawn for {subject.name}: MIL refuses all that were tried; "
            "strategies.matching takes `values` to make what it can't find"
        ) from None
    return fired


def _holds(subject: _Subject, program: Program) -> bool:
    try:
        return _found(subject, program)
    except AssertionError as error:
        changed = f"{note}\n" if (note := note_of(program)) else ""
        count = ops_of(program)
        title = f"{subject.name} on a program of {count} op{'' if count == 1 else 's'}."
        script = script_of(subject.parts, program, title, f"{changed}{error}")
        raise AssertionError(f"{error}\n{changed}a script that repeats it:\n\n{script}") from error


def _found(subject: _Subject, program: Program) -> bool:
    original = load(program)
    model = original.clone()
    before, dead = text(original, weights="hash"), _dead(model)
    report = _run(subject, model, before)
    model.program.validate()
    after = text(model, weights="hash")
    if not report:
        assert after == before, f"{subject.name} reports no change, but the program is now\n{after}it was\n{before}"
        if nearest := report.nearest(1) or [*report.all_misses()][:1]:
            subject.reasons[_told_of(nearest[0])] += 1
        return False
    assert after != before, f"{subject.name} reports a change, but the program is still\n{before}"
    metric = report.metric or subject.metric
    # every program gets numbers of its own: a rule that is wrong for few of them meets those in one of many
    seed = zlib.crc32(before.encode())
    verdict = compare(original, model, trials=_TRIALS, seed=seed, metric=metric, signature=report.signature)
    assert verdict, f"{subject.name}: {verdict}\n{before}became\n{after}"
    assert not (left := _dead(model) - dead), f"{subject.name} leaves dead ops: {', '.join(sorted(left))}\n{after}"
    again = _run(subject, model, after)
    assert not again, f"{subject.name} changes its own result:\n{after}becomes\n{text(model)}"
    assert text(model, weights="hash") == after, f"{subject.name} changes its own result without saying so:\n{after}"
    return True


def _run(subject: _Subject, model: Model, before: str) -> Report:
    """What the subject reports. A crash is a failure like any other: it is shrunk, and told with a script."""
    try:
        return subject.run(model)
    except EvaluationError:
        raise
    except Exception as error:
        raise AssertionError(f"{subject.name} crashes, {type(error).__name__}: {error}\n{before}") from error


def _dead(model: Model) -> set[str]:
    """The names of ops whose results nothing uses; constants are not counted, since they are not computed."""
    return {
        op.name
        for function in model.functions.values()
        for op in operations(function)
        if op.op_type != "const" and is_dead(op)
    }
