"""Convolutions whose weights stream slowly on the Neural Engine -> two, of half the input channels each."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np

from milopt.building import Builder
from milopt.matching import Match
from milopt.mil import Operation, Var, constant, dtype_name, named_blocks, refine_shape, remove_if_dead, replace_uses
from milopt.package import Model
from milopt.pattern import Ops, Value, Weight
from milopt.pipeline import RulePass
from milopt.reports import Report, require
from milopt.rules import Rule

__all__ = ["DmaNotch", "SplitInputs"]

_CORES = 16
_FP16 = 2


@dataclass(frozen=True)
class DmaNotch(RulePass):
    """``conv(x, w)``, or ``linear``, near a notch of the weights' DMA  ->  ``conv(x1, w1) + conv(x2, w2)``.

    Where a core's share of an fp16 weight, ceil(N / 16) · D · kernel · 2 bytes for N output channels of D inputs, lies
    within ``within`` bytes of a multiple of ``period``, the Neural Engine of an M4 streamed it at less than half the
    speed (constraints L23, measured by others); the halves of D that come of the cut do not. Only dense fp16 weights
    are cut: of tables and integers nothing is known, nor of other processors.

    In exact arithmetic nothing changes. In fp16 both partial sums are rounded before they are added, and their sum
    once more: three roundings of at most 2⁻¹¹ of a value each in the place of one, where the values are no larger than
    Σ|w·x|. That is less than what another order of summation may change, which no one can rely on.
    """

    name: ClassVar[str] = "dma-notch"
    after: ClassVar[tuple[str, ...]] = ("linear-to-conv", "layout-bc1s", "split-head", "palettize", "quantize")

    within: int = 16 << 10
    period: int = 1 << 20

    def __post_init__(self) -> None:
        if self.within < 0 or self.period <= 2 * self.within:
            raise ValueError(f"within is 0 or more, and period over twice that, not {self.within} and {self.period}")

    def rules(self) -> tuple[Rule[Any], ...]:
        return (SplitInputs(self.within, self.period),)

    def run(self, model: Model) -> Report:
        report = super().run(model)
        if report.applied:
            _share_splits(model)
            report.notes.append(f"{report.applied} weights cut in two, each result is rounded once more")
        return report


@dataclass(frozen=True)
class _Halves:
    """Where the input channels are cut, and the axes they are on: of the operand and of the weight."""

    sizes: tuple[int, int]
    axis: int


class SplitInputs(Rule[_Halves]):
    """One layer near a notch  ->  the sum of two that are not.

    It stays away from layers that are not near one, from compressed and fp32 weights, from groups, and from where no
    cut, at a multiple of 32 channels if there is one (constraints L2), leads both parts away.
    """

    def __init__(self, within: int, period: int) -> None:
        self._within = within
        self._period = period

    def pattern(self, op: Ops, /, x: Value, weight: Weight) -> Any:
        others = dict.fromkeys(("bias", "strides", "pad_type", "pad", "dilations", "groups"), ...)
        return op.one_of(
            "layer", conv=op.conv(x=x, weight=weight, **others), linear=op.linear(x=x, weight=weight, bias=...)
        )

    def check(self, m: Match, /) -> _Halves:
        shape = [int(size) for size in m.weight.shape]
        each = -(-shape[0] // _CORES) * prod(shape[2:]) * _FP16
        require(self._near(each * shape[1]), "{} bytes for a core are near no notch", each * shape[1], at=m.weight)
        require(constant(m.weight) is not None, "its weight is compressed", at=m.weight)
        require(dtype_name(m.weight) == "fp16", "its weight is {}", dtype_name(m.weight), at=m.weight)
        groups = constant(m.root.inputs.get("groups"))
        require(groups in (None, 1), "it has {} groups", groups)
        first = self._cut(shape[1], each)
        require(first, "no cut of {} channels leads away from a notch", shape[1], at=m.weight)
        return _Halves((first, shape[1] - first), 1 if m.layer == "conv" else m.x.rank - 1)

    def _near(self, size: int) -> bool:
        beyond = size % self._period
        return size > self._within and min(beyond, self._period - beyond) <= self._within

    def _cut(self, inputs: int, each: int) -> int:
        """The cut nearest to the middle whose parts are near no notch, at multiples of 32 if possible; 0 if none is."""
        for step in (32, 1):
            cuts = sorted(range(step, inputs, step), key=lambda cut: (abs(2 * cut - inputs), -cut))
            good = (cut for cut in cuts if not self._near(cut * each) and not self._near((inputs - cut) * each))
            if found := next(good, 0):
                return found
        return 0

    def rewrite(self, op: Builder, m: Match, facts: _Halves, /) -> Var:
        whole = constant(m.weight)
        parts = op.split(x=m.x, split_sizes=list(facts.sizes), axis=facts.axis)
        kept = {name: var for name, var in m.root.inputs.items() if name not in ("x", "weight")}
        begin, made = 0, list[Var]()
        for part, size in zip(parts, facts.sizes, strict=True):
            kernel = op.const(val=whole[:, begin : begin + size], name=f"{m.weight.name}_{begin}")
            made.append(getattr(op, m.layer)(**kept, x=part, weight=kernel))
            refine_shape(made[-1], m.root.outputs[0].shape)
            kept.pop("bias", None)
            begin += size
        result: Var = op.add(x=made[0], y=made[1])
        return result


def _share_splits(model: Model) -> None:
    """Let layers of one value, as queries, keys and values are, take their parts from one ``split``."""
    for _, block in named_blocks(model.functions):
        first: dict[object, Operation] = {}
        for op in list(block.operations):
            if (sizes := constant(op.inputs.get("split_sizes"))) is None:  # of anything but a split
                continue
            axis = int(np.asarray(constant(op.inputs["axis"]))) % len(op.inputs["x"].shape)
            earlier = first.setdefault((op.inputs["x"], tuple(sizes.tolist()), axis), op)
            if earlier is not op and not any(var.consuming_blocks for var in op.outputs):
                for var, other in zip(op.outputs, earlier.outputs, strict=True):
                    replace_uses(var, other)
                remove_if_dead([op])
