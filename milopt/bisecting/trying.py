"""Run one pass on a copy of a model, and compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from milopt.errors import EvaluationError
from milopt.metrics import Metric
from milopt.package import Model
from milopt.pipeline import Pass
from milopt.reports import Report
from milopt.restriction import run_on
from milopt.rewrites import Rewrites
from milopt.text import text
from milopt.verify import Verdict, compare

__all__ = ["Outcome", "attempt", "outcome"]


@dataclass(frozen=True)
class Outcome:
    """What a pass made of a model: ``verdict`` is ``None`` where nothing changed. ``rewrites`` are those of rules."""

    after: Model
    report: Report
    rewrites: Rewrites
    metric: Metric
    verdict: Verdict | None

    @property
    def differs(self) -> bool:
        return self.verdict is not None and not self.verdict


def outcome(
    each: Pass,
    before: Model,
    *,
    limit: int | None = None,
    functions: Sequence[str] | None = None,
    metric: Metric | None = None,
) -> Outcome:
    """Run the pass on a copy, with at most ``limit`` rewrites of rules, and compare. ``before`` stays as it is.

    A change is compared also where the report says that there is none.
    """
    after = before.clone()
    after.rewrites = rewrites = Rewrites(limit)
    report = run_on(each, after, functions)
    after.rewrites = None
    judge = metric or report.metric or each.metric
    if not report and text(before) == text(after):
        return Outcome(after, report, rewrites, judge, None)
    verdict = compare(before, after, metric=judge, signature=report.signature)
    return Outcome(after, report, rewrites, judge, verdict)


def attempt(each: Pass, before: Model, *, functions: Sequence[str] | None = None) -> Outcome | None:
    """The same of a program cut to pieces; ``None`` where such a piece can't be run or rewritten.

    Of ``functions`` those that are left are meant.
    """
    left = None if functions is None else [name for name in functions if name in before.functions]
    if left == []:
        return None
    try:
        return outcome(each, before, functions=left)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, EvaluationError):
        return None  # a pass may rely on what was cut away; the piece then shows nothing, and another is tried
