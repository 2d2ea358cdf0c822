"""Runs trials on a program, and names what comes out so that both programs name it alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from milopt.cachedrive import CacheLayout
from milopt.errors import MiloptError
from milopt.interpreter import Plan, State
from milopt.verify.trials import Trial

__all__ = ["Listening", "Observed", "drive"]

Observed: TypeAlias = dict[str, Any]
"""What one call gave: outputs by name, states, and what new tokens left in the cache; torch tensors mostly."""


@dataclass(frozen=True)
class Listening:
    """Listen to call number ``call`` of a trial."""

    call: int
    listener: object

    def to(self, index: int) -> tuple[object, ...]:
        return (self.listener,) if index == self.call else ()


def drive(
    plans: Mapping[str, Plan], layout: CacheLayout | None, trial: Trial, listening: Listening | None = None
) -> list[Observed]:
    """What each call of the trial gave. With a cache, one more entry: all its slots at the end."""
    return _plain(plans, trial, listening) if layout is None else _cached(plans, layout, trial, listening)


def _plain(plans: Mapping[str, Plan], trial: Trial, listening: Listening | None) -> list[Observed]:
    states = {name: info for call in trial.calls for name, info in plans[call.function].states.items()}
    state = State(states)
    for name, array in trial.contents.items():
        state[name] = array
    seen: list[Observed] = []
    for index, call in enumerate(trial.calls):
        plan = plans[call.function]
        heard = listening.to(index) if listening is not None else ()
        observed: Observed = {**plan.run(call.inputs, state if plan.states else None, heard)}
        for name in plan.states:
            observed[f"state {name}"] = torch.as_tensor(state.numpy(name))
        seen.append(observed)
    return seen


def _cached(
    plans: Mapping[str, Plan], layout: CacheLayout, trial: Trial, listening: Listening | None
) -> list[Observed]:
    caches = layout.empty(plans)
    if trial.contents:
        caches.fill(trial.contents)
    seen: list[Observed] = []
    for index, call in enumerate(trial.calls):
        plan = plans[call.function]
        query = layout.query_length(plan, call.inputs)
        if call.position + query > layout.context:
            raise MiloptError(f"{query} tokens at slot {call.position} do not fit a context of {layout.context}")
        heard = listening.to(index) if listening is not None else ()
        observed: Observed = {**caches.run(plan, call.position, call.inputs, heard)}
        for name, slots in caches.contents().items():
            observed[name] = slots.narrow(layout.axis(name), call.position, query).clone()
        seen.append(observed)
    seen.append({f"all slots of {name}": slots for name, slots in caches.contents().items()})
    return seen
