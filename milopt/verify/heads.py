"""A program that gives logits back, as if it gave what one with another head does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from milopt.interpreter import Plan, State, ValueInfo
from milopt.signature_head import HeadSignature
from milopt.verify.freezing import Frozen

__all__ = ["answering"]


def answering(old: Frozen, new: Frozen) -> Frozen:
    """``old``, with the outputs that ``new``'s metadata say its logits became; ``old`` itself where they are the same.

    So a program before ``split-head`` can be compared with the one after.
    """
    head = HeadSignature.from_metadata(new.metadata)
    if head is None or HeadSignature.from_metadata(old.metadata) == head:
        return old
    plans = {name: _answering(plan, head) for name, plan in old.plans.items()}
    indices = frozenset(head.names[:1]) if head.kind != "slices" else frozenset[str]()
    return replace(
        old,
        plans=plans,
        argmax={name: each | indices for name, each in old.argmax.items()},
        rounded={precision: answering(each, new) for precision, each in old.rounded.items()},
    )


def _answering(plan: Plan, head: HeadSignature) -> Plan:
    info = plan.outputs.get(head.output)
    if info is None or info.shape is None or len(info.shape) < -head.axis:
        return plan
    if info.shape[head.axis] != sum(head.sizes):
        return plan
    shown: dict[str, ValueInfo] = {}
    for name, each in plan.outputs.items():
        shown.update(_shown(info, info.shape, head) if name == head.output else {name: each})
    held: dict[str, Any] = {field.name: getattr(plan, field.name) for field in fields(Plan)}
    held["outputs"] = shown
    return _Answering(**held, inner=plan, head=head)


def _shown(info: ValueInfo, shape: tuple[int | str, ...], head: HeadSignature) -> dict[str, ValueInfo]:
    before, behind = shape[: head.axis], shape[len(shape) + head.axis + 1 :]
    if head.kind == "slices":
        return {
            name: ValueInfo(name, (*before, size, *behind), info.dtype)
            for name, size in zip(head.names, head.sizes, strict=True)
        }
    left = (*before, *behind) if head.kind == "argmax" else (*before, head.k, *behind)
    index, value = head.names
    return {index: ValueInfo(index, left, "int32"), value: ValueInfo(value, left, info.dtype)}


@dataclass(frozen=True, kw_only=True)
class _Answering(Plan):
    """A plan whose logits are taken apart, or looked through for the largest, once they are there."""

    inner: Plan
    head: HeadSignature

    def run(
        self, inputs: Mapping[str, Any], state: State | None = None, listeners: Iterable[object] = ()
    ) -> dict[str, torch.Tensor]:
        given = self.inner.run(inputs, state, listeners)
        answers: dict[str, torch.Tensor] = {}
        for name, value in given.items():
            answers.update(self._answers(value) if name == self.head.output else {name: value})
        return answers

    def _answers(self, logits: torch.Tensor) -> dict[str, torch.Tensor]:
        head = self.head
        if head.kind == "slices":
            return dict(zip(head.names, torch.split(logits, list(head.sizes), head.axis), strict=True))
        if head.kind == "argmax":
            index = logits.argmax(head.axis)  # the first of equal ones, and of NaN
            value = logits.amax(head.axis)
        else:
            # NaN last, of equal ones the first, as the interpreter's topk
            keys = torch.where(logits.isnan(), -torch.inf, logits)
            order = torch.argsort(keys, dim=head.axis, descending=True, stable=True)
            index = order.narrow(head.axis, 0, head.k)
            value = logits.gather(head.axis, index)
        return dict(zip(head.names, (index.to(torch.int32), value), strict=True))
