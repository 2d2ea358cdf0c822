"""Attention written out -> ``scaled_dot_product_attention``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from milopt.building import Builder
from milopt.matching import Match
from milopt.metrics import Lossy
from milopt.mil import Var, opset_of, target
from milopt.package import Model
from milopt.passes.attention_heads import MergeHeads
from milopt.passes.attention_sites import Site, read_site
from milopt.passes.attention_writing import ROUNDED, write_fused
from milopt.passes.repeats import FoldTile, told
from milopt.passes.tiles import fold_tiles
from milopt.pattern import OpPattern, Ops, Scalar, Value
from milopt.pipeline import RulePass
from milopt.reports import Report, require, require_opset
from milopt.rules import Rule

__all__ = ["FuseAttention", "FuseSdpa", "WrittenOut"]

Facts = TypeVar("Facts")


@dataclass(frozen=True)
class FuseSdpa(RulePass):
    """``softmax(q @ kᵀ * s [+ mask]) @ v`` -> ``scaled_dot_product_attention``, for every spelling in use.

    A scale on q, on k, on the scores, on several or absent, and on what q is reshaped from; masks that are added,
    several too (ALiBi), subtracted, or choose scores (``select``); keys given as rows or as columns, keys first, or in
    channel-first ``einsum``; queries that share keys and values by broadcasting; batches regrouped on the way; casts
    around the softmax, and a softmax written out; ranks 3 to 5; heads apart (split, attended and joined), which become
    one op. The op exists from iOS18 on. Its shape rules are those of coremltools' ``iOS18/transformers.py``
    (constraint L8). Caps (tanh) and sinks have no place in the op and are left as they are.
    """

    name: ClassVar[str] = "fuse-sdpa"
    after: ClassVar[tuple[str, ...]] = ("canonicalize",)
    opset: ClassVar[int] = 9

    def rules(self) -> tuple[Rule[Any], ...]:
        return (FuseAttention(), MergeHeads(), FoldTile())

    def run(self, model: Model) -> Report:
        folded = fold_tiles(model)
        report = told(super().run(model))
        report.applied += folded
        if ROUNDED in report.notes:
            # The fp16 constant is within 2^-11 of the exact scale, so a score of at most 10 moves by 4.9e-3, one score
            # against another by twice that, and a weight, exp of it, by 1% of itself: 40 dB. Most scores are smaller,
            # and most roundings nearer. A scale that is 1/32 off is still refused.
            report.metric = Lossy(min_snr_db=40)
        return report


def _between(op: Ops, rest: Value) -> tuple[Callable[[Any], OpPattern], ...]:
    """What may stand between the product and the softmax; what is no attention is there to be told of."""
    return (
        lambda x: op.mul(x=x, y=...),
        lambda x: op.add(x=x, y=...),
        lambda x: op.real_div(x=x, y=...),
        lambda x: op.sub(x=x, y=...),
        lambda x: op.select(cond=..., a=x, b=...),
        lambda x: op.select(cond=..., a=..., b=x),
        lambda x: op.reshape(x=x, shape=...),
        lambda x: op.cast(x=x, dtype=...),
        lambda x: op.tanh(x=x),
        lambda x: op.concat(values=(x, rest), axis=...),
    )


class WrittenOut(Rule[Facts]):
    """Attention as products and a softmax; what becomes of it is said by rules of their own."""

    def pattern(
        self, op: Ops, /, q: Value, k: Value, v: Value, qs: Scalar, ks: Scalar, s: Scalar, keep: Value, rest: Value
    ) -> Any:
        def product(tag: str, x: Any, y: Any) -> Any:
            matmul = op.matmul(x=x, y=y, transpose_x=..., transpose_y=...)
            return op.one_of(tag, matmul=matmul, einsum=op.einsum(values=(x, y), equation=...))

        def scaled(tag: str, x: Any, by: Any) -> Any:
            return op.one_of(tag, mul=op.mul(x=x, y=by), div=op.real_div(x=x, y=by), none=x)

        scores = op.optional(
            "scoring",
            product("scored", scaled("scaled_query", q, qs), scaled("scaled_key", k, ks)),
            *_between(op, rest),
            most=7,
        )
        powers = op.exp(x=op.sub(x=scores, y=op.reduce_max(x=scores, axes=..., keep_dims=True)))
        total = op.reduce_sum(x=powers, axes=..., keep_dims=True)
        weights = op.one_of("weighed", op=op.softmax(x=scores, axis=...), written=op.real_div(x=powers, y=total))
        weights = op.one_of(
            "weighting",
            plain=weights,
            cast=op.cast(x=weights, dtype=...),
            reshape=op.reshape(x=weights, shape=...),
            zeros_where=op.select(cond=keep, a=s, b=weights),
            zeros_but=op.select(cond=keep, a=weights, b=s),
            slice=op.slice_by_index(
                x=weights, begin=..., end=..., begin_mask=..., end_mask=..., stride=..., squeeze_mask=...
            ),
        )
        return op.one_of("order", weights=product("summed", weights, v), values=product("summed_", v, weights))


class FuseAttention(WrittenOut[Site]):
    """``softmax(q @ kᵀ * s [+ mask]) @ v``  ->  ``scaled_dot_product_attention(q * s√E, k, v [, mask])``.

    It stays away where

    1. the function's opset is below iOS18;
    2. q, k and v differ in rank or batch dimensions, unless k and v are broadcast over the last of them; E is unknown;
    3. the mask has no column per key: a shift of all scores alike;
    4. the scale can't be written in q's dtype;
    5. scores are capped, or a column that is no key joins them;
    6. what is put in the place of scores is not as good as minus infinity.
    """

    def check(self, m: Match, /) -> Site:
        require_opset(opset_of(m.root), target.iOS18)  # 1
        site = read_site(m)  # 2, 5, 6
        if site.masks:  # 3
            columns, keys = site.columns(), site.keys
            require(columns == (keys,), "the mask has {} columns for {} keys", columns or "no", keys, at=site.masks[0])
        return site

    def rewrite(self, op: Builder, m: Match, facts: Site, /) -> Var:
        return write_fused(op, m.root, facts)  # 4
