"""Query heads that share keys and values -> rows of one attention, so that nothing is repeated."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, NamedTuple

import numpy as np

from milopt.building import Builder
from milopt.matching import Match
from milopt.mil import Operation, Var, constant, is_symbolic, shape_of
from milopt.package import Model
from milopt.passes.attention_products import reshaped
from milopt.passes.attention_writing import grouped_mask
from milopt.passes.repeats import FoldTile, known_size, told
from milopt.pattern import Ops, Value
from milopt.pipeline import RulePass
from milopt.reports import Report, require
from milopt.rules import Rule

__all__ = ["PackGqa", "PackHeads", "PackProduct", "Shared", "shared_heads"]


_NO_COPY = "its second operand is not repeated"
_NOTHING = "its keys and values are not repeated"


@dataclass(frozen=True)
class PackGqa(RulePass):
    """Attention on repeated keys and values (GQA)  ->  attention of packed queries on the keys as they are.

    The heads that share a key head become rows: q (B, H, Q, E) is read as (B, Hkv, G·Q, E), which moves nothing, and no
    K or V is tiled (constraint L16). A mask that is alike for all heads is then repeated, once for all layers that have
    it; the report says how many bytes that is. Of one query (Q = 1) it needs no repetition. Where attention is written
    out (scores that are capped; opsets below iOS18), its two products are packed, and no mask is repeated.
    """

    name: ClassVar[str] = "pack-gqa"
    after: ClassVar[tuple[str, ...]] = ("canonicalize", "fuse-sdpa")

    def rules(self) -> tuple[Rule[Any], ...]:
        return (PackHeads(), PackProduct(), FoldTile())

    def run(self, model: Model) -> Report:
        report = told(super().run(model))
        # a product of anything, and attention that was packed, repeat nothing
        quiet = (_NO_COPY, _NOTHING) if report.applied else (_NO_COPY,)
        report.misses = [miss for miss in report.misses if miss.text not in quiet]
        return report


class Shared(NamedTuple):
    """Keys or values before they are repeated, (B, Hkv, S, D) or (B, Hkv, 1, S, D), and how often they are."""

    source: Var
    groups: int


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
        require(key is not None and value is not None, _NOTHING)
        assert key is not None
        assert value is not None
        require(key.groups == value.groups, "keys are repeated {} times, values {}", key.groups, value.groups)
        shape = tuple(known_size(m.q, axis) if axis == 1 else dim for axis, dim in enumerate(shape_of(m.q)))
        require(len(shape) == 4, "q is of rank {}, not 4", len(shape), at=m.q)
        require(not is_symbolic(shape[1]) and shape[1] % key.groups == 0, "q has {} heads", shape[1], at=m.q)
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


def shared_heads(var: Var) -> Shared | None:
    """What ``var`` (B, H, S, D) repeats, each head ``groups`` times in a row; ``None`` where it repeats nothing.

    It may be written as ``tile`` or ``concat`` of copies along an axis behind the heads, then ``reshape``; as ``tile``
    of one head; as ``gather`` of heads; or as any moves of a value of known shape that come to the same.
    """
    op = var.op
    if op is None or var.rank != 4 or is_symbolic(shape_of(var)[1]):
        return None
    for read in (_expanded, _one_head, _gathered, _moved):
        if (found := read(op, var)) is not None and found.groups > 1:
            return found
    return None


def _expanded(op: Operation, var: Var) -> Shared | None:
    """``reshape(tile(x5, [1, 1, G, 1, 1]))`` or of a concat of G times x5, with x5 of shape (B, Hkv, 1, S, D)."""
    if op.op_type != "reshape":
        return None
    wide = op.inputs["x"].op
    if wide is None or op.inputs["x"].rank != 5 or wide.op_type not in ("tile", "concat"):
        return None
    if wide.op_type == "tile":
        reps = constant(wide.inputs["reps"])
        source, groups = (
            wide.inputs["x"],
            0 if reps is None or list(reps[:2]) + list(reps[3:]) != [1] * 4 else int(reps[2]),
        )
    else:
        values = wide.inputs["values"]
        same = all(each is values[0] for each in values) and int(constant(wide.inputs["axis"])) % 5 == 2
        source, groups = values[0], len(values) if same and not constant(wide.inputs["interleave"]) else 0
    shape, after = shape_of(source), shape_of(var)
    if not groups or shape[2] != 1 or is_symbolic(shape[1]) or shape[1] * groups != after[1]:
        return None
    # heads and features are as they were, so the rows are as well: the reshape joins axes 1 and 2
    return Shared(source, groups) if _batch_kept(shape, after) and shape[4] == after[3] else None


def _batch_kept(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    if before[0] == after[0]:
        return not is_symbolic(before[4])
    return False


def _one_head(op: Operation, var: Var) -> Shared | None:
    """``tile(x, [1, H, 1, 1])`` or a concat of copies, of x with one head."""
    if op.op_type == "tile":
        reps = constant(op.inputs["reps"])
        source, times = op.inputs["x"], [] if reps is None else [int(each) for each in reps]
        right = len(times) == 4 and times[0] == times[2] == times[3] == 1
        return Shared(source, times[1]) if right and shape_of(source)[1] == 1 else None
    if op.op_type == "concat" and int(constant(op.inputs["axis"])) % 4 == 1:
        values = op.inputs["values"]
        if shape_of(values[0])[1] == 1 and all(each is values[0] for each in values):
            return Shared(values[0], len(values))
    del var
    return None


def _gathered(op: Operation, var: Var) -> Shared | None:
    if op.op_type != "gather" or int(constant(op.inputs["axis"])) % op.inputs["x"].rank != 1:
        return None
    source, indices = op.inputs["x"], constant(op.inputs["indices"])
    if indices is None or source.rank != 4 or is_symbolic(shape_of(source)[1]):
        return None
    heads = int(shape_of(source)[1])
    groups = int(shape_of(var)[1]) // heads
    wanted = [head for head in range(heads) for _ in range(groups)]
    alike = np.ndim(indices) == 1 and list(indices) == wanted
    return Shared(source, groups) if alike else None


# Arrays of more elements than this are not moved to see where they end
_MOST = 2**23
_FIXED = ("expand_dims", "squeeze", "reshape", "transpose", "tile", "concat")


def _moved(op: Operation, var: Var) -> Shared | None:
    """Any moves of one value, run on the numbers of its elements."""
    ops: list[Operation] = []
    shape = shape_of(var)
    at: Operation | None = op
    if any(map(is_symbolic, shape)) or prod(shape) > _MOST:
        return None
    while at is not None and at.op_type in _FIXED and len(ops) < 10:
        values = at.inputs["values"] if at.op_type == "concat" else [at.inputs["x"]]
        if any(each is not values[0] for each in values):
            return None
        ops.append(at)
        source: Var = values[0]
        before = shape_of(source)
        if any(map(is_symbolic, before)):
            return None
        if source.rank == 4 and before[0] == shape[0] and before[2:] == shape[2:] and before[1] < shape[1]:
            groups = shape[1] // before[1]
            if shape[1] % before[1] == 0 and _repeats(ops, before, groups):
                return Shared(source, groups)
        at = source.op
    return None


def _repeats(ops: list[Operation], shape: tuple[int, ...], groups: int) -> bool:
    counted: Any = np.arange(prod(shape), dtype=np.int32)
    numbers = counted.reshape(shape)
    wanted = np.repeat(numbers, groups, axis=1)
    for op in reversed(ops):
        made = _run(op, numbers)
        if made is None:
            return False
        numbers = made
    return np.array_equal(numbers, wanted)


def _run(op: Operation, x: Any) -> Any:
    if op.op_type in ("expand_dims", "squeeze", "reshape"):
        return x.reshape(shape_of(op.outputs[0]))
    if op.op_type == "transpose":
        return x.transpose([int(axis) % x.ndim for axis in constant(op.inputs["perm"])])
    if op.op_type == "tile":
        reps = constant(op.inputs["reps"])
        return None if reps is None else np.tile(x, reps)
    if constant(op.inputs["interleave"]):
        return None
    return np.concatenate([x] * len(op.inputs["values"]), axis=int(constant(op.inputs["axis"])))
