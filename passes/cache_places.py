"""Where each cached tensor goes: in which state, in which of its rows, with how many slots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from milopt.mil import dtype_name, shape_of
from milopt.passes.cache_drafts import Draft
from milopt.passes.cache_pairs import Pair
from milopt.passes.cache_states import Group, Plan, Update
from milopt.passes.resizing import require_resizable
from milopt.reports import require
from milopt.signature import CacheSignature, CacheSlot

__all__ = ["Layout", "Wanted", "planned"]

Layout: TypeAlias = Literal["pair", "unified", "per-layer"]

_CONTEXT_KEY = "milopt.context"
# Rings of more slots than this are made a multiple of it (constraint S6).
_ALIGNED = 32
# A program with rings alone has no last token; so many turns of its largest ring are what a session is offered.
_TURNS = 4


@dataclass(frozen=True)
class Wanted:
    """The options of ``kv-to-state``, and the most tokens that a call of any function takes."""

    layout: Layout
    update: Literal["slice", "mask", "ring"]
    context: int
    position: str
    longest: int


def planned(draft: Draft, options: Wanted, metadata: Mapping[str, str]) -> Plan:
    """What to do to the draft's function; NoMatch where its tensors don't go into states as ``options`` say."""
    rings = {pair.past: ring for group in draft.groups for pair, ring in _rings(draft, group, options)}
    context = _context(draft, options, metadata, rings)
    entries = list(_slots(draft, options.layout, rings, context))
    axis = draft.pairs[0].axis
    slots = tuple(
        replace(slot, axis=None if pair.axis == axis else pair.axis)
        for slot, pair in zip(entries, draft.pairs, strict=True)
    )
    masks = tuple(dict.fromkeys(mask for group in draft.groups for mask in group.masks))
    turning = tuple(
        dict.fromkeys(
            (mask, ring) for group in draft.groups for mask in group.masks if (ring := rings[group.pairs[0].past])
        )
    )
    taken = draft.function.inputs.get(options.position)
    counts = options.position if taken is not None and dtype_name(taken) == "int32" else ""
    position = options.position if taken is None else ""
    if taken is not None and not counts:
        masks = tuple(dict.fromkeys((options.position, *masks)))
    signature = CacheSignature(slots, position, masks, context, axis, turning, draft.prefix, counts)
    wholes = dict.fromkeys(pair.whole for pair in draft.pairs if pair.whole is not None)
    signature = replace(signature, combined=tuple(wholes))
    for group in draft.groups:
        size = rings[group.pairs[0].past] or context
        if not draft.prefix and group.pairs[0].columns != size:
            gone = {pair.var for pair in group.pairs}
            require_resizable({var: axis for var, axis in group.axes.items() if var not in gone})  # 5
    update: Update = "mask" if options.update == "mask" else "slice"
    return Plan(draft.function, draft.pairs, draft.groups, signature, update)


def _rings(draft: Draft, group: Group, options: Wanted) -> Iterator[tuple[Pair, int]]:
    """The cached tensors of a group with the size of their ring, 0 for none."""
    kept = {pair.kept for pair in group.pairs}
    require(
        len(kept) == 1,
        "a mask is shared by tensors that keep all tokens and such that don't",
        at=group.pairs[0].var,
    )
    (last,) = kept
    window = last + 1 if last else group.window if options.update == "ring" else None
    size = 0
    if window is not None and not draft.prefix:
        size = window + options.longest - 1
        size = -(-size // _ALIGNED) * _ALIGNED if size > _ALIGNED else size
        if not last and size >= group.pairs[0].columns:
            size = 0  # all of the context is no more
    yield from ((pair, size) for pair in group.pairs)


def _context(draft: Draft, options: Wanted, metadata: Mapping[str, str], rings: dict[str, int]) -> int:
    """How many tokens there may be."""
    known = metadata.get(_CONTEXT_KEY, "")
    if options.context:
        require(
            options.context >= draft.query, "a call takes {} tokens, the context is {}", draft.query, options.context
        )
        return options.context
    if draft.prefix or all(rings.values()):
        if known.isdecimal() and int(known):
            return int(known)
        require(
            not draft.prefix, "its shape is flexible: say how many slots there are (context=N)", at=draft.pairs[0].var
        )
    whole = {pair.columns for pair in draft.pairs if not rings[pair.past]}
    if not whole:
        full = [pair.columns for pair in draft.pairs if not pair.kept]
        return int(max(full, default=_TURNS * max(rings.values())))
    return int(next(pair.columns for pair in draft.pairs if not rings[pair.past]))


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
