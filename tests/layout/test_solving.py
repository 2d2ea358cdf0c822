"""Every method finds the minimum that trying everything finds."""

from __future__ import annotations

import sys
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milopt.errors import MiloptError
from milopt.layout.cuts import cut, is_cut
from milopt.layout.elimination import TooWide, eliminate
from milopt.layout.integers import integers
from milopt.layout.problems import Problem
from milopt.layout.solving import solve

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
    cost, choice = eliminate(problem)
    assert cost == least(problem)
    assert problem.cost(choice) == cost


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
    pytest.importorskip("scipy", reason="milopt[layout] is not installed")
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


@pytest.mark.parametrize(("choices", "method"), [(2, "minimum cut"), (3, "integer program")])
def test_what_is_too_wide_goes_another_way(choices: int, method: str) -> None:
    if choices == 3:
        pytest.importorskip("scipy", reason="milopt[layout] is not installed")
    problem = clique(6, choices)
    with pytest.raises(TooWide, match="elements"):
        eliminate(problem, largest=50)
    solution = solve(problem, largest=50)
    assert solution.methods == {method: 1}
    assert solution.cost == pytest.approx(least(problem), abs=1e-6)
    assert solve(problem).methods == {"elimination": 1}


def test_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(MiloptError, match=r"pip install 'milopt\[layout\]'"):
        solve(clique(6, 3), largest=50)


def test_what_is_too_wide_by_one_variable_is_solved_case_by_case() -> None:
    problem = clique(5, 3)
    solution = solve(problem, largest=100)
    assert solution.methods == {"elimination by cases": 1}
    assert solution.cost == pytest.approx(least(problem), abs=1e-6)
    assert problem.cost(solution.choice) == pytest.approx(solution.cost, abs=1e-6)
