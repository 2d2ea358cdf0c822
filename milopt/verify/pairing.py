"""The two programs of a comparison, run in a way that lets their results be compared."""

from __future__ import annotations

from dataclasses import dataclass

from milopt.cachedrive import CacheLayout, fitted, recognise, recognise_flexible
from milopt.signature import CacheSignature
from milopt.verify.driving import Listening, Observed, drive
from milopt.verify.freezing import Frozen
from milopt.verify.signatures import cached_shapes, mismatch
from milopt.verify.trials import Trial

__all__ = ["Pair", "pair_up"]


@dataclass(frozen=True)
class Pair:
    """Two programs with the same inputs, outputs and states, up to the form of their caches, which layouts describe."""

    old: Frozen
    new: Frozen
    old_layout: CacheLayout | None = None
    new_layout: CacheLayout | None = None

    @property
    def reformed(self) -> bool:
        """Whether the cache changed its form, and with it the order of columns within the program."""
        layouts = self.old_layout, self.new_layout
        return len({layout.stateful for layout in layouts if layout is not None}) > 1

    def run_old(self, trial: Trial, listening: Listening | None = None) -> list[Observed]:
        return drive(self.old.plans, self.old_layout, trial, listening)

    def run_new(self, trial: Trial, listening: Listening | None = None) -> list[Observed]:
        return drive(self.new.plans, self.new_layout, trial, listening)


def pair_up(old: Frozen, new: Frozen, declared: CacheSignature | None) -> Pair | str:
    """The pair, or why the programs can't be the same: their signatures differ by more than ``declared`` explains."""
    reason = mismatch(old.plans, new.plans, declared)
    if reason is not None:
        return reason
    first = recognise(old.plans, declared, old.metadata)
    second = recognise(new.plans, first.signature, new.metadata) if first is not None else None
    if declared is None and first is None:
        first, second = _flexible(old), _flexible(new)
    if first is None or second is None:
        return Pair(old, new)
    first, second = fitted(first, second)
    reason = cached_shapes(first, second, next(iter(old.plans.values())), next(iter(new.plans.values())))
    return Pair(old, new, first, second) if reason is None else reason


def _flexible(frozen: Frozen) -> CacheLayout | None:
    """The cache of a program of one function whose past has any number of slots."""
    plans = list(frozen.plans.values())
    return recognise_flexible(plans[0], frozen.metadata) if len(plans) == 1 else None
