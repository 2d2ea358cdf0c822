"""``compare``: run the program before and the one after on the same inputs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar

import torch

from milopt.cachedrive import CacheLayout, recognise
from milopt.errors import EvaluationError, MiloptError
from milopt.interpreter import Precision
from milopt.metrics import Exact, Metric
from milopt.mil import Program
from milopt.package import Model, load
from milopt.signature import CacheSignature
from milopt.verify.driving import Listening, Observed, drive
from milopt.verify.freezing import Frozen, freeze
from milopt.verify.locating import Capture, Fingerprints, excerpt, first_parting, first_value
from milopt.verify.measuring import Meter, Where
from milopt.verify.planning import Planner
from milopt.verify.roles import merged
from milopt.verify.scripts import Recipe
from milopt.verify.signatures import cached_shapes, mismatch
from milopt.verify.trials import Trial
from milopt.verify.verdict import Difference, Verdict

__all__ = ["Inputs", "Source", "compare"]

Source: TypeAlias = str | os.PathLike[str] | Model | Program | Frozen
Inputs: TypeAlias = Mapping[str, Any] | Sequence[int]

_EXACT = Exact()
_Heard = TypeVar("_Heard", Fingerprints, Capture)


def compare(
    before: Source,
    after: Source,
    *,
    trials: int = 3,
    metric: Metric = _EXACT,
    inputs: Sequence[Inputs] | None = None,
    seed: int = 0,
    function: str | None = None,
    signature: CacheSignature | None = None,
) -> Verdict:
    """Run both programs on the same inputs and say whether, and where, they differ.

    The signatures come first: names, element types and shapes of all inputs, outputs and states must agree, but for a
    change of the cache's form that ``signature`` (by default what ``after``'s metadata says) declares; then both are
    driven through the same tokens step by step. ``metric`` decides how close they must be:
    :class:`~milopt.metrics.Exact` runs both in float64, :class:`~milopt.metrics.Lossy` runs ``after`` as declared.

    ``trials`` random ones follow from ``seed``; ``inputs`` are tried before them: inputs by name, or, for a model with
    a cache, prompts as lists of token ids. ``function`` limits the comparison to one. A program that a pass is going to
    change can be given as :func:`freeze` made it. EvaluationError when ``before`` itself can't be run.
    """
    start = time.perf_counter()
    given = list(inputs or ())
    if trials + len(given) < 1:
        raise MiloptError("nothing to compare on: give trials or inputs")
    old = _frozen(before, Exact())
    new = _frozen(after, metric)
    old, new = _only(old, function), _only(new, function)
    declared = signature or _declared(new) or _declared(old)
    recipe = Recipe(
        seed,
        trials,
        function,
        sum(isinstance(each, Mapping) for each in given),
        tuple(tuple(each) for each in given if not isinstance(each, Mapping)),
    )
    blank = Verdict(metric, 0, recipe=recipe)
    reason = mismatch(old.plans, new.plans, declared)
    pair = None
    if reason is None:
        pair = _Pair.of(old, new, declared)
        if pair.old_layout is not None and pair.new_layout is not None:
            plans = next(iter(old.plans.values())), next(iter(new.plans.values()))
            reason = cached_shapes(pair.old_layout, pair.new_layout, *plans)
    if pair is None or reason is not None:
        return replace(blank, difference=Difference(reason or ""), seconds=time.perf_counter() - start)
    tried, expected = _expected(pair, metric, trials, given, seed, function)
    found = [drive(new.plans, pair.new_layout, trial) for trial in tried]
    meters = _measure(pair, tried, expected, found)
    verdict = replace(
        blank,
        trials=len(tried),
        tried=tuple(trial.label for trial in tried),
        measured=tuple(meter.measured() for meter in meters.values()),
        difference=_difference(pair, metric, tried, meters),
    )
    return replace(verdict, seconds=time.perf_counter() - start)


@dataclass(frozen=True)
class _Pair:
    """Two programs with the same meaning of inputs and outputs, up to the form of their cache."""

    old: Frozen
    new: Frozen
    old_layout: CacheLayout | None
    new_layout: CacheLayout | None

    @classmethod
    def of(cls, old: Frozen, new: Frozen, declared: CacheSignature | None) -> _Pair:
        first = recognise(old.plans, declared)
        if first is None:
            return cls(old, new, None, None)
        second = recognise(new.plans, first.signature)
        return cls(old, new, first, second) if second is not None else cls(old, new, None, None)

    @property
    def reformed(self) -> bool:
        """Whether the cache changed its form, and with it the order of columns within the program."""
        return (
            self.old_layout is not None
            and self.new_layout is not None
            and self.old_layout.stateful != self.new_layout.stateful
        )


def _frozen(source: Source, metric: Metric) -> Frozen:
    precision: Precision = "float64" if isinstance(metric, Exact) else "declared"
    if not isinstance(source, Frozen):
        return freeze(load(source), precision=precision)
    if source.precision != precision:
        raise MiloptError(
            f"a model frozen in {source.precision} can't be compared as {metric}: freeze it in {precision}"
        )
    return source


def _only(frozen: Frozen, function: str | None) -> Frozen:
    if function is None:
        return frozen
    if function not in frozen.plans:
        raise MiloptError(f"no function {function!r}; this model has: {', '.join(frozen.plans)}")
    return replace(frozen, plans={function: frozen.plans[function]})


def _declared(frozen: Frozen) -> CacheSignature | None:
    return CacheSignature.from_metadata(frozen.metadata)


def _expected(
    pair: _Pair, metric: Metric, trials: int, given: list[Inputs], seed: int, function: str | None
) -> tuple[list[Trial], list[list[Observed]]]:
    """The trials, and what the program before gives on each. Where it refuses random sizes, others are drawn."""
    old, new = pair.old, pair.new
    roles = {
        name: {key: merged(role, new.roles[name].get(key, role)) for key, role in old.roles[name].items()}
        for name in old.plans
    }
    planner = Planner(old.plans, roles, old.flexible, pair.old_layout, isinstance(metric, Exact), seed)
    chosen = function or old.default_function
    tried = [planner.given(each, chosen) for each in given]
    expected = [drive(old.plans, pair.old_layout, trial) for trial in tried]
    for index in range(trials):
        for name in planner.functions():
            trial, observed = _accepted(pair, planner, index, name)
            tried.append(trial)
            expected.append(observed)
    return tried, expected


def _accepted(pair: _Pair, planner: Planner, index: int, name: str | None) -> tuple[Trial, list[Observed]]:
    """A trial that the program before can run, and of whose outputs something can be said."""
    attempt, positive = 0, False
    while True:
        trial = planner.random(index, name, attempt, positive=positive)
        try:
            observed = drive(pair.old.plans, pair.old_layout, trial)
        except EvaluationError:
            attempt += 1
            if attempt == planner.attempts(name):
                raise
            continue
        if positive or not any(_is_all_nan(value) for each in observed for value in each.values()):
            return trial, observed
        positive = True


def _is_all_nan(value: Any) -> bool:
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or not value.numel():
        return False
    return bool(value.isnan().all())


def _measure(
    pair: _Pair, tried: list[Trial], expected: list[list[Observed]], found: list[list[Observed]]
) -> dict[str, Meter]:
    indices = {name for names in pair.old.argmax.values() for name in names}
    meters: dict[str, Meter] = {}
    for number, (before, after) in enumerate(zip(expected, found, strict=True)):
        for call, (old, new) in enumerate(zip(before, after, strict=True)):
            for name in old:
                meter = meters.setdefault(name, Meter(name, name in indices))
                meter.add(number, call, old[name], new[name])
    return meters


def _difference(pair: _Pair, metric: Metric, tried: list[Trial], meters: dict[str, Meter]) -> Difference | None:
    """The earliest of the outputs that are too far off, with the value it goes back to."""
    failed = [
        (where, reason)
        for meter in meters.values()
        if (reason := meter.fails(metric)) and (where := meter.place(metric))
    ]
    if not failed:
        return None
    where, reason = min(failed, key=lambda each: (each[0].trial, each[0].call))
    return _located(pair, metric, tried[where.trial], where, reason)


def _located(pair: _Pair, metric: Metric, trial: Trial, where: Where, reason: str) -> Difference:
    call = min(where.call, len(trial.calls) - 1)
    function = trial.calls[call].function
    ordered = not pair.reformed

    def listen(make: Callable[[], _Heard]) -> list[_Heard]:
        heard = [make(), make()]
        drive(pair.old.plans, pair.old_layout, trial, Listening(call, heard[0]))
        drive(pair.new.plans, pair.new_layout, trial, Listening(call, heard[1]))
        return heard

    first = None
    if (parting := first_parting(*listen(lambda: Fingerprints(ordered=ordered)), metric)) is not None:
        key, op_type = parting
        before, after = listen(lambda: Capture(key))
        first = first_value(key, op_type, before.value, after.value, ordered=ordered)
    name = first.name if first is not None else where.output
    return Difference(
        reason,
        where,
        trial.label,
        first,
        excerpt(pair.old.plans[function], pair.old.opsets[function], name),
        excerpt(pair.new.plans[function], pair.new.opsets[function], name),
    )
