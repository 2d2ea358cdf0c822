"""The minimum of a problem, part by part, by the exact method that fits the part."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from milopt.layout.cuts import cut, is_cut
from milopt.layout.elimination import LARGEST, TooWide, eliminate
from milopt.layout.integers import integers
from milopt.layout.problems import Problem, of_part

__all__ = ["Solution", "solve"]


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


def _part(part: Problem, largest: int) -> tuple[float, list[int], str]:
    try:
        return *eliminate(part, largest), "elimination"
    except TooWide:
        pass
    if is_cut(part):
        return *cut(part), "minimum cut"
    return *integers(part), "integer program"
