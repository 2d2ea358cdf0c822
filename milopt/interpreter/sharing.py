"""Which values of a plan may share memory, and what follows: writes in place, and outputs that must be copied.

A state of a language model is large and a token changes a sliver of it, so copying it at every ``slice_update`` would
cost more than the model. The usual chain is ``read_state -> slice_update -> coreml_update_state``; here it is shown
when the middle one may write into the state's own memory. Values are put into classes that may share memory (views,
and whatever an implementation says it ``shares``); what isn't proved stays a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from milopt.interpreter.steps import BORROWED, Step

__all__ = ["Sharing"]


class Sharing:
    """The classes of a function's steps. ``states`` are the slots of its states, ``inputs`` of its other inputs."""

    def __init__(
        self, steps: Sequence[Step], inputs: Sequence[int], states: Sequence[int], outputs: Sequence[int]
    ) -> None:
        self.steps = steps
        self.states = frozenset(states)
        self.nested = any(step.bodies for step in steps)
        self._parents: dict[int, int] = {}
        self._made: dict[int, int] = {}
        self._last: dict[int, int] = {}
        for slot in inputs:
            self._join(slot, BORROWED)
        for index, step in enumerate(steps):
            for result in step.results:
                self._made[result.slot] = index
                for slot in step.shared:
                    self._join(result.slot, slot)
            self._last.update((slot, index) for slot in step.reads)
        self._last.update((slot, len(steps)) for slot in outputs)
        self._owned = {index for index, step in enumerate(steps) if self._owns(step)}

    def is_borrowed(self, slot: int) -> bool:
        """Whether the value may share memory with an input, a constant or a state."""
        return self._root(slot) == self._root(BORROWED) or bool(self._states_of(slot))

    def improved(self) -> list[Step]:
        """The steps, with those that may write in place or hand over their memory told so."""
        steps = list(self.steps)
        for index, step in enumerate(steps):
            if index in self._owned:
                steps[index] = replace(step, call=partial(step.call, own=True))
            elif self._in_place(index, step):
                steps[index] = replace(step, call=partial(step.call, in_place=True))
        return steps

    def _owns(self, step: Step) -> bool:
        """Whether the state may take the value's memory: nobody else owns it, neither an input nor another state."""
        if step.op_type != "coreml_update_state" or self.nested:
            return False
        state, value = _slot(step, "state"), _slot(step, "value")
        if state is None or value is None or self._root(value) == self._root(BORROWED):
            return False
        if self._states_of(value) - {state}:
            return False
        self._join(value, state)
        return True

    def _in_place(self, index: int, step: Step) -> bool:
        if step.op_type != "slice_update" or self.nested:
            return False
        x, result = _slot(step, "x"), step.results[0].slot
        if x is None or self._root(x) == self._root(BORROWED) or len(self._states_of(x)) != 1:
            return False
        (state,) = self._states_of(x)
        return (
            self._last[x] == index and not self._seen_later(x, result, index) and self._is_stored(result, state, index)
        )

    def _seen_later(self, x: int, result: int, index: int) -> bool:
        """Whether something made before this step from the memory of ``x`` is read by it or after it."""
        return any(
            self._root(slot) == self._root(x) and slot not in (x, result) and self._last.get(slot, -1) >= index
            for slot, made in self._made.items()
            if made < index
        )

    def _is_stored(self, value: int, state: int, index: int) -> bool:
        """Whether the next thing done to the state is to store ``value`` in it, maybe after further slice updates."""
        for step in self.steps[index + 1 :]:
            if step.op_type == "slice_update" and _slot(step, "x") == value:
                value = step.results[0].slot
            elif state in step.reads:
                return step.op_type == "coreml_update_state" and _slot(step, "value") == value
        return False

    def _states_of(self, slot: int) -> frozenset[int]:
        root = self._root(slot)
        return frozenset(state for state in self.states if self._root(state) == root)

    def _root(self, slot: int) -> int:
        while (parent := self._parents.get(slot, slot)) != slot:
            slot = parent
        return slot

    def _join(self, one: int, other: int) -> None:
        self._parents[self._root(one)] = self._root(other)


def _slot(step: Step, name: str) -> int | None:
    return dict(step.slots).get(name)
