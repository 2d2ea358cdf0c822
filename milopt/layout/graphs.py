"""A program as tensors and relations, the layouts that come into question, and the choice among them as a problem."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from math import ceil

import numpy as np

from milopt.layout.forms import Layout, axes_of, cost, plan
from milopt.layout.problems import Array, Problem
from milopt.layout.relations import Mode, Relation
from milopt.layout.solving import solve

__all__ = ["Choice", "Graph", "Tensor"]

# layouts of one tensor that are looked at; real programs have at most some ten
MOST_LAYOUTS = 24

# Of a tensor that more relations than this use (a mask, a table of cosines) layouts with the same axes longer than 1
# are one: each layout told apart is a variable that all those relations share. The elements moved are still the fewest,
# but not the ops that only add unit axes.
MANY = 4


@dataclass
class Tensor:
    """The numbers of a value, in whatever layout: the sizes of its pieces, and the layouts it is needed in besides.

    ``producer`` is a relation and the port it comes from, ``consumers`` those it goes to.
    """

    sizes: tuple[int, ...]
    wanted: set[Layout] = field(default_factory=set[Layout])
    producer: tuple[int, int] | None = None
    consumers: list[tuple[int, int]] = field(default_factory=list["tuple[int, int]"])

    @property
    def elements(self) -> float:
        return float(np.prod(self.sizes, dtype=np.float64))


@dataclass
class Choice:
    """A mode for each relation, its cost (elements moved, and ops), and how it was found.

    ``bound`` is a cost that no choice is below: ``cost``, where it was proved. ``work`` are the elements of tables that
    were computed.
    """

    modes: list[Mode]
    cost: float
    methods: tuple[str, ...] = ()
    bound: float = 0.0
    work: int = 0

    @property
    def excess(self) -> int:
        """How many elements more than the fewest it may move: none, but where a search ended before its proof."""
        return max(ceil(self.cost - self.bound - 0.5), 0)  # less than half an element are ops


@dataclass
class Graph:
    tensors: list[Tensor] = field(default_factory=list[Tensor])
    relations: list[Relation] = field(default_factory=list[Relation])

    def tensor(self, sizes: Iterable[int]) -> int:
        self.tensors.append(Tensor(tuple(sizes)))
        return len(self.tensors) - 1

    def relate(self, relation: Relation, operands: int) -> int:
        """Add an op, whose first ``operands`` ports are its operands."""
        number = len(self.relations)
        self.relations.append(relation)
        for at, port in enumerate(relation.ports):
            tensor = self.tensors[port.tensor]
            if at < operands:
                tensor.consumers.append((number, at))
            else:
                tensor.producer = (number, at)
        return number

    def move(self, tensor: int, start: Layout, end: Layout) -> float:
        return cost(start, end, self.tensors[tensor].elements)

    def _elements(self, tensor: int, start: Layout, end: Layout) -> float:
        """The same without the little for each op."""
        return self.tensors[tensor].elements * sum(step.moves for step in plan(start, end))

    def moves(self, modes: Sequence[Mode]) -> Iterator[tuple[int, Layout, Layout, list[int | None]]]:
        """The moves that a choice of modes needs: tensor, from, to, and the relations that need it (or ``None``)."""
        for number, tensor in enumerate(self.tensors):
            if tensor.producer is None:
                continue
            maker, port = tensor.producer
            start = modes[maker].layouts[port]
            users: dict[Layout, list[int | None]] = {layout: [None] for layout in sorted(tensor.wanted)}
            for user, at in tensor.consumers:
                users.setdefault(modes[user].layouts[at], []).append(user)
            for end, those in users.items():
                if end != start:
                    yield number, start, end, those

    def moved(self, modes: Sequence[Mode]) -> int:
        """The elements that a choice of modes moves."""
        return int(sum(self._elements(tensor, start, end) for tensor, start, end, _ in self.moves(modes)))

    def choose(self, also: Iterable[tuple[int, Layout]] = ()) -> Choice:
        """A mode for each relation such that the moves cost least. ``also`` as for :meth:`modes`."""
        modes = self.modes(also)
        problem, variables = self.problem(modes)
        solution = solve(problem)
        chosen = [
            each[0] if variable is None else each[solution.choice[variable]]
            for each, variable in zip(modes, variables, strict=True)
        ]
        return Choice(chosen, solution.cost, tuple(sorted(solution.methods)), solution.bound, solution.work)

    def modes(self, also: Iterable[tuple[int, Layout]] = ()) -> list[list[Mode]]:
        """Every relation's modes, the original one first: the closure of the layouts in the program under the ops.

        ``also`` are further layouts of tensors to begin with.
        """
        modes: list[dict[Mode, None]] = [{each.original: None} for each in self.relations]
        layouts: list[dict[Layout, None]] = [{} for _ in self.tensors]
        todo: deque[tuple[int, Layout]] = deque()

        def have(tensor: int, layout: Layout) -> None:
            known = layouts[tensor]
            if layout not in known and len(known) < MOST_LAYOUTS:
                known[layout] = None
                todo.append((tensor, layout))

        def take(number: int, mode: Mode) -> None:
            if mode not in modes[number]:
                modes[number][mode] = None
                for port, layout in zip(self.relations[number].ports, mode.layouts, strict=True):
                    have(port.tensor, layout)

        for number, relation in enumerate(self.relations):
            for port in relation.ports:
                have(port.tensor, port.home)
            for mode in relation.seeds():
                take(number, mode)
        for tensor, each in enumerate(self.tensors):
            for layout in sorted(each.wanted):
                have(tensor, layout)
        for tensor, known in enumerate(layouts):
            # an op may stand between the steps of a move
            for start, end in list(permutations(known, 2)):
                for step in plan(start, end)[:-1]:
                    have(tensor, step.to)
        for tensor, layout in also:
            have(tensor, layout)
        while todo:
            tensor, layout = todo.popleft()
            ends = self.tensors[tensor].consumers
            producer = self.tensors[tensor].producer
            for number, at in (*ends, *([producer] if producer is not None else [])):
                for mode in self.relations[number].with_layout(at, layout):
                    take(number, mode)
        return [list(each) for each in modes]

    def problem(self, modes: list[list[Mode]]) -> tuple[Problem, list[int | None]]:
        """The choice of modes as a problem, and each relation's variable in it (none where it has one mode only)."""
        problem = Problem()
        variables: list[int | None] = [
            problem.variable(len(each), ("mode", number)) if len(each) > 1 else None
            for number, each in enumerate(modes)
        ]
        for number, tensor in enumerate(self.tensors):
            self._moves(problem, number, tensor, modes, variables)
        return problem, variables

    def _moves(
        self, problem: Problem, number: int, tensor: Tensor, modes: list[list[Mode]], variables: list[int | None]
    ) -> None:
        """The tables for the moves of one tensor: each layout that it is needed in is paid once."""
        if tensor.producer is None:
            return
        maker, port = tensor.producer
        made = [mode.layouts[port] for mode in modes[maker]]
        needs: dict[int, list[frozenset[Layout]]] = {}
        for user, at in tensor.consumers:
            own = needs.setdefault(user, [frozenset()] * len(modes[user]))
            needs[user] = [each | {mode.layouts[at]} for each, mode in zip(own, modes[user], strict=True)]
        always = set(tensor.wanted)
        for each in needs.values():
            always |= set(each[0]).intersection(*each[1:])
        price = self.move
        if len(needs) > MANY:
            price = self._elements
            always = {axes_of(layout) for layout in always}
            needs = {user: [frozenset(map(axes_of, each)) for each in own] for user, own in needs.items()}
        needs = {user: [each - always for each in own] for user, own in needs.items()}
        needs = {user: own for user, own in needs.items() if any(own)}
        fixed = np.array([sum(price(number, start, end) for end in always) for start in made])
        self._add(problem, [variables[maker]], fixed)
        if len(needs) == 1:
            ((user, own),) = needs.items()
            costs = np.array([[sum(price(number, a, b) for b in each) for each in own] for a in made])
            if user == maker:
                self._add(problem, [variables[maker]], np.diagonal(costs))
            else:
                self._add(problem, [variables[maker], variables[user]], costs)
            return
        wanted = {layout for own in needs.values() for each in own for layout in each}
        for layout in sorted(wanted):
            prices = np.array([price(number, start, layout) for start in made])
            if not prices.any():
                continue
            there = problem.variable(2, ("there", number, layout))
            self._add(problem, [variables[maker], there], np.stack([np.zeros_like(prices), prices], axis=-1))
            for user, own in needs.items():
                forbidden = np.array([[np.inf, 0.0] if layout in each else [0.0, 0.0] for each in own])
                if forbidden.any():
                    self._add(problem, [variables[user], there], forbidden)

    @staticmethod
    def _add(problem: Problem, variables: list[int | None], costs: Array) -> None:
        """A table, in which those without a variable have their only choice."""
        for axis in reversed([at for at, each in enumerate(variables) if each is None]):
            costs = np.asarray(costs.take(0, axis=axis))
        if costs.any():
            problem.add([each for each in variables if each is not None], costs)

    def cost_of(self, modes: Sequence[Mode]) -> float:
        """What a choice of modes costs, counted directly."""
        return sum(self.move(tensor, start, end) for tensor, start, end, _ in self.moves(modes))
