"""Weights in fewer bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from milopt.calibration.statistics import Moments, Statistics
from milopt.metrics import Lossy, Metric
from milopt.mil import arguments, is_constexpr, operations, opset_of, shape_of, target
from milopt.package import Model
from milopt.passes.compressing import CompressionReport, Totals, compress
from milopt.passes.decompression import compressed_places, stored_bytes, weights_again
from milopt.passes.palettes import PalettePlan, importance_of, nearest_divisor
from milopt.passes.uses import (
    CHANNEL_AXES,
    INPUT_AXES,
    Layout,
    Weight,
    axes_at,
    find_weights,
    layout_at,
    layouts_of,
    require_axis,
)
from milopt.pipeline import Pass
from milopt.reports import NoMatch, Report, how_to_upgrade, require, require_opset

__all__ = ["Palettize", "inputs_of", "note_compressed", "sum_up"]

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
    number that divides them), which needs iOS18; functions for iOS16 and iOS17 get one table per weight. ``axis`` is
    that of the channels where they shall not be those that the op has. With ``per_channel_scale`` the numbers of a
    channel are divided by the largest of them before; with ``cluster_dim`` above 1 the entries are vectors of that many
    neighbouring channels, one index each; with ``lut_dtype="int8"`` entries are stored in 8 bits, with a scale for each
    table (all of iOS18). With ``weighting="activation"`` the squared error of a number
    counts with the second moment of its input, from the statistics in the file ``calibration``, and with ``feedback``
    indices make up for each other (GPTQ, :mod:`milopt.feedback`).

    The entries are the exact k-means of the weights (:mod:`milopt.kmeans`), of vectors a close one; a weight that
    several ops or functions hold is clustered and stored once. Weights of ``linear``, ``conv``, ``conv_transpose``,
    ``matmul`` and ``gather`` are compressed, but not

    1. those with fewer than ``min_elements`` numbers, or that would not become smaller;
    2. embeddings (``gather``), and what shares their bytes, with ``embedding=False``;
    3. those that are also an output, an operand of another kind of op, or grouped by channels on different axes;
    4. tables whose rows only scale other values: cosines and sines of positions;
    5. those that hold NaN or infinity;
    6. those that are compressed already, unless ``recompress``: then the error told is what is added to theirs;
    7. those of functions for iOS15, which has no such op, and with 3 bits those of functions before iOS18.
    """

    name: ClassVar[str] = "palettize"
    after: ClassVar[tuple[str, ...]] = ("canonicalize", "fp16-safe-norm", "rope-table", "fuse-sdpa", "kv-to-state")
    metric: ClassVar[Metric] = Lossy(min_snr_db=_LEAST_DB)  # the report's own follows from the weights' error
    opset: ClassVar[int] = int(target.iOS16)

    bits: Literal[1, 2, 3, 4, 6, 8] = 6
    granularity: Literal["tensor", "grouped-channel"] = "grouped-channel"
    group_size: int = 16
    axis: int | None = None
    per_channel_scale: bool = False
    cluster_dim: int = 1
    lut_dtype: Literal["float", "int8"] = "float"
    weighting: Literal["none", "activation"] = "none"
    feedback: bool = False
    calibration: str = ""
    recompress: bool = False
    min_elements: int = 2048  # coremltools' weight_threshold, constraints W12
    embedding: bool = True

    def __post_init__(self) -> None:
        if self.group_size < 1:
            raise ValueError(f"group_size must be at least 1, not {self.group_size}")
        if self.cluster_dim < 1:
            raise ValueError(f"cluster_dim must be at least 1, not {self.cluster_dim}")
        if self.cluster_dim > 1 and self.per_channel_scale:
            raise ValueError("per_channel_scale is for tables of numbers, cluster_dim=1")
        if self.cluster_dim > 1 and self.lut_dtype == "int8":
            raise ValueError("lut_dtype=int8 is for tables of numbers, cluster_dim=1")
        if self.cluster_dim > 1 and self.weighting != "none":
            raise ValueError("weighting is for tables of numbers, cluster_dim=1")
        if (self.weighting == "activation") != bool(self.calibration):
            raise ValueError("weighting=activation goes with calibration, the file of milopt.calibration's statistics")
        if self.feedback and self.weighting == "none":
            raise ValueError("feedback needs weighting=activation, and a calibration with hessian=True")

    def run(self, model: Model) -> Report:
        report = CompressionReport(self.name)
        plans: list[PalettePlan] = []
        statistics = Statistics.load(self.calibration) if self.calibration else None
        weights = weights_again(model) if self.recompress else find_weights(model)
        for weight in weights:
            report.tried += 1
            try:
                plans.append(self.plan(weight, statistics, report))
            except NoMatch as why:
                report.leave(weight, why)
        if not self.recompress:
            note_compressed(model, report)
        if plans:
            self._note_tables(plans, report)
            totals, done = compress(plans, model, report)
            if done:
                self._sum_up(totals, done, report)
        report.sort(model)
        return report

    def _note_tables(self, plans: Sequence[PalettePlan], report: Report) -> None:
        """Tell of functions that could have a table per group, were they for iOS18."""
        places = (place for plan in plans for place in plan.weight.places) if self.granularity != "tensor" else ()
        old = {place.function: opset_of(place.op) for place in places if opset_of(place.op) < target.iOS18}
        for name, opset in old.items():
            report.notes.append(
                f"tables for groups of channels are of iOS18, function {name!r} is {opset.name}, so that its weights "
                f"get one each: upgrade with {how_to_upgrade(target.iOS18.name)}"
            )

    def plan(self, weight: Weight, statistics: Statistics | None, report: Report) -> PalettePlan:
        """How a weight is to be stored; what is not known of it is noted. Raises NoMatch where it is to be left."""
        plan = self._plan(weight)
        return plan if statistics is None else self.weighted(plan, statistics, report)

    def _plan(self, weight: Weight) -> PalettePlan:
        array = weight.array
        require(
            array.size >= max(self.min_elements, 1), "too small: {} of {} numbers", array.size, self.min_elements
        )  # 1
        gathers = [op for _, _, op in weight.users() if op.op_type == "gather"]
        require(self.embedding or not gathers, "an embedding, and embedding=False")  # 2
        require_axis(weight, self.axis)
        layouts = layouts_of(weight, CHANNEL_AXES if self.axis is None else axes_at(self.axis))  # 3, 4
        layout, uses = next(iter(layouts)), ", ".join(layouts.values())
        opset = min(opset_of(place.op) for place in weight.places)
        joint = self.per_channel_scale or self.cluster_dim > 1 or self.lut_dtype == "int8"
        new = joint or self.bits not in _IOS16_BITS
        require_opset(opset, target.iOS18 if new else target.iOS16)  # 7
        grouped = self.granularity == "grouped-channel" and opset >= target.iOS18
        by_channel = grouped or self.per_channel_scale or self.cluster_dim > 1
        require(len(layouts) == 1 or not by_channel, "its uses have their channels on different axes: {}", uses)  # 3
        require(layout.channels > 1 or not self.per_channel_scale, "a vector has no channels")  # 3
        vectors, left = divmod(layout.channels, self.cluster_dim)
        require(not left, "{} channels are no multiple of cluster_dim, {}", layout.channels, self.cluster_dim)  # 3
        wanted = max(1, self.group_size // self.cluster_dim)
        group = nearest_divisor(vectors, wanted) * self.cluster_dim if grouped else layout.channels
        plan = PalettePlan(
            weight,
            layout,
            group,
            self.bits,
            self.per_channel_scale,
            vector=self.cluster_dim,
            integers=self.lut_dtype == "int8",
        )
        require(plan.nbytes < array.nbytes, "{} bytes would become {}", array.nbytes, plan.nbytes)  # 1
        return plan

    def weighted(self, plan: PalettePlan, statistics: Statistics, report: Report) -> PalettePlan:
        """The plan with what its inputs are known to be, or a note that nothing is known."""
        weight, layout = plan.weight, plan.layout
        heard = inputs_of(weight, statistics)
        if heard is None:
            report.notes.append(f"no inputs of {weight.name} were seen: every number of it counts alike")
            return plan
        moments, inputs = heard
        made = replace(plan, importance=importance_of(moments.mean, plan, inputs))
        if not self.feedback:
            return made
        along = layout != inputs and layout.outer * layout.inner == inputs.channels
        if moments.products is None or not along:
            why = "no hessian was collected" if moments.products is None else "its inputs are not those of a channel"
            report.notes.append(f"no feedback among the indices of {weight.name}: {why}")
            return made
        return replace(made, products=moments.products)

    def _sum_up(self, totals: Totals, done: Sequence[PalettePlan], report: Report) -> None:
        sum_up(totals, report)
        if self.granularity == "grouped-channel":
            groups: dict[str, int] = {}
            for plan in done:
                if plan.group != self.group_size:
                    used = "one table" if plan.tables == 1 else f"groups of {plan.group}"
                    text = f"{used} for {plan.layout.channels} channels instead of groups of {self.group_size}"
                    groups[text] = groups.get(text, 0) + 1
            report.notes += [f"{text} ({count} weights)" for text, count in groups.items()]


def sum_up(totals: Totals, report: Report) -> None:
    """Note what became of all weights together, and what the outputs may lose by it."""
    report.notes += [
        f"{totals.numbers:,} numbers in {totals.weights} weights: {totals.before:,} -> {totals.after:,} bytes",
        f"SNR of the weights {totals.snr:.1f} dB, the lowest {totals.worst[0]:.1f} dB ({totals.worst[1]})",
    ]
    report.metric = Lossy(min_snr_db=round(min(max(totals.snr - _MARGIN_DB, _LEAST_DB), _MOST_DB), 1))


def inputs_of(weight: Weight, statistics: Statistics) -> tuple[Moments, Layout] | None:
    """The moments of a weight's inputs and where they lie; None where none were seen, or they lie in several ways.

    The rows that a gather looks up are multiplied with nothing.
    """
    layouts = {
        layout_at(shape_of(place.var), INPUT_AXES[op.op_type, name](op))
        for place, name, op in weight.users()
        if op.op_type != "gather"
    }
    if len(layouts) != 1:
        return None
    inputs = layouts.pop()
    moments = statistics.of(weight.array, inputs)
    if moments is None or len(moments.squares) != inputs.channels:
        return None
    return (moments, inputs) if np.isfinite(moments.squares).all() and moments.squares.any() else None


def note_compressed(model: Model, report: CompressionReport) -> None:
    """Tell of weights that were compressed before the pass."""  # 6
    for places in compressed_places(model):
        report.keep(places, stored_bytes(places[0].op))
    for name, function in model.functions.items():
        for op in operations(function):
            for argument, var in arguments(op):
                kind = "" if var.op is None else var.op.op_type
                if (op.op_type, argument) in CHANNEL_AXES and is_constexpr(kind):
                    report.decline(name, var, "compressed already, as {}", kind)
