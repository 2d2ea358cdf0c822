"""Weights in fewer bits."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, log10
from typing import ClassVar, Literal

import joblib
import numpy as np

from milopt.clustering import Palette, palettize
from milopt.metrics import Lossy, Metric
from milopt.mil import arguments, operations, opset_of, target, value_names
from milopt.package import Model
from milopt.passes.palettes import PalettePlan, nearest_divisor
from milopt.passes.uses import CHANNEL_AXES, Weight, find_weights, layouts_of
from milopt.pipeline import Pass
from milopt.reports import NoMatch, Report, how_to_upgrade, require, require_opset

__all__ = ["Palettize", "note_compressed", "snr"]

# the table sizes of the iOS16 op; iOS18 has 8 entries too (constraints W1)
_IOS16_BITS = (1, 2, 4, 6, 8)
# What the outputs may lose beyond the weights: the noise of many layers adds up. SmolLM2-135M's logits have 8-15 dB
# less than its weights at 6 bits, 9-21 dB less at 4 bits.
_MARGIN_DB = 20.0
# Outputs of zeros lie at 0 dB and unrelated ones at -3, so half a decibel still tells a weight put in the wrong way
# from few bits: 4 of them, without data, leave 1.0 dB on SmolLM2-135M's last keys. Whether a model is still good at so
# few is for cross-entropy to say (benchmarks/frontier.py). Above 30 dB what fp16 itself costs a deep model counts too.
_LEAST_DB, _MOST_DB = 0.5, 30.0


@dataclass(frozen=True)
class Palettize(Pass):
    """A constant weight  ->  ``constexpr_lut_to_dense`` of ``bits`` per number and tables of ``2**bits`` values.

    With ``granularity="grouped-channel"`` there is a table for every ``group_size`` output channels (or the nearest
    number that divides them), which needs iOS18; functions for iOS16 and iOS17 get one table per weight. The entries
    are the k-means of the weights (:mod:`milopt.clustering`); a weight that several ops or functions hold is clustered
    and stored once. Weights of ``linear``, ``conv``, ``conv_transpose``, ``matmul`` and ``gather`` are compressed, but
    not

    1. those with fewer than ``min_elements`` numbers, or that would not become smaller;
    2. embeddings (``gather``), and what shares their bytes, with ``embedding=False``;
    3. those that are also an output, an operand of another kind of op, or grouped by channels on different axes;
    4. tables whose rows only scale other values: cosines and sines of positions;
    5. those that hold NaN or infinity;
    6. those that are compressed already;
    7. those of functions for iOS15, which has no such op, and with 3 bits those of functions before iOS18.
    """

    name: ClassVar[str] = "palettize"
    after: ClassVar[tuple[str, ...]] = ("canonicalize", "fp16-safe-norm", "rope-table", "fuse-sdpa", "kv-to-state")
    metric: ClassVar[Metric] = Lossy(min_snr_db=_LEAST_DB)  # the report's own follows from the weights' error
    opset: ClassVar[int] = int(target.iOS16)

    bits: Literal[1, 2, 3, 4, 6, 8] = 6
    granularity: Literal["tensor", "grouped-channel"] = "grouped-channel"
    group_size: int = 16
    min_elements: int = 2048  # coremltools' weight_threshold, constraints W12
    embedding: bool = True

    def __post_init__(self) -> None:
        if self.group_size < 1:
            raise ValueError(f"group_size must be at least 1, not {self.group_size}")

    def run(self, model: Model) -> Report:
        report = Report(self.name)
        plans: list[PalettePlan] = []
        for weight in find_weights(model):
            report.tried += 1
            try:
                plans.append(self._plan(weight))
            except NoMatch as why:
                place = weight.places[0]
                report.decline(place.function, why.at if why.at is not None else place.op, why.text, *why.arguments)
        note_compressed(model, report)
        if plans:
            self._note_tables(plans, report)
            self._compress(model, plans, report)
        return report

    def _note_tables(self, plans: list[PalettePlan], report: Report) -> None:
        """Tell of functions that could have a table per group, were they for iOS18."""
        places = (place for plan in plans for place in plan.weight.places) if self.granularity != "tensor" else ()
        old = {place.function: opset_of(place.op) for place in places if opset_of(place.op) < target.iOS18}
        for name, opset in old.items():
            report.notes.append(
                f"tables for groups of channels are of iOS18, function {name!r} is {opset.name}, so that its weights "
                f"get one each: upgrade with {how_to_upgrade(target.iOS18.name)}"
            )

    def _plan(self, weight: Weight) -> PalettePlan:
        array = weight.array
        require(
            array.size >= max(self.min_elements, 1), "too small: {} of {} numbers", array.size, self.min_elements
        )  # 1
        gathers = [op for _, _, op in weight.users() if op.op_type == "gather"]
        require(self.embedding or not gathers, "an embedding, and embedding=False")  # 2
        layouts = layouts_of(weight)  # 3, 4
        layout, uses = next(iter(layouts)), ", ".join(layouts.values())
        opset = min(opset_of(place.op) for place in weight.places)
        require_opset(opset, target.iOS16 if self.bits in _IOS16_BITS else target.iOS18)  # 7
        wrong = array.size - int(np.count_nonzero(np.isfinite(array)))
        require(not wrong, "holds {} values that are not finite", wrong)  # 5
        grouped = self.granularity == "grouped-channel" and opset >= target.iOS18
        require(len(layouts) == 1 or not grouped, "its uses have their channels on different axes: {}", uses)  # 3
        group = nearest_divisor(layout.channels, self.group_size) if grouped else layout.channels
        plan = PalettePlan(weight, layout, group, self.bits)
        require(plan.nbytes < array.nbytes, "{} bytes would become {}", array.nbytes, plan.nbytes)  # 1
        return plan

    def _compress(self, model: Model, plans: list[PalettePlan], report: Report) -> None:
        summary = _Summary(self)
        taken = {name: value_names(function) for name, function in model.functions.items()}
        # the large ones first, so that no worker is left alone with one at the end
        plans = sorted(plans, key=lambda plan: -plan.weight.array.size)
        jobs = (joblib.delayed(palettize)(plan.rows(), self.bits) for plan in plans)
        found = joblib.Parallel(n_jobs=-1, prefer="threads", return_as="generator")(jobs)
        for plan, palette in zip(plans, found, strict=True):
            plan.place(palette, taken)
            report.applied += len(plan.weight.places)
            summary.add(plan, palette)
        report.notes += summary.lines()
        report.metric = Lossy(min_snr_db=round(min(max(summary.snr - _MARGIN_DB, _LEAST_DB), _MOST_DB), 1))


def note_compressed(model: Model, report: Report) -> None:
    """Tell of weights that were compressed before the pass."""  # 6
    for name, function in model.functions.items():
        for op in operations(function):
            for argument, var in arguments(op):
                kind = "" if var.op is None else var.op.op_type
                if (op.op_type, argument) in CHANNEL_AXES and kind.startswith("constexpr_"):
                    report.decline(name, var, "compressed already, as {}", kind)


@dataclass
class _Summary:
    """What became of the weights of one run."""

    wanted: Palettize
    weights: int = 0
    numbers: int = 0
    before: int = 0
    after: int = 0
    error: float = 0.0
    power: float = 0.0
    worst: tuple[float, str] = (inf, "")
    groups: dict[str, int] = field(default_factory=dict[str, int])

    def add(self, plan: PalettePlan, palette: Palette) -> None:
        self.weights += 1
        self.numbers += plan.weight.array.size
        self.before += plan.weight.array.nbytes
        self.after += plan.nbytes
        self.error += palette.error
        self.power += palette.power
        self.worst = min(self.worst, (snr(palette.power, palette.error), plan.weight.name))
        if self.wanted.granularity == "grouped-channel" and plan.group != self.wanted.group_size:
            used = "one table" if plan.tables == 1 else f"groups of {plan.group}"
            text = f"{used} for {plan.layout.channels} channels instead of groups of {self.wanted.group_size}"
            self.groups[text] = self.groups.get(text, 0) + 1

    @property
    def snr(self) -> float:
        return snr(self.power, self.error)

    def lines(self) -> list[str]:
        return [
            f"{self.numbers:,} numbers in {self.weights} weights: {self.before:,} -> {self.after:,} bytes",
            f"SNR of the weights {self.snr:.1f} dB, the lowest {self.worst[0]:.1f} dB ({self.worst[1]})",
            *(f"{text} ({count} weights)" for text, count in self.groups.items()),
        ]


def snr(power: float, error: float) -> float:
    """10·log10(power / error): dB, infinite where nothing was lost."""
    return 10 * log10(power / error) if error else inf
