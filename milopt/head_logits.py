"""Programs that give logits back in slices, or the largest of them, run as if they gave all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from milopt.interpreter import Plan, State, ValueInfo
from milopt.signature_head import HeadSignature

__all__ = ["logits_plans"]


def logits_plans(plans: Mapping[str, Plan], head: HeadSignature | None) -> dict[str, Plan]:
    """``plans`` with the logits that ``split-head`` took apart; those that are not given back are minus infinity.

    A function without the outputs that ``head`` names stays as it is.
    """
    return {name: plan if head is None else _whole(plan, head) for name, plan in plans.items()}


def _whole(plan: Plan, head: HeadSignature) -> Plan:
    infos = [plan.outputs.get(name) for name in head.names]
    known = [info for info in infos if info is not None and info.shape is not None]
    if head.output in plan.outputs or len(known) < len(infos):
        return plan
    outputs = {name: info for name, info in plan.outputs.items() if name not in head.names}
    outputs[head.output] = replace(known[-1], name=head.output, shape=_shape(known[-1], head))
    held: dict[str, Any] = {field.name: getattr(plan, field.name) for field in fields(Plan)}
    held["outputs"] = outputs
    return _Whole(**held, inner=plan, head=head)


def _shape(info: ValueInfo, head: HeadSignature) -> tuple[int | str, ...]:
    shape = [*(info.shape or ())]
    if head.kind == "argmax":
        shape.insert(len(shape) + 1 + head.axis, 1)
    shape[head.axis] = sum(head.sizes)
    return tuple(shape)


@dataclass(frozen=True, kw_only=True)
class _Whole(Plan):
    """A plan whose slices are joined, or whose largest logits are put where they belong."""

    inner: Plan
    head: HeadSignature

    def run(
        self, inputs: Mapping[str, Any], state: State | None = None, listeners: Iterable[object] = ()
    ) -> dict[str, torch.Tensor]:
        given = self.inner.run(inputs, state, listeners)
        parts = [given.pop(name) for name in self.head.names]
        given[self.head.output] = torch.cat(parts, self.head.axis) if self.head.kind == "slices" else self._put(*parts)
        return given

    def _put(self, index: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        axis = self.head.axis
        if self.head.kind == "argmax":
            index, value = index.unsqueeze(axis), value.unsqueeze(axis)
        shape = list(value.shape)
        shape[axis] = sum(self.head.sizes)
        return torch.full(shape, -torch.inf, dtype=value.dtype, device=value.device).scatter(axis, index.long(), value)
