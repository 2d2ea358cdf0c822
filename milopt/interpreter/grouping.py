"""Attention of query heads that share keys and values, without repeating these.

Programs repeat them (``expand_dims -> tile -> reshape``) because the op wants as many key heads as query heads; each
token then copies the whole cache. Query heads of a group are rows of one product just as well.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from math import sqrt
from operator import itemgetter
from typing import NamedTuple

import torch

from milopt.interpreter.ops.linear import attention as plain_attention
from milopt.interpreter.steps import Step

__all__ = ["attention", "grouped", "with_sources"]


class _Sources(NamedTuple):
    """Slots of the keys and values (B, H, 1, S, E) before they are repeated, and of what is made of them."""

    key: int
    value: int
    copies: tuple[int, ...]


def with_sources(steps: Sequence[Step]) -> list[Step]:
    """The steps, attention also reading what :func:`grouped` will let it read, so that it is kept until then."""
    sources = _sources(steps)
    return [
        replace(step, reads=step.reads.union(sources[index][:2])) if index in sources else step
        for index, step in enumerate(steps)
    ]


def grouped(steps: Sequence[Step], kept: Collection[int]) -> list[Step]:
    """The steps without repetition of keys and values, where nothing but attention reads the repeated ones."""
    sources = _sources(steps)
    chosen = [_attending(step, sources[index]) if index in sources else step for index, step in enumerate(steps)]
    copies = {slot for each in sources.values() for slot in each.copies}
    read, left = set(kept), list[Step]()
    for step in reversed(chosen):
        if step.results[0].slot not in copies or step.results[0].slot in read:
            read |= step.reads
            left.append(step)
    return left[::-1]


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """``scaled_dot_product_attention`` of a query (B, H*G, Q, E) with a key and a value of shape (B, H, 1, S, E)."""
    batch, heads, queries, size = query.shape
    groups = heads // key.shape[1]
    shape = (batch, heads, queries, key.shape[-2])
    if batch != key.shape[0] or not _fits(attn_mask, shape):  # broadcast over the batch
        return plain_attention(query, _repeated(key, groups), _repeated(value, groups), attn_mask)
    key, value = key.squeeze(2), value.squeeze(2)
    rows = (query * (1 / sqrt(size))).reshape(batch, -1, groups * queries, size)
    scores = torch.matmul(rows, key.mT).view(shape)
    if attn_mask is None:
        pass
    elif attn_mask.dtype is torch.bool:
        scores.masked_fill_(~attn_mask, -torch.inf)
    else:
        scores += attn_mask
    weights = torch.softmax(scores, -1).view(batch, -1, groups * queries, shape[-1])
    return torch.matmul(weights, value).view(batch, heads, queries, -1)


def _fits(mask: torch.Tensor | None, shape: tuple[int, ...]) -> bool:
    if mask is None:
        return True
    sizes = zip(reversed(mask.shape), reversed(shape), strict=False)
    return mask.dim() <= len(shape) and all(have in (1, want) for have, want in sizes)


def _repeated(x: torch.Tensor, groups: int) -> torch.Tensor:
    return x.expand(-1, -1, groups, -1, -1).flatten(1, 2)


def _attending(step: Step, sources: _Sources) -> Step:
    repeated = {"key": sources.key, "value": sources.value}
    slots = tuple((name, repeated.get(name, slot)) for name, slot in step.slots)
    return replace(
        step,
        call=partial(attention),
        arguments=tuple(
            (name, itemgetter(repeated[name]) if name in repeated else fetch) for name, fetch in step.arguments
        ),
        slots=slots,
        reads=frozenset(slot for _, slot in slots),
    )


def _sources(steps: Sequence[Step]) -> dict[int, _Sources]:
    """By index of the attention step."""
    made = {step.results[0].slot: step for step in steps}
    found: dict[int, _Sources] = {}
    for index, step in enumerate(steps):
        if step.call.func is not plain_attention or len(step.results[0].info.shape or ()) != 4:
            continue
        slots = dict(step.slots)
        key, value = _repeating(slots.get("key"), made), _repeating(slots.get("value"), made)
        if key is None or value is None or key[0].results[0].sizes[:3] != value[0].results[0].sizes[:3]:
            continue
        copies = tuple(each.results[0].slot for each in (*key, *value))
        found[index] = _Sources(key[0].slots[0][1], value[0].slots[0][1], copies)
    return found


def _repeating(slot: int | None, made: dict[int, Step]) -> tuple[Step, Step] | None:
    """The steps ``tile`` and ``reshape`` that make a value by repeating heads, if that's how it is made."""
    reshape = made.get(-1 if slot is None else slot)
    if reshape is None or reshape.op_type != "reshape" or len(reshape.slots) != 1:
        return None
    tile = made.get(reshape.slots[0][1])
    if tile is None or tile.op_type != "tile" or len(tile.slots) != 1:
        return None
    wide, flat = tile.results[0].info.shape or (), reshape.results[0].info.shape or ()
    if len(wide) != 5 or "?" in wide or not all(isinstance(size, int) for size in wide[:3]):
        return None
    batch, heads, groups, *rest = wide
    if tile.call.keywords.get("reps") != (1, 1, groups, 1, 1) or flat != (batch, int(heads) * int(groups), *rest):
        return None
    return tile, reshape
