"""Programs with a key/value cache, driven alike whichever form the cache has.

The cache is seen through slots: slot ``j`` holds what the token at position ``j`` left behind, and column ``j`` of a
mask is about slot ``j``. A program of the *past* form is given all slots but those of the new tokens and returns
[past | new]; one of the *state* form keeps the slots in states and is told where the new tokens go.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from milopt.errors import MiloptError
from milopt.interpreter import Plan, State, ValueInfo
from milopt.interpreter.values import is_float
from milopt.signature import CacheSignature, CacheSlot

__all__ = ["CacheLayout", "Caches", "column_order", "recognise"]

Array: TypeAlias = np.ndarray[Any, Any]


@dataclass(frozen=True)
class CacheLayout:
    """How the functions of a program keep a cache: the names are in ``signature``, the form in ``stateful``."""

    signature: CacheSignature
    stateful: bool

    @property
    def context(self) -> int:
        return self.signature.context

    def query_length(self, plan: Plan) -> int:
        """How many tokens one call of the function takes."""
        if not self.stateful:
            slot = self.signature.slots[0]
            return self.context - _dims(plan.inputs[slot.past])[self.signature.axis]
        for name in self.signature.masks:
            if name in plan.inputs and len(mask := _dims(plan.inputs[name])) >= 2 and mask[-2] > 0:
                return mask[-2]
        raise MiloptError(f"function {plan.function!r} has no mask of fixed shape that tells how many tokens it takes")

    def own_names(self) -> frozenset[str]:
        """The inputs that :class:`Caches` provides: the past ones, or the position."""
        return frozenset([self.signature.position] if self.stateful else [slot.past for slot in self.signature.slots])

    def shape(self, slot: CacheSlot, plan: Plan) -> tuple[int, ...]:
        """The shape of one cached tensor with all its slots."""
        whole = plan.states[slot.state] if self.stateful else plan.outputs[slot.present]
        shape = list(_dims(whole))
        if self.stateful:
            shape[0] = slot.rows
        return tuple(shape)

    def dtype(self, slot: CacheSlot, plan: Plan) -> str:
        """MIL's name of the cached tensor's element type."""
        return (plan.states[slot.state] if self.stateful else plan.inputs[slot.past]).dtype

    def empty(self, plans: Mapping[str, Plan]) -> Caches:
        """The cache of a sequence without tokens: zeros."""
        return _StateCaches(self, plans) if self.stateful else _PastCaches(self, plans)


def column_order(context: int, position: int, new: int) -> list[int]:
    """Which slot each column of [past | new] is about, when slots ``[position, position + new)`` are the new ones."""
    slots = list(range(context))
    return slots[:position] + slots[position + new :] + slots[position : position + new]


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
        signature, new = self.layout.signature, self.layout.query_length(plan)
        order = column_order(signature.context, position, new)
        columns = torch.tensor(order)
        back = torch.argsort(columns)
        feeds: dict[str, Any] = {
            name: array[..., order] if name in signature.masks else array for name, array in inputs.items()
        }
        for slot in signature.slots:
            feeds[slot.past] = self._slots[slot.present].index_select(signature.axis, columns[: len(order) - new])
        outputs = plan.run(feeds, listeners=listeners)
        for slot in signature.slots:
            self._slots[slot.present] = outputs.pop(slot.present).index_select(signature.axis, back)
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
            for slot in self.layout.signature.slots:
                if slot.state == name:
                    whole[slot.row : slot.row + slot.rows] = contents[slot.present]
            self._state[name] = whole

    def contents(self) -> dict[str, torch.Tensor]:
        whole = {name: torch.as_tensor(self._state.numpy(name)) for name in self._state}
        return {
            slot.present: whole[slot.state][slot.row : slot.row + slot.rows] for slot in self.layout.signature.slots
        }

    def run(
        self, plan: Plan, position: int, inputs: Mapping[str, Array], listeners: tuple[object, ...] = ()
    ) -> dict[str, torch.Tensor]:
        feeds = {**inputs, self.layout.signature.position: np.array([position], np.int32)}
        return plan.run(feeds, self._state, listeners)


def recognise(plans: Mapping[str, Plan], signature: CacheSignature | None = None) -> CacheLayout | None:
    """The cache that all of a program's functions keep, or ``None``.

    ``signature`` is what the program, or the one it was made from, says of itself; without one, inputs ``past_<name>``
    with an output ``present_<name>`` that has more columns are a cache.
    """
    if signature is not None:
        states = {slot.state for slot in signature.slots}
        pasts = {slot.past for slot in signature.slots}
        if all(states <= plan.states.keys() and signature.position in plan.inputs for plan in plans.values()):
            return CacheLayout(signature, stateful=True)
        if all(pasts <= plan.inputs.keys() for plan in plans.values()):
            return CacheLayout(signature, stateful=False)
        return None
    found = [_past_signature(plan) for plan in plans.values()]
    if not found or any(each is None or each != found[0] for each in found):
        return None
    return CacheLayout(found[0], stateful=False) if found[0] is not None else None


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
