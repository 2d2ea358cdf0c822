"""Names for the values of a run, so that two runs of a program name alike what they have in common."""

from __future__ import annotations

from collections import Counter
from typing import TypeAlias

from milopt.interpreter import Step

__all__ = ["Key", "Occurrences"]

Key: TypeAlias = tuple[str, int]
"""A value's name, and how many values of that name the run had before: a loop makes several."""


class Occurrences:
    """Counts how often each value was made."""

    def __init__(self) -> None:
        self._made: Counter[str] = Counter()

    def upcoming(self, step: Step) -> tuple[Key, ...]:
        """The keys of the values that ``step`` makes next."""
        return tuple((name, self._made[name]) for name in step.outputs)

    def made(self, step: Step) -> tuple[Key, ...]:
        """The keys of the values that ``step`` has made; they are counted."""
        keys = self.upcoming(step)
        self._made.update(step.outputs)
        return keys
