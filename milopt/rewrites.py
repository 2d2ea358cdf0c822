"""The single rewrites of one run: counted, remembered, and stopped after so many.

A pass says nothing of this and needs no change: :func:`milopt.apply` looks at :attr:`milopt.Model.rewrites`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from milopt.mil import Operation
from milopt.reports import Miss, place_of

__all__ = ["Rewrite", "Rewrites"]


@dataclass(frozen=True)
class Rewrite:
    """One application of a rule: the op it replaced is ``place``, ``ops`` are all that its pattern matched."""

    rule: Any
    function: str
    place: str
    ops: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.rule.name} at {self.place} in {self.function}"


@dataclass
class Rewrites:
    """What rules do to one model while it is its ``rewrites``; ``limit`` is how many rewrites they may still do.

    ``made`` lists the rewrites in order, ``misses`` the reasons of every rule at every op it was last tried at, also
    those that a pass leaves out of its report.
    """

    limit: int | None = None
    made: list[Rewrite] = field(default_factory=list["Rewrite"])
    misses: dict[tuple[str, str, str], Miss] = field(default_factory=dict[tuple[str, str, str], Miss])

    @property
    def full(self) -> bool:
        """Whether no more rewrites may be made."""
        return self.limit is not None and len(self.made) >= self.limit

    def note(self, rule: Any, function: str, ops: Sequence[Operation]) -> None:
        """A rewrite is about to be made; the first of ``ops`` is the root."""
        names = tuple(map(place_of, ops))
        for key in [(rule.name, function, name) for name in names]:
            self.misses.pop(key, None)
        self.made.append(Rewrite(rule, function, names[0], names))

    def missed(self, misses: Iterable[Miss]) -> None:
        """Rules were tried and did not apply."""
        self.misses.update({(miss.rule, miss.function, miss.root): miss for miss in misses})
