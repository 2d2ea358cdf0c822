"""Do two programs take and return the same things?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from milopt.cachedrive import CacheLayout
from milopt.interpreter import Plan, ValueInfo
from milopt.signature import CacheSignature, outer

__all__ = ["cached_shapes", "mismatch", "renamed_mismatch"]


def mismatch(before: Mapping[str, Plan], after: Mapping[str, Plan], declared: CacheSignature | None) -> str | None:
    """The first difference in functions, inputs, outputs or states that ``declared`` does not explain."""
    if missing := [name for name in before if name not in after]:
        return f"function {missing[0]!r} is gone"
    if added := [name for name in after if name not in before]:
        return f"there is a new function {added[0]!r}"
    return next((found for name in before for found in _differences(before[name], after[name], declared)), None)


def renamed_mismatch(
    before: Mapping[str, Plan], after: Mapping[str, Plan], former: CacheSignature, declared: CacheSignature
) -> str | None:
    """The same where inputs got other names: ``former`` is the cache before, ``declared`` the one after."""
    if before.keys() != after.keys():
        return f"functions {', '.join(before)} are {', '.join(after)} after"
    slots = (*former.slots, *declared.slots)
    cached = {name for slot in slots for name in (outer(slot.past), outer(slot.present), slot.state)}
    cached |= {former.position, declared.position}
    names = dict(declared.renamed)
    for name, plan in before.items():
        inputs = {names.get(each, each): info for each, info in plan.inputs.items() if names.get(each, each)}
        shown = replace(plan, inputs=inputs)
        found = next(_unexplained(shown, after[name], declared, cached, cached), None)
        if found is not None:
            return found
    return None


def _differences(before: Plan, after: Plan, declared: CacheSignature | None) -> Iterator[str]:
    yield from _unexplained(before, after, declared, *_explained(before, after, declared))


def _unexplained(
    before: Plan, after: Plan, declared: CacheSignature | None, gone: set[str], new: set[str]
) -> Iterator[str]:
    for what, old, now in (
        ("input", before.inputs, after.inputs),
        ("output", before.outputs, after.outputs),
        ("state", before.states, after.states),
    ):
        for name in old:
            if name in now:
                columns = declared is not None and what == "input" and name in declared.masks
                told = what == "output" and _is_told(old[name], now[name])
                if (was := _type(old[name], columns)) != (is_ := _type(now[name], columns)) and not told:
                    yield f"{what} {name!r} of function {before.function!r} is {was} before, {is_} after"
            elif name not in gone:
                yield f"{what} {name!r} of function {before.function!r} is gone"
        for name in now:
            if name not in old and name not in new:
                yield f"function {before.function!r} has a new {what} {name!r}"


def _explained(before: Plan, after: Plan, declared: CacheSignature | None) -> tuple[set[str], set[str]]:
    """The names that a change between the two forms of a cache takes away, and those that it adds."""
    if declared is None:
        return set(), set()
    past = {outer(name) for slot in declared.slots for name in (slot.past, slot.present)}
    state = {declared.position, *(slot.state for slot in declared.slots)}
    if past & before.inputs.keys() and state & after.states.keys():
        return past, state
    if state & before.states.keys() and past & after.inputs.keys():
        return state, past
    return set(), set()


def cached_shapes(before: CacheLayout, after: CacheLayout, old: Plan, new: Plan) -> str | None:
    """A cached tensor whose shape or element type is another in the other form."""
    others = {slot.present: slot for slot in after.signature.slots}
    for slot in before.signature.slots:
        other = others.get(slot.present, slot)
        was = before.dtype(slot, old), before.shape(slot, old)
        now = after.dtype(other, new), after.shape(other, new)
        if was[1] != now[1] or (slot.dtype == "fp16" and was[0] != now[0]):
            return f"the cache {slot.present!r} is {was[0]}{list(was[1])} before, {now[0]}{list(now[1])} after"
    return None


def _is_told(old: ValueInfo, now: ValueInfo) -> bool:
    """Whether a type says what the other says, and sizes that the other left open.

    Whoever takes an output of any size takes one of that size; a size that is not the one computed stops the run.
    """
    if old.shape is None or now.shape is None or len(old.shape) != len(now.shape):
        return False
    sizes = zip(old.shape, now.shape, strict=True)
    return old.dtype == now.dtype and all(isinstance(was, str) or was == is_ for was, is_ in sizes)


def _type(info: ValueInfo, columns: bool) -> str:
    """Symbols are named anew by every program: only where they stand is compared.

    With ``columns``, it is a mask over the cache, whose number of columns is the form's.
    """
    if info.shape is None:
        return info.dtype
    sizes = ["?" if isinstance(dim, str) else str(dim) for dim in info.shape]
    return f"{info.dtype}[{', '.join((*sizes[:-1], 'columns') if columns else sizes)}]"
