"""Compares a model before and after passes while a pipeline runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from milopt.errors import EvaluationError, MiloptError, UnsupportedOps, VerificationError
from milopt.metrics import Exact, Lossy, Metric
from milopt.precisions import Precision
from milopt.reports import Report
from milopt.signature import CacheSignature
from milopt.verify.comparing import compare
from milopt.verify.freezing import Frozen, freeze
from milopt.verify.verdict import Verdict

if TYPE_CHECKING:
    from milopt.package import Model
    from milopt.pipeline import Pass

__all__ = ["Verifier"]


@dataclass
class _Stage:
    """Passes that ran since ``before`` and are judged together."""

    before: Frozen
    after: Frozen
    metric: Metric
    passes: list[str] = field(default_factory=list[str])
    signature: CacheSignature | None = None
    report: Report | None = None


class Verifier:
    """Told of every pass by :meth:`milopt.Pipeline.run`; raises VerificationError when a verdict fails.

    ``mode`` is ``"each"``, ``"stage"`` (passes in a row whose metrics are of one kind are judged together, by the most
    permissive of their bounds), ``"end"`` (all are judged together, by the most permissive metric, in one comparison
    with the model they began with) or ``None`` for no comparison. A pass whose report says that nothing changed is not
    compared by itself; if it changed something after all, the next comparison sees it. ``verdicts`` holds the names of
    the passes judged and what was found.
    """

    def __init__(self, mode: str | None, model: Model, passes: Sequence[Pass]) -> None:
        self.verdicts: list[tuple[tuple[str, ...], Verdict]] = []
        self._mode = mode
        self._model = model
        self._passes = tuple(passes)
        self._stage: _Stage | None = None
        metrics = [each.metric for each in passes]
        self._safe_in = _joined(each.safe_in for each in metrics if isinstance(each, Exact))
        self._last = freeze(model, also=self._safe_in) if mode is not None else None

    @classmethod
    def of(cls, verify: str | None, model: Model, passes: Sequence[Pass]) -> Verifier:
        """A verifier for ``verify``, which must be ``None``, ``"each"``, ``"stage"`` or ``"end"``."""
        if verify not in (None, "each", "stage", "end"):
            raise MiloptError(f"verify is 'each', 'stage', 'end' or None, not {verify!r}")
        return cls(verify, model, passes)

    def passed(self, index: int, report: Report) -> None:
        """Pass number ``index`` has run and changed the model, or has not, as ``report`` says."""
        if self._mode is None:
            return
        each = self._passes[index]
        if report:
            metric = report.metric or each.metric
            if self._mode != "end" and self._stage is not None and type(self._stage.metric) is not type(metric):
                self._close()  # the pass turned out to need another metric than it declares
            self._join(each, report, metric)
        if self._mode == "each" or self._ends(index):
            self._close()

    def _ends(self, index: int) -> bool:
        """Whether the next pass is of another kind, or there is none."""
        if index + 1 == len(self._passes):
            return True
        if self._mode == "end":
            return False
        return self._stage is not None and type(self._passes[index + 1].metric) is not type(self._stage.metric)

    def _join(self, each: Pass, report: Report, metric: Metric) -> None:
        if self._stage is not None:
            metric = _weaker(self._stage.metric, metric)
        try:
            precise = freeze(self._model, also=self._safe_in)
            judged = precise if isinstance(metric, Exact) else freeze(self._model, precision="declared")
        except UnsupportedOps:
            raise
        except EvaluationError as error:
            raise EvaluationError(f"what {each} leaves can't be run: {error}") from error
        if self._stage is None:
            assert self._last is not None
            self._stage = _Stage(self._last, judged, metric)
        stage = self._stage
        stage.passes.append(str(each))
        stage.after, stage.report, stage.metric = judged, report, metric
        stage.signature = report.signature or stage.signature
        self._last = precise

    def _close(self) -> None:
        stage, self._stage = self._stage, None
        if stage is None:
            return
        verdict = compare(stage.before, stage.after, metric=stage.metric, signature=stage.signature)
        verdict = replace(verdict, subject=", ".join(stage.passes))
        self.verdicts.append((tuple(stage.passes), verdict))
        if stage.report is not None:
            stage.report.verdicts.append(verdict)
        if not verdict:
            raise VerificationError(str(verdict), verdict)


def _joined(precisions: Iterable[tuple[Precision, ...]]) -> tuple[Precision, ...]:
    """Each of them once, in order."""
    return tuple(dict.fromkeys(each for several in precisions for each in several))


def _weaker(one: Metric, other: Metric) -> Metric:
    """What allows as much as both, since errors of passes in a row add up; what is safe for one must be for both."""
    if isinstance(one, Exact) and isinstance(other, Exact):
        return Exact(max(one.rtol, other.rtol), _joined([one.safe_in, other.safe_in]))
    if isinstance(one, Lossy) and isinstance(other, Lossy):
        return Lossy(min(one.min_snr_db, other.min_snr_db), min(one.min_top1, other.min_top1))
    return one if isinstance(one, Lossy) else other  # what is exact lies within any bound
