"""Which entries two programs choose: a router's experts, or where a maximum is.

Rounding moves a result by a little, but for a choice: where two scores are as near as that, the other entry is taken,
and everything behind it is of another size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from milopt.interpreter import Step

__all__ = ["Choice", "Choices", "first_choice"]

Key: TypeAlias = "tuple[str, int]"
_CHOOSING = frozenset({"topk", "reduce_argmax", "reduce_argmin"})


@dataclass(frozen=True)
class Choice:
    """An op that chose another entry: ``place`` is which of its rows, ``scores`` are those of both entries, before."""

    name: str
    op_type: str
    place: tuple[int, ...]
    before: int
    after: int
    scores: tuple[float, float]

    def __str__(self) -> str:
        one, other = self.scores
        return (
            f"{self.name} ({self.op_type}) at {self.place}: {self.before} before, {self.after} after, "
            f"whose scores were {one:.6g} and {other:.6g}"
        )


@dataclass(frozen=True)
class _Chosen:
    op_type: str
    scores: torch.Tensor
    indices: torch.Tensor


class Choices:
    """A listener that keeps what was chosen from, and what was, as rows: (..., entries) and (..., chosen)."""

    def __init__(self) -> None:
        self.made: dict[Key, _Chosen] = {}
        self._scores: torch.Tensor | None = None
        self._count: Counter[str] = Counter()

    def before(self, step: Step, values: Mapping[str, Any]) -> None:
        self._scores = values["x"].clone() if step.op_type in _CHOOSING else None

    def after(self, step: Step, outputs: Mapping[str, Any]) -> None:
        scores, self._scores = self._scores, None
        if scores is None:
            return
        for name, value in outputs.items():
            if value.is_floating_point():
                continue
            axis = int(step.call.keywords.get("axis", -1))
            indices = value if value.dim() == scores.dim() else value.unsqueeze(axis)
            key = name, self._count[name]
            self._count[name] += 1
            self.made[key] = _Chosen(step.op_type, scores.movedim(axis, -1), indices.long().movedim(axis, -1).clone())


def first_choice(before: Choices, after: Choices) -> Choice | None:
    """The first choice, in the order of ``before``, that both programs make and make differently, in any order."""
    for (name, number), old in before.made.items():
        new = after.made.get((name, number))
        if new is None or new.indices.shape != old.indices.shape or new.scores.shape != old.scores.shape:
            continue
        apart = (old.indices.sort(-1).values != new.indices.sort(-1).values).any(-1)
        if not apart.any():
            continue
        place = tuple(int(each) for each in apart.nonzero()[0])
        one, other = set(map(int, old.indices[place])), set(map(int, new.indices[place]))
        taken, instead = min(one - other), min(other - one)
        row = old.scores[place]
        return Choice(name, old.op_type, place, taken, instead, (float(row[taken]), float(row[instead])))
    return None
