"""The best choice, against all of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milopt.choosing import Infeasible, choose

numbers = st.one_of(st.integers(0, 12).map(float), st.floats(0, 10, allow_subnormal=False))
items = st.lists(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5), min_size=1, max_size=5)


def all_of_them(costs: list[list[float]], losses: list[list[float]], limit: float) -> float | None:
    found = [
        sum(losses[item][at] for item, at in enumerate(options))
        for options in itertools.product(*(range(len(each)) for each in costs))
        if sum(costs[item][at] for item, at in enumerate(options)) <= limit
    ]
    return min(found, default=None)


@settings(max_examples=400, deadline=None)
@given(items=items, share=st.floats(0, 1.1))
def test_no_choice_is_better(items: list[list[tuple[float, float]]], share: float) -> None:
    costs, losses = ([[pair[at] for pair in each] for each in items] for at in (0, 1))
    limit = share * sum(max(each) for each in costs)
    best = all_of_them(costs, losses, limit)
    if best is None:
        with pytest.raises(Infeasible):
            choose(costs, losses, limit - 1e-9)
        return
    found = choose(costs, losses, limit)
    # 1e-9: sums of floats in another order
    assert found.cost <= limit + 1e-9
    assert found.cost == pytest.approx(sum(costs[item][at] for item, at in enumerate(found.options)))
    assert found.loss == pytest.approx(sum(losses[item][at] for item, at in enumerate(found.options)))
    assert found.loss == pytest.approx(best, rel=1e-9, abs=1e-9)
    assert found.least == pytest.approx(found.loss, rel=1e-9, abs=1e-9)


def test_a_greedy_choice_is_not_the_best() -> None:
    """The step that gains the most for its cost fits, and then nothing else does."""
    found = choose([[0, 6], [0, 5], [0, 5]], [[6.5, 0], [5, 0], [5, 0]], 10)
    assert (found.options, found.cost, found.loss, found.least) == ((0, 1, 1), 10, 6.5, 6.5)


def test_options_inside_the_hull_are_chosen_where_they_fit_best() -> None:
    found = choose([[0, 5, 9]], [[10.0, 9.0, 0.0]], 6)
    assert found.options == (1,)
    assert found.least == 9.0


def test_too_many_states_leave_a_bound() -> None:
    rng = np.random.default_rng(0)
    costs = rng.integers(1, 1000, (8, 4)).tolist()
    losses = rng.random((8, 4)).tolist()
    limit = 0.4 * sum(max(each) for each in costs)
    best, quick = choose(costs, losses, limit), choose(costs, losses, limit, states=0)
    assert best.loss == best.least == all_of_them(costs, losses, limit)
    assert quick.least <= best.loss <= quick.loss
    assert quick.least < quick.loss
    assert quick.cost <= limit


def test_hundreds_of_items_are_chosen_exactly() -> None:
    rng = np.random.default_rng(1)
    sizes = rng.integers(10**5, 10**7, 300)
    costs = [[float(size * bits // 8) for bits in (2, 3, 4, 6, 8, 16)] for size in sizes]
    losses = [[float(scale * 4.0**-bits) for bits in (2, 3, 4, 6, 8, 32)] for scale in rng.lognormal(0, 2, 300)]
    found = choose(costs, losses, 0.25 * 2 * float(sizes.sum()))
    assert found.loss == found.least
    assert found.cost <= 0.25 * 2 * float(sizes.sum())


def test_a_limit_that_nothing_keeps_to() -> None:
    with pytest.raises(Infeasible, match="the cheapest choice costs 5, the limit is 4"):
        choose([[2, 3], [3, 4]], [[1, 0], [1, 0]], 4)
    assert choose([[2, 3], [3, 4]], [[1, 0], [1, 0]], 5).options == (0, 0)


def test_no_items() -> None:
    assert choose([], [], 0).options == ()
