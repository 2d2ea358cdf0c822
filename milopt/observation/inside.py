"""Watches what composite ops compute on the way to their result in the ``declared-strict`` precision."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from milopt.interpreter import Impls, core
from milopt.interpreter.impls import Rounding
from milopt.interpreter.strict import strict
from milopt.interpreter.values import is_float
from milopt.observation.places import first, has_odd

__all__ = ["Inside", "Rounded", "watched"]


@dataclass(frozen=True)
class Rounded:
    """The first number of an op's intermediate values that was finite, and infinite once rounded."""

    index: tuple[int, ...]
    value: float
    before: float
    count: int


class Inside:
    """What rounding made infinite in the op that runs."""

    def __init__(self) -> None:
        self._first: Rounded | None = None

    def note(self, before: torch.Tensor, after: torch.Tensor) -> None:
        if self._first is not None or not has_odd(after):
            return
        places = ~after.isfinite() & before.isfinite()
        if not places.any():
            return
        index = first(places)
        self._first = Rounded(index, float(after[index]), float(before[index]), int(places.sum()))

    def take(self) -> Rounded | None:
        """What was found since the last call."""
        found, self._first = self._first, None
        return found


class _Watching(Rounding):
    """Rounds as another one, and tells."""

    __slots__ = ("_inside",)

    def __init__(self, other: Rounding, inside: Inside) -> None:
        super().__init__(other._dtype)
        self._inside = inside

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        rounded = super().__call__(value)
        self._inside.note(value, rounded)
        return rounded

    @property
    def watches(self) -> bool:
        return is_float(self._dtype)


def watched(impls: Impls, inside: Inside) -> Impls:
    """``impls``, those of the ``declared-strict`` precision telling ``inside`` what they round."""
    watching = Impls("watched")
    for name, impl in strict.items():
        if impls.get(name) is core.get(name):
            made = _watched(impl.function, core[name].function, inside)
            watching(name, moves=impl.moves, shares=" ".join(impl.shares), override=True)(made)
    return impls | watching


def _watched(refined: Callable[..., Any], plain: Callable[..., Any], inside: Inside) -> Callable[..., Any]:
    @functools.wraps(refined)
    def call(*values: Any, r: Rounding, **named: Any) -> Any:
        watching = _Watching(r, inside)
        if not watching.watches:  # of integers there is nothing to round
            return plain(*values, **named)
        return refined(*values, r=watching, **named)

    return call
