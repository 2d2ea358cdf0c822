"""Attention written out -> ``scaled_dot_product_attention``."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar

import numpy as np

from milopt.building import Builder
from milopt.matching import Match, Sizes
from milopt.metrics import Exact, Lossy, Metric
from milopt.mil import Var, constant, dtype_name, is_symbolic, opset_of, shape_of, target
from milopt.package import Model
from milopt.pattern import Ops, Scalar, Value
from milopt.pipeline import RulePass
from milopt.reports import Report, require
from milopt.rules import Rule

__all__ = ["FuseAttention", "FuseSdpa"]

_ROUNDED = "a scale is the fp16 rounding of what scaled_dot_product_attention computes exactly"

# 2^-24: a factor this near to 1 is the rounding of one fp32 multiplication
_FP32_STEP = 6e-8


@dataclass(frozen=True)
class FuseSdpa(RulePass):
    """``softmax(q @ kᵀ * s [+ mask]) @ v`` -> ``scaled_dot_product_attention``, for every spelling in use.

    Both of transformers' spellings (eager scales the scores, sdpa scales q), keys given as rows or as columns, a scale
    on q, on the scores, on both or absent, an additive mask or none, repeated K/V heads (GQA), ranks 3 to 5. The op
    exists from iOS18 on. Its shape rules are those of coremltools' ``iOS18/transformers.py``.
    """

    name: ClassVar[str] = "fuse-sdpa"
    after: ClassVar[tuple[str, ...]] = ("canonicalize",)
    metric: ClassVar[Metric] = Exact()
    opset: ClassVar[int] = 9

    def rules(self) -> tuple[Rule[Any], ...]:
        return (FuseAttention(),)

    def run(self, model: Model) -> Report:
        report = super().run(model)
        if _ROUNDED in report.notes:
            # The fp16 constant is within 2^-11 of the exact scale, so a score moves by at most 5e-4 of itself; that is
            # one fp16 rounding, and programs of a few fp16 layers lie at 50 to 60 dB from their float64 run anyway.
            report.metric = Lossy(min_snr_db=40)
        return report


class FuseAttention(Rule[Sizes]):
    """``softmax(q @ kᵀ * s [+ mask]) @ v``  ->  ``scaled_dot_product_attention(q * s√E, k, v [, mask])``.

    It stays away where

    1. the function's opset is below iOS18;
    2. q, k and v differ in rank, dtype or batch dimensions (heads must be repeated before), or E is not known;
    3. the mask has another dtype, or no column per key: a shift of all scores alike;
    4. the scale can't be written in q's dtype.
    """

    def pattern(self, op: Ops, /, q: Value, k: Value, v: Value, qs: Scalar, s: Scalar, mask: Value) -> Any:
        query = op.one_of("scaled_query", mul=op.mul(x=q, y=qs), none=q)
        scores = op.one_of(
            "keys",
            rows=op.matmul(x=query, y=k, transpose_y=True),
            columns=op.matmul(x=query, y=k),
        )
        scores = op.one_of("scaling", mul=op.mul(x=scores, y=s), div=op.real_div(x=scores, y=s), none=scores)
        scores = op.one_of("masking", add=op.add(x=scores, y=mask), none=scores)
        weights = op.softmax(x=scores, axis=-1)
        return op.matmul(x=weights, y=v)

    def check(self, m: Match, /) -> Sizes:
        opset = opset_of(m.root)
        require(opset >= target.iOS18, "scaled_dot_product_attention needs iOS18, the function is {}", opset.name)  # 1
        size = m.shapes(q="*B L E", k="*B S E" if m.keys == "rows" else "*B E S", v="*B S D")  # 2
        require(len(size.B) > 0, "rank 2 has no batch dimension", at=m.q)
        require(not is_symbolic(size.E), "the head size is not known", at=m.q)
        kinds = [dtype_name(each) for each in (m.q, m.k, m.v)]
        require(len(set(kinds)) == 1, "q, k and v are {}, {} and {}", *kinds)
        if m.mask is not None:  # 3
            require(dtype_name(m.mask) == kinds[0], "a {} mask on {} scores", dtype_name(m.mask), kinds[0], at=m.mask)
            columns = shape_of(m.mask)[-1:]
            require(columns == (size.S,), "the mask has {} columns for {} keys", columns or "no", size.S, at=m.mask)
        require(m.scaling != "div" or m.s != 0, "the scores are divided by zero")
        return size

    def rewrite(self, op: Builder, m: Match, facts: Sizes, /) -> Var:
        factor = _scale(m) * sqrt(facts.E)  # the op itself divides by sqrt(E)
        query = m.q
        if not _is_one(m, factor):
            number = np.dtype(np.float16 if dtype_name(m.q) == "fp16" else np.float32).type(factor)
            require(
                np.isfinite(number) and (number != 0 or factor == 0), "a scale of {:g} on q is no fp16", factor
            )  # 4
            query = op.mul(x=m.q, y=number)
            factor /= float(number) or 1.0
        if abs(factor - 1) > _FP32_STEP and factor:
            op.note(_ROUNDED)
        key = m.k if m.keys == "rows" else _transposed(op, m.k)
        masks = {} if m.mask is None else {"attn_mask": m.mask}
        fused: Var = op.scaled_dot_product_attention(query=query, key=key, value=m.v, **masks)
        return fused


def _scale(m: Match) -> float:
    """What the scores are multiplied by, wherever it is written."""
    on_query = float(m.qs) if m.scaled_query == "mul" else 1.0
    on_scores = {"mul": lambda: float(m.s), "div": lambda: 1 / float(m.s), "none": lambda: 1.0}[m.scaling]()
    return on_query * on_scores


def _is_one(m: Match, factor: float) -> bool:
    """Whether the scale is 1/sqrt(E) at the precision of the constants that say so."""
    steps = [float(np.finfo(each.dtype).eps) for each in (m.qs, m.s) if each is not None]
    return abs(factor - 1) <= max([_FP32_STEP, *steps])


def _transposed(op: Builder, key: Var) -> Var:
    """Keys given as columns (…, E, S), as rows; merged with a transpose that only made them columns."""
    perm = list(range(key.rank))
    perm[-2:] = perm[:-3:-1]
    if key.op is not None and key.op.op_type == "transpose":
        inner = [int(axis) % key.rank for axis in constant(key.op.perm)]
        key, perm = key.op.x, [inner[axis] for axis in perm]
    if perm == sorted(perm):
        return key
    rows: Var = op.transpose(x=key, perm=perm)
    return rows
