"""Do two programs take and return the same things?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from milopt.cachedrive import CacheLayout
from milopt.interpreter import Plan, ValueInfo
from milopt.signature import CacheSignature

__all__ = ["mismatch"]


def mismatch(before: Mapping[str, Plan], after: Mapping[str, Plan], declared: CacheSignature | None) -> str | None:
    """The first difference in functions, inputs, outputs or states that ``declared`` does not explain."""
    if missing := [name for name in before if name not in after]:
        return f"function {missing[0]!r} is gone"
    if added := [name for name in after if name not in before]:
        return f"there is a new function {added[0]!r}"
    return next((found for name in before for found in _differences(before[name], after[name], declared)), None)


def _differences(before: Plan, after: Plan, declared: CacheSignature | None) -> Iterator[str]:
    gone, new = _explained(before, after, declared)
    for what, old, now in (
        ("input", before.inputs, after.inputs),
        ("output", before.outputs, after.outputs),
        ("state", before.states, after.states),
    ):
        for name in old:
            if name in now:
                columns = declared is not None and what == "input" and name in declared.masks
                if (was := _type(old[name], columns)) != (is_ := _type(now[name], columns)):
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
    past = {name for slot in declared.slots for name in (slot.past, slot.present)}
    state = {declared.position, *(slot.state for slot in declared.slots)}
    if past & before.inputs.keys() and state & after.states.keys():
        return past, state
    if state & before.states.keys() and past & after.inputs.keys():
        return state, past
    return set(), set()


def cached_shapes(before: CacheLayout, after: CacheLayout, old: Plan, new: Plan) -> str | None:
    """A cached tensor whose shape or element type is another in the other form."""
    for slot in before.signature.slots:
        was = before.dtype(slot, old), before.shape(slot, old)
        now = after.dtype(slot, new), after.shape(slot, new)
        if was[1] != now[1] or (slot.dtype == "fp16" and was[0] != now[0]):
            return f"the cache {slot.present!r} is {was[0]}{list(was[1])} before, {now[0]}{list(now[1])} after"
    return None


def _type(info: ValueInfo, columns: bool) -> str:
    """Symbols are named anew by every program: only where they stand is compared.

    With ``columns``, it is a mask over the cache, whose number of columns is the form's.
    """
    if info.shape is None:
        return info.dtype
    sizes = ["?" if isinstance(dim, str) else str(dim) for dim in info.shape]
    return f"{info.dtype}[{', '.join((*sizes[:-1], 'columns') if columns else sizes)}]"
