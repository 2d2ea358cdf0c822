"""A problem of two choices with submodular tables is a minimum s-t cut.

A table over two variables is submodular where agreeing is never dearer than disagreeing: f(0, 0) + f(1, 1) <= f(0, 1) +
f(1, 0). Exchanging the choices of some variables may be needed first; whether signs can be found is a two-colouring.
(Kolmogorov and Zabih, *What energy functions can be minimized via graph cuts?*, 2004; Schlesinger, 2007, for the
exchange.)
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from milopt.layout.problems import Array, Problem

__all__ = ["cut", "is_cut"]

networkx: Any = importlib.import_module("networkx")  # it carries no types

# relative: sums of some hundred float64 costs are exact to 1e-13 of the largest
_NOTHING = 1e-9


def is_cut(problem: Problem) -> bool:
    """Whether :func:`cut` can solve the problem."""
    small = all(size <= 2 for size in problem.sizes)
    return small and all(len(table.variables) <= 2 for table in problem.tables) and _exchanged(problem) is not None


def _excess(costs: Array) -> float:
    """How much dearer it is to agree: at most 0 where the table is submodular. Infinite costs count as large ones."""
    finite = _finite(costs)
    return float(finite[0, 0] + finite[1, 1] - finite[0, 1] - finite[1, 0])


def _finite(costs: Array, large: float | None = None) -> Array:
    bound = np.abs(costs[np.isfinite(costs)]).sum() + 1.0 if large is None else large
    return np.where(np.isfinite(costs), costs, bound)


def _pairs(problem: Problem) -> dict[tuple[int, int], Array]:
    """One table for each pair of variables with two choices."""
    pairs: dict[tuple[int, int], Array] = {}
    for table in problem.tables:
        if table.costs.shape == (2, 2):
            first, second = table.variables
            key, costs = ((first, second), table.costs) if first < second else ((second, first), table.costs.T)
            pairs[key] = pairs.get(key, np.zeros((2, 2))) + costs
    return pairs


def _exchanged(problem: Problem) -> list[bool] | None:
    """Whose choices to exchange so that all tables are submodular; ``None`` where no exchange does it."""
    signs: list[bool | None] = [None] * len(problem.sizes)
    neighbours: dict[int, list[tuple[int, bool]]] = {}
    for (first, second), costs in _pairs(problem).items():
        excess = _excess(costs)
        if abs(excess) > _NOTHING * (1.0 + np.abs(_finite(costs)).max()):
            neighbours.setdefault(first, []).append((second, excess > 0))
            neighbours.setdefault(second, []).append((first, excess > 0))
    for start in range(len(signs)):
        if signs[start] is not None:
            continue
        signs[start] = False
        todo = [start]
        while todo:
            at = todo.pop()
            for other, differs in neighbours.get(at, ()):
                sign = bool(signs[at]) != differs
                if signs[other] is None:
                    signs[other] = sign
                    todo.append(other)
                elif signs[other] != sign:
                    return None
    return [bool(sign) for sign in signs]


def cut(problem: Problem) -> tuple[float, list[int]]:
    """The least cost and a choice that has it. The problem must be one for which :func:`is_cut` holds."""
    exchanged = _exchanged(problem)
    assert exchanged is not None
    large = 1.0 + sum(float(np.abs(table.costs[np.isfinite(table.costs)]).sum()) for table in problem.tables)
    constant = problem.constant
    single = [np.zeros(size) for size in problem.sizes]
    for table in problem.tables:
        costs = _finite(table.costs, large)
        if costs.shape != (2, 2):
            # a variable of one choice says nothing
            free = [at for at in table.variables if problem.sizes[at] == 2]
            if free:
                single[free[0]] += costs.reshape(2)
            else:
                constant += float(costs.reshape(()))
    capacity: dict[tuple[int, int], float] = {}
    source, sink = -1, -2

    def arc(start: int, end: int, weight: float) -> None:
        if weight > 0:
            capacity[start, end] = capacity.get((start, end), 0.0) + weight

    for (first, second), table_costs in _pairs(problem).items():
        costs = _finite(table_costs, large)
        costs = costs[::-1] if exchanged[first] else costs
        costs = costs[:, ::-1] if exchanged[second] else costs
        # costs = a + b·x + c·y + d·(1 - x)·y, with x and y the choices and d >= 0
        constant += float(costs[0, 0])
        _raise(single, first, exchanged, float(costs[1, 0] - costs[0, 0]))
        _raise(single, second, exchanged, float(costs[1, 1] - costs[1, 0]))
        arc(first, second, float(costs[0, 1] + costs[1, 0] - costs[0, 0] - costs[1, 1]))
    for at, costs in enumerate(single):
        if len(costs) == 1:
            constant += float(costs[0])
            continue
        zero, one = costs[::-1] if exchanged[at] else costs
        constant += float(min(zero, one))
        # a variable on the source's side has choice 0: choosing 1 cuts the arc from the source
        arc(source, at, float(one - zero))
        arc(at, sink, float(zero - one))
    graph = networkx.DiGraph()
    graph.add_nodes_from([source, sink])
    graph.add_edges_from((start, end, {"capacity": weight}) for (start, end), weight in capacity.items())
    value, (near, _) = networkx.minimum_cut(graph, source, sink)
    choice = [0] * len(problem.sizes)
    for at, size in enumerate(problem.sizes):
        if size == 2:
            choice[at] = int((at in graph and at not in near) != exchanged[at])
    return constant + float(value), choice


def _raise(single: list[Array], at: int, exchanged: list[bool], by: float) -> None:
    """Make the (exchanged) choice 1 dearer."""
    single[at][0 if exchanged[at] else 1] += by
