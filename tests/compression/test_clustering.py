"""Tables and indices: the error that is reported is the one that is made, and special weights are kept or bounded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milopt.clustering import Palette, palettize
from milopt.kmeans import exact

Rows = Any


def check(palette: Palette, rows: Rows, bits: int) -> None:
    """What holds for every result."""
    groups, length = rows.shape
    assert palette.lut.shape == (groups, 1 << bits)
    assert palette.lut.dtype == rows.dtype
    assert palette.indices.shape == (groups, length)
    assert palette.indices.dtype == np.uint8
    assert palette.indices.max(initial=0) < 1 << bits
    assert np.all(np.diff(palette.lut.astype(np.float64), axis=1) >= 0)
    weights, decoded = rows.astype(np.float64), palette.decoded().astype(np.float64)
    # 1e-12: both sum the same squares in float64, in another order
    assert palette.error == pytest.approx(float(np.sum((weights - decoded) ** 2)), rel=1e-12, abs=1e-300)
    assert palette.power == pytest.approx(float(np.sum(weights**2)), rel=1e-12, abs=1e-300)
    nearest = np.min(np.abs(weights[:, :, None] - palette.lut.astype(np.float64)[:, None, :]), axis=2)
    np.testing.assert_array_equal(np.abs(weights - decoded), nearest)


def bounded(values: Rows) -> Rows:
    """Within the range of fp16."""
    return np.maximum(np.minimum(values, 65504), -65504)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 300),
    st.sampled_from([1, 2, 3, 4, 6, 8]),
    st.sampled_from([np.float16, np.float32]),
    st.sampled_from(["normal", "few", "tail", "tiny", "huge"]),
    st.integers(0, 2**32 - 1),
)
def test_the_error_reported_is_the_error_made(
    groups: int, length: int, bits: int, dtype: Any, kind: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal((groups, length))
    rows = {
        "normal": normal * 0.05,
        "few": rng.choice(normal[0], (groups, length)),
        "tail": bounded(rng.standard_t(1, (groups, length))),
        "tiny": normal * 1e-7,  # fp16: below its smallest number that is not subnormal
        "huge": bounded(normal * 30000),
    }[kind].astype(dtype)
    check(palettize(rows, bits), rows, bits)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("bits", [1, 2, 4, 6])
def test_one_table_is_exact(dtype: Any, bits: int) -> None:
    rows = np.random.default_rng(3).standard_normal((1, 5000)).astype(dtype)
    values, counts = np.unique(rows.astype(np.float64), return_counts=True)
    centroids = exact(values, counts, 1 << bits)
    least = float(np.sum(counts * np.min(np.abs(values[:, None] - centroids), axis=1) ** 2))
    # entries are rounded to the weights' type: that adds at most n · (half a unit at 4)², 4e-6 per fp16 weight
    assert palettize(rows, bits).error == pytest.approx(least, abs=5000 * (2.0**-9) ** 2)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("kinds", [1, 2, 15, 16])
def test_few_distinct_values_are_kept_without_loss(dtype: Any, groups: int, kinds: int) -> None:
    rng = np.random.default_rng(kinds)
    rows = rng.choice(rng.standard_normal(kinds).astype(dtype), (groups, 3000))
    palette = palettize(rows, 4)
    np.testing.assert_array_equal(palette.decoded(), rows)
    assert palette.error == 0


def test_groups_with_few_and_many_values_together() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((4, 5000)).astype(np.float16)
    rows[1] = 0.25
    rows[2] = rng.choice(np.array([-1, 0, 3], np.float16), 5000)
    palette = palettize(rows, 4)
    check(palette, rows, 4)
    np.testing.assert_array_equal(palette.decoded()[1:3], rows[1:3])


@pytest.mark.parametrize("groups", [1, 2])
def test_zeros_of_both_signs(groups: int) -> None:
    rows = np.array([[0.0, -0.0, 1.0, -0.0], [-0.0, 0.0, 1.0, 1.0]], np.float16)[:groups]
    palette = palettize(rows, 1)
    np.testing.assert_array_equal(palette.lut, [[0.0, 1.0]] * groups)
    assert not np.any(np.signbit(palette.decoded()))


@pytest.mark.parametrize("kinds", [100, 400])
def test_weights_with_many_ties_are_exact(kinds: int) -> None:
    rng = np.random.default_rng(kinds)
    rows = (np.rint(rng.standard_normal((3, 8000)) * kinds / 8) / 64).astype(np.float32)  # as decoded integers are
    least = 0.0
    for row in rows.astype(np.float64):
        values, counts = np.unique(row, return_counts=True)
        centroids = exact(values, counts, 64)
        least += float(np.sum(counts * np.min(np.abs(values[:, None] - centroids), axis=1) ** 2))
    # fp32 entries: their rounding is 1e-7 of a value, 1e-5 of the distances here
    assert palettize(rows, 6).error == pytest.approx(least, rel=1e-4)


@pytest.mark.parametrize("shape", [(1, 0), (3, 0)])
def test_empty(shape: tuple[int, int]) -> None:
    palette = palettize(np.zeros(shape, np.float16), 4)
    assert palette.decoded().shape == shape
    assert palette.error == palette.power == 0


def test_a_long_row_is_looked_up_as_a_short_one_is_searched() -> None:
    rows = np.random.default_rng(5).standard_normal((1, 1 << 17)).astype(np.float16)  # long enough for the table
    check(palettize(rows, 4), rows, 4)


def test_the_same_weights_give_the_same_bytes() -> None:
    rows = np.random.default_rng(9).standard_normal((40, 3000)).astype(np.float16)
    first, second = palettize(rows, 6), palettize(np.array(rows), 6)
    np.testing.assert_array_equal(first.lut, second.lut)
    np.testing.assert_array_equal(first.indices, second.indices)


def test_a_group_does_not_depend_on_the_others() -> None:
    rows = np.random.default_rng(9).standard_normal((6, 3000)).astype(np.float16)
    together = palettize(rows, 6)
    for at in range(0, 6, 2):
        np.testing.assert_array_equal(palettize(rows[at : at + 2], 6).lut, together.lut[at : at + 2])
