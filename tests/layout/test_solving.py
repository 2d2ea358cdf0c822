"""Every method finds the minimum that trying everything finds."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milopt.errors import MiloptError
from milopt.layout.branching import search
from milopt.layout.cuts import cut, is_cut
from milopt.layout.networks import Network, reduce
from milopt.layout.problems import Problem
from milopt.layout.solving import solve

from .integers import integers

INFINITE = float("inf")


@st.composite
def problems(draw: Any, *, most: int = 3, tables: int = 2, infinite: bool = True) -> Problem:
    problem = Problem(constant=draw(st.integers(0, 3)))
    for _ in range(draw(st.integers(1, 5))):
        problem.variable(draw(st.integers(1, most)))
    count = len(problem.sizes)
    numbers = st.integers(0, 9).map(float)
    costs = st.one_of(numbers, numbers, numbers, st.just(INFINITE)) if infinite else numbers
    for _ in range(draw(st.integers(0, 7))):
        scope = draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=min(tables, count), unique=True))
        shape: tuple[int, ...] = tuple(problem.sizes[int(each)] for each in scope)
        size = int(np.prod(shape))
        values: Any = np.array(draw(st.lists(costs, min_size=size, max_size=size)))
        problem.add(scope, values.reshape(shape))
    return problem


def least(problem: Problem) -> float:
    return min(problem.cost(choice) for choice in product(*map(range, problem.sizes)))


@given(problems(tables=3))
def test_elimination(problem: Problem) -> None:
    network = Network(problem)
    reduce(network, 1 << 20)
    assert not network.left
    assert network.constant == least(problem) == problem.cost(network.choices())


@given(problems(tables=3), st.integers(1, 12))
def test_what_is_left_has_the_same_minimum(problem: Problem, largest: int) -> None:
    network = Network(problem)
    reduce(network, largest)
    core, order = network.core()
    assert least(core) == least(problem)
    best = min(product(*map(range, core.sizes)), key=core.cost)
    assert problem.cost(network.choices(zip(order, best, strict=True))) == least(problem)


@given(problems(tables=3))
def test_pruning_leaves_a_best_choice(problem: Problem) -> None:
    network = Network(problem)
    sizes = [len(each) for each in network.values]
    dropped = network.prune()
    assert dropped == sum(sizes) - sum(len(each) for each in network.values)
    kept = min(problem.cost(choice) for choice in product(*(each.tolist() for each in network.values)))
    assert kept == least(problem)
    assert not network.prune()


def test_a_choice_that_is_never_cheaper_goes() -> None:
    problem = Problem()
    first, second = problem.variable(3), problem.variable(2)
    problem.add([first, second], np.array([[4.0, 1.0], [5.0, 1.0], [3.0, 2.0]]))
    problem.add([second], np.array([0.0, 2.0]))
    network = Network(problem)
    assert network.prune() == 1
    assert [each.tolist() for each in network.values] == [[0, 2], [0, 1]]


@given(problems(tables=3), st.integers(1, 12))
def test_a_relaxed_problem_is_no_dearer(problem: Problem, largest: int) -> None:
    network = Network(problem)
    network.relax(largest)
    assert network.constant <= least(problem) + 1e-9
    assert not network.left
    assert problem.cost(network.choices()) >= least(problem)


@given(problems(tables=3), st.integers(1, 12))
def test_branch_and_bound(problem: Problem, largest: int) -> None:
    found = search(problem, largest=largest)
    assert found.cost == pytest.approx(least(problem)) == pytest.approx(problem.cost(found.choice))
    assert found.bound == found.cost


@given(problems(tables=3), st.integers(0, 1 << 15))
def test_a_search_that_ends_early_knows_how_far_off_it_may_be(problem: Problem, work: int) -> None:
    found = search(problem, work, largest=1)
    assert found.bound - 1e-9 <= least(problem) <= found.cost == problem.cost(found.choice)


@given(problems(tables=3))
def test_parts(problem: Problem) -> None:
    solution = solve(problem)
    assert solution.cost == least(problem) == problem.cost(solution.choice)


def test_the_same_choice_each_time() -> None:
    problem = Problem()
    first, second = problem.variable(2), problem.variable(3)
    problem.add([first, second], np.zeros((2, 3)))
    assert solve(problem).choice == [0, 0]


@st.composite
def cuts(draw: Any) -> Problem:
    """Of two choices, submodular after some exchange."""
    problem = draw(problems(most=2, infinite=False))
    swapped = [draw(st.booleans()) for _ in problem.sizes]
    made = Problem(constant=problem.constant)
    for size in problem.sizes:
        made.variable(size)
    for table in problem.tables:
        costs = table.costs.copy()
        if costs.shape == (2, 2):
            costs[0, 0], costs[1, 1] = 0.0, min(costs[1, 1], costs[0, 1] + costs[1, 0])
        for axis, each in enumerate(table.variables):
            if swapped[each] and problem.sizes[each] == 2:
                costs = np.flip(costs, axis)
        made.add(table.variables, costs)
    return made


@given(cuts())
def test_cut(problem: Problem) -> None:
    assert is_cut(problem)
    cost, choice = cut(problem)
    assert cost == pytest.approx(least(problem), abs=1e-9)
    assert problem.cost(choice) == pytest.approx(cost, abs=1e-9)


@given(problems(most=2))
def test_where_it_says_so_a_cut_is_exact(problem: Problem) -> None:
    if is_cut(problem) and least(problem) < INFINITE:
        cost, choice = cut(problem)
        assert cost == pytest.approx(least(problem), abs=1e-9)
        assert problem.cost(choice) == pytest.approx(cost, abs=1e-9)


def test_what_is_no_cut() -> None:
    frustrated = Problem()
    a, b, c = (frustrated.variable(2) for _ in range(3))
    for pair in ((a, b), (b, c), (a, c)):
        frustrated.add(pair, np.array([[1.0, 0.0], [0.0, 1.0]]))
    assert not is_cut(frustrated)
    three = Problem()
    three.variable(3)
    assert not is_cut(three)


@settings(deadline=None)
@given(problems())
def test_integer_program(problem: Problem) -> None:
    if least(problem) < INFINITE:
        cost, choice = integers(problem)
        assert cost == pytest.approx(least(problem), abs=1e-6)
        assert problem.cost(choice) == cost
    else:
        with pytest.raises(MiloptError, match="was not solved"):
            integers(problem)


def clique(size: int, choices: int) -> Problem:
    rng = np.random.default_rng(0)
    problem = Problem()
    for _ in range(size):
        problem.variable(choices)
    for first in range(size):
        for second in range(first):
            # agreeing is free, which is submodular
            problem.add([first, second], np.where(np.eye(choices) > 0, 0.0, float(rng.integers(1, 9))))
        problem.add([first], rng.integers(0, 30, choices).astype(float))
    return problem


@pytest.mark.parametrize(("choices", "method"), [(2, "minimum cut"), (3, "branch and bound")])
def test_what_is_too_wide_goes_another_way(choices: int, method: str) -> None:
    problem = clique(6, choices)
    solution = solve(problem, largest=50 if choices == 3 else 10)
    assert solution.methods == {method: 1}
    assert solution.cost == solution.bound == pytest.approx(least(problem), abs=1e-6)
    assert problem.cost(solution.choice) == solution.cost
    assert solve(problem).methods == {"elimination": 1}


def test_a_limit_of_work() -> None:
    """The same choice and bound at each limit, which are nearer to each other at a higher one."""
    problem = clique(9, 4)
    exact = solve(problem, largest=16)
    assert exact.bound == exact.cost
    assert exact.cost == pytest.approx(integers(problem)[0])
    gaps: list[float] = []
    for share in (0.0, 0.2, 0.5):
        found = [solve(problem, largest=16, work=int(exact.work * share)) for _ in range(2)]
        assert found[0] == found[1]
        assert found[0].bound <= exact.cost <= found[0].cost
        assert problem.cost(found[0].choice) == found[0].cost
        gaps.append(found[0].cost - found[0].bound)
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > gaps[-1]


def test_less_than_an_element_is_worth_less_work() -> None:
    problem = clique(9, 4)
    small = Problem()
    for size in problem.sizes:
        small.variable(size)
    for table in problem.tables:
        small.add(table.variables, table.costs / 1000)
    work = solve(problem, largest=16).work
    assert solve(small, largest=16, work=work).bound < solve(small, largest=16, work=1 << 30).cost
