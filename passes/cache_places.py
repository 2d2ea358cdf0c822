"""Where each cached tensor goes: in which state, in which of its rows, with how many slots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypeAlias

from milopt.mil import Var, dtype_name, shape_of
from milopt.passes.cache_drafts import Draft, Group
from milopt.passes.cache_pairs import Pair
from milopt.passes.cache_sizes import require_other_size
from milopt.passes.cache_states import Plan
from milopt.reports import require
from milopt.signature import CacheSignature, CacheSlot

__all__ = ["Layout", "Wanted", "planned"]

Layout: TypeAlias = Literal["pair", "unified", "per-layer"]

_CONTEXT_KEY = "milopt.context"
# Rings of more slots than this are made a multiple of it (constraint S6).
_ALIGNED = 32
# A program with rings alone has no last token; so many turns of its largest ring are what a session is offered.
_TURNS = 4


class Wanted(NamedTuple):
    """The options of ``kv-to-state``, and the most tokens that a call of any function takes."""

    layout: Layout
    update: Literal["slice", "mask", "ring"]
    context: int
    position: str
    longest: int


def planned(draft: Draft, options: Wanted, metadata: Mapping[str, str]) -> Plan:
    """What to do to the draft's function; NoMatch where its tensors don't go into states as ``options`` say."""
    turning = [(group, _ring(draft, group, options)) for group in draft.groups]
    rings = {pair.past: ring for group, ring in turning for pair in group.pairs}
    context = _context(draft, options, metadata, rings)
    require(context > 1 or not draft.prefix, "a context of {} leaves no slot for a past", context)
    entries = list(_slots(draft, options.layout, rings, context))
    axis = draft.pairs[0].axis
    slots = tuple(
        replace(slot, axis=None if pair.axis == axis else pair.axis)
        for slot, pair in zip(entries, draft.pairs, strict=True)
    )
    masks = tuple(dict.fromkeys(mask for group in draft.groups for mask in group.masks))
    taken = draft.function.inputs.get(options.position)
    counts = options.position if taken is not None and dtype_name(taken) == "int32" else ""
    position = options.position if taken is None else ""
    if taken is not None and not counts:
        masks = tuple(dict.fromkeys((options.position, *masks)))
    over = dict.fromkeys((mask, ring) for group, ring in turning for mask in group.masks if ring)
    signature = CacheSignature(slots, position, masks, context, axis, tuple(over), draft.prefix, counts)
    wholes = dict.fromkeys(pair.whole for pair in draft.pairs if pair.whole is not None)
    signature = replace(signature, combined=tuple(wholes))
    resized: list[tuple[dict[Var, int], int]] = []
    for group, ring in turning:
        size = ring or context
        if {pair.columns for pair in group.pairs} != {size}:
            require_other_size(group.axes)  # 5
            resized.append((group.axes, size))
    return Plan(draft.function, draft.pairs, signature, options.update == "mask", resized)


def _ring(draft: Draft, group: Group, options: Wanted) -> int:
    """The size of the ring that a group's tensors are kept in, 0 for none."""
    kept = {pair.kept for pair in group.pairs}
    require(
        len(kept) == 1,
        "a mask is shared by tensors that keep all tokens and such that don't",
        at=group.pairs[0].var,
    )
    (last,) = kept
    window = last + 1 if last else group.window if options.update == "ring" else None
    if window is None:
        return 0
    size = window + options.longest - 1
    size += -max(size - _ALIGNED, 0) % _ALIGNED
    if not last and size >= group.pairs[0].columns:
        return 0  # all of the context is no more
    return size


def _context(draft: Draft, options: Wanted, metadata: Mapping[str, str], rings: dict[str, int]) -> int:
    """How many tokens there may be."""
    if options.context:
        require(
            options.context >= draft.query, "a call takes {} tokens, the context is {}", draft.query, options.context
        )
        return options.context
    if draft.prefix or all(rings.values()):
        known = metadata.get(_CONTEXT_KEY)
        if known is not None and known.isdecimal() and int(known):
            return int(known)
        require(not draft.prefix, "its shape is flexible: say how many slots there are (context=N)")
    if whole := [pair.columns for pair in draft.pairs if not rings[pair.past]]:
        return int(whole[0])
    full = [pair.columns for pair in draft.pairs if not pair.kept]
    return int(max(full, default=_TURNS * max(rings.values())))


def _slots(draft: Draft, layout: Layout, rings: dict[str, int], context: int) -> Iterator[CacheSlot]:
    """Where each tensor goes: tensors of one state lie behind one another, keys first."""
    several = len({ring for ring in rings.values() if ring}) > 1
    names: dict[str, str] = {}
    for at, pair in enumerate(draft.pairs):
        kind, ring = draft.kinds[pair.past], rings[pair.past]
        name = "kv_cache" if layout == "unified" else f"{kind}_cache"
        if ring and layout != "per-layer":
            name += f"_local{ring}" if several else "_local"
        if layout == "per-layer":
            name += f"_{sum(draft.kinds[other.past] == kind for other in draft.pairs[:at])}"
        names[pair.past] = name
    used: dict[str, int] = {}
    rows: dict[str, int] = {}
    first: dict[str, Pair] = {}
    for pair in sorted(draft.pairs, key=lambda each: ("key", "kv", "value").index(draft.kinds[each.past])):
        name = names[pair.past]
        rows[pair.past], used[name] = used.get(name, 0), used.get(name, 0) + int(shape_of(pair.var)[0])
    for pair in draft.pairs:
        other = first.setdefault(names[pair.past], pair)
        same = (_open(pair), pair.axis) == (_open(other), other.axis)  # 2
        shapes = shape_of(pair.var), shape_of(other.var)
        require(same, "is {}, but another cached tensor is {}", *shapes, at=pair.var)
        if not rings[pair.past] and not draft.prefix:
            whole = next(each.columns for each in draft.pairs if not rings[each.past])
            require(
                pair.columns == whole,
                "has {} slots, but another cached tensor {}",
                pair.columns,
                whole,
                at=pair.var,
            )
        yield CacheSlot(
            pair.past,
            pair.present,
            names[pair.past],
            rows[pair.past],
            int(shape_of(pair.var)[0]),
            ring=rings[pair.past],
            kept=pair.kept,
            returned=pair.returned,
            dtype=dtype_name(draft.function.inputs[pair.input]),
        )


def _open(pair: Pair) -> tuple[Any, ...]:
    """The shape of a cached tensor without its slots."""
    shape = shape_of(pair.var)
    return (*shape[: pair.axis], *shape[pair.axis + 1 :])
