"""Fifty rules, and decoder-like programs to apply them to: for :mod:`benchmarks.matching`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from milopt.building import Builder
from milopt.matching import Match
from milopt.mil import Program, Target, Var, constant, mb, opset_of, types
from milopt.passes.attention import FuseAttention
from milopt.passes.canonical import MergeCasts, MergeReshapes
from milopt.passes.indices import INDEX_RULES
from milopt.passes.moves import MOVE_RULES
from milopt.passes.neutral import NEUTRAL_RULES
from milopt.passes.norms import PrescaleNorm
from milopt.passes.rope import TabulateWave
from milopt.pattern import Ops, Scalar, Value, Values, Weight
from milopt.reports import require
from milopt.rules import Rule

__all__ = ["RULES", "decoder", "one_spot"]

HIDDEN, HEADS, TOKENS = 8, 2, 4


@dataclass(frozen=True)
class OpOnOp(Rule[None]):
    """``outer(inner(x))``  ->  ``result(x)``: the commonest form of a rule, for many pairs of ops."""

    outer: str
    inner: str
    result: str

    @property
    def name(self) -> str:
        return f"{self.outer}-of-{self.inner}"

    def pattern(self, op: Ops, /, x: Value) -> Any:
        return getattr(op, self.outer)(x=getattr(op, self.inner)(x=x))

    def check(self, m: Match, /) -> None: ...

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
        return getattr(op, self.result)(x=m.x)


class FuseSilu(Rule[None]):
    """``x * sigmoid(x)``  ->  ``silu(x)``."""

    def pattern(self, op: Ops, /, x: Value) -> Any:
        return op.mul(x=x, y=op.sigmoid(x=x))

    def check(self, m: Match, /) -> None: ...

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
        return op.silu(x=m.x)


class FuseGelu(Rule[None]):
    """``x / 2 * (1 + tanh(√(2/π) (x + 0.044715 x³)))``  ->  ``gelu(x)``."""

    def pattern(self, op: Ops, /, x: Value) -> Any:
        cube = op.one_of("cube", pow=op.pow(x=x, y=3.0), mul=op.mul(x=op.mul(x=x, y=x), y=x))
        inner = op.mul(x=op.add(x=x, y=op.mul(x=cube, y=0.044715)), y=0.7978845608)
        gate = op.add(x=op.tanh(x=inner), y=1.0)
        return op.one_of("order", half=op.mul(x=op.mul(x=x, y=0.5), y=gate), last=op.mul(x=op.mul(x=x, y=gate), y=0.5))

    def check(self, m: Match, /) -> None: ...

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
        return op.gelu(x=m.x, mode="TANH_APPROXIMATION")


class FuseExactGelu(Rule[None]):
    """``x / 2 * (1 + erf(x / √2))``  ->  ``gelu(x)``."""

    def pattern(self, op: Ops, /, x: Value) -> Any:
        ratio = op.one_of("ratio", div=op.real_div(x=x, y=2**0.5), mul=op.mul(x=x, y=0.5**0.5))
        return op.mul(x=op.mul(x=x, y=0.5), y=op.add(x=op.erf(x=ratio), y=1.0))

    def check(self, m: Match, /) -> None: ...

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
        return op.gelu(x=m.x, mode="EXACT")


class MergeScales(Rule[None]):
    """``x * a * b``  ->  ``x * (a b)``."""

    def pattern(self, op: Ops, /, x: Value, a: Scalar, b: Scalar) -> Any:
        return op.mul(x=op.mul(x=x, y=a), y=b)

    def check(self, m: Match, /) -> None:
        require(np.isfinite(m.a * m.b), "the product is too large")

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
        return op.mul(x=m.x, y=m.a * m.b)


class MergeShifts(Rule[None]):
    """``x + a + b``  ->  ``x + (a + b)``."""

    def pattern(self, op: Ops, /, x: Value, a: Scalar, b: Scalar) -> Any:
        return op.add(x=op.add(x=x, y=a), y=b)

    def check(self, m: Match, /) -> None: ...

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
        return op.add(x=m.x, y=m.a + m.b)


class SplitConcat(Rule[None]):
    """``split(concat(a, b))``  ->  ``a``, ``b``, where the parts are the same."""

    def pattern(self, op: Ops, /, a: Value, b: Value, sizes: Value) -> Any:
        return op.split(x=op.concat(values=(a, b), axis=-1), split_sizes=sizes, axis=-1)

    def check(self, m: Match, /) -> None:
        sizes = constant(m.sizes)
        require(sizes is not None and list(sizes) == [m.a.shape[-1], m.b.shape[-1]], "the parts differ")

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
        return m.a, m.b


class NestedConcat(Rule[None]):
    """``concat(..., concat(...), ...)``  ->  one ``concat``."""

    def pattern(self, op: Ops, /, before: Values, inner: Values, after: Values) -> Any:
        return op.concat(values=(*before, op.concat(values=inner, axis=-1), *after), axis=-1)

    def check(self, m: Match, /) -> None: ...

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
        return op.concat(values=(*m.before, *m.inner, *m.after), axis=-1)


class JoinLinears(Rule[None]):
    """Two ``linear`` of one value  ->  one, and a ``split``: only looked for, since layers differ in what follows."""

    def pattern(self, op: Ops, /, x: Value, v: Weight, w: Weight, b: Weight, c: Weight) -> Any:
        return op.linear(x=x, weight=v, bias=b), op.linear(x=x, weight=w, bias=c)

    def check(self, m: Match, /) -> None:
        require(opset_of(m.root) < Target.iOS15, "it is here to be looked for")

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
        return m.replaced


class CastAround(Rule[None]):
    """``cast(f(cast(x)))``  ->  ``f(x)``, for movements of data."""

    def pattern(self, op: Ops, /, x: Value) -> Any:
        links: list[Callable[[Any], Any]] = [
            lambda v: op.transpose(x=v, perm=...),
            lambda v: op.reshape(x=v, shape=...),
            lambda v: op.expand_dims(x=v, axes=...),
        ]
        return op.cast(x=op.optional("moves", op.cast(x=x, dtype=...), *links, most=2), dtype="fp16")

    def check(self, m: Match, /) -> None:
        require(not m.moves and m.x.dtype is types.fp16, "something is moved, or x is no fp16")

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
        return m.x


def _own() -> tuple[Rule[Any], ...]:
    """milopt's rules, those that change numbers or layouts on purpose left to refuse."""
    waves = [TabulateWave(form) for form in ("cast", "scaled", "bare")]
    return (
        *NEUTRAL_RULES,
        *INDEX_RULES,
        MergeCasts(),
        *MOVE_RULES,
        MergeReshapes(),
        FuseAttention(),
        PrescaleNorm(),
        *waves,
    )


def _pairs() -> tuple[Rule[Any], ...]:
    """Rules of two ops, one on the other."""
    rounded, positive = ("ceil", "floor", "round"), ("sigmoid", "exp", "sqrt", "square")
    return (
        *(OpOnOp(each, each, each) for each in ("relu", "abs", "sign")),
        *(OpOnOp(outer, inner, inner) for outer in rounded for inner in rounded),
        *(OpOnOp(outer, inner, inner) for outer in ("abs", "relu") for inner in positive),
        OpOnOp("abs", "relu", "relu"),
        OpOnOp("relu6", "sigmoid", "sigmoid"),
        OpOnOp("relu6", "relu6", "relu6"),
    )


_FUSIONS = (
    FuseSilu(),
    FuseGelu(),
    FuseExactGelu(),
    MergeScales(),
    MergeShifts(),
    SplitConcat(),
    NestedConcat(),
    JoinLinears(),
    CastAround(),
)
RULES: tuple[Rule[Any], ...] = (*_own(), *_FUSIONS, *_pairs())


def decoder(ops: int) -> Program:
    """A decoder of about so many ops, constants not counted, as a conversion of transformers leaves it."""
    layers = max(1, (ops - 20) // 56)
    weight = np.random.default_rng(0).normal(size=(HIDDEN, HIDDEN)).astype(np.float16) / 4
    specs = [
        mb.TensorSpec((1, TOKENS, HIDDEN), types.fp16),
        mb.TensorSpec((1, 1, TOKENS, TOKENS), types.fp16),
        mb.TensorSpec((1, 1, TOKENS, HIDDEN // HEADS), types.fp16),
    ]

    @mb.program(input_specs=specs, opset_version=Target.iOS18)
    def program(x: Any, mask: Any, angles: Any) -> Any:
        cos, sin = mb.cos(x=angles), mb.sin(x=angles)
        for _ in range(layers):
            x = mb.add(x=x, y=_attention(_norm(x), mask, cos, sin, weight))
            x = mb.add(x=x, y=_mlp(_norm(x), weight))
        return x

    return program


def _norm(x: Var) -> Any:
    mean = mb.reduce_mean(x=mb.pow(x=x, y=np.float16(2)), axes=[-1], keep_dims=True)
    root = mb.rsqrt(x=mb.add(x=mean, y=np.float16(1e-5)), epsilon=np.float16(0))
    return mb.mul(x=mb.mul(x=x, y=root), y=np.linspace(0.5, 1.5, HIDDEN, dtype=np.float16))


def _rotated(x: Var, cos: Var, sin: Var) -> Any:
    half = HIDDEN // HEADS // 2
    low = mb.slice_by_size(x=x, begin=[0, 0, 0, 0], size=[-1, -1, -1, half])
    high = mb.slice_by_size(x=x, begin=[0, 0, 0, half], size=[-1, -1, -1, half])
    turned = mb.concat(values=(mb.mul(x=high, y=np.float16(-1)), low), axis=-1)
    return mb.add(x=mb.mul(x=x, y=cos), y=mb.mul(x=turned, y=sin))


def _attention(x: Var, mask: Var, cos: Var, sin: Var, weight: Any) -> Any:
    def head() -> Any:
        y = mb.reshape(x=mb.linear(x=x, weight=weight), shape=[1, TOKENS, HEADS, HIDDEN // HEADS])
        return mb.transpose(x=y, perm=[0, 2, -3, -1])

    q, k, v = _rotated(head(), cos, sin), _rotated(head(), cos, sin), head()
    scores = mb.mul(x=mb.matmul(x=q, y=k, transpose_y=True), y=np.float16(0.5))
    weights = mb.softmax(x=mb.add(x=scores, y=mask), axis=-1)
    heads = mb.cast(x=mb.cast(x=mb.matmul(x=weights, y=v), dtype="fp32"), dtype="fp16")
    merged = mb.reshape(x=mb.transpose(x=heads, perm=[0, 2, 1, 3]), shape=[1, TOKENS, HIDDEN])
    return mb.linear(x=merged, weight=weight)


def _mlp(x: Var, weight: Any) -> Any:
    gate = mb.linear(x=x, weight=weight)
    gate = mb.mul(x=gate, y=mb.sigmoid(x=gate))
    up = mb.relu(x=mb.relu(x=mb.linear(x=x, weight=weight)))
    return mb.linear(x=mb.mul(x=gate, y=mb.mul(x=mb.mul(x=up, y=np.float16(0.5)), y=np.float16(1.5))), weight=weight)


def one_spot(ops: int) -> Program:
    """About so many ops that no pass has anything to do with, and behind them one place for each.

    That is attention over a cache: its norm, rotary angles, layer and ``identity`` are the places of the others.
    """
    weight = np.random.default_rng(0).normal(size=(HIDDEN, HIDDEN)).astype(np.float16) / 4
    past = TOKENS
    specs = [
        mb.TensorSpec((1, TOKENS, HIDDEN), types.fp16),
        mb.TensorSpec((1, 1, TOKENS, past + TOKENS), types.fp16),
        mb.TensorSpec((1, TOKENS), types.int32),
        mb.TensorSpec((1, HEADS, past, HIDDEN // HEADS), types.fp16),
        mb.TensorSpec((1, HEADS, past, HIDDEN // HEADS), types.fp16),
    ]

    @mb.program(input_specs=specs, opset_version=Target.iOS18)
    def program(x: Any, mask: Any, positions: Any, past_key: Any, past_value: Any) -> Any:
        for _ in range((ops - 60) // 4):
            x = mb.add(x=x, y=mb.tanh(x=mb.mul(x=mb.sigmoid(x=x), y=x)))
        x = _norm(mb.identity(x=x))
        angles = mb.mul(x=mb.cast(x=mb.expand_dims(x=positions, axes=[1, 3]), dtype="fp32"), y=_FREQUENCIES)
        cos = mb.cast(x=mb.cos(x=angles), dtype="fp16")
        layer = mb.reshape(x=mb.linear(x=x, weight=weight), shape=[1, TOKENS, HEADS, HIDDEN // HEADS])
        new = mb.mul(x=mb.transpose(x=layer, perm=[0, 2, 1, 3]), y=cos)
        key = mb.concat(values=(past_key, new), axis=2, name="present_key")
        value = mb.concat(values=(past_value, new), axis=2, name="present_value")
        scores = mb.mul(x=mb.matmul(x=new, y=key, transpose_y=True), y=np.float16(0.5))
        heads = mb.matmul(x=mb.softmax(x=mb.add(x=scores, y=mask), axis=-1), y=value)
        return mb.reshape(x=mb.transpose(x=heads, perm=[0, 2, 1, 3]), shape=[1, TOKENS, HIDDEN], name="out"), key, value

    return program


_FREQUENCIES = (1e4 ** -np.linspace(0, 1, HIDDEN // HEADS, endpoint=False)).astype(np.float32)
