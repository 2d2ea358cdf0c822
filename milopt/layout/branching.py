"""Exact minimum by branch and bound, or the best choice found within a limit of work, and how far off it may be."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from milopt.layout.networks import Network, reduce
from milopt.layout.problems import Problem

__all__ = ["LARGEST", "WORK", "Found", "search"]

# elements of tables that a search may compute: some seconds of one core, and the same search on every machine
WORK = 1 << 30
# costs are whole elements, and a little for every op: what no element depends on is worth a part of the work
_ELEMENT = 0.5
_FOR_OPS = 8

# elements of a table of a bound, or of a case that is solved by elimination
LARGEST = 1 << 16

# relative: sums of some hundred float64 costs are exact to 1e-13 of the largest
_NOTHING = 1e-9


@dataclass(frozen=True)
class Found:
    """A choice, what it costs, and a cost that none is below: the same where the choice is proved to be the best."""

    cost: float
    choice: list[int]
    bound: float
    work: int = 0


def search(problem: Problem, work: int = WORK, largest: int = LARGEST) -> Found:
    """The least cost, or the least found by the time that ``work`` elements of tables were computed.

    The case with the lowest bound is split first, by the choices of :meth:`~milopt.layout.networks.Network.hub`. A
    bound is what :meth:`~milopt.layout.networks.Network.relax` finds. Less than an element is worth less work.
    """
    best = Found(float("inf"), [0] * len(problem.sizes), -float("inf"))
    spent, count = 0, 0
    cases: list[tuple[float, int, Network | None]] = [(-float("inf"), 0, None)]
    while cases:
        bound, _, case = heapq.heappop(cases)
        if bound >= best.cost - _NOTHING * (1.0 + abs(best.cost)):
            break
        if spent > (work if best.cost - bound >= _ELEMENT else work / _FOR_OPS):
            return Found(best.cost, best.choice, bound, spent)
        for each in [Network(problem)] if case is None else _split(case):
            reduce(each, largest)
            spent += each.work
            relaxed = each.copy()
            relaxed.relax(largest)
            choice = relaxed.choices()
            if each.left:
                choice = _descended(problem, choice)
            spent += relaxed.work
            cost = problem.cost(choice)
            if cost < best.cost:
                best = Found(cost, choice, bound)
            if each.left and relaxed.constant < best.cost:
                count += 1
                heapq.heappush(cases, (relaxed.constant, count, each))
    return Found(best.cost, best.choice, best.cost, spent)


def _split(case: Network) -> list[Network]:
    hub = case.hub()
    made: list[Network] = []
    for value in range(len(case.values[hub])):
        made.append(case.copy())
        made[-1].fix(hub, value)
    return made


def _descended(problem: Problem, choice: Sequence[int]) -> list[int]:
    """A choice that changing one variable makes no cheaper."""
    here = list(choice)
    large = 1.0 + sum(float(np.abs(table.costs[np.isfinite(table.costs)]).sum()) for table in problem.tables)
    held: list[list[tuple[tuple[int, ...], np.ndarray[tuple[int, ...], np.dtype[np.float64]]]]] = [
        [] for _ in problem.sizes
    ]
    for table in problem.tables:
        finite = np.where(np.isfinite(table.costs), table.costs, large)
        for axis, at in enumerate(table.variables):
            others = tuple(each for each in table.variables if each != at)
            held[at].append((others, np.moveaxis(finite, axis, -1)))
    changed = True
    while changed:
        changed = False
        for at, tables in enumerate(held):
            costs = np.zeros(problem.sizes[at])
            for others, finite in tables:
                costs = costs + finite[tuple(here[each] for each in others)]
            least = int(costs.argmin())
            if costs[least] < costs[here[at]]:
                here[at], changed = least, True
    return here
