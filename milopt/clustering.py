"""Weights -> a table of a few values per group of channels, and an index per weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from milopt.kmeans import exact, search

__all__ = ["Palette", "palettize"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow

# Above values · entries, the exact method's table (8 bytes each) is more than 128 MB; fp16 weights never get there.
_EXACT_TENSOR = 1 << 24
# One exact run takes 2 µs per value at 16 entries, ten times what the search takes for rows that are this long.
_EXACT_GROUP = 1 << 13
# With fewer distinct values per entry, and many ties, the search ends up to 30% above the exact error: boundaries that
# move by places within a tie stay where they are.
_MANY = 16
# Values that are sorted and searched at once: enough rows for each numpy call to outweigh its overhead, 50 MB in all.
_AT_ONCE = 1 << 21
# From here on, looking up a table of the 65,536 fp16 numbers is quicker than searching for each weight's entry.
_LONG_ROW = 1 << 17


@dataclass(frozen=True)
class Palette:
    """``lut (G, entries)`` ascending in each row, in the weights' dtype; ``indices (G, n)`` uint8.

    ``error`` is Σ (weight - decoded)² and ``power`` Σ weight², both in float64.
    """

    lut: Array
    indices: Array
    error: float
    power: float

    def decoded(self) -> Array:
        """The weights as the table gives them, ``(G, n)``."""
        return np.take_along_axis(self.lut, self.indices, axis=1)


def palettize(rows: Array, bits: int) -> Palette:
    """The table of ``2**bits`` entries for each row with the least squared error, and the nearest entry of each weight.

    ``rows (G, n)``: finite fp16 or fp32 weights, one row per group. A single row (one table for a whole tensor) is
    clustered exactly, on the histogram of its distinct values (fp16 has 65,536 at most), and so are rows of few
    distinct values. Several rows of many values, or a single one of millions of fp32 values, go through
    :func:`milopt.kmeans.search`. A row with no more distinct values than entries is kept without loss (but -0 becomes
    0); its last entry is then repeated.

    Entries are rounded to the weights' dtype, and weights assigned to the rounded entries.
    """
    entries = 1 << bits
    groups, length = rows.shape
    lut = np.empty((groups, entries), rows.dtype)
    indices = np.zeros(rows.shape, np.uint8)
    error = power = 0.0
    if length == 0:
        return Palette(np.zeros_like(lut), indices, error, power)
    step = max(1, _AT_ONCE // length)
    for start in range(0, groups, step):
        part = slice(start, min(start + step, groups))
        lut[part] = _tables(rows[part], entries, alone=groups == 1) + 0.0  # -0 -> 0
        for row in range(part.start, part.stop):
            indices[row] = _nearest(lut[row], rows[row])
            weights = rows[row].astype(np.float64)
            power += _squares(weights)
            weights -= lut[row][indices[row]]
            error += _squares(weights)
    return Palette(lut, indices, error, power)


def _tables(rows: Array, entries: int, *, alone: bool) -> Array:
    """Centroids ``(G, entries)`` of a few rows, in float64."""
    tables = np.empty((len(rows), entries))
    if alone and rows.dtype == np.float16:
        tables[0] = _table(*_histogram(rows[0]), entries)
        return tables
    ascending = np.sort(rows.astype(np.float32), axis=1)
    distinct = 1 + np.count_nonzero(ascending[:, 1:] != ascending[:, :-1], axis=1)
    limit = _EXACT_TENSOR if alone else _EXACT_GROUP
    tied = (distinct * 4 <= rows.shape[1]) & (distinct <= _MANY * entries)
    direct = (distinct <= entries) | (distinct * entries <= limit) | tied
    for row in np.flatnonzero(direct):
        tables[row] = _table(*np.unique(ascending[row], return_counts=True), entries)
    if not direct.all():
        tables[~direct] = search(ascending[~direct], entries)
    return tables


def _table(values: Array, counts: Array, entries: int) -> Array:
    """The best centroids of distinct values; where there are too few values, these and the last one again."""
    centroids = values if len(values) <= entries else exact(values, counts, entries)
    return np.pad(centroids.astype(np.float64), (0, entries - len(centroids)), mode="edge")


def _histogram(row: Array) -> tuple[Array, Array]:
    """The distinct values of fp16 weights, ascending, and how often each occurs; no sorting of weights."""
    counts = np.bincount(row.view(np.uint16), minlength=1 << 16)
    (present,) = np.nonzero(counts)
    patterns: Array = present.astype(np.uint16)
    values = patterns.view(np.float16)
    order = np.argsort(values)
    return values[order], counts[present][order]


def _squares(values: Array) -> float:
    """Σ x², without the threads of a BLAS, which cost more than the sum where other threads are busy too."""
    return float(np.einsum("i,i", values, values))


def _nearest(lut: Array, row: Array) -> Array:
    """The index of the entry nearest to each weight; the lower one of two as near."""
    middles: Array = (lut[1:].astype(np.float64) + lut[:-1]) / 2
    if row.dtype != np.float16 or len(row) < _LONG_ROW:
        return middles.searchsorted(row).astype(np.uint8)
    return middles.searchsorted(_fp16_numbers()).astype(np.uint8)[row.view(np.uint16)]


def _fp16_numbers() -> Array:
    """All numbers of fp16, by their bits; NaN among them."""
    patterns: Array = np.arange(1 << 16, dtype=np.uint16)
    return np.frombuffer(patterns, np.float16)
