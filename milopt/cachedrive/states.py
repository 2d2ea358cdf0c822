"""Caches that lie in the program's states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch

from milopt.cachecolumns import ring_tokens, take_columns, take_slots
from milopt.cachedrive.caches import Caches
from milopt.cachedrive.layout import CacheLayout
from milopt.interpreter import Plan, State
from milopt.signature import CacheSlot

__all__ = ["RingCaches", "StateCaches"]

Array: TypeAlias = np.ndarray[Any, Any]


class StateCaches(Caches):
    """The cache lies in the program's states."""

    def __init__(self, layout: CacheLayout, plans: Mapping[str, Plan]) -> None:
        super().__init__(layout, plans)
        self._state = State({name: info for plan in plans.values() for name, info in plan.states.items()})

    def reset(self) -> None:
        self._state.reset()

    def fill(self, contents: Mapping[str, Array]) -> None:
        for name in self._state:
            whole = self._state.numpy(name)
            rows = self._rows(whole)
            for slot in self._slots_of(name):
                axis = self.layout.signature.axis_of(slot)
                target = np.moveaxis(rows[slot.row : slot.row + slot.rows], axis, 0)
                target[: self.layout.context] = np.moveaxis(contents[slot.present], axis, 0)
            self._state[name] = whole

    def contents(self) -> dict[str, torch.Tensor]:
        whole = {name: self._shown(name) for name in self._state}
        return {slot.present: self._known(slot, whole[slot.state]) for slot in self.layout.signature.slots}

    def _rows(self, whole: Array) -> Array:
        """A view of a state with layers and sequences in one axis."""
        if not self.layout.signature.stacked:
            return whole
        rows: Array = np.reshape(whole, (-1, *whole.shape[2:]))
        return rows

    def _shown(self, name: str) -> torch.Tensor:
        """What a state holds, rows in one axis, without traces."""
        rows, trace = torch.as_tensor(self._rows(self._state.numpy(name))), self.layout.signature.trace
        return rows.masked_fill(rows == trace, 0) if trace else rows

    def _known(self, slot: CacheSlot, state: torch.Tensor) -> torch.Tensor:
        axis = self.layout.signature.axis_of(slot)
        return state[slot.row : slot.row + slot.rows].narrow(axis, 0, self.layout.context)

    def _slots_of(self, state: str) -> list[CacheSlot]:
        return [slot for slot in self.layout.signature.slots if slot.state == state]

    def run(
        self, plan: Plan, position: int, inputs: Mapping[str, Array], listeners: tuple[object, ...] = ()
    ) -> dict[str, torch.Tensor]:
        signature = self.layout.signature
        feeds: dict[str, Array] = {
            name: self._mask(plan, name, array, position) if name in signature.masks else array
            for name, array in inputs.items()
        }
        if signature.position:
            feeds[signature.position] = np.array([position], np.int32)
        return plan.run(feeds, self._state, listeners)

    def _mask(self, plan: Plan, name: str, array: Array, position: int) -> Array:
        """The mask over the slots that the program attends over."""
        signature = self.layout.signature
        if signature.prefix:
            return array[..., : position + self.layout.query_length(plan, {signature.masks[0]: array})]
        given = array.shape[-1]
        if given == signature.context:
            return array
        tokens: Array = np.full(signature.context, -1)
        tokens[:given] = range(given)
        return take_columns(array, tokens)


class RingCaches(StateCaches):
    """Some states are rings: what they have lost is remembered here, so that the cache can be looked at."""

    def __init__(self, layout: CacheLayout, plans: Mapping[str, Plan]) -> None:
        super().__init__(layout, plans)
        self._given: Mapping[str, Array] = {}
        self._seen: dict[str, torch.Tensor] = {}
        self.reset()

    def reset(self) -> None:
        super().reset()
        self._given = {}
        self._seen = {
            slot.present: torch.zeros(self.layout.shape(slot, self._plan), dtype=torch.float64)
            for slot in self.layout.signature.slots
            if slot.ring
        }

    def fill(self, contents: Mapping[str, Array]) -> None:
        self._given = dict(contents)  # which of them are in a ring depends on the position
        self._seen = {name: torch.as_tensor(contents[name]).to(own.dtype) for name, own in self._seen.items()}

    def contents(self) -> dict[str, torch.Tensor]:
        return {**super().contents(), **self._seen}

    def _known(self, slot: CacheSlot, state: torch.Tensor) -> torch.Tensor:
        return state if slot.ring else super()._known(slot, state)

    def _mask(self, plan: Plan, name: str, array: Array, position: int) -> Array:
        if (ring := dict(self.layout.signature.rings).get(name)) is None:
            return super()._mask(plan, name, array, position)
        tokens = ring_tokens(ring, position + array.shape[-2])
        if kept := self.layout.kept(name):  # older ones were not in the past
            tokens = np.where(tokens < position - kept, -1, tokens)
        return take_columns(array, tokens)

    def run(
        self, plan: Plan, position: int, inputs: Mapping[str, Array], listeners: tuple[object, ...] = ()
    ) -> dict[str, torch.Tensor]:
        if self._given:
            self._enter(position)
        outputs = super().run(plan, position, inputs, listeners)
        new = self.layout.query_length(plan, inputs)
        for name in self._state:
            whole: torch.Tensor | None = None
            for slot in self._slots_of(name):
                if not slot.ring:
                    continue
                whole = torch.as_tensor(self._state.numpy(name)) if whole is None else whole
                axis = self.layout.signature.axis_of(slot)
                places = np.arange(position, position + new) % slot.ring
                held = take_slots(whole[slot.row : slot.row + slot.rows], places, axis)
                self._seen[slot.present].narrow(axis, position, new).copy_(held)
        return outputs

    def _enter(self, position: int) -> None:
        """Put what :meth:`fill` was given into the states, as if ``position`` tokens had been fed."""
        for name in self._state:
            whole = self._state.numpy(name)
            for slot in self._slots_of(name):
                axis = self.layout.signature.axis_of(slot)
                held: Array = np.moveaxis(np.asarray(self._given[slot.present]), axis, 0)
                target = np.moveaxis(whole[slot.row : slot.row + slot.rows], axis, 0)
                tokens = ring_tokens(slot.ring, position) if slot.ring else np.arange(len(held))
                entered: Array = held[np.maximum(tokens, 0)]
                entered[tokens < 0] = 0
                target[: len(tokens)] = entered
            self._state[name] = whole
        self._given = {}
