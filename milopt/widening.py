"""States with more slots than a function looks at, so that functions of several contexts keep one cache."""

from __future__ import annotations

from collections.abc import Mapping

from milopt.building import Builder
from milopt.errors import MiloptError
from milopt.mil import Function, arguments, is_state, replace_uses, shape_of, value_names
from milopt.passes.cache_written import Written, find_written
from milopt.reports import NoMatch
from milopt.retyping import RetypingError, set_shapes
from milopt.statereads import read_once

__all__ = ["WideningError", "slots_of", "widen"]


class WideningError(MiloptError):
    """The function can't keep its cache in states of more slots."""


def slots_of(function: Function) -> dict[str, int]:
    """How many slots each state has, as its writes tell; WideningError where they don't."""
    return {name: _slots(each) for name, each in _written(function).items()}


def widen(function: Function, slots: int) -> None:
    """Let every state have so many slots, of which the function reads and writes those it did, in place.

    A token is where it was, and a mask's columns are about the same slots: what is wider is never looked at.
    WideningError where a state is written in every slot (``update=mask``), is a ring, or has more slots already.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name, each in _written(function).items():
        known = _slots(each)
        if known > slots:
            raise WideningError(f"state {name!r} has {known} slots, which is more than {slots}")
        if known == slots:
            continue
        _read_known(function, name, known)
        shape = list(map(int, shape_of(function.inputs[name])))
        shape[each.axis] = slots
        shapes[name] = tuple(shape)
    if not shapes:
        return
    try:
        set_shapes(function, shapes)
    except RetypingError as error:
        raise WideningError(f"states of {slots} slots: {error}") from error


def _written(function: Function) -> Mapping[str, Written]:
    """One of the writes to each state."""
    states = [name for name, var in function.inputs.items() if is_state(var)]
    read_once(function)
    try:
        found = {each.state: each for each in find_written(function)}
    except NoMatch as why:
        raise WideningError(
            f"its states can't have more slots: {why} (functions of all contexts are made or joined at once)"
        ) from why
    if unknown := [name for name in states if name not in found]:
        raise WideningError(f"state {unknown[0]!r} is never written")
    return found


def _slots(written: Written) -> int:
    if written.position is None or written.prefix:
        how = "up to the new tokens" if written.prefix else "in every slot, or in a ring (kv-to-state{update=slice})"
        raise WideningError(f"state {written.state!r} is written or read {how}")
    state = written.update.inputs["state"]
    return int(shape_of(state)[written.axis])


def _read_known(function: Function, name: str, slots: int) -> None:
    """Where the whole state is looked at, look at the slots there are now."""
    for each in find_written(function):
        held = each.update.outputs[0]
        if each.state != name or each.read is not held:
            continue
        last = list(map(int, shape_of(held)))
        last[each.axis] = slots
        behind = next(op for op in function.operations if any(var is held for _, var in arguments(op)))
        op = Builder(behind, value_names(function))
        seen = op.slice_by_index(x=held, begin=[0] * len(last), end=last, name=f"{held.name}_seen")
        replace_uses(held, seen, after=seen.op)
        seen.op.set_inputs(x=held)
