"""The two programs of a comparison, run in a way that lets their results be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from milopt.cachedrive import CacheLayout, fitted, recognise, recognise_flexible
from milopt.signature import CacheSignature
from milopt.verify.driving import Listening, Observed, drive
from milopt.verify.freezing import Frozen
from milopt.verify.signatures import cached_shapes, mismatch, renamed_mismatch
from milopt.verify.trials import Arrays, Call, Trial

__all__ = ["Pair", "pair_up"]


@dataclass(frozen=True)
class Pair:
    """Two programs with the same inputs, outputs and states, up to the form of their caches, which layouts describe.

    ``renamed`` are inputs that the program after calls otherwise, or computes by itself where that is empty: from the
    tokens before alone, so that only what a caller would pass can be compared.
    """

    old: Frozen
    new: Frozen
    old_layout: CacheLayout | None = None
    new_layout: CacheLayout | None = None
    renamed: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def reformed(self) -> bool:
        """Whether the cache changed its form, and with it the order of columns within the program."""
        layouts = self.old_layout, self.new_layout
        return len({layout.stateful for layout in layouts if layout is not None}) > 1

    def run_old(self, trial: Trial, listening: Listening | None = None) -> list[Observed]:
        return drive(self.old.plans, self.old_layout, trial, listening)

    def run_new(self, trial: Trial, listening: Listening | None = None) -> list[Observed]:
        return drive(self.new.plans, self.new_layout, self._renamed(trial), listening)

    def _renamed(self, trial: Trial) -> Trial:
        """The trial as the program after takes it."""
        if not self.renamed:
            return trial
        calls = (Call(each.function, self._named(each.inputs), each.position) for each in trial.calls)
        return replace(trial, calls=tuple(calls))

    def _named(self, inputs: Arrays) -> Arrays:
        kept = {name: array for name, array in inputs.items() if name not in self.renamed}
        return kept | {after: inputs[name] for name, after in self.renamed.items() if after and name in inputs}


def pair_up(old: Frozen, new: Frozen, declared: CacheSignature | None) -> Pair | str:
    """The pair, or why the programs can't be the same: their signatures differ by more than ``declared`` explains."""
    if declared is not None and declared.renamed and not _keeps(old, declared):
        return _renamed_pair(old, new, declared)
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


def _keeps(frozen: Frozen, declared: CacheSignature) -> bool:
    """Whether a program has the names and the states that were declared."""
    wanted = {after for _, after in declared.renamed if after}, {slot.state for slot in declared.slots}
    return all(wanted[0] <= plan.inputs.keys() and wanted[1] <= plan.states.keys() for plan in frozen.plans.values())


def _renamed_pair(old: Frozen, new: Frozen, declared: CacheSignature) -> Pair | str:
    """A program, with its cache in whichever form, and one in which inputs have other names or are gone."""
    before = CacheSignature.from_metadata(old.metadata) or declared.former()
    reason = renamed_mismatch(old.plans, new.plans, before, declared)
    if reason is not None:
        return reason
    first, second = recognise(old.plans, before, old.metadata), recognise(new.plans, declared, new.metadata)
    if first is None or second is None:
        return f"the cache of the program {'before' if first is None else 'after'} is not what it was declared to be"
    first, second = fitted(first, second)
    reason = cached_shapes(first, second, next(iter(old.plans.values())), next(iter(new.plans.values())))
    return Pair(old, new, first, second, dict(declared.renamed)) if reason is None else reason


def _flexible(frozen: Frozen) -> CacheLayout | None:
    """The cache of a program of one function whose past has any number of slots."""
    plans = list(frozen.plans.values())
    return recognise_flexible(plans[0], frozen.metadata) if len(plans) == 1 else None
