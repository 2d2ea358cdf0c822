"""``compare``: run the program before and the one after on the same inputs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

import torch

from milopt.errors import EvaluationError, MiloptError
from milopt.metrics import Exact, Metric
from milopt.mil import Program
from milopt.package import Model, load
from milopt.precisions import Precision
from milopt.signature import CacheSignature
from milopt.verify.choices import Choices, first_choice
from milopt.verify.driving import Listening, Observed
from milopt.verify.freezing import Frozen, freeze
from milopt.verify.heads import answering
from milopt.verify.layouts import publicly
from milopt.verify.locating import Capture, Fingerprints, excerpt, first_parting, first_value
from milopt.verify.measuring import Meter, Where
from milopt.verify.pairing import Pair, pair_up
from milopt.verify.planning import Planner
from milopt.verify.safety import judged_safe
from milopt.verify.scripts import Recipe
from milopt.verify.trials import Trial
from milopt.verify.verdict import Difference, Verdict

__all__ = ["Inputs", "Source", "compare"]

Source: TypeAlias = str | os.PathLike[str] | Model | Program | Frozen
Inputs: TypeAlias = Mapping[str, Any] | Sequence[int]

_EXACT = Exact()
_Heard = TypeVar("_Heard", Fingerprints, Capture, Choices)


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
    old = _frozen(before, metric if isinstance(metric, Exact) else _EXACT)
    new = _frozen(after, metric)
    old, new = _only(old, function), _only(new, function)
    old, new = publicly(old, new)
    old = answering(old, new)
    verdict = Verdict(metric, 0, recipe=Recipe.of(seed, trials, function, given))
    pair = pair_up(old, new, signature or _declared(new) or _declared(old))
    if isinstance(pair, str):
        verdict = replace(verdict, difference=Difference(pair))
    else:
        with old.weights.lent():
            planner = _planner(pair, metric, seed)
            tried, expected = _expected(pair, planner, trials, given, function)
            stressed = _stressed(pair, planner, metric, trials, tried, expected)
        verdict = replace(verdict, trials=len(tried), tried=tuple(trial.label for trial in tried))
        with new.weights.lent():
            verdict = _judged(verdict, pair, tried, expected)
        if verdict and isinstance(metric, Exact):
            verdict = _safe(verdict, pair, metric.safe_in, stressed)
    return replace(verdict, seconds=time.perf_counter() - start)


def _frozen(source: Source, metric: Metric) -> Frozen:
    precision: Precision = "float64" if isinstance(metric, Exact) else "declared"
    also = metric.safe_in if isinstance(metric, Exact) else ()
    if not isinstance(source, Frozen):
        return freeze(load(source), precision=precision, also=also)
    if missing := [each for each in also if each not in source.rounded]:
        raise MiloptError(f"a model frozen without {missing[0]} can't be compared as {metric}: freeze it in that too")
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
    return replace(
        frozen,
        plans={function: frozen.plans[function]},
        rounded={precision: _only(each, function) for precision, each in frozen.rounded.items()},
    )


def _declared(frozen: Frozen) -> CacheSignature | None:
    return CacheSignature.from_metadata(frozen.metadata)


def _planner(pair: Pair, metric: Metric, seed: int) -> Planner:
    old, anything = pair.old, isinstance(metric, Exact) and not pair.renamed
    return Planner(
        old.plans, old.roles, pair.new.roles, old.flexible, pair.old_layout, anything, seed, counted=bool(pair.renamed)
    )


def _expected(
    pair: Pair, planner: Planner, trials: int, given: list[Inputs], function: str | None
) -> tuple[list[Trial], list[list[Observed]]]:
    """The trials, and what the program before gives on each. Where it refuses random sizes, others are drawn."""
    chosen = function or pair.old.default_function
    tried = [planner.given(each, chosen) for each in given]
    expected = [pair.run_old(trial) for trial in tried]
    for index in range(trials):
        for name in planner.functions():
            trial, observed = _accepted(pair, planner, index, name)
            tried.append(trial)
            expected.append(observed)
    return tried, expected


def _stressed(
    pair: Pair,
    planner: Planner,
    metric: Metric,
    trials: int,
    tried: list[Trial],
    expected: list[list[Observed]],
) -> list[tuple[Trial, list[Observed]]]:
    """What the precisions that the metric calls safe are tried on, with what the program before gives in float64.

    The trials given, the first random one of each function, and one of large numbers where it takes numbers.
    """
    if not isinstance(metric, Exact) or not metric.safe_in:
        return []
    functions = planner.functions()
    given = len(tried) - trials * len(functions)
    first = given + (len(functions) if trials else 0)
    large = [_accepted(pair, planner, 0, name, large=True) for name in functions if planner.has_numbers(name)]
    return [*zip(tried[:first], expected[:first], strict=True), *large]


def _safe(
    verdict: Verdict,
    pair: Pair,
    precisions: Sequence[Precision],
    stressed: Sequence[tuple[Trial, list[Observed]]],
) -> Verdict:
    for precision in precisions:
        found, difference = judged_safe(pair, precision, stressed)
        verdict = replace(verdict, safety=(*verdict.safety, *found), difference=difference)
        if difference is not None:
            break
    return verdict


def _accepted(
    pair: Pair, planner: Planner, index: int, name: str | None, *, large: bool = False
) -> tuple[Trial, list[Observed]]:
    """A trial that the program before can run, and of whose outputs something can be said."""
    attempt, positive = 0, False
    while True:
        trial = planner.random(index, name, attempt, positive=positive, large=large)
        try:
            observed = pair.run_old(trial)
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


def _judged(verdict: Verdict, pair: Pair, tried: list[Trial], expected: list[list[Observed]]) -> Verdict:
    """The verdict with what the program after gives, measured."""
    indices = {name for names in pair.old.argmax.values() for name in names}
    meters: dict[str, Meter] = {}
    for number, trial in enumerate(tried):
        try:
            found = pair.run_new(trial)
        except EvaluationError as error:
            return replace(verdict, difference=Difference(f"the program after can't run on {trial.label}: {error}"))
        for call, (old, new) in enumerate(zip(expected[number], found, strict=True)):
            for name in old:
                meter = meters.setdefault(name, Meter(name, name in indices))
                meter.add(number, call, old[name], new[name])
    measured = tuple(meter.measured() for meter in meters.values())
    return replace(verdict, measured=measured, difference=_difference(pair, verdict.metric, tried, meters))


def _difference(pair: Pair, metric: Metric, tried: list[Trial], meters: dict[str, Meter]) -> Difference | None:
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


def _located(pair: Pair, metric: Metric, trial: Trial, where: Where, reason: str) -> Difference:
    call = min(where.call, len(trial.calls) - 1)
    function = trial.calls[call].function
    ordered = not pair.reformed

    def listen(make: Callable[[], _Heard]) -> list[_Heard]:
        heard = [make(), make()]
        pair.run_old(trial, Listening(call, heard[0]))
        pair.run_new(trial, Listening(call, heard[1]))
        return heard

    first = None
    one, other = listen(lambda: Fingerprints(ordered=ordered))
    if (parting := first_parting(one, other, metric)) is not None:
        key, op_type = parting
        before, after = listen(lambda: Capture(key))
        first = first_value(key, op_type, before.value, after.value, ordered=ordered)
    choice = first_choice(*listen(Choices))
    name = first.name if first is not None else where.output
    return Difference(
        reason,
        where,
        trial.label,
        first,
        excerpt(pair.old.plans[function], pair.old.opsets[function], name),
        excerpt(pair.new.plans[function], pair.new.opsets[function], name),
        choice,
    )
