"""The minimum of a problem, part by part, by the exact method that fits the part."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from milopt.layout.branching import LARGEST as LARGEST_CASE
from milopt.layout.branching import WORK, search
from milopt.layout.cuts import cut, is_cut
from milopt.layout.networks import Network, reduce
from milopt.layout.problems import Problem, of_part

__all__ = ["LARGEST", "Solution", "solve"]

# elements of a table: 32 MB of float64
LARGEST = 1 << 22


@dataclass
class Solution:
    """The least cost, a choice that has it, and how many parts each method solved.

    ``bound`` is a cost that no choice is below: less than ``cost`` where a search ended before its proof.
    """

    cost: float
    choice: list[int]
    bound: float
    methods: Counter[str] = field(default_factory=Counter[str])
    work: int = 0


def solve(problem: Problem, largest: int = LARGEST, work: int = WORK) -> Solution:
    """A minimum.

    A part is solved by eliminating its variables where no table gets larger than ``largest``. Where one would, it is a
    minimum cut if its variables have two choices and its tables are submodular, else a branch and bound, which ends
    when it has computed ``work`` elements of tables.
    """
    solution = Solution(problem.constant, [0] * len(problem.sizes), problem.constant)
    for variables, tables in problem.parts():
        part, order = of_part(problem, variables, tables)
        found = _part(part, largest, work)
        solution.cost += found.cost
        solution.bound += found.bound
        solution.methods += found.methods
        solution.work += found.work
        for variable, value in zip(order, found.choice, strict=True):
            solution.choice[variable] = value
    return solution


def _part(part: Problem, largest: int, work: int) -> Solution:
    network = Network(part)
    reduce(network, largest)
    if not network.left:
        choice = network.choices()
        cost = part.cost(choice)
        return Solution(cost, choice, cost, Counter(["elimination"]), network.work)
    if is_cut(part):
        cost, choice = cut(part)
        return Solution(cost, choice, cost, Counter(["minimum cut"]), network.work)
    core, order = network.core()
    found = search(core, work, min(largest, LARGEST_CASE))
    choice = network.choices(zip(order, found.choice, strict=True))
    cost = part.cost(choice)
    bound = cost if found.bound == found.cost else found.bound
    return Solution(cost, choice, bound, Counter(["branch and bound"]), network.work + found.work)
