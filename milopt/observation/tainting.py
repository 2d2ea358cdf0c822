"""Which values of a run have come from bad ones, told by the tensors themselves: they pass through loops and lists."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from milopt.interpreter import Step
from milopt.interpreter.lists import Elements
from milopt.interpreter.state import Cell

__all__ = ["Taint"]


class Taint:
    """Tensors, states, and inputs of the function (by slot) that are known to be bad. It keeps no tensor alive."""

    def __init__(self, slots: frozenset[int]) -> None:
        self._slots = slots
        self._tensors: dict[int, weakref.ref[torch.Tensor]] = {}
        self._cells: list[Cell] = []

    def add(self, value: torch.Tensor) -> None:
        self._tensors[id(value)] = weakref.ref(value)

    def holds(self, value: object) -> bool:
        if isinstance(value, Cell):
            return any(each is value for each in self._cells)
        known = self._tensors.get(id(value))
        return known is not None and known() is value

    def reaches(self, step: Step, values: Mapping[str, Any]) -> bool:
        """Whether an input of the op is bad."""
        return any(slot in self._slots for _, slot in step.slots) or any(map(self.holds, _leaves(values.values())))

    def spread(self, values: Mapping[str, Any]) -> None:
        """An op that took or made something bad may have written it to its states."""
        self._cells += [each for each in _leaves(values.values()) if isinstance(each, Cell) and not self.holds(each)]


def _leaves(values: Any) -> Iterator[object]:
    for value in values:
        if isinstance(value, Elements):
            yield from value.items
        elif isinstance(value, (tuple, list)):
            yield from _leaves(value)
        else:
            yield value
