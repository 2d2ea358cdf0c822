"""One-dimensional k-means against every partition, a plain dynamic program, and the library that coremltools ships."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milopt.kmeans import cut, exact


def error_of(values: Any, counts: Any, centroids: Any) -> float:
    """Σ count · (value - nearest centroid)²."""
    distance = np.min(np.abs(values[:, None] - centroids[None, :]), axis=1)
    return float(np.sum(counts * distance**2))


def least_error_of_all(values: Any, counts: Any, entries: int) -> float:
    """The error of the best of all cuts into ``entries`` runs, tried one by one."""
    errors: list[float] = []
    for inner in combinations(range(1, len(values)), entries - 1):
        edges = [0, *inner, len(values)]
        total = 0.0
        for start, end in pairwise(edges):
            run, weight = values[start:end], counts[start:end]
            total += float(np.sum(weight * (run - np.average(run, weights=weight)) ** 2))
        errors.append(total)
    return min(errors)


def least_error_by_table(values: Any, counts: Any, entries: int) -> float:
    """The O(n² · entries) dynamic program, without any of the tricks."""
    n = len(values)
    runs = np.zeros((n, n + 1))
    for start in range(n):
        for end in range(start + 1, n + 1):
            run, weight = values[start:end], counts[start:end]
            runs[start, end] = float(np.sum(weight * (run - np.average(run, weights=weight)) ** 2))
    best = [0.0] + [np.inf] * n
    for _ in range(entries):
        # fewer runs are allowed
        best = [
            min([best[end], *(best[start] + float(runs[start, end]) for start in range(end))]) for end in range(n + 1)
        ]
    return best[n]


distinct_values = st.lists(st.integers(-500, 500), min_size=2, max_size=9, unique=True).map(sorted)


@settings(max_examples=60, deadline=None)
@given(distinct_values, st.data())
def test_exact_is_the_best_of_all_partitions(numbers: list[int], data: st.DataObject) -> None:
    values = np.array(numbers) / 7
    counts = np.array(data.draw(st.lists(st.integers(1, 50), min_size=len(numbers), max_size=len(numbers))))
    entries = data.draw(st.integers(1, len(numbers)))
    found = exact(values, counts, entries)
    assert len(found) == entries
    assert np.all(np.diff(found) > 0)
    # 1e-9: sums of squares of at most 70, in float64
    assert error_of(values, counts, found) == pytest.approx(least_error_of_all(values, counts, entries), abs=1e-9)


@pytest.mark.parametrize("entries", [2, 4, 16, 64])
def test_exact_equals_the_plain_dynamic_program(entries: int) -> None:
    rng = np.random.default_rng(entries)
    values = np.unique(rng.standard_t(2, 90))
    counts = rng.integers(1, 40, len(values))
    least = least_error_by_table(values, counts, entries)
    # 1e-9: both add up 90 terms in float64, in another order
    assert error_of(values, counts, exact(values, counts, entries)) == pytest.approx(least, rel=1e-9)


def test_counts_matter() -> None:
    values = np.array([0.0, 1.0, 10.0, 11.0, 12.0])
    assert exact(values, np.array([1, 1, 1, 1, 1]), 2).tolist() == [0.5, 11.0]
    assert exact(values, np.array([1, 999, 1, 1, 1]), 2)[0] == pytest.approx(0.999)


def ensembles() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shape = (6, 4096)
    outlier = rng.standard_normal(shape)
    outlier[:, 0] = 40.0
    return {
        "normal": rng.standard_normal(shape),
        "laplace": rng.laplace(size=shape),
        "student": rng.standard_t(2, shape),
        "mixture": rng.standard_normal(shape) * rng.choice([0.05, 0.3, 1.0], shape),
        "far from zero": rng.standard_normal(shape) * 1e-3 + 100,
        "one outlier": outlier,
        "two peaks": np.where(rng.random(shape) < 0.5, -1, 1) + 0.01 * rng.standard_normal(shape),
    }


def by_kmeans1d(values: Any, counts: Any, entries: int) -> Any:
    """SMAWK over the plain dynamic program; less the middle one, for it adds up the squares of values as they are."""
    from coremltools._deps import kmeans1d

    middle = values[len(values) // 2]
    return np.asarray(kmeans1d.cluster(values - middle, entries, weights=counts).centroids) + middle


@pytest.mark.parametrize("kind", ensembles())
@pytest.mark.parametrize("entries", [2, 3, 16, 64, 256])
def test_exact_is_as_good_as_another_exact_method(kind: str, entries: int) -> None:
    for row in ensembles()[kind][:2]:
        values, counts = np.unique(row, return_counts=True)
        weights = counts * np.random.default_rng(1).exponential(size=len(values))
        least = error_of(values, weights, by_kmeans1d(values, weights, entries))
        reached = error_of(values, weights, exact(values, weights, entries))
        # 1e-9: 4096 squares in float64, added in another order, and what is left of them after subtracting the gain
        assert reached == pytest.approx(least, rel=1e-9)


@settings(max_examples=150, deadline=None)
@given(st.integers(2, 60), st.integers(1, 12), st.integers(1, 3), st.data())
def test_exact_where_prices_jump(count: int, step: int, most: int, data: st.DataObject) -> None:
    """Equal steps and equal weights: many cuts are worth the same, and numbers of runs have no price of their own."""
    values = np.cumsum(data.draw(st.lists(st.sampled_from([1, step]), min_size=count, max_size=count))).astype(float)
    weights = np.array(data.draw(st.lists(st.integers(1, most), min_size=count, max_size=count)), float)
    entries = data.draw(st.integers(1, count))
    found = exact(values, weights, entries)
    assert len(found) == entries
    least = error_of(values, weights, by_kmeans1d(values, weights, entries))
    # 1e-9: sums of at most 60 squares of at most 720, in float64
    assert error_of(values, weights, found) == pytest.approx(least, rel=1e-9, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.sampled_from([1, 2, 4, 16, 64]), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_boundaries_ascend_from_the_first_value_to_the_last(n: int, entries: int, kinds: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, counts = np.unique(rng.choice(rng.standard_normal(kinds), n), return_counts=True)
    totals, sums = np.append(0.0, np.cumsum(counts)), np.append(0.0, np.cumsum(counts * values))
    cuts = cut(totals, sums, min(entries, len(values)))
    assert len(cuts) == min(entries, len(values)) + 1
    assert (cuts[0], cuts[-1]) == (0, len(values))
    assert np.all(np.diff(cuts) > 0)


@pytest.mark.parametrize("factor", [1e-30, 1e-7, 1.0, 1e7, 1e30])
def test_the_scale_of_the_values_does_not_matter(factor: float) -> None:
    values = np.unique(np.random.default_rng(4).laplace(size=3000))
    weights = np.ones(len(values))
    # 1e-9: the squares are scaled, which rounds them
    np.testing.assert_allclose(exact(values * factor, weights, 16), exact(values, weights, 16) * factor, rtol=1e-9)


def test_values_that_differ_by_less_than_their_squares_can_tell() -> None:
    """Sums of squares don't resolve what a run more would gain; there is a cut all the same."""
    values = np.array([0.0, 1e-12, 2e-12, 1.0, 1.0 + 4e-16, 2.0])
    found = exact(values, np.ones(6), 5)
    assert len(found) == 5
    assert error_of(values, np.ones(6), found) < 1e-20
