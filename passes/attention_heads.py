"""Heads that are split, attended one by one and joined -> attention of all heads at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from milopt.building import Builder
from milopt.engine.sameness import same_numbers, same_var
from milopt.literals import one_number
from milopt.matching import Match
from milopt.mil import Operation, Var, constant, is_output, is_symbolic, shape_of
from milopt.passes.attention_products import permuted, reshaped
from milopt.passes.attention_writing import grouped_mask
from milopt.pattern import Ops, Values
from milopt.reports import require
from milopt.rules import Rule

__all__ = ["MergeHeads"]


class Pieces(NamedTuple):
    """Values that are ``whole`` cut along ``axis``, each then multiplied by ``factors`` and transposed by ``perm``."""

    whole: Var
    axis: int
    perm: tuple[int, ...]
    factors: tuple[Any, ...] = ()


class Heads(NamedTuple):
    q: Pieces
    k: Pieces
    v: Pieces
    out: tuple[int, ...]
    axis: int
    mask: Var | None
    groups: int


class MergeHeads(Rule[Heads]):
    """``concat`` of attentions of one head each, on pieces of q, k and v  ->  one attention of all heads.

    The pieces are the outputs of a ``split``, or slices, in order and complete; each may be transposed, as may the
    results. Where several heads, one after another, share a piece of k and v, their queries become rows of one head, as
    in ``pack-gqa``. It stays away where the heads have masks of their own, or are not all of the pieces.
    """

    def pattern(self, op: Ops, /, heads: Values) -> Any:
        head = op.scaled_dot_product_attention(query=..., key=..., value=..., attn_mask=...)
        first = op.one_of("turned", transpose=op.transpose(x=head, perm=...), none=head)
        return op.concat(values=(first, heads), axis=...)

    def check(self, m: Match, /) -> Heads:
        require(m.heads, "it joins nothing")
        results = [_attention(each) for each in m.root.inputs["values"]]
        ops, perms = [op for op, _ in results], [perm for _, perm in results]
        require(len(set(perms)) == 1, "its heads are of different layouts")
        masks = [mask for op in ops if (mask := op.inputs.get("attn_mask")) is not None]
        first: Var | None = next(iter(masks), None)
        alike = len(masks) in (0, len(ops)) and all(same_var(each, masks[0]) for each in masks)
        require(alike, "its heads have masks of their own")
        require(first is None or first.rank < 3 or shape_of(first)[-3] == 1, "the mask is one per head", at=first)
        keys, values = ([op.inputs[name] for op in ops] for name in ("key", "value"))
        groups = _shared(keys)
        require(groups == _shared(values), "heads that share keys do not share values", at=values[0])
        q = _pieces([op.inputs["query"] for op in ops])
        k, v = (_alone(each[0]) if groups == len(ops) else _pieces(each[::groups]) for each in (keys, values))
        out = perms[0]
        axis = int(constant(m.root.inputs["axis"])) % 4
        require(out[axis] in (1, 3), "the heads are joined along queries or sequences")
        return Heads(q, k, v, out, axis, first, groups)

    def rewrite(self, op: Builder, m: Match, facts: Heads, /) -> Var:
        heads, groups, mask = len(m.heads) + 1, facts.groups, facts.mask
        query = _whole(op, facts.q, heads)
        key, value = (_whole(op, each, heads // groups) for each in (facts.k, facts.v))
        batch, _, rows, size = shape_of(query)
        if groups > 1:
            query = reshaped(op, query, (batch, heads // groups, groups * rows, size))
            mask = None if mask is None else grouped_mask(op, mask, heads, groups, rows)
        masks = {} if mask is None else {"attn_mask": mask}
        made = op.scaled_dot_product_attention(query=query, key=key, value=value, **masks)
        if groups > 1:
            made = reshaped(op, made, (batch, heads, rows, shape_of(value)[-1]))
        if facts.out[facts.axis] == 1:
            return permuted(op, made, facts.out)
        # (B, H, L, D) -> the layout of one head's result, its unit axis dropped, H before D -> joined
        order: list[int] = []
        for axis in facts.out:
            order += [1, 3] if axis == 3 else [] if axis == 1 else [axis]
        return reshaped(op, permuted(op, made, tuple(order)), shape_of(m.root.outputs[0]))


def _attention(var: Var) -> tuple[Operation, tuple[int, ...]]:
    """The attention that ``var`` is the result of, and how that is transposed."""
    require(len(var.child_ops) == 1 and not is_output(var), "a head is needed elsewhere", at=var)
    op, perm = var.op, tuple(range(var.rank))
    if op is not None and op.op_type == "transpose":
        perm = tuple(int(axis) % var.rank for axis in constant(op.inputs["perm"]))
        var = op.inputs["x"]
        require(len(var.child_ops) == 1 and not is_output(var), "a head is needed elsewhere", at=var)
        op = var.op
    require(op is not None and op.op_type == "scaled_dot_product_attention", "it joins no heads", at=var)
    assert op is not None
    return op, perm


def _shared(values: list[Var]) -> int:
    """How many heads, one after another, have the same keys (or values); 1 where each has its own."""
    groups = next((at for at, each in enumerate(values) if each is not values[0]), len(values))
    alike = len(values) % groups == 0 and all(each is values[at - at % groups] for at, each in enumerate(values))
    require(alike, "some heads share keys, and not as many each")
    return groups


def _alone(var: Var) -> Pieces:
    """Keys or values of one head that all heads share: no piece of anything."""
    return Pieces(var, 1, (0, 1, 2, 3))


def _pieces(values: list[Var]) -> Pieces:
    factors: list[tuple[Any, ...]] = []
    perms, cut = set[tuple[int, ...]](), list[tuple[Var, int, int, int]]()
    for var in values:
        perm = tuple(range(var.rank))
        if var.op is not None and var.op.op_type == "transpose":
            perm = tuple(int(axis) % var.rank for axis in constant(var.op.inputs["perm"]))
            var = var.op.inputs["x"]
        perms.add(perm)
        var, factor = _unscaled(var)
        factors.append(factor)
        cut.append(_piece(var))
    require(all(_alike(each, factors[0]) for each in factors), "pieces are scaled differently", at=values[0])
    require(len(perms) == 1, "pieces are transposed differently", at=values[0])
    wholes, axes = {each[0] for each in cut}, {each[1] for each in cut}
    require(len(wholes) == len(axes) == 1, "pieces are of different values", at=values[0])
    (whole,), (axis,), (perm,) = wholes, axes, perms
    size, ends = cut[0][3] - cut[0][2], [0, *(each[3] for each in cut)]
    complete = all(
        start == end and stop - start == size for (_, _, start, stop), end in zip(cut, ends[:-1], strict=True)
    )
    for each in (each for each in factors[0] if isinstance(each, Var)):
        over = (1,) * (whole.rank - each.rank) + shape_of(each)
        require(over[axis] == 1, "pieces are multiplied by values of their own", at=each)
    require(complete and ends[-1] == shape_of(whole)[axis], "the pieces are not the whole, in order", at=whole)
    require(whole.rank == 4 and perm.index(axis) in (1, 3), "it is cut along rows or batch", at=whole)
    require(perm.index(axis) == 1 or shape_of(whole)[perm[1]] == 1, "it has heads already", at=whole)
    require(perm.index(axis) == 3 or size == 1, "a piece holds several heads", at=whole)
    return Pieces(whole, axis, perm, factors[0])


def _unscaled(var: Var) -> tuple[Var, tuple[Any, ...]]:
    """What is multiplied by numbers, or by what all features share; and these factors, the last first."""
    factors: list[Any] = []
    while var.op is not None and var.op.op_type == "mul":
        x, y = var.op.inputs["x"], var.op.inputs["y"]
        number = one_number(var.op, "y", y) if constant(y) is not None else None
        if number is None and (constant(y) is not None or shape_of(x) != shape_of(var)):
            break
        factors.append(y if number is None else number)
        var = x
    return var, tuple(factors)


def _alike(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    if len(one) != len(other):
        return False
    return all(
        a is b or (not isinstance(a, Var) and not isinstance(b, Var) and same_numbers(a, b))
        for a, b in zip(one, other, strict=True)
    )


def _piece(var: Var) -> tuple[Var, int, int, int]:
    """``(whole, axis, start, stop)`` of a value that is cut out of another along one axis."""
    op = var.op
    require(op is not None and op.op_type in ("split", "slice_by_index"), "it is no piece of anything", at=var)
    assert op is not None
    whole: Var = op.inputs["x"]
    if op.op_type == "split":
        axis = int(constant(op.inputs["axis"])) % whole.rank
        before = [shape_of(each)[axis] for each in op.outputs[: op.outputs.index(var)]]
        return whole, axis, sum(before), sum(before) + shape_of(var)[axis]
    return _slice(op, whole, var)


def _slice(op: Operation, whole: Var, var: Var) -> tuple[Var, int, int, int]:
    names = ("begin", "begin_mask", "stride", "squeeze_mask")
    begin, first, stride, squeezed = (constant(op.inputs.get(name)) for name in names)
    require(begin is not None, "it is sliced at computed places", at=var)
    require(squeezed is None or not np.any(squeezed), "its axis is gone", at=var)
    require(stride is None or np.all(stride == 1), "it is sliced with steps", at=var)
    cut = [axis for axis in range(whole.rank) if shape_of(var)[axis] != shape_of(whole)[axis]]
    require(len(cut) == 1, "it is not cut along one axis", at=var)
    (axis,) = cut
    sizes = shape_of(whole)[axis], shape_of(var)[axis]
    require(not any(map(is_symbolic, sizes)), "it is cut along an axis of unknown size", at=var)
    start = 0 if first is not None and first[axis] else int(begin[axis]) % sizes[0]
    return whole, axis, start, start + sizes[1]


def _whole(op: Builder, pieces: Pieces, heads: int) -> Var:
    """All heads at once, (B, H, rows, features)."""
    for factor in reversed(pieces.factors):
        pieces = pieces._replace(whole=op.mul(x=pieces.whole, y=factor))
    if pieces.perm.index(pieces.axis) == 1:
        return permuted(op, pieces.whole, pieces.perm)
    shape, unit = shape_of(pieces.whole), pieces.perm[1]
    apart: list[Any] = []
    names: list[str] = []
    for axis, dim in enumerate(shape):
        if axis == pieces.axis:
            apart += [heads, dim // heads]
            names += ["heads", "features"]
        elif axis != unit:
            apart.append(dim)
            names.append("batch" if axis == pieces.perm[0] else "rows")
    parted = reshaped(op, pieces.whole, tuple(apart))
    return permuted(op, parted, tuple(names.index(name) for name in ("batch", "heads", "rows", "features")))
