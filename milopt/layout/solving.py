"""The minimum of a problem, part by part, by the exact method that fits the part."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from milopt.layout.cuts import cut, is_cut
from milopt.layout.elimination import LARGEST, TooWide, eliminate
from milopt.layout.integers import integers
from milopt.layout.problems import Problem, of_part

__all__ = ["Solution", "solve"]


# How many variables are gone through case by case, one within the other, and how many choices these may have.
DEPTH = 1
MOST_CASES = 16


@dataclass
class Solution:
    """The least cost, a choice that has it, and how many parts each method solved."""

    cost: float
    choice: list[int]
    methods: Counter[str] = field(default_factory=Counter[str])


def solve(problem: Problem, largest: int = LARGEST) -> Solution:
    """An exact minimum.

    A part is solved by eliminating its variables where no table gets larger than ``largest``, else by a minimum cut
    where its variables have two choices and its tables are submodular, else as an integer program.
    """
    solution = Solution(problem.constant, [0] * len(problem.sizes))
    for variables, tables in problem.parts():
        part, order = of_part(problem, variables, tables)
        cost, choice, method = _part(part, largest)
        solution.cost += cost
        solution.methods[method] += 1
        for variable, value in zip(order, choice, strict=True):
            solution.choice[variable] = value
    return solution


def _part(part: Problem, largest: int, depth: int = DEPTH) -> tuple[float, list[int], str]:
    try:
        return *eliminate(part, largest), "elimination"
    except TooWide:
        pass
    if is_cut(part):
        return *cut(part), "minimum cut"
    hub = _hub(part)
    if depth and part.sizes[hub] <= MOST_CASES:
        try:
            return *_cases(part, hub, largest, depth), "elimination by cases"
        except TooWide:
            pass
    if depth < DEPTH:
        raise TooWide("the cases are no narrower")
    return *integers(part), "integer program"


def _hub(part: Problem) -> int:
    """The variable that most others share a table with: the order of a state that all layers use."""
    neighbours: list[set[int]] = [set() for _ in part.sizes]
    for table in part.tables:
        for each in table.variables:
            neighbours[each].update(table.variables)
    return max(range(len(part.sizes)), key=lambda at: len(neighbours[at]))


def _cases(part: Problem, hub: int, largest: int, depth: int) -> tuple[float, list[int]]:
    """The best of the minima with each choice for ``hub``, without which the rest falls apart or gets narrower."""
    best: tuple[float, list[int]] = (float("inf"), [0] * len(part.sizes))
    for value in range(part.sizes[hub]):
        case = Problem([1 if at == hub else size for at, size in enumerate(part.sizes)], constant=part.constant)
        case.names = part.names
        for table in part.tables:
            costs = table.costs
            if hub in table.variables:
                costs = costs.take([value], axis=table.variables.index(hub))
            case.add(table.variables, costs)
        cost, choice = case.constant, [0] * len(part.sizes)
        for variables, tables in case.parts():
            inner, order = of_part(case, variables, tables)
            own, found, _ = _part(inner, largest, depth - 1)
            cost += own
            for variable, chosen in zip(order, found, strict=True):
                choice[variable] = chosen
        choice[hub] = value
        best = min(best, (cost, choice))
    return best
