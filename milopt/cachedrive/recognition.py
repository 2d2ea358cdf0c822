"""Which cache a program keeps, by what it says of itself or by the names and shapes of its inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from milopt.cachedrive.layout import CacheLayout, dims
from milopt.contracts.styles import recognised
from milopt.interpreter import Plan, ValueInfo
from milopt.interpreter.values import is_float
from milopt.signature import CacheSignature, CacheSlot, outer, windows_of

__all__ = ["recognise", "recognise_flexible"]

_CONTEXT_KEY = "milopt.context"


def recognise(
    plans: Mapping[str, Plan],
    signature: CacheSignature | None = None,
    metadata: Mapping[str, str] | None = None,
) -> CacheLayout | None:
    """The cache that all of a program's functions keep, or ``None``.

    ``signature`` is what the program, or the one it was made from, says of itself; without one, inputs ``past_<name>``
    with an output ``present_<name>`` that has more columns are a cache, and so are the states of a program that keeps
    a client's contract (:mod:`milopt.contracts`). ``metadata`` tells which masks slide.
    """
    if signature is not None:
        windows = windows_of(signature.masks, metadata)
        states = {slot.state for slot in signature.slots}
        pasts = {outer(slot.past) for slot in signature.slots}
        position = {signature.position} if signature.position else set[str]()
        if all(states <= plan.states.keys() and position <= plan.inputs.keys() for plan in plans.values()):
            return CacheLayout(signature, True, windows, signature.prefix)
        if all(pasts <= plan.inputs.keys() for plan in plans.values()):
            layout = CacheLayout(signature, False, windows, signature.prefix)
            return replace(layout, tokens=_past_tokens(layout, plans))
        return None
    if (known := recognised(plans)) is not None:
        return CacheLayout(known, True, flexible=True)
    found = [_past_signature(plan) for plan in plans.values()]
    if not found or any(each is None or each != found[0] for each in found) or found[0] is None:
        return None
    return CacheLayout(found[0], False, windows_of(found[0].masks, metadata))


def recognise_flexible(plan: Plan, metadata: Mapping[str, str]) -> CacheLayout | None:
    """The cache of a function whose past has any number of slots, or ``None``; the metadata name its context."""
    context = metadata.get(_CONTEXT_KEY, "")
    slots: list[CacheSlot] = []
    first: int | None = None
    for name, past in plan.inputs.items():
        if not name.startswith("past_") or (present := plan.outputs.get(name.replace("past_", "present_", 1))) is None:
            continue
        open_axes = [axis for axis, dim in enumerate(past.shape or ()) if not isinstance(dim, int)]
        if len(open_axes) != 1 or len(present.shape or ()) != len(past.shape or ()):
            return None
        first = open_axes[0] if first is None else first
        own = None if open_axes[0] == first else open_axes[0]
        slots.append(CacheSlot(name, present.name, "", 0, dims(past)[0], own))
    if first is None or not context.isdecimal():
        return None
    pasts = {slot.past for slot in slots}
    masks = tuple(
        name
        for name, info in plan.inputs.items()
        if name not in pasts and (is_float(info.dtype) or info.dtype == "bool") and dims(info)[-1:] == (-1,)
    )
    if not masks:
        return None
    signature = CacheSignature(tuple(slots), "", masks, int(context), first)
    return CacheLayout(signature, False, windows_of(masks, metadata), flexible=True)


def _past_tokens(layout: CacheLayout, plans: Mapping[str, Plan]) -> int:
    """How many tokens the past form has columns for, where that is another number than the states' slots; else 0."""
    signature = layout.signature
    for slot in signature.slots:
        if slot.returned == "kept" or signature.prefix:
            continue
        plan, axis = next(iter(plans.values())), signature.axis_of(slot)
        columns = layout.present_dims(slot, plan)[axis]
        columns += 0 if slot.returned == "all" else layout.past_dims(slot, plan)[axis]
        return 0 if columns == signature.context else columns
    return 0


def _past_signature(plan: Plan) -> CacheSignature | None:
    slots: list[CacheSlot] = []
    geometry: set[tuple[int, int]] = set()
    for name, past in plan.inputs.items():
        if not name.startswith("past_") or (present := plan.outputs.get(name.replace("past_", "present_", 1))) is None:
            continue
        if (found := _grown_axis(past, present)) is None:
            return None
        geometry.add(found)
        slots.append(CacheSlot(name, present.name, "", 0, dims(past)[0]))
    if len(geometry) != 1:
        return None
    ((axis, context),) = geometry
    pasts = {slot.past for slot in slots}
    masks = tuple(
        name
        for name, info in plan.inputs.items()
        if name not in pasts and (is_float(info.dtype) or info.dtype == "bool") and dims(info)[-1:] == (context,)
    )
    return CacheSignature(tuple(slots), "", masks, context, axis) if masks else None


def _grown_axis(past: ValueInfo, present: ValueInfo) -> tuple[int, int] | None:
    """``(axis, columns of present)`` where the present is the past with more columns."""
    before, after = dims(past), dims(present)
    if len(before) != len(after) or min((*before, *after), default=-1) < 0:
        return None
    grown = [axis for axis, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    return (grown[0], after[grown[0]]) if len(grown) == 1 and before[grown[0]] < after[grown[0]] else None
