"""Attention in the spellings of transformers, of hand-written conversions and of older TensorFlow programs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import numpy as np
from hypothesis import strategies as st

from milopt.mil import Function, Program, get_new_symbol, mb, target, types
from milopt.testing.scope import Draw

__all__ = [
    "BREAKS",
    "MASKS",
    "Spelling",
    "attention_programs",
    "attentions",
    "broken_attentions",
    "broken_programs",
    "flexible_repeats",
    "fused_programs",
    "spelled",
]

SCALES = ("none", "scores", "divided", "query", "key", "query and key", "before moves", "twice")
MASKS = (
    "none", "added", "added first", "one row", "low rank", "per head", "two (ALiBi)", "subtracted", "before the scale",
    "causal constant", "select computed, -inf", "select constant, -1e4", "select computed, -1e30",
    "select computed, -1e4", "select the other way", "added, then select", "select, then added",
)  # fmt: skip
KEYS = ("rows", "columns", "transposed", "keys first", "transpose_x", "einsum")
GQA = ("none", "tile", "concat", "gather", "interleaved", "broadcast", "packed", "one head")
HEADS = ("together", "apart", "apart, einsum")
BREAKS = (
    "softmax over queries", "weights used", "scores used", "tanh", "sink", "one column", "selected -5", "weights cut",
    "values of other batch", "mask enlarges", "scores times values",
)  # fmt: skip

LOW = {"-inf": -np.inf, "-1e4": -1e4, "-1e30": -1e30}


@dataclass(frozen=True)
class Spelling:
    """One attention. Head sizes of k and v differ; ``rows`` queries look at 5 keys."""

    scale: str = "scores"
    mask: str = "added"
    keys: str = "rows"
    gqa: str = "none"
    heads: str = "together"
    rank: int = 4
    rows: int = 3
    half: bool = False
    symbolic: str = ""
    softmax: str = "op"
    regrouped: bool = False
    number: float = 0.3
    broken: str = ""
    opset: Any = target.iOS18

    @property
    def sound(self) -> bool:
        """Whether the parts go together."""
        plain = self.gqa == "none" and self.heads == "together"
        if self.rank != 4 and (not plain or self.regrouped or self.mask == "per head"):
            return False
        if self.keys == "einsum" and (not plain or self.rank == 5 or self.regrouped or self.mask == "low rank"):
            return False
        if self.heads != "together" and (self.gqa != "none" or self.mask == "per head" or self.symbolic == "S"):
            return False
        if self.heads != "together" and (self.keys != "rows" or self.scale != "scores" or self.regrouped):
            return False
        if self.regrouped and (self.gqa != "none" or self.symbolic or self.keys != "rows" or self.mask != "added"):
            return False
        if self.gqa in ("broadcast", "packed") and (
            self.mask == "per head" or self.keys in ("transposed", "transpose_x")
        ):
            return False
        if self.gqa == "broadcast" and (self.symbolic or "select" in self.mask):
            return False
        if self.gqa == "packed" and (self.rows != 1 or self.symbolic):
            return False
        if self.symbolic and ("constant" in self.mask or self.gqa == "interleaved"):
            return False
        if self.half and ("-1e30" in self.mask or self.mask == "select the other way"):
            return False
        return not (self.softmax == "cast" and self.mask not in ("none", "added"))


@st.composite
def attentions(draw: st.DrawFn, /, **fixed: Any) -> Spelling:
    """Spellings whose parts go together."""
    parts: dict[str, st.SearchStrategy[Any]] = {
        "heads": st.sampled_from(("together", "together", "together", "apart", "apart, einsum")),
        "rank": st.sampled_from((4, 4, 4, 3, 5)),
        "keys": st.sampled_from(KEYS),
        "gqa": st.sampled_from(("none", *GQA)),
        "mask": st.sampled_from(MASKS),
        "scale": st.sampled_from(SCALES),
        "rows": st.sampled_from((1, 3)),
        "half": st.booleans(),
        "symbolic": st.sampled_from(("", "", "L", "S")),
        "softmax": st.sampled_from(("op", "op", "written", "cast")),
        "regrouped": st.sampled_from((False, False, False, True)),
        "number": st.sampled_from((0.25, 0.3, 1 / sqrt(8))),
    }
    made = Spelling(**fixed)
    for name, values in parts.items():  # a part that does not go with those before it stays as it is
        if name not in fixed:
            other = replace(made, **{name: draw(values)})
            made = other if other.sound else made
    return made


@st.composite
def broken_attentions(draw: st.DrawFn, /, **fixed: Any) -> Spelling:
    """The same with one thing that the rule has to notice, or that makes no difference."""
    made: Spelling = draw(attentions(heads="together", softmax="op", regrouped=False, gqa="none", keys="rows", **fixed))
    return replace(made, broken=draw(st.sampled_from(BREAKS)))


def spelled(spelling: Spelling) -> Program:
    return _Writer(spelling).program()


class _Writer:
    def __init__(self, spelling: Spelling) -> None:
        self.s = spelling
        self.heads, self.groups = (2, 2) if spelling.gqa != "none" else (3, 1)
        if spelling.gqa == "one head":
            self.heads, self.groups = 1, 3
        self.size, self.out, self.keys = 8, 6, 5
        self.made: dict[str, Any] = {}  # masks that heads share
        self.type: Any = types.fp16 if spelling.half else types.fp32
        self.number: Any = np.float16 if spelling.half else np.float32

    def program(self) -> Program:
        s = self.s
        rows: Any = get_new_symbol() if "L" in s.symbolic else s.rows
        keys: Any = get_new_symbol() if "S" in s.symbolic else self.keys
        lead = {3: (self.heads,), 4: (1, self.heads), 5: (1, 2, self.heads)}[s.rank]
        wide = {3: (self.heads,), 4: (1, self.heads * self.groups), 5: (1, 2, self.heads)}[s.rank]
        mask = {"one row": (1, keys), "low rank": (rows, keys)}.get(
            s.mask, (1, 1, rows, keys)[4 - max(s.rank, 3) :] if s.rank < 4 else (1, 1, rows, keys)
        )
        if s.mask == "per head":
            mask = (1, self.heads * self.groups, rows, keys)
        if s.broken == "one column":
            mask = (*mask[:-1], 1)
        if s.broken == "mask enlarges" and s.rank < 5:
            mask = (2, 2, 1, 1, keys)
        q = (
            (1, rows, self.heads * self.groups, self.size)
            if s.scale == "before moves" and s.rank == 4
            else (*wide, rows, self.size)
        )
        value = (*lead, keys, self.out)
        if s.broken == "values of other batch":
            value = (2, *([1] * (len(lead) - 1)), keys, self.out) if s.rank == 4 else value
        specs = {
            "q": mb.placeholder(shape=q, dtype=self.type),
            "k": mb.placeholder(shape=(*lead, keys, self.size), dtype=self.type),
            "v": mb.placeholder(shape=value, dtype=self.type),
        }
        if s.mask not in ("none", "causal constant", "select constant, -1e4"):
            specs["mask"] = mb.placeholder(shape=mask, dtype=self.type)
        if s.mask == "two (ALiBi)":
            heads = self.heads * self.groups
            specs["bias"] = mb.placeholder(
                shape=(heads, 1, keys) if s.gqa not in ("broadcast", "packed") and s.heads == "together" else (1, keys),
                dtype=self.type,
            )
        program = Program()
        with Function(specs, opset_version=s.opset) as function:
            self.given = dict(function.inputs)
            function.set_outputs(self.body())
        program.add_function("main", function)
        program.validate()
        return program

    def body(self) -> list[Any]:
        s, given = self.s, self.given
        q, k, v = given["q"], given["k"], given["v"]
        if s.scale == "before moves":
            q = mb.mul(x=q, y=self.number(s.number))
            q = (
                mb.transpose(x=q, perm=[0, 2, 1, 3])
                if s.rank == 4
                else mb.squeeze(x=mb.expand_dims(x=q, axes=[0]), axes=[0])
            )
        if s.heads != "together":
            return [self.apart(q, k, v)]
        if s.gqa in ("broadcast", "packed"):
            return [self.shared(q, k, v)]
        k, v = self.repeated(k, self.size), self.repeated(v, self.out)
        return self.attend(q, k, v)

    def repeated(self, x: Any, size: int) -> Any:
        how, heads, groups = self.s.gqa, self.heads, self.groups
        if how == "none":
            return x
        if how == "one head":
            return mb.tile(x=x, reps=[1, groups, 1, 1])
        if how == "gather":
            return mb.gather(x=x, indices=[0, 0, 1, 1], axis=1)
        if how == "interleaved":  # repeat_interleave: heads last, tiled there
            turned = mb.expand_dims(x=mb.transpose(x=x, perm=[0, 2, 3, 1]), axes=[4])
            flat = mb.reshape(x=mb.tile(x=turned, reps=[1, 1, 1, 1, groups]), shape=[1, -1, size, heads * groups])
            return mb.transpose(x=flat, perm=[0, 3, 1, 2])
        apart = mb.expand_dims(x=x, axes=[2])
        wide = (
            mb.tile(x=apart, reps=[1, 1, groups, 1, 1]) if how == "tile" else mb.concat(values=[apart] * groups, axis=2)
        )
        return mb.reshape(x=wide, shape=[1, heads * groups, -1, size])

    def shared(self, q: Any, k: Any, v: Any) -> Any:
        """Queries that share keys and values by broadcasting, or as rows."""
        heads, groups, rows = self.heads, self.groups, self.s.rows
        if self.s.gqa == "packed":
            (made,) = self.attend(mb.reshape(x=q, shape=[1, heads, groups * rows, self.size]), k, v)
            return mb.reshape(x=made, shape=[1, heads * groups, rows, self.out])
        q = mb.reshape(x=q, shape=[1, heads, groups, rows, self.size])
        (made,) = self.attend(q, mb.expand_dims(x=k, axes=[2]), mb.expand_dims(x=v, axes=[2]))
        return mb.reshape(x=made, shape=[1, heads * groups, rows, self.out])

    def apart(self, q: Any, k: Any, v: Any) -> Any:
        """Each head by itself; channels first for einsum, heads beside one another in the channels."""
        heads = self.heads
        if self.s.heads == "apart":
            parts = zip(*(mb.split(x=each, num_splits=heads, axis=1) for each in (q, k, v)), strict=True)
            return mb.concat(values=[self.attend(*each)[0] for each in parts], axis=1)
        rows = mb.reshape(x=mb.transpose(x=q, perm=[0, 1, 3, 2]), shape=[1, heads * self.size, 1, -1])
        keys = mb.expand_dims(
            x=mb.reshape(x=mb.transpose(x=k, perm=[0, 2, 1, 3]), shape=[1, -1, heads * self.size]), axes=[2]
        )
        values = mb.reshape(x=mb.transpose(x=v, perm=[0, 1, 3, 2]), shape=[1, heads * self.out, 1, -1])
        parts = zip(
            mb.split(x=rows, num_splits=heads, axis=1), mb.split(x=keys, num_splits=heads, axis=3),
            mb.split(x=values, num_splits=heads, axis=1), strict=True,
        )  # fmt: skip
        return mb.concat(values=[self.einsum(*each) for each in parts], axis=1)

    def einsum(self, q: Any, k: Any, v: Any) -> Any:
        """q (B, E, H, L), k (B, S, H, E), v (B, D, H, S)."""
        scores = self.scored(mb.einsum(values=(k, q), equation="bkhc,bchq->bkhq"), turned=True)
        weights = self.weighed(scores, 1 if scores.rank == 4 else 0)
        return mb.einsum(values=(v, weights), equation="bchk,bkhq->bchq")

    def attend(self, q: Any, k: Any, v: Any) -> list[Any]:
        s, number = self.s, self.number(self.s.number)
        if s.scale in ("query", "query and key"):
            q = mb.mul(x=number, y=q)
        if s.scale in ("key", "query and key"):
            k = mb.mul(x=k, y=number)
        if s.keys == "einsum":
            perm = {4: ([0, 3, 1, 2], [0, 2, 1, 3]), 3: ([2, 0, 1], [1, 0, 2])}[q.rank]
            made = self.of_rank(
                mb.transpose(x=q, perm=perm[0]), mb.transpose(x=k, perm=perm[1]), mb.transpose(x=v, perm=perm[0])
            )
            return [mb.transpose(x=made, perm=[0, 2, 3, 1] if q.rank == 4 else [1, 2, 0])]
        self.attended = q
        last = [*range(q.rank - 2), -1, -2]
        if s.regrouped:
            heads, rows = self.heads, s.rows
            q = mb.reshape(x=q, shape=[heads, rows, self.size])
            k, v = (
                mb.reshape(x=each, shape=[heads, self.keys, size]) for each, size in ((k, self.size), (v, self.out))
            )
            scores = mb.reshape(x=mb.matmul(x=q, y=k, transpose_y=True), shape=[1, heads, rows, self.keys])
            weights = mb.reshape(x=self.weighed(self.scored(scores), -1), shape=[heads, rows, self.keys])
            return [mb.reshape(x=mb.matmul(x=weights, y=v), shape=[1, heads, rows, self.out])]
        if s.keys == "keys first":
            scores = self.scored(mb.matmul(x=k, y=q, transpose_y=True), turned=True)
            return [mb.matmul(x=self.weighed(scores, -2), y=v, transpose_x=True)]
        if s.keys == "transpose_x":
            scores = self.scored(
                mb.matmul(x=mb.transpose(x=q, perm=last), y=mb.transpose(x=k, perm=last), transpose_x=True)
            )
            return [
                mb.matmul(x=self.weighed(scores, scores.rank - 1), y=mb.transpose(x=v, perm=last), transpose_y=True)
            ]
        if s.keys == "columns":
            product = mb.matmul(x=q, y=mb.transpose(x=mb.relu(x=k), perm=last))
        elif s.keys == "transposed":
            product = mb.matmul(x=q, y=mb.transpose(x=k, perm=[*range(q.rank - 2), -1, -2]))
        else:
            product = mb.matmul(x=q, y=k, transpose_y=True)
        scores = self.scored(product)
        return self.ended(product, scores, v)

    def of_rank(self, q: Any, k: Any, v: Any) -> Any:
        if q.rank == 4:
            return self.einsum(q, k, v)
        scores = self.scored(mb.einsum(values=(k, q), equation="khc,chq->khq"), turned=True)
        return mb.einsum(values=(v, self.weighed(scores, 0)), equation="chk,khq->chq")

    def ended(self, product: Any, scores: Any, v: Any) -> list[Any]:
        broken = self.s.broken
        if broken == "sink":
            sink = mb.reduce_sum(
                x=mb.matmul(x=self.attended, y=self.attended, transpose_y=True), axes=[-1], keep_dims=True
            )
            weights = self.weighed(mb.concat(values=[scores, sink], axis=-1), -1)
            rank = scores.rank
            cut = mb.slice_by_index(
                x=weights,
                begin=[0] * rank,
                end=[0] * (rank - 1) + [-1],
                begin_mask=[True] * rank,
                end_mask=[True] * (rank - 1) + [False],
            )
            return [mb.matmul(x=cut, y=v)]
        weights = self.weighed(scores, -2 if broken == "softmax over queries" else -1)
        if broken == "weights cut":
            weights = mb.mul(x=weights, y=self.number(0.5))
        made = [mb.matmul(x=weights, y=v)]
        if broken == "weights used":
            made.append(mb.relu(x=weights))
        if broken == "scores used":
            made.append(mb.relu(x=product))
        return made

    def weighed(self, scores: Any, axis: int) -> Any:
        if self.s.softmax == "written":
            powers = mb.exp(x=mb.sub(x=scores, y=mb.reduce_max(x=scores, axes=[axis], keep_dims=True)))
            return mb.real_div(x=powers, y=mb.reduce_sum(x=powers, axes=[axis], keep_dims=True))
        if self.s.softmax == "cast":
            wide = mb.softmax(x=mb.cast(x=scores, dtype="fp32"), axis=axis)
            return mb.cast(x=wide, dtype="fp16" if self.s.half else "fp32")
        return mb.softmax(x=scores, axis=axis)

    def scored(self, x: Any, *, turned: bool = False) -> Any:
        """The scores with a scale and a mask; ``turned`` ones have keys where queries usually are."""
        s, number = self.s, self.number(self.s.number)
        if s.broken == "tanh":
            x = mb.tanh(x=mb.mul(x=x, y=self.number(0.1)))
        if s.broken == "scores times values":
            x = mb.mul(x=x, y=x)
        if s.mask == "before the scale":
            x = mb.add(x=x, y=self.mask("mask", x, turned))
        if s.scale in ("scores", "twice"):
            x = mb.mul(x=x, y=number)
        if s.scale in ("divided", "twice"):
            x = mb.real_div(x=x, y=number)
        return self.masked(x, turned)

    def mask(self, name: str, x: Any, turned: bool) -> Any:
        if name not in self.made:
            self.made[name] = self._mask(name, x, turned)
        return self.made[name]

    def _mask(self, name: str, x: Any, turned: bool) -> Any:
        mask = self.given[name]
        if not turned:
            return mask
        if self.s.keys == "keys first":
            return mb.transpose(x=mask, perm=[*range(mask.rank - 2), -1, -2])
        while mask.rank < x.rank:
            mask = mb.expand_dims(x=mask, axes=[0])
        return mb.transpose(x=mask, perm=[0, 3, 1, 2] if x.rank == 4 else [2, 0, 1])

    def masked(self, x: Any, turned: bool) -> Any:
        kind, number = self.s.mask, self.number
        if kind in ("none", "before the scale"):
            return x
        if kind in ("causal constant", "select constant, -1e4"):
            keep: Any = np.tril(np.ones((self.s.rows, self.keys), bool), self.keys - self.s.rows)
            keep = keep.reshape((1,) * (x.rank - 2) + keep.shape)
            if turned:
                keep = np.moveaxis(keep, -1, -3) if self.s.keys != "keys first" else np.swapaxes(keep, -1, -2)
            if kind == "causal constant":
                return mb.add(x=x, y=np.where(keep, 0, -1e4).astype(number))
            return mb.select(cond=keep, a=x, b=number(-1e4))
        mask = self.mask("mask", x, turned)
        if kind == "added first":
            return mb.add(x=mask, y=x)
        if kind == "subtracted":
            return mb.sub(x=x, y=mask)
        if kind == "two (ALiBi)":
            return mb.add(x=mb.add(x=x, y=self.mask("bias", x, turned)), y=mask)
        if "select" not in kind:
            return mb.add(x=x, y=mask)
        low = number(LOW[kind.rpartition(" ")[2]]) if kind.rpartition(" ")[2] in LOW else number(-1e4)
        low = number(-5) if self.s.broken == "selected -5" else low
        # masks drawn are 0 or more for what is seen, and -1e4 or less beyond
        if "seen" not in self.made:
            self.made["seen"] = mb.greater(x=mask, y=number(-100))
            self.made["positive"] = mb.relu(x=mask)
        seen, positive = self.made["seen"], self.made["positive"]
        if kind == "added, then select":
            return mb.select(cond=seen, a=mb.add(x=x, y=positive), b=low)
        if kind == "select, then added":
            return mb.add(x=mb.select(cond=seen, a=x, b=low), y=positive)
        if kind == "select the other way":
            if "hidden" not in self.made:
                self.made["hidden"] = mb.less(x=mask, y=number(-100))
            return mb.select(cond=self.made["hidden"], a=low, b=x)
        return mb.select(cond=seen, a=x, b=low)


def attention_programs(**fixed: Any) -> st.SearchStrategy[Program]:
    return attentions(**fixed).map(spelled)


def broken_programs(**fixed: Any) -> st.SearchStrategy[Program]:
    return broken_attentions(**fixed).map(_or_whole)


def _or_whole(spelling: Spelling) -> Program:
    """What can't be broken that way, since MIL itself refuses it, is left whole."""
    try:
        return spelled(spelling)
    except ValueError:
        return spelled(replace(spelling, broken=""))


@st.composite
def fused_programs(
    draw: Draw, *, apart: bool = False, shared: bool = False, broken: bool = False, fp16: bool = False
) -> Program:
    """Attention as the op; heads ``apart`` are joined, ``shared`` keys repeated, and ``broken`` ones neither quite."""
    half = fp16 and draw(st.booleans())
    rank = 4 if apart or shared or broken else draw(st.sampled_from((3, 4, 4, 5)))
    groups = draw(st.integers(2, 3)) if shared or broken else 1
    heads, rows, keys = draw(st.integers(2, 3)), draw(st.sampled_from((1, 3))), 4
    kind, number = (types.fp16, np.float16) if half else (types.fp32, np.float32)
    lead = {3: (heads,), 4: (1, heads), 5: (1, 2, heads)}[rank]
    wide = (1, heads * groups) if groups > 1 else lead
    length: Any = get_new_symbol() if draw(st.integers(0, 3)) == 3 else rows
    masking = draw(st.sampled_from(("none", "rows", "row", "bool", "low rank", "per head")))
    specs: dict[str, Any] = {
        "q": mb.placeholder(shape=(*wide, length, 8), dtype=kind),
        "k": mb.placeholder(shape=(*lead, keys, 8), dtype=kind),
        "v": mb.placeholder(shape=(*lead, keys, 6), dtype=kind),
    }
    unit = (1,) * len(lead)
    shape = {"row": (*unit, 1, keys), "low rank": (length, keys)}.get(masking, (*unit, length, keys))
    if masking == "per head" and not apart and rank == 4:
        shape = (1, *wide[1:], length, keys)
    if masking != "none":
        specs["mask"] = mb.placeholder(shape=shape, dtype=kind)
    how = draw(st.sampled_from(("interleaved", "cut", "unlike"))) if broken else ""
    program = Program()
    with Function(specs, opset_version=target.iOS18) as function:
        given = dict(function.inputs)
        q, k, v = given["q"], given["k"], given["v"]
        masks = {"attn_mask": given["mask"]} if masking != "none" else {}
        if masking == "bool":
            masks["attn_mask"] = mb.greater(x=given["mask"], y=number(-100))
        if groups > 1:
            k, v = _copied(k, groups, how == "interleaved"), _copied(v, groups, False)
        if apart:
            parts = [mb.split(x=each, num_splits=heads, axis=1) for each in (q, k, v)]
            made = [_attended(query, key, value, masks) for query, key, value in zip(*parts, strict=True)]
            result = mb.concat(values=made, axis=1)
        else:
            result = _attended(q, k, mb.relu(x=v) if how == "unlike" else v, masks)
        function.set_outputs([result, mb.relu(x=k)] if how == "cut" else [result])
    program.add_function("main", function)
    program.validate()
    return program


def _attended(q: Any, k: Any, v: Any, masks: dict[str, Any]) -> Any:
    return mb.scaled_dot_product_attention(query=q, key=k, value=v, **masks)


def _copied(x: Any, groups: int, interleaved: bool) -> Any:
    """Each head several times in a row, or all heads several times."""
    _, heads, rows, size = x.shape
    wide = mb.tile(
        x=mb.expand_dims(x=x, axes=[1 if interleaved else 2]),
        reps=[1, groups, 1, 1, 1] if interleaved else [1, 1, groups, 1, 1],
    )
    return mb.reshape(x=wide, shape=[1, heads * groups, rows, size])


@st.composite
def flexible_repeats(draw: Draw, *, broken: bool = False) -> Program:
    """What torch's ``expand`` of a cache of flexible length becomes, with nothing or something that is not that."""
    heads, groups, size = draw(st.integers(1, 3)), draw(st.integers(2, 3)), draw(st.integers(1, 3))
    length: Any = get_new_symbol()
    program = Program()
    with Function({"x": mb.placeholder(shape=(1, heads, length, size))}, opset_version=target.iOS18) as function:
        x = dict(function.inputs)["x"]
        apart = mb.expand_dims(x=x, axes=[2])
        sizes = mb.shape(x=x)
        at = 1 if broken else 2  # of another axis than it is compared with
        wanted = mb.concat(
            values=[np.int32(1), np.int32(heads), np.int32(groups), mb.gather(x=sizes, indices=at), np.int32(size)],
            axis=0,
        )
        mine = mb.shape(x=apart)
        if draw(st.booleans()):
            wanted = mb.select(cond=mb.equal(x=wanted, y=np.int32(-1)), a=mine, b=wanted)
        reps = mb.real_div(x=wanted, y=mine)
        wide = mb.tile(x=apart, reps=reps)
        function.set_outputs([mb.reshape(x=wide, shape=[1, heads * groups, -1, size])])
    program.add_function("main", function)
    program.validate()
    return program
