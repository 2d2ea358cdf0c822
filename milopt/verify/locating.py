"""Where do two programs part? Listeners on the values whose names both have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from milopt.interpreter import Plan, Step
from milopt.metrics import Exact, Metric
from milopt.verify.measuring import Meter
from milopt.verify.verdict import FirstValue

__all__ = ["Capture", "Fingerprints", "excerpt", "first_parting", "first_value"]

Key = tuple[str, int]
"""A value's name, and how many values of that name the run had before: a loop makes several."""

# Random directions a value is projected on. One suffices but for bad luck; two make that luck impossible in practice.
_DIRECTIONS = 2


@dataclass(frozen=True)
class Print:
    """A few numbers that tell a large value from another, and its size: values of a whole run would not fit."""

    op_type: str
    shape: tuple[int, ...]
    scale: float
    numbers: torch.Tensor
    odd: int


class Fingerprints:
    """A listener that takes the fingerprint of every floating value.

    ``ordered=False`` makes them blind to the order of entries: a change of the cache's form permutes columns.
    """

    def __init__(self, *, ordered: bool) -> None:
        self.prints: dict[Key, Print] = {}
        self._ordered = ordered
        self._count: Counter[str] = Counter()

    def after(self, step: Step, outputs: Mapping[str, torch.Tensor]) -> None:
        for name, value in outputs.items():
            key = name, self._count[name]
            self._count[name] += 1
            if hasattr(value, "numel") and value.is_floating_point() and value.numel():  # lists and labels have none
                self.prints[key] = self._print(step.op_type, value)

    def _print(self, op_type: str, value: torch.Tensor) -> Print:
        flat = value.detach().double().flatten()
        known = torch.where(flat.isfinite(), flat, 0.0)
        if self._ordered:
            generator = torch.Generator().manual_seed(flat.numel())
            numbers = [
                known @ torch.randn(flat.shape, generator=generator, dtype=flat.dtype) for _ in range(_DIRECTIONS)
            ]
        else:
            numbers = [known.sum(), known.square().sum().sqrt()]
        odd = int((~flat.isfinite()).sum())
        return Print(op_type, tuple(value.shape), float(known.abs().max()), torch.stack(numbers), odd)


class Capture:
    """A listener that keeps one value."""

    def __init__(self, key: Key) -> None:
        self.value: torch.Tensor | None = None
        self._key = key
        self._count = 0

    def after(self, step: Step, outputs: Mapping[str, torch.Tensor]) -> None:
        name, wanted = self._key
        if name in outputs:
            if self._count == wanted:
                self.value = outputs[name].clone()
            self._count += 1


def first_parting(before: Fingerprints, after: Fingerprints, metric: Metric) -> tuple[Key, str] | None:
    """The first value, in the order of ``before``, that is in both runs with one shape and differs."""
    for key, old in before.prints.items():
        new = after.prints.get(key)
        if new is None or new.shape != old.shape:
            continue
        if _apart(old, new, metric):
            return key, old.op_type
    return None


def _apart(old: Print, new: Print, metric: Metric) -> bool:
    if old.odd != new.odd:
        return True
    difference = float((old.numbers - new.numbers).abs().max())
    size = float(torch.maximum(old.numbers.abs(), new.numbers.abs()).max())
    if isinstance(metric, Exact):
        return difference > metric.rtol * max(old.scale, new.scale)
    return difference > size * 10 ** (-metric.min_snr_db / 20)


def first_value(
    key: Key, op_type: str, before: torch.Tensor | None, after: torch.Tensor | None, *, ordered: bool
) -> FirstValue:
    """The value with its worst entry; without one where the order of its entries changed."""
    if before is None or after is None or not ordered:
        return FirstValue(key[0], op_type)
    meter = Meter(key[0])
    meter.add(0, 0, before, after)
    if not meter.places:
        return FirstValue(key[0], op_type)
    _, where = meter.places[0]
    return FirstValue(key[0], op_type, where.index, where.before, where.after)


# How many ops an excerpt shows on either side of the value.
_AROUND = 4


def excerpt(plan: Plan, opset: str, name: str | None) -> str:
    """One line of the function: its inputs, and the ops around the value ``name``."""
    steps = plan.body.steps
    at = next((i for i, step in enumerate(steps) if name in step.outputs), len(steps) - 1)
    low, high = max(at - _AROUND, 0), at + _AROUND + 1
    ops = [("... " if low else "") + ", ".join(step.op_type for step in steps[low:high])]
    inputs = list(plan.inputs)
    shown = ", ".join(f"%{each}" for each in inputs[:_AROUND]) + (", ..." if len(inputs) > _AROUND else "")
    return f"{plan.function}[{opset}]({shown}) {ops[0]}{' ...' if high < len(steps) else ''}"
