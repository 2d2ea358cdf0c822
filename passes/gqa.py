"""Query heads that share keys and values -> rows of one attention, so that nothing is repeated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from milopt.building import Builder
from milopt.matching import Match
from milopt.mil import Var, constant, shape_of
from milopt.package import Model
from milopt.passes.attention_products import reshaped
from milopt.passes.attention_writing import grouped_mask
from milopt.passes.gqa_shared import shared_heads
from milopt.passes.gqa_written import NOTHING, PackAttention
from milopt.passes.repeats import FoldTile, known_size, told
from milopt.passes.tiles import fold_tiles
from milopt.pattern import Ops, Value
from milopt.pipeline import RulePass
from milopt.reports import Report, require
from milopt.rules import Rule

__all__ = ["PackGqa", "PackHeads", "PackProduct"]


_NO_COPY = "its second operand is not repeated"


@dataclass(frozen=True)
class PackGqa(RulePass):
    """Attention on repeated keys and values (GQA)  ->  attention of packed queries on the keys as they are.

    The heads that share a key head become rows: q (B, H, Q, E) is read as (B, Hkv, G·Q, E), which moves nothing, and no
    K or V is tiled (constraint L16). A mask that is alike for all heads is then repeated, once for all layers that have
    it; the report says how many bytes that is. Of one query (Q = 1) it needs no repetition. Where attention is written
    out (scores that are capped; opsets below iOS18), its two products are packed, and no mask is repeated. Where
    neither the number of queries nor that of keys is known, the scores get an axis for the heads of a group.
    """

    name: ClassVar[str] = "pack-gqa"
    after: ClassVar[tuple[str, ...]] = ("canonicalize", "fuse-sdpa")

    def rules(self) -> tuple[Rule[Any], ...]:
        return (PackHeads(), PackProduct(), PackAttention(), FoldTile())

    def run(self, model: Model) -> Report:
        folded = fold_tiles(model)
        report = told(super().run(model))
        report.applied += folded
        # a product of anything, and attention that was packed, repeat nothing
        quiet = (_NO_COPY, NOTHING) if report.applied else (_NO_COPY,)
        report.misses = [miss for miss in report.misses if miss.text not in quiet]
        return report


class Facts(NamedTuple):
    key: Var
    value: Var
    shape: tuple[Any, ...]
    heads: int
    groups: int


class PackHeads(Rule[Facts]):
    """``sdpa(q, repeat(k), repeat(v))``  ->  ``reshape(sdpa(reshape(q), k, v))``.

    It stays away where k and v are not both repeated, head by head and equally often; where two dimensions of q are
    symbolic besides; where the mask would have to be repeated for an unknown number of queries.
    """

    def pattern(self, op: Ops, /, q: Value, k: Value, v: Value, mask: Value) -> Any:
        masks = op.one_of("masking", mask=mask, none=None)
        return op.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=masks)

    def check(self, m: Match, /) -> Facts:
        key, value = shared_heads(m.k), shared_heads(m.v)
        require(key is not None and value is not None, NOTHING)
        assert key is not None
        assert value is not None
        require(key.groups == value.groups, "keys are repeated {} times, values {}", key.groups, value.groups)
        shape = tuple(known_size(m.q, axis) if axis == 1 else dim for axis, dim in enumerate(shape_of(m.q)))
        require(shape[1] == shape_of(m.k)[1], "q has {} heads", shape[1], at=m.q)
        return Facts(key.source, value.source, shape, shape[1], key.groups)

    def rewrite(self, op: Builder, m: Match, facts: Facts, /) -> Var:
        batch, _, rows, size = facts.shape
        groups, mine = facts.groups, facts.heads // facts.groups
        key, value = (_four(op, each, mine) for each in (facts.key, facts.value))
        masks = {} if m.mask is None else {"attn_mask": grouped_mask(op, m.mask, facts.heads, groups, rows)}
        query = reshaped(op, m.q, (batch, mine, groups * rows, size))
        made = op.scaled_dot_product_attention(query=query, key=key, value=value, **masks)
        return reshaped(op, made, shape_of(m.root.outputs[0]))


class PackProduct(Rule[Facts]):
    """``matmul(x, repeat(y))``  ->  ``reshape(matmul(reshape(x), y))``, for the products of written-out attention.

    It stays away where both the queries' and the keys' number is symbolic: no constant shape says both.
    """

    def pattern(self, op: Ops, /, x: Value, y: Value) -> Any:
        return op.matmul(x=x, y=y, transpose_y=...)

    def check(self, m: Match, /) -> Facts:
        found = shared_heads(m.y)
        require(found is not None, _NO_COPY)
        assert found is not None
        shape = shape_of(m.x)
        require(len(shape) == 4 and shape[1] == shape_of(m.y)[1], "x is of shape {}", shape, at=m.x)
        return Facts(found.source, found.source, shape, shape[1], found.groups)

    def rewrite(self, op: Builder, m: Match, facts: Facts, /) -> Var:
        batch, _, rows, size = facts.shape
        mine = facts.heads // facts.groups
        packed = reshaped(op, m.x, (batch, mine, facts.groups * rows, size))
        flipped = bool(constant(m.root.inputs["transpose_y"]))
        made = op.matmul(x=packed, y=_four(op, facts.key, mine), transpose_y=flipped)
        return reshaped(op, made, shape_of(m.root.outputs[0]))


def _four(op: Builder, var: Var, heads: int) -> Var:
    """(B, Hkv, S, D), from itself or from (B, Hkv, 1, S, D)."""
    if var.rank == 4:
        return var
    made = var.op
    if made is not None and made.op_type == "expand_dims" and made.inputs["x"].rank == 4:
        source: Var = made.inputs["x"]
        if shape_of(source)[1] == heads:
            return source
    squeezed: Var = op.squeeze(x=var, axes=[2])
    return squeezed
