"""The minimum by an integer program, solved by HiGHS through scipy: what milopt.layout is compared with."""

from __future__ import annotations

import importlib
from itertools import product
from typing import Any

import numpy as np
import pytest

from milopt.errors import MiloptError
from milopt.layout.problems import Problem

__all__ = ["integers"]


def integers(problem: Problem) -> tuple[float, list[int]]:
    """The least cost and a choice that has it.

    The linear relaxation is that of the local polytope: a column for each choice of each variable, and for each entry
    of each table, whose sums over the other variables are those choices. MiloptError where there is none. The test that
    calls it is skipped without scipy.
    """
    optimize: Any = pytest.importorskip("scipy.optimize", reason="milopt[references] is not installed")
    sparse: Any = importlib.import_module("scipy.sparse")
    first = np.concatenate([[0], np.cumsum(problem.sizes)]).astype(int)
    columns = int(first[-1])
    costs: list[float] = [0.0] * columns
    integral = [1] * columns
    rows: list[tuple[list[int], list[float], float]] = []
    for at, size in enumerate(problem.sizes):
        rows.append((list(range(first[at], first[at] + size)), [1.0] * size, 1.0))
    upper = [1.0] * columns
    for table in problem.tables:
        if len(table.variables) == 1:
            for value, cost in enumerate(table.costs.tolist()):
                column = int(first[table.variables[0]]) + value
                if np.isinf(cost):
                    upper[column] = 0.0
                else:
                    costs[column] += cost
            continue
        begin = len(costs)
        entries = list(product(*(range(problem.sizes[at]) for at in table.variables)))
        forbidden = np.isinf(table.costs).ravel()
        costs += np.where(forbidden, 0.0, table.costs.ravel()).tolist()
        upper += (~forbidden).astype(float).tolist()
        integral += [0] * table.costs.size
        for axis, at in enumerate(table.variables):
            for value in range(problem.sizes[at]):
                chosen = [begin + number for number, entry in enumerate(entries) if entry[axis] == value]
                rows.append(([*chosen, int(first[at]) + value], [1.0] * len(chosen) + [-1.0], 0.0))
    matrix = sparse.csr_matrix(
        (
            np.concatenate([weights for _, weights, _ in rows]),
            np.concatenate([places for places, _, _ in rows]).astype(int),
            np.concatenate([[0], np.cumsum([len(places) for places, _, _ in rows])]),
        ),
        shape=(len(rows), len(costs)),
    )
    right = np.array([value for _, _, value in rows])
    found = optimize.milp(
        np.array(costs),
        constraints=optimize.LinearConstraint(matrix, right, right),
        integrality=np.array(integral),
        bounds=optimize.Bounds(0.0, np.array(upper)),
        options={"mip_rel_gap": 0.0},
    )
    if found.status != 0:
        raise MiloptError(f"the integer program was not solved: {found.message}")
    choice = [int(np.argmax(found.x[first[at] : first[at + 1]])) for at in range(len(problem.sizes))]
    return problem.cost(choice), choice
