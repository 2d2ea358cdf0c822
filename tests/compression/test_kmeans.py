"""One-dimensional k-means against every partition, against a plain dynamic program, and the quick search against it."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milopt.kmeans import exact, search


def error_of(values: Any, counts: Any, centroids: Any) -> float:
    """Σ count · (value - nearest centroid)²."""
    distance = np.min(np.abs(values[:, None] - centroids[None, :]), axis=1)
    return float(np.sum(counts * distance**2))


def least_error_of_all(values: Any, counts: Any, entries: int) -> float:
    """The error of the best of all cuts into ``entries`` runs, tried one by one."""
    errors: list[float] = []
    for cut in combinations(range(1, len(values)), entries - 1):
        edges = [0, *cut, len(values)]
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


@pytest.mark.parametrize("kind", ensembles())
@pytest.mark.parametrize("entries", [2, 16, 64])
def test_search_comes_close_to_exact(kind: str, entries: int) -> None:
    rows = np.sort(ensembles()[kind], axis=1)
    found = search(rows, entries)
    ones = np.ones(rows.shape[1])
    least = np.array([error_of(row, ones, exact(row, ones, entries)) for row in rows])
    reached = np.array([error_of(row, ones, centroids) for row, centroids in zip(rows, found, strict=True)])
    excess = reached / least - 1
    assert np.all(excess > -1e-9)  # nothing is better than exact; both sum 4096 squares in float64
    # measured: below 0.1% in sum and 0.9% for a row; Lloyd's iteration from quantiles is 2-40% above on these
    assert reached.sum() / least.sum() - 1 < 0.005
    assert excess.max() < 0.02


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.sampled_from([2, 4, 16, 64]), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_search_always_gives_ascending_centroids_within_the_row(n: int, entries: int, kinds: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(rng.standard_normal(kinds), (3, n)), axis=1)  # many ties, often fewer values than entries
    found = search(rows, entries)
    assert found.shape == (3, entries)
    assert np.all(np.isfinite(found))
    # 1e-12: means are differences of running sums of up to 400 numbers of size 3
    assert np.all(np.diff(found, axis=1) >= -1e-12)
    assert np.all(found >= rows[:, :1] - 1e-12)
    assert np.all(found <= rows[:, -1:] + 1e-12)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    rows = np.sort(np.random.default_rng(1).standard_normal((5, 700)), axis=1)
    together = search(rows, 16)
    for row, centroids in zip(rows, together, strict=True):
        np.testing.assert_array_equal(search(row[None], 16)[0], centroids)
