"""``scaled_dot_product_attention`` -> products and a softmax, in the form a target takes best."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar, Literal

from milopt.building import Builder
from milopt.matching import Match
from milopt.metrics import Lossy
from milopt.mil import Var, dtype_name, is_symbolic, opset_of, shape_of, target
from milopt.package import Model
from milopt.passes.attention import WrittenOut
from milopt.passes.attention_sites import Site, read_site
from milopt.passes.attention_styles import Attention, additive, write_style
from milopt.passes.attention_writing import placed, scaled, standard
from milopt.passes.gqa_shared import shared_heads
from milopt.passes.repeats import FoldTile, told
from milopt.pattern import Ops, Value
from milopt.pipeline import RulePass
from milopt.reports import Report, require
from milopt.rules import Rule

__all__ = ["DecomposeAttention", "DecomposeSdpa", "RestyleAttention", "Style"]

Style = Literal["matmul", "per-head", "split-einsum", "sliced-q"]

_AGAIN = "two scales are one, which fp16 rounds"
_ROUNDED = "1/sqrt(E) is rounded to fp16 where scaled_dot_product_attention computes it exactly"


@dataclass(frozen=True)
class DecomposeSdpa(RulePass):
    """``scaled_dot_product_attention``  ->  products and a softmax, in one of four styles.

    ``matmul``: two matmuls; keys and values that are shared (GQA) are broadcast over a fifth axis and not repeated.
    ``per-head``: the same for each head, joined by concat. ``split-einsum``: each head channels first, in ``einsum``,
    with the softmax over the channel axis, as Apple's ml-ane-transformers does. ``sliced-q``: matmuls for ``rows``
    queries at a time.

    q is scaled before the product, so that scores in fp16 are as small as they will be (constraint L18); MIL's softmax
    subtracts the maximum. Masks are added: one of booleans becomes 0 and -40000 (constraint L10), once for all layers,
    and a constant one keeps nothing below that where each row has a key. Below iOS18, where the op does not exist,
    attention that is written out is brought into the style.
    """

    name: ClassVar[str] = "decompose-sdpa"
    after: ClassVar[tuple[str, ...]] = ("canonicalize", "fuse-sdpa", "pack-gqa", "kv-to-state")

    style: Style = "matmul"
    rows: int = 512

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"rows is 1 or more, not {self.rows}")

    def rules(self) -> tuple[Rule[Any], ...]:
        return (DecomposeAttention(self.style, self.rows), RestyleAttention(self.style, self.rows), FoldTile())

    def run(self, model: Model) -> Report:
        report = told(super().run(model))
        if _ROUNDED in report.notes or _AGAIN in report.notes:
            # As in fuse-sdpa: one fp16 rounding of the scale, where programs of fp16 layers lie at 50 to 60 dB.
            report.metric = Lossy(min_snr_db=40)
        return report


class DecomposeAttention(Rule[Attention]):
    """``sdpa(q, k, v, mask)``  ->  ``softmax((q / √E) @ kᵀ + mask) @ v`` in a style.

    It stays away where the number of heads, or of queries to slice, is not known, and for heads where there are none
    (rank 3) or one.
    """

    def __init__(self, style: Style, rows: int) -> None:
        self._style: Style = style
        self._rows = rows

    def pattern(self, op: Ops, /, q: Value, k: Value, v: Value, mask: Value) -> Any:
        masks = op.one_of("masking", mask=mask, none=None)
        return op.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=masks)

    def check(self, m: Match, /) -> Attention:
        shape = shape_of(m.q)
        require(not is_symbolic(shape[-1]), "the head size is not known", at=m.q)
        _check_style(self._style, shape, self._rows, fused=True, at=m.q)
        return _unrepeated(Attention(m.q, m.k, m.v, m.mask), self._style)

    def rewrite(self, op: Builder, m: Match, facts: Attention, /) -> Var:
        query = scaled(op, facts.query, 1 / sqrt(shape_of(facts.query)[-1]), note=_ROUNDED)
        mask = None if facts.mask is None else additive(op, facts.mask, dtype_name(query))
        made = facts._replace(query=query, mask=mask)
        return write_style(op, self._style, made, shape_of(m.root.outputs[0]), self._rows)


class RestyleAttention(WrittenOut[Site]):
    """Attention that is written out, where the op does not exist  ->  the same in another style.

    It stays away from iOS18 on (fuse first), where it is in the style already, and where :class:`FuseAttention` would.
    """

    def __init__(self, style: Style, rows: int) -> None:
        self._style: Style = style
        self._rows = rows

    def check(self, m: Match, /) -> Site:
        opset = opset_of(m.root)
        require(opset < target.iOS18, "the op exists in {}: fuse-sdpa comes first", opset.name)
        require(m.root.op_type != "einsum", "it is an einsum already")
        site = read_site(m)
        key, value = (each.shape[:-2] for each in (site.key, site.value))
        require(not site.regrouped and key == value == site.query.shape[:-2], "q, k and v differ in batch", at=m.q)
        _check_style(self._style, site.query.shape, self._rows, fused=False, at=site.query.var)
        return site

    def rewrite(self, op: Builder, m: Match, facts: Site, /) -> Var:
        query = scaled(op, facts.query.var, facts.scale, note=_AGAIN)
        query, key, value, mask = standard(op, facts, query)
        if mask is not None:
            mask = additive(op, mask, dtype_name(query))
        made = _unrepeated(Attention(query, key, value, mask), self._style)
        shape = (*shape_of(query)[:-1], shape_of(value)[-1])
        return placed(op, m.root, facts, write_style(op, self._style, made, shape, self._rows))


def _unrepeated(site: Attention, style: Style) -> Attention:
    """``site`` with keys and values as they are before heads that share them repeat them."""
    if style == "sliced-q":
        return site
    key, value = shared_heads(site.key), shared_heads(site.value)
    if key is None or value is None or key.groups != value.groups:
        return site
    return site._replace(key=key.source, value=value.source, groups=key.groups)


def _check_style(style: Style, shape: tuple[Any, ...], rows: int, *, fused: bool, at: Var) -> None:
    if style == "matmul":
        require(fused, "it is written as matmuls already", at=at)
    elif style == "sliced-q":
        require(not is_symbolic(shape[-2]), "the number of queries is not known", at=at)
        require(fused or shape[-2] > rows, "{} queries are no more than a slice", shape[-2], at=at)
    else:
        require(len(shape) == 4, "of rank {}, it has no axis of heads", len(shape), at=at)
        require(not is_symbolic(shape[1]), "the number of heads is not known", at=at)
        require(fused or shape[1] > 1, "it has one head", at=at)
