"""Norms whose squares overflow fp16 -> the same norms of rows scaled to at most 4."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import floor, log2, prod, sqrt
from typing import Any, ClassVar, NamedTuple

import numpy as np

from milopt.building import Builder
from milopt.matching import Match
from milopt.metrics import Exact, Metric
from milopt.mil import Var, constant, dtype_name, is_symbolic, operations, shape_of
from milopt.package import Model
from milopt.pattern import Const, Ops, Scalar, Value
from milopt.pipeline import RulePass
from milopt.reports import Miss, Report, require
from milopt.rules import Rule

__all__ = ["Fp16SafeNorm", "PrescaleNorm", "norm_pattern", "safe_norm_pattern"]

# Rows are scaled to a largest magnitude of 4. The scale 4 / max|x| then is a normal fp16 number up to max|x| = 65504,
# squares are at most 16, and their mean over n elements is at least 16 / n. Rows of more than 4094 elements, whose sum
# of squares could pass 65504, are scaled to 2 or 1: a mean is a sum first, and kernels may round it.
_PEAK = 4.0
_LARGEST = 65504.0
# A share of a root that the comparison of norms (1e-6) can't see.
_INVISIBLE = 2.0**-23
# The least magnitude divided by: 4 / 2**-13 is 32768, which fp16 holds.
_LEAST = 2.0**-13


@dataclass(frozen=True)
class Fp16SafeNorm(RulePass):
    """RMSNorm and spelled-out LayerNorm in fp16  ->  the same with rows prescaled by their largest magnitude.

    fp16 ends at 65504, so the plain form is infinite wherever |x| exceeds 255 (constraints L11): a whole row becomes 0.
    The ``layer_norm`` op is left alone: Core ML computes inside it as it sees fit, and spelling it out would cost more.
    """

    name: ClassVar[str] = "fp16-safe-norm"
    after: ClassVar[tuple[str, ...]] = ("canonicalize",)
    metric: ClassVar[Metric] = Exact(safe_in=("declared", "declared-strict"))

    def rules(self) -> tuple[Rule[Any], ...]:
        return (PrescaleNorm(),)

    def run(self, model: Model) -> Report:
        report = super().run(model)
        report.misses = [miss for miss in report.misses if _is_near(miss)]
        if count := sum(_is_fp16_layer_norm(op) for f in model.functions.values() for op in operations(f)):
            report.notes.append(f"{count} layer_norm ops left alone: they have no intermediate values")
        return report


def _is_near(miss: Miss) -> bool:
    """Whether there was a mean under a root. Something computed added to it is what this pass itself writes."""
    return miss.depth > 2 and miss.arguments != ("eps",)


def _is_fp16_layer_norm(op: Any) -> bool:
    return op.op_type == "layer_norm" and dtype_name(op.outputs[0]) == "fp16"


def norm_pattern(op: Ops, x: Any, axes: Any, eps: Any, inside: Any, outside: Any) -> Any:
    """``x * rsqrt(mean(x²) + eps)`` in every spelling; the epsilons may be any variables of a pattern."""
    wide = op.one_of("widened", no=x, yes=op.shared(op.cast(x=x, dtype="fp32")))
    squares = op.one_of("squares", pow=op.pow(x=wide, y=2.0), mul=op.mul(x=wide, y=wide), square=op.square(x=wide))
    mean = op.reduce_mean(x=squares, axes=axes, keep_dims=True)
    total = op.one_of("sum", add=op.add(y=eps, x=mean), none=mean)
    root = op.one_of("narrowed_root", no=op.sqrt(x=total), yes=op.cast(x=op.sqrt(x=total), dtype="fp16"))
    inverse = op.one_of(
        "reciprocal",
        rsqrt=op.rsqrt(x=total, epsilon=inside),
        power=op.pow(x=total, y=-0.5),
        inverse=op.inverse(x=op.sqrt(x=total), epsilon=outside),
        division=op.real_div(x=1.0, y=op.sqrt(x=total)),
    )
    narrow = op.one_of("narrowed", no=inverse, yes=op.cast(x=inverse, dtype="fp16"))
    return op.one_of("spelling", mul=op.mul(x=x, y=narrow), div=op.real_div(x=x, y=root))


def safe_norm_pattern(op: Ops, x: Any, axes: Any, peak: Any, clamp: Any, a: Any, g: Any) -> Any:
    """What :class:`PrescaleNorm` writes where no epsilon is outside the root."""
    largest = op.maximum(x=op.reduce_max(x=op.abs(x=x), axes=axes, keep_dims=True), y=clamp)
    scale = op.real_div(x=peak, y=largest)
    scaled = op.mul(x=x, y=scale)
    mean = op.reduce_mean(x=op.mul(x=scaled, y=scaled), axes=axes, keep_dims=True)
    part = op.mul(x=scale, y=a)
    squared = op.mul(x=part, y=part)
    total = op.add(x=mean, y=op.one_of("second", no=squared, yes=op.mul(x=squared, y=g)))
    return op.mul(x=x, y=op.mul(x=scale, y=op.rsqrt(x=total, epsilon=0.0)))


class _Facts(NamedTuple):
    x: Var
    eps: float
    outside: float


class PrescaleNorm(Rule[_Facts]):
    """``x * rsqrt(mean(x²) + eps)``  ->  ``x * (i * rsqrt(mean((x i)²) + eps i²))`` with ``i = 4 / max(max|x|, c)``.

    The two are equal for every row scale i > 0, so that i may be rounded freely. In fp16 nothing of the right side can
    overflow, and what underflows is too small to count: ``eps i²``, spelled ``((i a)²) g`` with ``g a² = eps``, only
    where it is below the last bit of the mean. In a row of zeros the clamp c (about √eps) makes i finite, eps i² about
    16, and the result 0; i, a and g are normal fp16 numbers even where eps is not one.

    Also with a square root and a division or an ``inverse`` in the place of ``rsqrt``, with the mean in fp32 between
    casts, and on ``x - mean(x)``, which makes it LayerNorm. It stays away from

    1. norms of fp32 values: their squares overflow beyond 1e19 only;
    2. norms without an epsilon: a row of zeros has no norm;
    3. epsilons that two fp16 factors can't express.
    """

    def pattern(self, op: Ops, /, x: Value, axes: Const, eps: Scalar, inside: Scalar, outside: Scalar) -> Any:
        return norm_pattern(op, x, axes, eps, inside, outside)

    def check(self, m: Match, /) -> _Facts:
        x = m.x
        if dtype_name(x) == "fp32":
            source = x.op.inputs["x"] if x.op is not None and x.op.op_type == "cast" else x
            # 1: fp32 squares overflow beyond 1e19
            require(dtype_name(source) == "fp16", "the norm is fp32 from its input on", at=x)
            x = source
        eps = float(m.eps or 0) + float(m.inside or 0)
        require(eps > 0, "there is no epsilon under the root")  # 2
        require(eps < 1e3, "its epsilon, {:g}, is no small number", eps)  # 3
        outside = float(m.outside or 0)
        require(outside >= 0, "its epsilon outside the root, {:g}, is negative", outside)  # 3
        if outside < _INVISIBLE * sqrt(eps):
            outside = 0.0
        # 3
        require(not 0 < outside < _LEAST**2, "its epsilon outside the root, {:g}, is too small", outside)
        return _Facts(x, eps, outside)

    def rewrite(self, op: Builder, m: Match, facts: _Facts, /) -> Var:
        reduced = {"axes": constant(m.axes), "keep_dims": True}
        largest = op.maximum(x=op.reduce_max(x=op.abs(x=facts.x), **reduced), y=_clamp(facts.eps))
        scale = op.real_div(x=np.float16(_peak(facts.x, m.axes)), y=largest)
        scaled = op.mul(x=facts.x, y=scale)
        mean = op.reduce_mean(x=op.mul(x=scaled, y=scaled), **reduced)
        a, g = _factors(facts.eps, 2)
        part = op.mul(x=scale, y=a)
        part = op.mul(x=part, y=part)
        total = op.add(x=mean, y=part if g == 1 else op.mul(x=part, y=g))
        if facts.outside:  # x / (√(mean(x²) + eps) + outside)
            a, g = _factors(facts.outside, 1)
            root = op.add(x=op.sqrt(x=total), y=op.mul(x=op.mul(x=scale, y=a), y=g))
            factor = op.real_div(x=scale, y=root)
        else:
            factor = op.mul(x=scale, y=op.rsqrt(x=total, epsilon=np.float16(0)))
        # not scaled * rsqrt: the small elements of a row with a large one would lose bits
        result: Var = op.mul(x=facts.x, y=factor)
        return result if result.dtype == m.root.outputs[0].dtype else op.cast(x=result, dtype="fp32")


def _peak(x: Var, axes: Any) -> float:
    """What rows are scaled to, so that sums of their squares stay within fp16; 1 where rows may be of any size."""
    sizes = [shape_of(x)[int(axis)] for axis in np.ravel(constant(axes))]
    if any(is_symbolic(size) for size in sizes):
        return 1.0
    return min(_PEAK, max(1.0, 2.0 ** floor(log2(_LARGEST / prod(int(size) for size in sizes)) / 2)))


def _clamp(eps: float) -> np.float16:
    """The power of two next to √eps, within what ``_PEAK`` may be divided by."""
    clamp: np.float16 = np.float16(max(2.0 ** round(log2(eps) / 2), _LEAST))
    return clamp


@cache
def _factors(value: float, power: int) -> tuple[np.float16, np.float16]:
    """Normal fp16 numbers a near √value and g with ``g * a**power`` as near to ``value`` as there are.

    One fp16 number is 2.4e-4 off on average. The best pair is below 1e-6 for the epsilons in use (1e-7 for 1e-5 and
    1e-6), 4e-6 at worst; for power 1, where a and g may swap, 4e-5. A value that fp16 holds is met exactly. ``g`` is 1
    where that is as good.
    """
    start = 2.0 ** np.floor(np.log2(max(np.sqrt(value), _LEAST)))
    a = start * np.arange(1024, 2048) / 1024
    g = (value / a**power).astype(np.float16).astype(np.float64)
    error = np.abs(g * a**power - value)
    # 2e-7 is far below what the comparison of norms can see (1e-6), and fp16's own epsilon in disguise is met by it
    good = np.flatnonzero(error <= max(error.min(), 2e-7 * value))
    best = next((each for each in good if g[each] == 1), good[0])
    return np.float16(a[best]), np.float16(g[best])
