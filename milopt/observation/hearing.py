"""The three listeners of the search for overflows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from milopt.interpreter import Step
from milopt.observation.inside import Inside, Rounded
from milopt.observation.occurrences import Key, Occurrences
from milopt.observation.operands import operands_of
from milopt.observation.overflow import Operand
from milopt.observation.places import Places, first, has_odd
from milopt.observation.tainting import Taint

__all__ = ["Details", "Reference", "Spurious", "Suspects"]


class Suspects:
    """Notes which values hold NaN or Inf, and where; and intermediate values of composites that became infinite.

    ``steps`` are the ops of either kind by key, in the order in which they ran.
    """

    def __init__(self, inside: Inside) -> None:
        self.places: dict[Key, Places] = {}
        self.rounded: dict[Key, Rounded] = {}
        self.steps: dict[Key, Step] = {}
        self._inside = inside
        self._occurrences = Occurrences()

    def after(self, step: Step, outputs: Mapping[str, Any]) -> None:
        keys = self._occurrences.made(step)
        if (rounded := self._inside.take()) is not None:
            self.rounded[keys[0]] = rounded
            self.steps[keys[0]] = step
        for key in keys:
            value = outputs[key[0]]
            if isinstance(value, torch.Tensor) and value.is_floating_point() and has_odd(value):
                self.places[key] = Places.of(value)
                self.steps[key] = step


@dataclass(frozen=True)
class Spurious:
    """Where a suspect is NaN or Inf and float64 is not: the first place, float64's number there, how many places."""

    index: tuple[int, ...]
    reference: float
    count: int


class Reference:
    """Hears the float64 run, and judges the suspects. ``begins`` are those that are spurious, their inputs not.

    ``compared`` are the suspects that this run made too, in the same shape.
    """

    def __init__(self, places: Mapping[Key, Places], taint: Taint) -> None:
        self.begins: dict[Key, Spurious] = {}
        self.compared: set[Key] = set()
        self._places = places
        self._taint = taint
        self._occurrences = Occurrences()
        self._running: list[tuple[bool, Mapping[str, Any]]] = []

    def before(self, step: Step, values: Mapping[str, Any]) -> None:
        self._running.append((self._taint.reaches(step, values), values))

    def after(self, step: Step, outputs: Mapping[str, Any]) -> None:
        reached, values = self._running.pop()
        bad = reached
        for key in self._occurrences.made(step):
            value = outputs[key[0]]
            spurious = self._spurious(key, value)
            if spurious is None:
                continue
            # what a loop or branch gives was made by an op in it
            if not reached and not self._taint.holds(value):
                self.begins[key] = spurious
            self._taint.add(value)
            bad = True
        if bad:
            self._taint.spread(values)

    def _spurious(self, key: Key, value: Any) -> Spurious | None:
        if key not in self._places or not isinstance(value, torch.Tensor):
            return None
        mask = self._places[key].spurious(value)
        if mask is None:
            return None
        self.compared.add(key)
        if not mask.any():
            return None
        index = first(mask)
        return Spurious(index, float(value[index]), int(mask.sum()))


class Details:
    """Describes the inputs of some ops: ``wanted`` has the place to look at by key, None for no place."""

    def __init__(self, wanted: Mapping[Key, tuple[int, ...] | None], dtypes: Mapping[str, Mapping[str, str]]) -> None:
        self.operands: dict[Key, tuple[Operand, ...]] = {}
        self._wanted = wanted
        self._dtypes = dtypes
        self._occurrences = Occurrences()

    def before(self, step: Step, values: Mapping[str, Any]) -> None:
        for key in self._occurrences.upcoming(step):
            if key in self._wanted:
                self.operands[key] = operands_of(step, values, self._dtypes.get(key[0], {}), self._wanted[key])

    def after(self, step: Step, outputs: Mapping[str, Any]) -> None:
        self._occurrences.made(step)
