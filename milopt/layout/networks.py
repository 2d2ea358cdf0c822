"""A problem that gets smaller step by step, with its minimum kept: variables are eliminated, dominated choices go.

Eliminating a variable adds its tables up and minimizes them over it; what is left is a table over its neighbours.
(Bertelè and Brioschi, *Nonserial Dynamic Programming*, 1972; Dechter's bucket elimination, 1999.) A choice goes where
another is never dearer, whatever the neighbours choose. (Goldstein, *Efficient rotamer elimination*, 1994.) The two
help each other: tables that were added up show more choices to be useless, and fewer choices make smaller tables.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from milopt.layout.problems import Array, Problem, Table

__all__ = ["Network", "reduce"]

# elements of a table that may be needed to see that a choice is useless; what costs more than the choice may
_MOST_COMPARED = 1 << 20
# what a table costs however small it is, in elements: numpy computes some thousand in the time that a call takes
_CALL = 1 << 12
# variables that are copied in that time
_COPIED = 64
# tables of so many elements to begin with, and how much larger ones are tried next
_FIRST, _STEP = 1 << 10, 4


@dataclass(frozen=True)
class _Step:
    """A variable that is gone, and the tables over its neighbours and itself (the last axis) that say what it was."""

    variable: int
    values: Array
    tables: tuple[tuple[tuple[int, ...], tuple[Array, ...], Array], ...]


class Network:
    """What is left of a problem. ``values[i]`` are the choices that variable ``i`` still has, ``left`` those variables.

    ``constant`` is paid in any case, and is the minimum where nothing is left. ``work`` counts the elements of tables
    that were computed.
    """

    def __init__(self, problem: Problem) -> None:
        self.values: list[Array] = [np.arange(size) for size in problem.sizes]
        self.left: set[int] = set(range(len(problem.sizes)))
        self.constant = problem.constant
        self.work = 0
        self._held: list[dict[int, Table]] = [{} for _ in problem.sizes]
        self._count = 0
        # for each variable the number of tables that it shares with each of the others
        self._neighbours: list[dict[int, int]] = [{} for _ in problem.sizes]
        self._fresh: set[int] = set(self.left)
        self._steps: list[_Step] = []
        for table in sorted(problem.tables, key=lambda each: -each.costs.size):
            self._add(table.variables, table.costs)
        for at in list(self.left):
            if problem.sizes[at] == 1:
                self._settle(at)

    def copy(self) -> Network:
        """Another one that can be changed by itself."""
        other = object.__new__(Network)
        other.values, other.left, other.constant = list(self.values), set(self.left), self.constant
        other.work, other._count = _CALL * len(self._held) // _COPIED, self._count
        other._held = [dict(each) for each in self._held]
        other._neighbours = [dict(each) for each in self._neighbours]
        other._fresh, other._steps = set(self._fresh), list(self._steps)
        return other

    def width(self, at: int) -> int:
        """The elements of the table that eliminating a variable needs."""
        size = len(self.values[at])
        for each in self._neighbours[at]:
            size *= len(self.values[each])
        return size

    def hub(self) -> int:
        """The variable without which the rest gets narrowest: the one with the most choices around it."""
        return max(sorted(self.left), key=lambda at: self.width(at) // len(self.values[at]))

    def fix(self, at: int, value: int) -> None:
        """Let a variable have one of the choices that are left, ``value`` counted among these."""
        self._keep(at, np.array([value]))

    def eliminate(self, largest: int) -> None:
        """Eliminate variables, the narrowest first, until the next one needs a table of more than ``largest``."""
        self._eliminate(largest, relaxed=False)

    def relax(self, largest: int) -> None:
        """Eliminate all variables, with no table of more than ``largest``: ``constant`` is at most the minimum then.

        Where a variable's tables together are larger, groups of them are minimized apart, as if each had a variable of
        its own (mini-buckets: Dechter and Rish, 2003). What the groups charge for each choice is evened out before, so
        that they disagree less (Ihler, Flerova, Dechter and Otten, 2012).
        """
        self._eliminate(largest, relaxed=True)

    def prune(self) -> int:
        """Drop choices that others are never dearer than; how many."""
        dropped = 0
        while self._fresh:
            round_, self._fresh = sorted(self._fresh & self.left), set()
            for at in round_:
                if at not in self.left:
                    continue
                kept = self._undominated(at)
                if len(kept) < len(self.values[at]):
                    dropped += len(self.values[at]) - len(kept)
                    self._keep(at, kept)
        return dropped

    def core(self) -> tuple[Problem, list[int]]:
        """What is left as a problem, and which variables its variables are."""
        order = sorted(self.left)
        place = {at: index for index, at in enumerate(order)}
        problem = Problem(constant=self.constant)
        for at in order:
            problem.variable(len(self.values[at]), at)
        tables = {number: table for at in order for number, table in self._held[at].items()}
        for number in sorted(tables):
            problem.add([place[at] for at in tables[number].variables], tables[number].costs)
        return problem, order

    def choices(self, core: Iterable[tuple[int, int]] = ()) -> list[int]:
        """A choice for every variable of the problem: ``core`` for those left, the best ones for the others."""
        choice = [0] * len(self.values)
        for at, value in core:
            choice[at] = int(self.values[at][value])
        for step in reversed(self._steps):
            costs = np.zeros(len(step.values))
            for scope, values, table in step.tables:
                costs = costs + table[tuple(_index(own, choice[at]) for at, own in zip(scope, values, strict=True))]
            choice[step.variable] = int(step.values[int(costs.argmin())])
        return choice

    def _eliminate(self, largest: int, *, relaxed: bool) -> None:
        heap = [(self.width(at), at) for at in self.left]
        heapq.heapify(heap)
        while heap:
            width, at = heapq.heappop(heap)
            if at not in self.left:
                continue
            if width != self.width(at):
                heapq.heappush(heap, (self.width(at), at))
                continue
            if width > largest and not relaxed:
                return
            for each in self._take(at, self._groups(at, largest)):
                heapq.heappush(heap, (self.width(each), each))

    def _add(self, variables: tuple[int, ...], costs: Array) -> None:
        """One more table, put together with those over the same variables or fewer."""
        lowest = float(costs.min())
        if lowest == float("inf") or not variables:
            self.constant += lowest
            return
        self.constant += lowest
        costs = costs - lowest if lowest else costs
        if not costs.any():
            return
        own = set(variables)
        rarest = min(variables, key=lambda at: len(self._held[at]))
        for number, table in self._held[rarest].items():
            if own.issubset(table.variables):
                total = table.costs + _spread(variables, costs, table.variables)
                self._replace(number, Table(table.variables, total))
                self._fresh |= own
                return
        smaller = {
            number: table
            for at in variables
            for number, table in self._held[at].items()
            if own.issuperset(table.variables)
        }
        for number, table in smaller.items():
            costs = costs + _spread(table.variables, table.costs, variables)
            self._drop(number, table)
        self._replace(self._count, Table(variables, costs))
        self._count += 1
        for at, other in permutations(variables, 2):
            self._neighbours[at][other] = self._neighbours[at].get(other, 0) + 1
        self._fresh |= own

    def _replace(self, number: int, table: Table) -> None:
        for at in table.variables:
            self._held[at][number] = table

    def _drop(self, number: int, table: Table) -> None:
        for at in table.variables:
            del self._held[at][number]
        for at, other in permutations(table.variables, 2):
            self._neighbours[at][other] -= 1
            if not self._neighbours[at][other]:
                del self._neighbours[at][other]

    def _take(self, at: int, groups: list[list[Table]]) -> set[int]:
        """Eliminate a variable: each group of its tables is added up and minimized by itself. Its neighbours."""
        sums: list[tuple[tuple[int, ...], Array]] = []
        for group in groups:
            scope = tuple(sorted({each for table in group for each in table.variables} - {at}))
            sums.append((scope, self._sum(group, (*scope, at))))
        if len(sums) > 1:
            lows = [total.min(axis=tuple(range(total.ndim - 1))) for _, total in sums]
            # a choice that one group forbids is forbidden in all
            even = sum(lows) / len(lows)
            with np.errstate(invalid="ignore"):
                sums = [
                    (scope, total + np.where(np.isinf(even), np.inf, even - low))
                    for (scope, total), low in zip(sums, lows, strict=True)
                ]
        neighbours = set(self._neighbours[at])
        for number, table in list(self._held[at].items()):
            self._drop(number, table)
        self.left.discard(at)
        held = [(scope, tuple(self.values[each] for each in scope), total) for scope, total in sums]
        self._steps.append(_Step(at, self.values[at], tuple(held)))
        for scope, total in sums:
            self._add(scope, total.min(axis=-1))
        return neighbours

    def _groups(self, at: int, largest: int) -> list[list[Table]]:
        """A variable's tables in as few groups as may be, each of which needs a table of at most ``largest``."""
        if self.width(at) <= largest:
            return [list(self._held[at].values())]
        groups: list[tuple[set[int], list[Table]]] = []
        for _, table in sorted(self._held[at].items(), key=lambda each: (-each[1].costs.size, each[0])):
            for scope, group in groups:
                if np.prod([len(self.values[each]) for each in scope.union(table.variables)], dtype=float) <= largest:
                    scope.update(table.variables)
                    group.append(table)
                    break
            else:
                groups.append((set(table.variables), [table]))
        return [group for _, group in groups]

    def _sum(self, tables: list[Table], scope: tuple[int, ...]) -> Array:
        total: Array = np.zeros(tuple(len(self.values[each]) for each in scope))
        for table in tables:
            total += _spread(table.variables, table.costs, scope)
        self.work += total.size * (len(tables) + 1) + _CALL
        return total

    def _keep(self, at: int, kept: Array) -> None:
        """Let a variable have some of its choices only."""
        self.values[at] = self.values[at][kept]
        self._fresh.update(self._neighbours[at])
        for number, table in list(self._held[at].items()):
            costs = table.costs.take(kept, axis=table.variables.index(at))
            self._replace(number, Table(table.variables, costs))
        if len(kept) == 1:
            self._settle(at)

    def _settle(self, at: int) -> None:
        """Take a variable of one choice out of its tables."""
        tables = list(self._held[at].items())
        for number, table in tables:
            self._drop(number, table)
        self.left.discard(at)
        self._steps.append(_Step(at, self.values[at], ()))
        for _, table in tables:
            others = tuple(each for each in table.variables if each != at)
            self._add(others, table.costs.take(0, axis=table.variables.index(at)))

    def _undominated(self, at: int) -> Array:
        """The choices of a variable that none of the others makes useless."""
        count = len(self.values[at])
        tables = [np.moveaxis(t.costs, t.variables.index(at), 0).reshape(count, -1) for t in self._held[at].values()]
        compared = sum(count * table.size for table in tables)
        if compared > _MOST_COMPARED:
            return np.arange(count)
        self.work += compared + _CALL
        excess = np.zeros((count, count))
        for table in tables:
            # how much dearer the first may be than the second, which is forbidden where it is infinite
            with np.errstate(invalid="ignore"):
                more = np.where(np.isinf(table), -np.inf, table[:, None, :] - table)
                excess += more.max(axis=-1)
        useless = ~(excess > 0)  # NaN: the second is forbidden by one table
        gone = np.zeros(count, bool)
        for first in range(count):
            if not gone[first]:
                others = useless[first] & ~gone
                others[first] = False
                gone |= others
        return np.flatnonzero(~gone)


def reduce(network: Network, largest: int) -> None:
    """Make a problem smaller until nothing is left, or nothing more goes with tables of at most ``largest``."""
    limit = min(_FIRST, largest)
    while True:
        network.eliminate(limit)
        if not network.left:
            return
        if network.prune():
            continue
        if limit == largest:
            return
        limit = min(limit * _STEP, largest)


def _spread(variables: tuple[int, ...], costs: Array, scope: tuple[int, ...]) -> Array:
    """A table over some variables of ``scope``, with an axis for each of these."""
    axis = {each: at for at, each in enumerate(scope)}
    order = sorted(range(len(variables)), key=lambda at: axis[variables[at]])
    shape = [1] * len(scope)
    for at in order:
        shape[axis[variables[at]]] = costs.shape[at]
    return costs.transpose(order).reshape(shape)


def _index(values: Array, value: int) -> int:
    return int(np.searchsorted(values, value))
