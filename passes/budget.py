"""Bits and tables for each weight, chosen together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import isnan
from typing import Any, ClassVar, cast

from milopt.calibration import sensitivity
from milopt.calibration.statistics import Statistics
from milopt.choosing import Choice, Infeasible, choose
from milopt.errors import MiloptError
from milopt.estimating import Form, losses
from milopt.metrics import Lossy, Metric
from milopt.mil import target
from milopt.package import Model
from milopt.passes.compressing import CompressionReport, compress, spread
from milopt.passes.compression import Palettize, note_compressed, sum_up
from milopt.passes.decompression import compressed_bytes, weights_again
from milopt.passes.palettes import PalettePlan
from milopt.passes.uses import Weight, find_weights
from milopt.pipeline import Pass
from milopt.reports import NoMatch, Report

__all__ = ["Budget"]

_WIDTHS = (1, 2, 3, 4, 6, 8)


@dataclass(frozen=True)
class _Item:
    """A weight, the forms that it may have, and the relative error of each."""

    weight: Weight
    plans: list[PalettePlan] = field(default_factory=list[PalettePlan])
    errors: list[float] = field(default_factory=list[float])
    sensitivity: float = 1.0

    @property
    def costs(self) -> list[float]:
        """Bytes of each form, and at last those of the numbers as they are."""
        return [float(each) for each in (*(plan.nbytes for plan in self.plans), self.weight.array.nbytes)]

    @property
    def losses(self) -> list[float]:
        return [*(self.sensitivity * error for error in self.errors), 0.0]


@dataclass(frozen=True)
class Budget(Pass):
    """Constant weights  ->  ``constexpr_lut_to_dense``, of as many bits and tables as each of them is worth.

    Either ``size`` is given, the share of their bytes that the weights together may have afterwards, and what they lose
    is the least that this allows; or ``loss``, and their bytes are. Weights that are compressed already stay as they
    are and count with what they take, unless ``recompress``; what they have lost is not known, so that ``loss`` leaves
    a program that has some as it is. A weight has one of ``bits`` for each number, and a
    table for each of ``groups`` output channels (0: one in all), as ``palettize`` makes them, or stays as it is.

    What is lost is added up over the weights: the relative squared error of each form, measured, times the weight's
    sensitivity. Both come from the file ``calibration`` (``milopt calibrate``): an error counts with the second moment
    of its input, and the sensitivity is what the model's outputs lost in a run where this weight alone was changed, so
    that ``loss`` is in nats of a language model's predictions, or a share of other outputs' power. Without
    sensitivities the relative errors of all weights count alike. No weight is special but by what was measured.
    With ``feedback`` indices make up for each other as in ``palettize``, and the errors are those that this leaves of a
    layer's outputs, measured on some channels of each weight in each form (:mod:`milopt.estimating`), for the text of
    the calibration: others lose more, several times as much in some layers of SmolLM2-135M.

    The choice is the best one of all (:mod:`milopt.choosing`), or its distance from the best is told. Weights that
    ``palettize`` would leave alone are left alone for the same reasons.
    """

    name: ClassVar[str] = "budget"
    after: ClassVar[tuple[str, ...]] = Palettize.after
    metric: ClassVar[Metric] = Lossy(min_snr_db=0.5)  # as palettize: the report's own follows from the weights' error
    opset: ClassVar[int] = int(target.iOS16)

    size: float | None = None
    loss: float | None = None
    bits: tuple[int, ...] = (2, 3, 4, 6, 8)
    groups: tuple[int, ...] = (0, 16)
    feedback: bool = False
    calibration: str = ""
    recompress: bool = False
    min_elements: int = 2048  # coremltools' weight_threshold, constraints W12

    def __post_init__(self) -> None:
        if self.size is not None and not 0 < self.size <= 1:
            raise ValueError(f"size is a share of the weights' bytes, above 0 and at most 1, not {self.size}")
        if self.loss is not None and not self.loss >= 0:
            raise ValueError(f"loss must be at least 0, not {self.loss}")
        if self.size is not None and self.loss is not None:
            raise ValueError("give size or loss, not both")
        if not self.bits or any(each not in _WIDTHS for each in self.bits):
            raise ValueError(f"bits are some of {', '.join(map(str, _WIDTHS))}, not {self.bits}")
        if not self.groups or any(each < 0 for each in self.groups):
            raise ValueError(f"groups are numbers of channels, or 0 for one table, not {self.groups}")
        if self.feedback and not self.calibration:
            raise ValueError("feedback needs calibration, the file of a calibration with --hessian")

    def run(self, model: Model) -> Report:
        if self.size is None and self.loss is None:
            raise MiloptError("budget needs a target: budget{size=0.25}, or budget{loss=0.05} with a calibration")
        report = CompressionReport(self.name)
        statistics = Statistics.load(self.calibration) if self.calibration else None
        weights = weights_again(model) if self.recompress else find_weights(model)
        items = self._items(weights, statistics, report)
        taken, held = (0, 0) if self.recompress else compressed_bytes(model)
        if not self.recompress:
            note_compressed(model, report)
        if taken and self.loss is not None:
            for item in items:
                report.leave(item.weight, NoMatch("what others lost that are compressed is not known: recompress=true"))
        elif items:
            choice = self._choose(items, taken, held)
            plans = [item.plans[at] for item, at in zip(items, choice.options, strict=True) if at < len(item.plans)]
            if taken:
                report.notes.append(f"{taken:,} bytes of other weights are compressed already, of {held:,} as numbers")
            self._tell(items, choice, report)
            totals, done = compress(plans, model, report)
            if done:
                sum_up(totals, report)
        report.sort(model)
        return report

    def _items(
        self, weights: Sequence[Weight], statistics: Statistics | None, report: CompressionReport
    ) -> list[_Item]:
        """What is to be chosen for; the weights that no form is for are reported."""
        found = list[_Item]()
        for weight in weights:
            report.tried += 1
            item = _Item(weight)
            reasons = list[NoMatch]()
            for form in self._forms():
                try:
                    plan = form.plan(weight, statistics, report)
                except NoMatch as why:
                    reasons.append(why)
                    continue
                if all((plan.bits, plan.group) != (other.bits, other.group) for other in item.plans):
                    item.plans.append(plan)
            if item.plans:
                found.append(item)
            else:
                report.leave(weight, reasons[0])
        report.notes = list(dict.fromkeys(report.notes))  # one for each form so far
        return self._measured(self._weighed(found, statistics, report), report)

    def _forms(self) -> list[Palettize]:
        return [
            Palettize(
                bits=cast("Any", bits),  # one of Palettize's, as __post_init__ sees to
                granularity="grouped-channel" if group else "tensor",
                group_size=group or 1,
                feedback=self.feedback,
                weighting="activation" if self.calibration else "none",
                calibration=self.calibration,
                min_elements=self.min_elements,
            )
            for bits in sorted(set(self.bits))
            for group in sorted(set(self.groups))
        ]

    def _weighed(self, items: Sequence[_Item], statistics: Statistics | None, report: Report) -> list[_Item]:
        """Each weight with its sensitivity; where none are known they are all alike."""
        if statistics is None or not statistics.sensitivities:
            if items:
                report.notes.append("no sensitivities were measured: the relative errors of all weights count alike")
            return list(items)
        known, weighed = sorted(statistics.sensitivities.values()), list[_Item]()
        for item in items:
            found = statistics.sensitivity(item.weight.array)
            if found is None:
                report.notes.append(f"the sensitivity of {item.weight.name} was not measured: it has the middle one")
            weighed.append(replace(item, sensitivity=known[len(known) // 2] if found is None else found))
        return weighed

    def _measured(self, items: Sequence[_Item], report: CompressionReport) -> list[_Item]:
        """The error of every form of every weight; those with a NaN are left alone."""
        jobs = ((losses, _forms_of(item.plans)) for item in items)
        sizes = [item.weight.array.size for item in items]
        found = list[_Item]()
        for item, (errors, outputs) in zip(items, spread("measure forms", jobs, sizes), strict=True):
            if any(map(isnan, errors)):
                report.leave(item.weight, NoMatch("holds values that are not finite"))
            else:
                found.append(replace(item, errors=list(errors), sensitivity=item.sensitivity / outputs))
        return found

    def _choose(self, items: Sequence[_Item], taken: int, held: int) -> Choice:
        """The forms of all weights; its ``cost`` is bytes, its ``loss`` what is lost. MiloptError for a size too small.

        ``taken`` are the bytes of other weights, compressed, and ``held`` those of their numbers. The smallest size for
        a loss is the same task with both exchanged.
        """
        costs, losses = [item.costs for item in items], [item.losses for item in items]
        if self.loss is not None:
            found = choose(losses, costs, self.loss)
            return Choice(found.options, found.loss, found.cost, found.least)
        assert self.size is not None
        whole = held + sum(item.weight.array.nbytes for item in items)
        try:
            return choose(costs, losses, self.size * whole - taken)
        except Infeasible as why:
            others = " and what is compressed as it is," if taken else ""
            raise MiloptError(
                f"budget: size={self.size:g} can't be met: with {min(self.bits)} bits and more{others} "
                f"the weights keep {(why.least + taken) / whole:.3f} of their bytes"
            ) from None

    def _tell(self, items: Sequence[_Item], choice: Choice, report: CompressionReport) -> None:
        """Note what was chosen, and how good a choice it is; the weights that stay as they are are left alone."""
        reached = choice.cost if self.loss is not None else choice.loss
        said = "the best choice of all" if choice.least >= reached else f"the best is at least {choice.least:.6g}"
        what = "bytes, the fewest" if self.loss is not None else "lost, the least"
        report.notes.append(
            f"{choice.cost:,.0f} bytes, {choice.loss:.4g} lost by estimate; {what} for "
            f"{f'loss={self.loss:g}' if self.loss is not None else f'size={self.size:g}'}: {said}"
        )
        forms = Counter[str]()
        for item, at in zip(items, choice.options, strict=True):
            if at < len(item.plans):
                forms[item.plans[at].form] += 1
                continue
            forms["as they are"] += 1
            report.leave(item.weight, NoMatch("worth its bytes: sensitivity {:.3g}", item.sensitivity))
        report.notes += [f"{form}: {count} weights" for form, count in sorted(forms.items())]


def _forms_of(plans: Sequence[PalettePlan]) -> tuple[Form, list[Form], Any]:
    """What :func:`milopt.estimating.losses` takes: the form that sensitivities are measured with, and the others."""
    first = plans[0]
    plain = replace(first, bits=sensitivity.FORM.bits, group=first.layout.channels)
    one, *rest = (Form(plan.rows(), plan.bits, plan.importance) for plan in (plain, *plans))
    return one, rest, first.products
