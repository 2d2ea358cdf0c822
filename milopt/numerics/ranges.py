"""How large the values of a program become, whatever their declared types hold: a run in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from milopt.errors import EvaluationError
from milopt.interpreter import Step
from milopt.metrics import Exact
from milopt.package import Model
from milopt.signature import CacheSignature
from milopt.verify.comparing import Inputs
from milopt.verify.driving import Listening, drive
from milopt.verify.freezing import freeze
from milopt.verify.pairing import Pair, pair_up
from milopt.verify.planning import Planner
from milopt.verify.trials import Trial

__all__ = ["Range", "value_ranges"]

_EXACT = Exact()


@dataclass(frozen=True)
class Range:
    """The largest finite magnitude that the value ``name`` had, the result of an ``op_type`` declared as ``dtype``."""

    function: str
    name: str
    op_type: str
    dtype: str
    largest: float


def value_ranges(
    model: Model, *, inputs: Sequence[Inputs] = (), trials: int = 1, seed: int = 0
) -> dict[tuple[str, str], Range]:
    """The range of every floating value, by function and name, in program order: nothing is rounded on the way.

    ``inputs`` are run first: inputs of the default function by name, or, for a model with a cache, prompts as lists of
    token ids. Then ``trials`` random ones as a caller would pass them (positions that count up, causal masks), which
    follow from ``seed``. EvaluationError where the program can't be run.
    """
    frozen = freeze(model)
    pair = pair_up(frozen, frozen, CacheSignature.from_metadata(model.metadata))
    if not isinstance(pair, Pair):
        raise EvaluationError(pair)
    layout = pair.old_layout
    # ordinary inputs only: what a program does beyond them is no reason to change it
    planner = Planner(frozen.plans, frozen.roles, frozen.roles, frozen.flexible, layout, False, seed)
    tried: list[Trial] = [planner.given(each, frozen.default_function) for each in inputs]
    tried += [planner.random(index, name) for index in range(trials) for name in planner.functions()]
    found: dict[tuple[str, str], Range] = {}
    with frozen.weights.lent():
        for trial in tried:
            heard = _Every(0, _Largest("", found))
            heard.functions = [call.function for call in trial.calls]
            drive(frozen.plans, layout, trial, heard)
    return found


class _Every(Listening):
    """Listens to every call of a trial, each as part of its function."""

    functions: list[str]

    def to(self, index: int) -> tuple[object, ...]:
        listener: Any = self.listener
        return (_Largest(self.functions[index], listener.found),)


@dataclass(frozen=True)
class _Largest:
    """A listener that keeps the largest magnitude of each floating result."""

    function: str
    found: dict[tuple[str, str], Range]

    def after(self, step: Step, outputs: Mapping[str, Any]) -> None:
        for result in step.results:
            value = outputs[result.info.name]
            if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
                magnitude = value.abs()
                largest = float(torch.where(magnitude.isfinite(), magnitude, 0.0).max())
                key = self.function, result.info.name
                known = self.found.get(key)
                if known is None or largest > known.largest:
                    self.found[key] = Range(*key, step.op_type, result.info.dtype, largest)
