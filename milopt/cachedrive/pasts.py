"""Caches that the host holds: it hands out the past and takes back the present."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch

from milopt.cachecolumns import column_order, last_tokens, take_columns, take_slots
from milopt.cachedrive.caches import Caches
from milopt.cachedrive.layout import CacheLayout, dims
from milopt.interpreter import Plan

__all__ = ["GrowingCaches", "PastCaches"]

Array: TypeAlias = np.ndarray[Any, Any]

# What a mask adds to the scores of a slot that is not there. exp(-1e4) is 0 in every format (constraint L10).
_MASKED = -1e4


class PastCaches(Caches):
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
                columns = dims(plan.inputs[name])[-1]
                tokens = self._tokens(order, position, new, columns - new, layout.kept(name))
                array = take_columns(array, np.concatenate((tokens, order[len(order) - new :])))
            feeds[name] = array
        for slot in signature.slots:
            axis = signature.axis_of(slot)
            tokens = self._tokens(order, position, new, layout.past_dims(slot, plan)[axis], slot.kept)
            feeds[slot.past] = take_slots(self._slots[slot.present], tokens, axis)
        outputs = self._apart(plan.run(self._together(feeds), listeners=listeners))
        back = torch.as_tensor(np.argsort(order))
        for slot in signature.slots:
            axis, present = signature.axis_of(slot), outputs.pop(slot.present)
            if slot.returned == "all" and present.shape[axis] == len(order):
                self._slots[slot.present] = present.index_select(axis, back)
            else:
                newest = present.narrow(axis, present.shape[axis] - new, new)
                self._slots[slot.present].narrow(axis, position, new).copy_(newest)
        return outputs

    def _together(self, feeds: dict[str, Any]) -> dict[str, Any]:
        """The inputs with cached tensors that one of them holds put together."""
        for whole in self.layout.signature.combined:
            parts = torch.stack([feeds.pop(f"{whole.past}[{at}]") for at in range(whole.count)])
            slots = parts.shape[1 + whole.part.index(0)]
            feeds[whole.past] = parts.reshape([dim or slots for dim in whole.shape])
        return feeds

    def _apart(self, outputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The outputs with each cached tensor by itself."""
        for whole in self.layout.signature.combined:
            together = outputs.pop(whole.present)
            parts = together.reshape(whole.count, *whole.part_of(together.shape))
            outputs.update({f"{whole.present}[{at}]": part for at, part in enumerate(parts)})
        return outputs

    @staticmethod
    def _tokens(order: Array, position: int, new: int, columns: int, kept: int) -> Array:
        """What the columns of a past are about: the last tokens, or as many as there are of all but the new ones."""
        if kept:
            return last_tokens(kept, position)
        past = order[: len(order) - new]
        return np.concatenate((past, np.full(columns - len(past), -1)))


class GrowingCaches(PastCaches):
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
        outputs = self._apart(plan.run(self._together(feeds), listeners=listeners))
        for slot in signature.slots:
            axis, returned = signature.axis_of(slot), outputs.pop(slot.present)
            new = self.layout.query_length(plan, inputs)
            place = self._slots[slot.present].narrow(axis, position, new)
            # the new ones are the last, whether or not those before them come out as well
            place.copy_(returned.narrow(axis, returned.shape[axis] - new, new))
        return outputs
