"""Functions that a client calls in place of others from a position on, as one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from milopt.interpreter import Plan, State
from milopt.sets.anemll_windows import ROTATING
from milopt.sets.renaming import PLACE

__all__ = ["turning"]


def turning(plans: Mapping[str, Plan], window: int) -> dict[str, Plan]:
    """``infer`` and ``prefill`` that run ``infer_rotate`` and ``prefill_rotate`` from position ``window`` on."""
    kept = {name: plan for name, plan in plans.items() if name not in ROTATING.values()}
    later = {name: plans.get(ROTATING.get(name, "")) for name in kept} if window else {}
    return {
        name: plan
        if (beyond := later.get(name)) is None
        else _Turning(**_fields(plan), before=plan, beyond=beyond, window=window)
        for name, plan in kept.items()
    }


def _fields(plan: Plan) -> dict[str, Any]:
    return {field.name: getattr(plan, field.name) for field in fields(Plan)}


@dataclass(frozen=True, kw_only=True)
class _Turning(Plan):
    """A function in two, for the positions before ``window`` and those from there on."""

    before: Plan
    beyond: Plan
    window: int

    def run(
        self, inputs: Mapping[str, Any], state: State | None = None, listeners: Iterable[object] = ()
    ) -> dict[str, torch.Tensor]:
        place = int(np.asarray(inputs[PLACE]).flatten()[0])
        return (self.before if place < self.window else self.beyond).run(inputs, state, listeners)
