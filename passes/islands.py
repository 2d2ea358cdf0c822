"""Norms and angles in fp16 -> the same in fp32 between casts: what an op selector of coremltools would have kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from milopt.building import Builder
from milopt.matching import Match
from milopt.metrics import Exact, Lossy, Metric
from milopt.mil import Var, constant, dtype_name
from milopt.package import Model
from milopt.passes.angles import Tabulated, tabulate
from milopt.passes.norms import norm_pattern
from milopt.passes.rope import Made, positions_of
from milopt.pattern import Const, Ops, Scalar, Value
from milopt.pipeline import Pass
from milopt.reports import Report, require
from milopt.rules import Rule, apply

__all__ = ["Fp32Islands", "WidenAngles", "WidenNorm"]

# of restored frequencies, as rope-table: fp16 in the rest of the program leaves 45 dB, and 10 dB of margin
_LEAST_DB, _MARGIN_DB = 35.0, 10.0
# positions at which restored frequencies are compared with the rounded ones, where the model does not say
_ROWS = 4096
# no refusal: what the pass itself writes
_DONE = "it is fp32 already"


@dataclass(frozen=True)
class Fp32Islands(Pass):
    """The squares, mean and root of a norm, and the angles of cosines and sines, in fp32 between casts.

    What ``FP16ComputePrecision(op_selector=...)`` keeps in fp32, for a program that is fp16 already: a reference for
    ``fp16-safe-norm`` and ``rope-table``, and the better choice on a GPU. The Neural Engine computes nothing in fp32.
    """

    name: ClassVar[str] = "fp32-islands"
    after: ClassVar[tuple[str, ...]] = ("canonicalize",)
    metric: ClassVar[Metric] = Exact(safe_in=("declared",))

    def run(self, model: Model) -> Report:
        made = Made()
        rows = max(positions_of(model) or _ROWS, 3)  # of which two steps are compared
        report = apply((WidenNorm(), WidenAngles(rows, made)), model)
        report.name = self.name
        report.misses = [miss for miss in report.misses if miss.declined and miss.text != _DONE]
        if made.original_db < np.inf:
            report.metric = Lossy(min(_LEAST_DB, made.original_db - _MARGIN_DB))
        return report


@dataclass(frozen=True)
class _Epsilons:
    eps: float
    inside: float
    outside: float


class WidenNorm(Rule[_Epsilons]):
    """``x * rsqrt(mean(x²) + eps)`` of fp16  ->  ``cast(cast(x) * rsqrt(mean(cast(x)²) + eps))``.

    In every spelling that ``fp16-safe-norm`` knows. It stays away where the mean is fp32 already.
    """

    def pattern(self, op: Ops, /, x: Value, axes: Const, eps: Scalar, inside: Scalar, outside: Scalar) -> Any:
        return norm_pattern(op, x, axes, eps, inside, outside)

    def check(self, m: Match, /) -> _Epsilons:
        require(dtype_name(m.x) == "fp16" and m.widened == "no", _DONE, at=m.x)
        return _Epsilons(float(m.eps or 0), float(m.inside or 0), float(m.outside or 0))

    def rewrite(self, op: Builder, m: Match, facts: _Epsilons, /) -> Var:
        wide = op.cast(x=m.x, dtype="fp32")
        total = op.reduce_mean(x=op.mul(x=wide, y=wide), axes=constant(m.axes), keep_dims=True)
        if facts.eps:
            total = op.add(x=total, y=np.float32(facts.eps))
        if facts.outside:
            root = op.sqrt(x=total)
            result = op.real_div(x=wide, y=op.add(x=root, y=np.float32(facts.outside)))
        else:
            result = op.mul(x=wide, y=op.rsqrt(x=total, epsilon=np.float32(facts.inside)))
        narrow: Var = op.cast(x=result, dtype="fp16")
        return narrow


@dataclass(frozen=True)
class WidenAngles(Rule[Tabulated]):
    """``cos`` or ``sin`` of fp16 angles ``positions * frequencies``  ->  of the same angles computed in fp32.

    Frequencies that fp16 has rounded are restored where their closed form is known, and else taken as they are.
    ``rows`` positions are compared with the original, in ``made``. It stays away where the angles are no multiples of
    one integer value, plus constants.
    """

    rows: int = _ROWS
    made: Made = field(default_factory=Made, compare=False)

    def pattern(self, op: Ops, /, angles: Value) -> Any:
        return op.one_of("wave", cos=op.cos(x=angles), sin=op.sin(x=angles))

    def check(self, m: Match, /) -> Tabulated:
        require(dtype_name(m.angles) == "fp16", _DONE, at=m.angles)
        found = tabulate(m.angles, self.rows, approximate=True)
        require(found.positions is not None, "its angles are constant", at=m.angles)
        step = np.diff(found.table, axis=0)
        # float64 has 16 digits, and the angles are at most a few products of numbers with 3
        multiple = np.abs(step[1] - step[0]) <= 1e-12 * (1 + np.abs(found.table[2]))
        require(np.all(multiple), "its angles are no multiples of the positions", at=m.angles)
        return found

    def rewrite(self, op: Builder, m: Match, facts: Tabulated, /) -> Var:
        for note in facts.notes:
            op.note(note)
        wave = np.cos if m.wave == "cos" else np.sin
        self.made.compare(wave(facts.table), wave(tabulate(m.angles, self.rows, as_stored=True).table))
        angles: Var = op.cast(x=facts.positions, dtype="fp32")
        perm = [axis for axis in facts.axes if axis is not None]
        if perm != sorted(perm):
            angles = op.transpose(x=angles, perm=perm)
        added = [at for at, axis in enumerate(facts.axes) if axis is None]
        angles = op.expand_dims(x=angles, axes=added) if added else angles
        offset, slope = facts.table[0], facts.table[1] - facts.table[0]
        angles = op.mul(x=angles, y=slope.astype(np.float32))
        if np.any(offset):
            angles = op.add(x=angles, y=offset.astype(np.float32))
        narrow: Var = op.cast(x=op.cos(x=angles) if m.wave == "cos" else op.sin(x=angles), dtype="fp16")
        return narrow
