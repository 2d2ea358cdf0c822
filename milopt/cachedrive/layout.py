"""How the functions of a program keep a cache: its names, its form, and the shapes that a call of them takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from milopt.errors import MiloptError
from milopt.interpreter import Plan, ValueInfo
from milopt.signature import CacheSignature, CacheSlot, outer

if TYPE_CHECKING:
    from milopt.cachedrive.caches import Caches

__all__ = ["CacheLayout", "dims", "fitted"]

Array: TypeAlias = np.ndarray[Any, Any]

# How many tokens are fed at once where any number is possible.
_PORTIONS = (1, 2, 4, 8, 16, 32, 64)


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
                columns = self.present_dims(slot, plan)[axis]
                return columns - (self.past_dims(slot, plan)[axis] if slot.returned == "all" else 0)
        for name in self.signature.masks:
            if name in plan.inputs and len(mask := dims(plan.inputs[name])) >= 2 and mask[-2] > 0:
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
        return frozenset(position if self.stateful else [outer(slot.past) for slot in self.signature.slots])

    def past_dims(self, slot: CacheSlot, plan: Plan) -> tuple[int, ...]:
        """The shape of a cached tensor where a function of the past form is given it."""
        return self._part_dims(slot.past, plan.inputs)

    def present_dims(self, slot: CacheSlot, plan: Plan) -> tuple[int, ...]:
        """The shape of a cached tensor where a function of the past form returns it."""
        return self._part_dims(slot.present, plan.outputs)

    def _part_dims(self, name: str, known: Mapping[str, ValueInfo]) -> tuple[int, ...]:
        found, whole = dims(known[outer(name)]), self.signature.whole_of(name)
        return found if whole is None else whole.part_of(found)

    def shape(self, slot: CacheSlot, plan: Plan) -> tuple[int, ...]:
        """The shape of one cached tensor with all its slots."""
        shape = list(dims(plan.states[slot.state]) if self.stateful else self.present_dims(slot, plan))
        if self.stateful:
            shape = [slot.rows, *shape[2 if self.signature.stacked else 1 :]]
        shape[self.signature.axis_of(slot)] = self.context
        return tuple(shape)

    def dtype(self, slot: CacheSlot, plan: Plan) -> str:
        """MIL's name of the cached tensor's element type."""
        return (plan.states[slot.state] if self.stateful else plan.inputs[outer(slot.past)]).dtype

    def empty(self, plans: Mapping[str, Plan]) -> Caches:
        """The cache of a sequence without tokens: zeros."""
        from milopt.cachedrive.pasts import GrowingCaches, PastCaches
        from milopt.cachedrive.states import RingCaches, StateCaches

        if self.stateful:
            return RingCaches(self, plans) if self.signature.rings else StateCaches(self, plans)
        return GrowingCaches(self, plans) if self.flexible else PastCaches(self, plans)


def fitted(one: CacheLayout, other: CacheLayout) -> tuple[CacheLayout, CacheLayout]:
    """Both layouts, looking at no more tokens than either has slots for."""
    tokens = min(one.context, other.context)
    return replace(one, tokens=tokens), replace(other, tokens=tokens)


def dims(info: ValueInfo) -> tuple[int, ...]:
    """The shape, with -1 for dimensions known at run time only."""
    return tuple(dim if isinstance(dim, int) else -1 for dim in info.shape or ())
