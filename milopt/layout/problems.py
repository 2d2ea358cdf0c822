"""A choice for each of many variables, at a cost that is a sum of tables over few of them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

__all__ = ["Array", "Problem", "Table", "of_part"]

Array: TypeAlias = Any
"""A numpy array of float64."""


@dataclass(frozen=True)
class Table:
    """What each combination of choices of ``variables`` costs; infinite where it is not allowed."""

    variables: tuple[int, ...]
    costs: Array


@dataclass
class Problem:
    """Variables with ``sizes[i]`` choices each, and tables. ``names`` tell what the variables stand for.

    ``constant`` is paid in any case.
    """

    sizes: list[int] = field(default_factory=list[int])
    tables: list[Table] = field(default_factory=list[Table])
    names: list[Hashable] = field(default_factory=list[Hashable])
    constant: float = 0.0

    def variable(self, size: int, name: Hashable = None) -> int:
        """A new variable of ``size`` choices."""
        self.sizes.append(size)
        self.names.append(name)
        return len(self.sizes) - 1

    def add(self, variables: Sequence[int], costs: Array) -> None:
        """One more table; ``costs`` has an axis for each of the variables, which are all different."""
        costs = np.asarray(costs, np.float64)
        assert costs.shape == tuple(self.sizes[each] for each in variables), (costs.shape, variables)
        assert len(set(variables)) == len(variables)
        if variables:
            self.tables.append(Table(tuple(variables), costs))
        else:
            self.constant += float(costs)

    def cost(self, choice: Sequence[int]) -> float:
        """What a choice for every variable costs."""
        return self.constant + float(
            sum(table.costs[tuple(choice[each] for each in table.variables)] for table in self.tables)
        )

    def parts(self) -> Iterator[tuple[list[int], list[Table]]]:
        """The variables and tables that depend on each other, part by part."""
        parent = list(range(len(self.sizes)))

        def root(of: int) -> int:
            while parent[of] != of:
                parent[of] = parent[parent[of]]
                of = parent[of]
            return of

        for table in self.tables:
            for each in table.variables[1:]:
                parent[root(each)] = root(table.variables[0])
        members: dict[int, list[int]] = {}
        for each in range(len(self.sizes)):
            members.setdefault(root(each), []).append(each)
        held: dict[int, list[Table]] = {each: [] for each in members}
        for table in self.tables:
            held[root(table.variables[0])].append(table)
        for each, variables in members.items():
            yield variables, held[each]


def of_part(problem: Problem, variables: Iterable[int], tables: Iterable[Table]) -> tuple[Problem, list[int]]:
    """A part as a problem of its own, and the variables of the whole that its variables are."""
    order = list(variables)
    position = {each: at for at, each in enumerate(order)}
    part = Problem()
    for each in order:
        part.variable(problem.sizes[each], problem.names[each])
    for table in tables:
        part.add([position[each] for each in table.variables], table.costs)
    return part, order
