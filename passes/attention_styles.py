"""Ways to write attention as products and a softmax."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from milopt.building import Builder
from milopt.mil import Var, constant, dtype_name, is_symbolic, shape_of
from milopt.passes.attention_masks import FLOATS, chosen, once
from milopt.passes.attention_products import permuted, reshaped, with_symbols
from milopt.reports import require

__all__ = ["Attention", "additive", "write_style"]

MASKED = -4e4
"""What takes a key out: finite in fp16 with any score added, and exp(-4e4) is 0 in every format (constraint L10)."""

# A key of the row with so high a mask, 3e4 above, is what the softmax sees. Where all are lower, their differences may
# be what it is about, and stay.
_KEPT = -1e4


class Attention(NamedTuple):
    """q (…, L, E), k and v (…, S, ·), each of whose heads ``groups`` heads of q share, and an additive mask."""

    query: Var
    key: Var
    value: Var
    mask: Var | None
    groups: int = 1


def additive(op: Builder, mask: Var, dtype: str) -> Var:
    """A mask that is added to scores of ``dtype``, made once for all layers."""
    number = FLOATS[dtype]
    if dtype_name(mask) == "bool":
        return chosen(op, mask, None, MASKED, dtype)
    values = constant(mask)
    if values is not None and np.any(values < MASKED) and np.all(np.any(values >= _KEPT, axis=-1)):
        return once(op, "maximum", x=mask, y=number(MASKED))
    return mask


def write_style(op: Builder, style: str, site: Attention, shape: tuple[Any, ...], rows: int) -> Var:
    """The attention of ``site``, whose queries are scaled already, as a value of ``shape``."""
    if style == "per-head":
        made = _per_head(op, site)
    elif style == "split-einsum":
        made = _split_einsum(op, site)
    elif style == "sliced-q":
        made = _sliced(op, site, rows)
    elif site.groups > 1:
        made = _grouped(op, site, shape)
    else:
        made = _products(op, site.query, site.key, site.value, site.mask)
    return with_symbols(made, shape)


def _products(op: Builder, query: Var, key: Var, value: Var, mask: Var | None) -> Var:
    scores = op.matmul(x=query, y=key, transpose_y=True)
    if mask is not None:
        scores = op.add(x=scores, y=mask)
    made: Var = op.matmul(x=op.softmax(x=scores, axis=-1), y=value)
    return made


def _grouped(op: Builder, site: Attention, shape: tuple[Any, ...]) -> Var:
    """(B, Hkv, G, L, E) with (B, Hkv, 1, S, E): the products repeat keys and values, nothing else does."""
    batch, heads, rows, size = shape_of(site.query)
    mine = heads // site.groups
    mask = site.mask
    if mask is not None and mask.rank == 4 and shape_of(mask)[1] != 1:
        mask = reshaped(op, mask, (shape_of(mask)[0], mine, site.groups, *shape_of(mask)[2:]))
    elif mask is not None and mask.rank == 4:
        mask = once(op, "expand_dims", x=mask, axes=[1])
    elif mask is not None and mask.rank == 3 and shape_of(mask)[0] != 1:
        mask = reshaped(op, mask, (mine, site.groups, *shape_of(mask)[1:]))
    query = reshaped(op, site.query, (batch, mine, site.groups, rows, size))
    key, value = (_five(op, each) for each in (site.key, site.value))
    return reshaped(op, _products(op, query, key, value, mask), shape)


def _five(op: Builder, var: Var) -> Var:
    return var if var.rank == 5 else once(op, "expand_dims", x=var, axes=[2])


def _four(op: Builder, var: Var) -> Var:
    return var if var.rank == 4 else once(op, "squeeze", x=var, axes=[2])


def _heads(op: Builder, var: Var, axis: int) -> list[Var]:
    count = shape_of(var)[axis]
    return [var] if count == 1 else list(op.split(x=var, num_splits=count, axis=axis))


def _head_masks(op: Builder, mask: Var | None, heads: int, axis: int) -> list[Var | None]:
    """One mask for each head; ``axis`` counts from the end."""
    if mask is None or mask.rank < -axis or shape_of(mask)[axis] == 1:
        return [mask] * heads
    return list(op.split(x=mask, num_splits=heads, axis=mask.rank + axis))


def _per_head(op: Builder, site: Attention) -> Var:
    queries = _heads(op, site.query, 1)
    keys, values = (_heads(op, _four(op, each), 1) for each in (site.key, site.value))
    masks = _head_masks(op, site.mask, len(queries), -3)
    made = [
        _products(op, query, keys[at // site.groups], values[at // site.groups], masks[at])
        for at, query in enumerate(queries)
    ]
    return made[0] if len(made) == 1 else _joined(op, made, 1)


def _joined(op: Builder, parts: list[Var], axis: int) -> Var:
    joined: Var = op.concat(values=parts, axis=axis)
    return joined


def _split_einsum(op: Builder, site: Attention) -> Var:
    """q_h (B, E, 1, L), k_h (B, S, 1, E), v_h (B, D, 1, S): ``bkhc,bchq->bkhq``, softmax, ``bchk,bkhq->bchq``."""
    key, value = (_four(op, each) for each in (site.key, site.value))
    queries = _heads(op, permuted(op, site.query, (0, 3, 1, 2)), 2)
    keys = _heads(op, permuted(op, key, (0, 2, 1, 3)), 2)
    values = _heads(op, permuted(op, value, (0, 3, 1, 2)), 2)
    mask = site.mask
    if mask is not None:
        while mask.rank < 4:
            mask = once(op, "expand_dims", x=mask, axes=[0])
        mask = once(op, "transpose", x=mask, perm=[0, 3, 1, 2])
    masks = _head_masks(op, mask, len(queries), -2)
    made: list[Var] = []
    for at, query in enumerate(queries):
        scores = op.einsum(values=(keys[at // site.groups], query), equation="bkhc,bchq->bkhq")
        if (each := masks[at]) is not None:
            scores = op.add(x=scores, y=each)
        weights = op.softmax(x=scores, axis=1)
        made.append(op.einsum(values=(values[at // site.groups], weights), equation="bchk,bkhq->bchq"))
    joined = made[0] if len(made) == 1 else _joined(op, made, 2)
    turned: Var = op.transpose(x=joined, perm=[0, 2, 3, 1])
    return turned


def _sliced(op: Builder, site: Attention, rows: int) -> Var:
    """``rows`` queries at a time, each with the rows of the mask that are theirs."""
    count = shape_of(site.query)[-2]
    if count <= rows:
        return _products(op, site.query, site.key, site.value, site.mask)
    made = [
        _products(
            op,
            _rows(op, site.query, at, min(at + rows, count)),
            site.key,
            site.value,
            _mask_rows(op, site.mask, at, min(at + rows, count)),
        )
        for at in range(0, count, rows)
    ]
    return _joined(op, made, -2)


def _mask_rows(op: Builder, mask: Var | None, start: int, stop: int) -> Var | None:
    if mask is None or mask.rank < 2 or shape_of(mask)[-2] == 1:
        return mask
    require(not is_symbolic(shape_of(mask)[-2]), "the mask has an unknown number of rows", at=mask)
    return _rows(op, mask, start, stop)


def _rows(op: Builder, var: Var, start: int, stop: int) -> Var:
    """Rows ``start`` to ``stop``, of the axis before the last."""
    whole: Any = np.arange(var.rank) != var.rank - 2
    begin, end = (np.where(whole, 0, at) for at in (start, stop))
    return once(op, "slice_by_index", x=var, begin=begin, end=end, begin_mask=whole, end_mask=whole)
