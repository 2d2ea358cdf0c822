"""Writes attention: as the op, in the layout and with the types of what it replaces."""

from __future__ import annotations

from math import prod, sqrt
from typing import Any

import numpy as np

from milopt.building import Builder
from milopt.engine.shapes import same_size
from milopt.mil import Operation, Var, constant, dtype_name, is_output, is_symbolic, shape_of
from milopt.passes.attention_masks import FLOATS, alive, once, write_mask
from milopt.passes.attention_products import permuted, reshaped, with_symbols
from milopt.passes.attention_sites import Seen, Site
from milopt.reports import require

__all__ = ["ROUNDED", "grouped_mask", "packed_mask", "placed", "scaled", "standard", "write_fused"]

_BYTES = {"fp16": 2, "fp32": 4, "bool": 1}

ROUNDED = "a scale is the fp16 rounding of what scaled_dot_product_attention computes exactly"

# fp32 numbers step by so much of themselves: a factor this near to 1 is the rounding of one of them
_FP32_STEP = 2.0**-23


def write_fused(op: Builder, root: Operation, site: Site) -> Var:
    """``scaled_dot_product_attention`` for ``site``, in the place of ``root``."""
    query = scaled(op, site.query.var, site.scale * sqrt(site.size))  # the op itself divides by sqrt(E)
    query, key, value, mask = standard(op, site, query)
    ours, theirs = site.query.shape[:-2], site.key.shape[:-2]
    if not all(map(same_size, ours, theirs)):
        return placed(op, root, site, _packed(op, query, key, value, mask, _groups(ours, theirs)))
    masks = {} if mask is None else {"attn_mask": mask}
    return placed(op, root, site, op.scaled_dot_product_attention(query=query, key=key, value=value, **masks))


def standard(op: Builder, site: Site, query: Var) -> tuple[Var, Var, Var, Var | None]:
    """q (``query`` is its value, scaled), k, v and the mask in the order batch…, rows, columns."""
    kind = dtype_name(query)
    for factor in alive(op, site.scores, kind, site.order[-1]):
        query = op.mul(x=query, y=_like_query(op, factor, site))
    made = [_ordered(op, site, each) for each in (Seen(query, site.query.order), site.key, site.value)]
    mask = write_mask(op, site.scores, kind)
    if mask is not None and site.order != tuple(range(-len(site.order), 0)):
        mask = _turned(op, mask, site.order)
    return made[0], made[1], made[2], mask


def _turned(op: Builder, mask: Var, order: tuple[int, ...]) -> Var:
    """``mask`` with its axes in another order, once for all layers; a constant as another constant."""
    rank = len(order)
    perm = [axis % rank for axis in order]
    numbers = constant(mask)
    if numbers is not None:
        made: Var = op.const(
            val=np.ascontiguousarray(numbers.reshape((1,) * (rank - numbers.ndim) + numbers.shape).transpose(perm))
        )
        return made
    return once(op, "transpose", x=_of_rank(op, mask, rank), perm=perm)


def _of_rank(op: Builder, var: Var, rank: int) -> Var:
    """``var`` with axes of 1 before its own, once for all layers."""
    while var.rank < rank:
        var = once(op, "expand_dims", x=var, axes=[0])
    return var


def _like_query(op: Builder, factor: Var, site: Site) -> Var:
    """A factor per query, whose axes are those of masks, with the axes of q."""
    ours, theirs = site.query.order, site.order
    if site.regrouped:
        require(factor.rank < 3, "a row without keys meets a batch that is regrouped", at=factor)
        ours, theirs = ours[-2:], theirs[-2:]
    if ours == theirs:
        return factor
    rank = len(ours)
    factor = _of_rank(op, factor, rank)
    perm = [axis % rank for _, axis in sorted(zip(ours, theirs, strict=True))]
    return factor if perm == sorted(perm) else once(op, "transpose", x=factor, perm=perm)


def _ordered(op: Builder, site: Site, seen: Seen) -> Var:
    made = permuted(op, seen.var, seen.order)
    return reshaped(op, made, (*site.batch, *shape_of(made)[-2:])) if site.regrouped else made


def placed(op: Builder, root: Operation, site: Site, made: Var) -> Var:
    """The result, of batch…, queries, features, in the layout and with the symbols of what ``root`` gives."""
    old = root.outputs[0]
    if site.dead is not None:
        made = _without_dead_rows(op, site, made)
    if site.regrouped:
        made = reshaped(op, made, tuple(shape_of(old)[axis] for axis in site.out))
    back = sorted(range(old.rank), key=site.out.__getitem__)
    made = permuted(op, made, tuple(back))
    return with_symbols(made, shape_of(old))


def _without_dead_rows(op: Builder, site: Site, made: Var) -> Var:
    assert site.dead is not None
    dead, where = site.dead
    plain = site.order == tuple(range(-len(site.order), 0)) and not site.regrouped
    require(plain or not dead.rank, "weights are replaced in another layout", at=dead)
    zero = FLOATS[dtype_name(made)](0)
    sides = {"a": zero, "b": made} if where else {"a": made, "b": zero}
    result: Var = op.select(cond=dead, **sides)
    return result


def scaled(op: Builder, var: Var, factor: float, *, note: str = ROUNDED) -> Var:
    """``var * factor`` in the type of ``var``: nothing for 1, and no second factor where one is before it already.

    What that factor is rounded by is noted.
    """
    kind = FLOATS[dtype_name(var)]
    before = _factor_before(var)
    if before is not None and _is_one(factor * before[1], kind):
        var, factor = _moved_over(op, var, before[0]), factor * before[1]
    if not _is_one(factor, kind):
        number = kind(factor)
        require(np.isfinite(number) and (number != 0 or factor == 0), "a scale of {:g} on q is no fp16", factor)
        var = op.mul(x=var, y=number)
        factor /= float(number) or 1.0
    if abs(factor - 1) > _FP32_STEP and factor:
        op.note(note)
    return var


def _is_one(factor: float, kind: Any) -> bool:
    """Whether a factor is 1 at the precision of the constants that say so."""
    return abs(factor - 1) <= float(np.finfo(kind).eps)


_MOVES = ("transpose", "reshape", "expand_dims", "squeeze")


def _factor_before(var: Var) -> tuple[Operation, float] | None:
    """The scale that ``var`` is moved from: an op that multiplies by a number, and the number."""
    at = var
    while at.op is not None and at.op.op_type in _MOVES and _only_use(at):
        at = at.op.inputs["x"]
    op = at.op
    if op is None or op.op_type not in ("mul", "real_div") or not _only_use(at):
        return None
    sides = [name for name in "xy" if constant(op.inputs[name]) is not None and np.size(constant(op.inputs[name])) == 1]
    if sides != ["y"] and (sides != ["x"] or op.op_type != "mul"):
        return None
    number = float(np.ravel(constant(op.inputs[sides[0]]))[0])
    other = op.inputs["x" if sides == ["y"] else "y"]
    if shape_of(other) != shape_of(at) or number == 0:
        return None
    return op, number if op.op_type == "mul" else 1 / number


def _only_use(var: Var) -> bool:
    return len(var.child_ops) == 1 and not is_output(var)


def _moved_over(op: Builder, var: Var, scale: Operation) -> Var:
    """``var`` without the scale that it is moved from: the same moves of what is scaled."""
    if var.op is scale:
        x, y = scale.inputs["x"], scale.inputs["y"]
        found: Var = y if constant(x) is not None else x
        return found
    assert var.op is not None
    inputs = {**var.op.inputs, "x": _moved_over(op, var.op.inputs["x"], scale)}
    made: Var = getattr(op, var.op.op_type)(**inputs)
    return with_symbols(made, shape_of(var))


def _groups(query: tuple[Any, ...], key: tuple[Any, ...]) -> int:
    """How many of the last axes of q's batch the keys, which are 1 there, are broadcast over."""
    count = next((at for at in range(len(key)) if key[-1 - at] != 1), len(key))
    while query[-count] == 1:  # an axis of the batch
        count -= 1
    require(not any(map(is_symbolic, query[-count:])), "an unknown number of heads share keys")
    return count


def _packed(op: Builder, query: Var, key: Var, value: Var, mask: Var | None, count: int) -> Var:
    """Attention whose keys are broadcast over the last ``count`` axes of the batch: those become rows."""
    batch, (rows, size) = shape_of(query)[:-2], shape_of(query)[-2:]
    lead, groups = batch[: len(batch) - count], prod(batch[len(batch) - count :])
    lead = lead or (1,)
    fused = op.scaled_dot_product_attention(
        query=reshaped(op, query, (*lead, groups * rows, size)),
        key=reshaped(op, key, (*lead, *shape_of(key)[-2:])),
        value=reshaped(op, value, (*lead, *shape_of(value)[-2:])),
        **({} if mask is None else {"attn_mask": packed_mask(op, mask, batch, count, rows)}),
    )
    return reshaped(op, fused, (*batch, rows, shape_of(value)[-1]))


def packed_mask(op: Builder, mask: Var, batch: tuple[Any, ...], count: int, rows: Any) -> Var:
    """A mask of (batch…, rows, keys) as one whose rows are those of the last ``count`` batch axes, one after another.

    A mask that is alike for them is repeated, once for all layers that have it; its bytes are noted.
    """
    over = shape_of(mask)
    full = (1,) * (len(batch) + 2 - len(over)) + over
    lead, shared, mine = full[: len(batch) - count], full[len(batch) - count : -2], full[-2]
    groups = prod(batch[len(batch) - count :])
    if all(dim == 1 for dim in shared):
        more = mask.rank - len(lead) - 2
        if more > 0:
            mask = once(op, "squeeze", x=mask, axes=list(range(mask.rank - 2 - more, mask.rank - 2)))
        return mask if mine == 1 else _repeat(op, mask, -2, groups)
    require(prod(shared) == groups, "a mask is broadcast over some of the heads that share keys", at=mask)
    if mine != rows:  # per head, and the same for all queries
        mask = _repeat(op, mask, -2, rows)
    return reshaped(op, mask, (*lead, groups * rows, full[-1]))


def grouped_mask(op: Builder, mask: Var, heads: int, groups: int, rows: Any) -> Var:
    """A mask of (…, 1 or heads, 1 or rows, keys) for ``groups`` heads' rows one after another, in heads / groups heads.

    NoMatch where its shape is another.
    """
    over: Any = shape_of(mask)
    require(len(over) < 5 and over[-3:-2] in ((), (1,), (heads,)), "the mask is of shape {}", over, at=mask)
    if over[-3:-2] == (heads,):
        mask = _repeat(op, mask, -2, rows) if over[-2] == 1 and rows != 1 else mask
        return reshaped(op, mask, (*over[:-3], heads // groups, groups * shape_of(mask)[-2], over[-1]))
    return mask if len(over) < 2 or over[-2] == 1 else _repeat(op, mask, -2, groups)


def _repeat(op: Builder, mask: Var, axis: int, count: int) -> Var:
    """``mask`` over and over along an axis."""
    require(not is_symbolic(count), "a mask is repeated for a number of queries that is not known", at=mask)
    there = once(op, "concat", values=[mask] * count, axis=axis)
    if there.op in op.built:
        op.note(_note(mask.name, there, count))
    return there


def _note(name: str, mask: Var, count: int) -> str:
    told = f"the mask {name} is repeated {count} times, once for all layers, for query heads that share keys"
    shape = shape_of(mask)
    if any(map(is_symbolic, shape)):
        return told
    return f"{told}: {prod(shape) * _BYTES[dtype_name(mask)]:,} bytes"
