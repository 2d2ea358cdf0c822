"""Programs with a key/value cache, driven alike whichever form the cache has.

The cache is seen through slots: slot ``j`` holds what the token at position ``j`` left behind, and column ``j`` of a
mask is about slot ``j``. A program of the *past* form is given all slots but those of the new tokens, or the last so
many, and returns [past | new]; one of the *state* form keeps the slots in states and is told where the new tokens go.
Where a state is a ring, it holds the newest of those slots.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import torch

from milopt.cachecolumns import column_order, last_tokens, ring_tokens, take_columns, take_slots
from milopt.errors import MiloptError
from milopt.interpreter import Plan, State, ValueInfo
from milopt.interpreter.values import is_float
from milopt.signature import WINDOW_KEY, CacheSignature, CacheSlot, windows_of

__all__ = ["WINDOW_KEY", "CacheLayout", "Caches", "column_order", "fitted", "recognise", "recognise_flexible"]

Array: TypeAlias = np.ndarray[Any, Any]

_CONTEXT_KEY = "milopt.context"
# How many tokens are fed at once where any number is possible.
_PORTIONS = (1, 2, 4, 8, 16, 32, 64)
# What a mask adds to the scores of a slot that is not there. exp(-1e4) is 0 in every format (constraint L10).
_MASKED = -1e4


@dataclass(frozen=True)
class CacheLayout:
    """How the functions of a program keep a cache: the names are in ``signature``, the form in ``stateful``.

    ``windows`` are the masks through which a query sees only so many tokens, itself included. In a ``flexible`` program
    the past has any number of slots, of which the new tokens' follow. ``tokens`` limits the slots that are looked at.
    """

    signature: CacheSignature
    stateful: bool
    windows: Mapping[str, int] = field(default_factory=dict[str, int])
    flexible: bool = False
    tokens: int = 0

    @property
    def context(self) -> int:
        """How many tokens there may be."""
        return self.tokens or self.signature.context

    def axis(self, present: str) -> int:
        """The axis of a cached tensor that holds the slots."""
        return next(self.signature.axis_of(slot) for slot in self.signature.slots if slot.present == present)

    def kept(self, mask: str) -> int:
        """How many tokens before the new ones the past form's mask is about; 0 for all."""
        ring = dict(self.signature.rings).get(mask)
        return max((slot.kept for slot in self.signature.slots if slot.ring == ring), default=0) if ring else 0

    def query_length(self, plan: Plan, inputs: Mapping[str, Array] | None = None) -> int:
        """How many tokens one call of the function takes; in a flexible program, one with these ``inputs``."""
        if self.flexible:
            assert inputs is not None
            return int(inputs[self.signature.masks[0]].shape[-2])
        if not self.stateful:
            slot = next((each for each in self.signature.slots if each.returned != "kept"), None)
            if slot is not None:
                axis = self.signature.axis_of(slot)
                columns = _dims(plan.outputs[slot.present])[axis]
                return columns - (_dims(plan.inputs[slot.past])[axis] if slot.returned == "all" else 0)
        for name in self.signature.masks:
            if name in plan.inputs and len(mask := _dims(plan.inputs[name])) >= 2 and mask[-2] > 0:
                return mask[-2]
        raise MiloptError(f"function {plan.function!r} has no mask of fixed shape that tells how many tokens it takes")

    def query_lengths(self, plan: Plan) -> list[int]:
        """The numbers of tokens worth feeding the function with: its own, or several for a flexible one."""
        # the first call needs a slot of the context for a past without tokens
        return [each for each in _PORTIONS if each < self.context] if self.flexible else [self.query_length(plan)]

    def call_shape(self, info: ValueInfo, query: int) -> tuple[int, ...]:
        """The shape of an input that is not part of the cache, with all columns of a mask; open sizes are filled in."""
        full = tuple(dim if isinstance(dim, int) else query for dim in info.shape or ())
        # what a mask's columns are about depends on the form: here it is the slots, and Caches.run picks from them
        return (*full[:-1], self.context) if info.name in self.signature.masks else full

    def own_names(self) -> frozenset[str]:
        """The inputs that :class:`Caches` provides: the past ones, or the position."""
        position = [self.signature.position] if self.signature.position else []
        return frozenset(position if self.stateful else [slot.past for slot in self.signature.slots])

    def shape(self, slot: CacheSlot, plan: Plan) -> tuple[int, ...]:
        """The shape of one cached tensor with all its slots."""
        whole = plan.states[slot.state] if self.stateful else plan.outputs[slot.present]
        shape = list(_dims(whole))
        if self.stateful:
            shape[0] = slot.rows
        shape[self.signature.axis_of(slot)] = self.context
        return tuple(shape)

    def dtype(self, slot: CacheSlot, plan: Plan) -> str:
        """MIL's name of the cached tensor's element type."""
        return (plan.states[slot.state] if self.stateful else plan.inputs[slot.past]).dtype

    def empty(self, plans: Mapping[str, Plan]) -> Caches:
        """The cache of a sequence without tokens: zeros."""
        if self.stateful:
            return _RingCaches(self, plans) if self.signature.rings else _StateCaches(self, plans)
        return _GrowingCaches(self, plans) if self.flexible else _PastCaches(self, plans)


class Caches(ABC):
    """The cached tensors of one sequence, by the names of the outputs that return them in the past form."""

    def __init__(self, layout: CacheLayout, plans: Mapping[str, Plan]) -> None:
        self.layout = layout
        self._plan = next(iter(plans.values()))

    @abstractmethod
    def run(
        self, plan: Plan, position: int, inputs: Mapping[str, Array], listeners: tuple[object, ...] = ()
    ) -> dict[str, torch.Tensor]:
        """Call a function whose new tokens go to slots ``[position, position + Q)``; the cache is updated.

        ``inputs`` are those of the function except :meth:`CacheLayout.own_names`, with masks in slot order. The result
        holds the outputs that are not part of the cache.
        """

    @abstractmethod
    def contents(self) -> dict[str, torch.Tensor]:
        """All slots of every cached tensor; not a copy where it can be avoided."""

    @abstractmethod
    def fill(self, contents: Mapping[str, Array]) -> None:
        """Replace the cached tensors."""

    @abstractmethod
    def reset(self) -> None:
        """Set all slots to zero."""


class _PastCaches(Caches):
    """The host holds the cache, hands out the past and takes back the present."""

    def __init__(self, layout: CacheLayout, plans: Mapping[str, Plan]) -> None:
        super().__init__(layout, plans)
        self._slots: dict[str, torch.Tensor] = {}
        self.reset()

    def reset(self) -> None:
        held = torch.float64 if self._plan.precision == "float64" else torch.float32
        self._slots = {
            slot.present: torch.zeros(self.layout.shape(slot, self._plan), dtype=held)
            for slot in self.layout.signature.slots
        }

    def fill(self, contents: Mapping[str, Array]) -> None:
        self._slots = {name: torch.as_tensor(contents[name]).to(own.dtype) for name, own in self._slots.items()}

    def contents(self) -> dict[str, torch.Tensor]:
        return dict(self._slots)

    def run(
        self, plan: Plan, position: int, inputs: Mapping[str, Array], listeners: tuple[object, ...] = ()
    ) -> dict[str, torch.Tensor]:
        layout, signature = self.layout, self.layout.signature
        new = layout.query_length(plan, inputs)
        order: Array = np.array(column_order(layout.context, position, new))
        feeds: dict[str, Any] = {}
        for name, array in inputs.items():
            if name in signature.masks:
                columns = _dims(plan.inputs[name])[-1]
                tokens = self._tokens(order, position, new, columns - new, layout.kept(name))
                array = take_columns(array, np.concatenate((tokens, order[len(order) - new :])))
            feeds[name] = array
        for slot in signature.slots:
            axis = signature.axis_of(slot)
            tokens = self._tokens(order, position, new, _dims(plan.inputs[slot.past])[axis], slot.kept)
            feeds[slot.past] = take_slots(self._slots[slot.present], tokens, axis)
        outputs = plan.run(feeds, listeners=listeners)
        back = torch.as_tensor(np.argsort(order))
        for slot in signature.slots:
            axis, present = signature.axis_of(slot), outputs.pop(slot.present)
            if slot.returned == "all" and present.shape[axis] == len(order):
                self._slots[slot.present] = present.index_select(axis, back)
            else:
                newest = present.narrow(axis, present.shape[axis] - new, new)
                self._slots[slot.present].narrow(axis, position, new).copy_(newest)
        return outputs

    @staticmethod
    def _tokens(order: Array, position: int, new: int, columns: int, kept: int) -> Array:
        """What the columns of a past are about: the last tokens, or as many as there are of all but the new ones."""
        if kept:
            return last_tokens(kept, position)
        past = order[: len(order) - new]
        return np.concatenate((past, np.full(columns - len(past), -1)))


class _GrowingCaches(_PastCaches):
    """The past has as many slots as there are tokens before the new ones; one that is hidden where there are none."""

    def run(
        self, plan: Plan, position: int, inputs: Mapping[str, Array], listeners: tuple[object, ...] = ()
    ) -> dict[str, torch.Tensor]:
        signature, before = self.layout.signature, max(position, 1)
        feeds: dict[str, Any] = {}
        for name, array in inputs.items():
            if name not in signature.masks:
                feeds[name] = array
                continue
            new = array.shape[-2]
            hidden: Array = np.full_like(array[..., :1], False if array.dtype == np.bool_ else _MASKED)
            columns = array[..., : position + new]
            feeds[name] = columns if position else np.concatenate((hidden, columns), axis=-1)
        for slot in signature.slots:
            feeds[slot.past] = self._slots[slot.present].narrow(signature.axis_of(slot), 0, before)
        outputs = plan.run(feeds, listeners=listeners)
        for slot in signature.slots:
            axis, new_slots = signature.axis_of(slot), outputs.pop(slot.present)
            old = before if slot.returned == "all" else 0
            grown = new_slots.shape[axis] - old
            place = self._slots[slot.present].narrow(axis, position, grown)
            place.copy_(new_slots.narrow(axis, old, grown))
        return outputs


class _StateCaches(Caches):
    """The cache lies in the program's states."""

    def __init__(self, layout: CacheLayout, plans: Mapping[str, Plan]) -> None:
        super().__init__(layout, plans)
        self._state = State({name: info for plan in plans.values() for name, info in plan.states.items()})

    def reset(self) -> None:
        self._state.reset()

    def fill(self, contents: Mapping[str, Array]) -> None:
        for name in self._state:
            whole = self._state.numpy(name)
            for slot in self._slots_of(name):
                axis = self.layout.signature.axis_of(slot)
                target = np.moveaxis(whole[slot.row : slot.row + slot.rows], axis, 0)
                target[: self.layout.context] = np.moveaxis(contents[slot.present], axis, 0)
            self._state[name] = whole

    def contents(self) -> dict[str, torch.Tensor]:
        whole = {name: torch.as_tensor(self._state.numpy(name)) for name in self._state}
        return {slot.present: self._known(slot, whole[slot.state]) for slot in self.layout.signature.slots}

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


class _RingCaches(_StateCaches):
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


def recognise(
    plans: Mapping[str, Plan],
    signature: CacheSignature | None = None,
    metadata: Mapping[str, str] | None = None,
) -> CacheLayout | None:
    """The cache that all of a program's functions keep, or ``None``.

    ``signature`` is what the program, or the one it was made from, says of itself; without one, inputs ``past_<name>``
    with an output ``present_<name>`` that has more columns are a cache. ``metadata`` tells which masks slide.
    """
    if signature is not None:
        windows = windows_of(signature.masks, metadata)
        states = {slot.state for slot in signature.slots}
        pasts = {slot.past for slot in signature.slots}
        position = {signature.position} if signature.position else set[str]()
        if all(states <= plan.states.keys() and position <= plan.inputs.keys() for plan in plans.values()):
            return CacheLayout(signature, True, windows, signature.prefix)
        if all(pasts <= plan.inputs.keys() for plan in plans.values()):
            return CacheLayout(signature, False, windows, signature.prefix, _past_tokens(signature, plans))
        return None
    found = [_past_signature(plan) for plan in plans.values()]
    if not found or any(each is None or each != found[0] for each in found) or found[0] is None:
        return None
    return CacheLayout(found[0], False, windows_of(found[0].masks, metadata))


def recognise_flexible(plan: Plan, metadata: Mapping[str, str]) -> CacheLayout | None:
    """The cache of a function whose past has any number of slots, or ``None``; the metadata name its context."""
    context = metadata.get(_CONTEXT_KEY, "")
    slots: list[CacheSlot] = []
    axes: set[int] = set()
    for name, past in plan.inputs.items():
        if not name.startswith("past_") or (present := plan.outputs.get(name.replace("past_", "present_", 1))) is None:
            continue
        open_axes = [axis for axis, dim in enumerate(past.shape or ()) if not isinstance(dim, int)]
        if len(open_axes) != 1 or len(present.shape or ()) != len(past.shape or ()):
            return None
        axes.add(open_axes[0])
        slots.append(CacheSlot(name, present.name, "", 0, _dims(past)[0]))
    if len(axes) != 1 or not context.isdecimal():
        return None
    pasts = {slot.past for slot in slots}
    masks = tuple(
        name
        for name, info in plan.inputs.items()
        if name not in pasts and (is_float(info.dtype) or info.dtype == "bool") and _dims(info)[-1:] == (-1,)
    )
    if not masks:
        return None
    signature = CacheSignature(tuple(slots), "", masks, int(context), axes.pop())
    return CacheLayout(signature, False, windows_of(masks, metadata), flexible=True)


def _past_tokens(signature: CacheSignature, plans: Mapping[str, Plan]) -> int:
    """How many tokens the past form has columns for, where that is another number than the states' slots; else 0."""
    for slot in signature.slots:
        if slot.returned == "kept" or signature.prefix:
            continue
        plan, axis = next(iter(plans.values())), signature.axis_of(slot)
        columns = _dims(plan.outputs[slot.present])[axis]
        columns += 0 if slot.returned == "all" else _dims(plan.inputs[slot.past])[axis]
        return 0 if columns == signature.context else columns
    return 0


def fitted(one: CacheLayout, other: CacheLayout) -> tuple[CacheLayout, CacheLayout]:
    """Both layouts, looking at no more tokens than either has slots for."""
    tokens = min(one.context, other.context)
    return replace(one, tokens=tokens), replace(other, tokens=tokens)


def _past_signature(plan: Plan) -> CacheSignature | None:
    slots: list[CacheSlot] = []
    geometry: set[tuple[int, int]] = set()
    for name, past in plan.inputs.items():
        if not name.startswith("past_") or (present := plan.outputs.get(name.replace("past_", "present_", 1))) is None:
            continue
        if (found := _grown_axis(past, present)) is None:
            return None
        geometry.add(found)
        slots.append(CacheSlot(name, present.name, "", 0, _dims(past)[0]))
    if len(geometry) != 1:
        return None
    ((axis, context),) = geometry
    pasts = {slot.past for slot in slots}
    masks = tuple(
        name
        for name, info in plan.inputs.items()
        if name not in pasts and (is_float(info.dtype) or info.dtype == "bool") and _dims(info)[-1:] == (context,)
    )
    return CacheSignature(tuple(slots), "", masks, context, axis) if masks else None


def _grown_axis(past: ValueInfo, present: ValueInfo) -> tuple[int, int] | None:
    """``(axis, columns of present)`` where the present is the past with more columns."""
    before, after = _dims(past), _dims(present)
    if len(before) != len(after) or min((*before, *after), default=-1) < 0:
        return None
    grown = [axis for axis, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    return (grown[0], after[grown[0]]) if len(grown) == 1 and before[grown[0]] < after[grown[0]] else None


def _dims(info: ValueInfo) -> tuple[int, ...]:
    """The shape, with -1 for dimensions known at run time only."""
    return tuple(dim if isinstance(dim, int) else -1 for dim in info.shape or ())
