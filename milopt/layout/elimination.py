"""Exact minimum by eliminating one variable after another (nonserial dynamic programming).

A variable's tables are added up and minimized over it; what is left is a table over its neighbours. The order is the
one that keeps the next table smallest. (Bertelè and Brioschi, *Nonserial Dynamic Programming*, 1972; Dechter's bucket
elimination, 1999.)
"""

from __future__ import annotations

import heapq

import numpy as np

from milopt.layout.problems import Array, Problem, Table

__all__ = ["LARGEST", "TooWide", "eliminate"]

# elements of a table: 32 MB of float64
LARGEST = 1 << 22


class TooWide(Exception):
    """A table would have more elements than allowed."""


def eliminate(problem: Problem, largest: int = LARGEST) -> tuple[float, list[int]]:
    """The least cost and a choice that has it. :class:`TooWide` where a table of more than ``largest`` is needed."""
    sizes = problem.sizes
    held: list[dict[int, Table]] = [{} for _ in sizes]
    neighbours: list[set[int]] = [set() for _ in sizes]
    constant, count = problem.constant, 0
    for table in problem.tables:
        for each in table.variables:
            held[each][count] = table
            neighbours[each].update(table.variables)
        count += 1
    for at, others in enumerate(neighbours):
        others.discard(at)

    def width(at: int) -> int:
        size = 1
        for each in neighbours[at]:
            size *= sizes[each]
        return size

    heap = [(width(at), at) for at in range(len(sizes))]
    heapq.heapify(heap)
    done = [False] * len(sizes)
    steps: list[tuple[int, tuple[int, ...], np.ndarray[tuple[int, ...], np.dtype[np.intp]]]] = []
    while heap:
        size, at = heapq.heappop(heap)
        if done[at]:
            continue
        if size != width(at):
            heapq.heappush(heap, (width(at), at))
            continue
        if size * sizes[at] > largest:
            raise TooWide(f"a table of {size * sizes[at]:,} elements")
        scope = tuple(sorted(neighbours[at]))
        total = _sum(list(held[at].values()), (*scope, at), sizes)
        steps.append((at, scope, total.argmin(axis=-1)))
        left = Table(scope, total.min(axis=-1))
        done[at] = True
        for key, table in held[at].items():
            for each in table.variables:
                if each != at:
                    held[each].pop(key, None)
        if not scope:
            constant += float(left.costs)
            continue
        for each in scope:
            held[each][count] = left
            neighbours[each].discard(at)
            neighbours[each].update(other for other in scope if other != each)
            heapq.heappush(heap, (width(each), each))
        count += 1
    choice = [0] * len(sizes)
    for at, scope, best in reversed(steps):
        choice[at] = int(best[tuple(choice[each] for each in scope)])
    return constant, choice


def _sum(tables: list[Table], scope: tuple[int, ...], sizes: list[int]) -> Array:
    axis = {each: at for at, each in enumerate(scope)}
    total: Array = np.zeros(tuple(sizes[each] for each in scope))
    for table in tables:
        order = sorted(range(len(table.variables)), key=lambda at: axis[table.variables[at]])
        shape = [1] * len(scope)
        for at in order:
            shape[axis[table.variables[at]]] = table.costs.shape[at]
        total += table.costs.transpose(order).reshape(shape)
    return total
