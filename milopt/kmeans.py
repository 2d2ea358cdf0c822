"""One-dimensional k-means: the cut of sorted values into runs with the least squared error.

In one dimension a best clustering consists of runs of the sorted values, so it is a choice of boundaries. A run of n
values with sum S has the squared error Σx² - S²/n; the least error is therefore the largest Σ S²/n over the runs.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

__all__ = ["exact", "search"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow

# `search`: cells per run, how many of them a boundary may move, and the spans (in runs) and steps of the last, finest
# moves. Reaching farther or once more takes half as much time again, and gains less than 0.02% of the error on normal,
# Laplace, Student and SmolLM2's weights (benchmarks/clustering.py); coarser cells lose 0.1%.
_CELLS = 8
_REACH = 12
_SPANS = (0.12, 0.03)
_STEPS = 8


def exact(values: Array, counts: Array, entries: int) -> Array:
    """The best ``entries`` centroids (fewer where there are fewer values) of ascending distinct values with counts.

    ``values (n,)``, ``counts (n,)`` -> float64 ``(min(entries, n),)``, ascending. SMAWK over a dynamic program
    (Grønlund et al., arXiv:1701.07204), in the C library that coremltools ships; O(entries · n) time and memory.
    """
    # imported here: k-means of groups, in worker processes too, does without coremltools
    from coremltools._deps import kmeans1d

    middle = float(values[len(values) // 2])
    # less the middle one: it adds up squares, in which values far from zero would drown their differences
    found = kmeans1d.cluster(values.astype(np.float64) - middle, entries, weights=counts.astype(np.float64))
    return np.asarray(found.centroids) + middle


def search(rows: Array, entries: int) -> Array:
    """Centroids of ``entries`` runs for each row of ascending values, at or close to the least squared error.

    ``rows (G, n)`` -> float64 ``(G, entries)``, ascending. All rows go through the same steps at once: boundaries at
    equal steps of ∫ density^(1/3) (Panter and Dite, 1951), then dynamic programs in which each boundary may take a few
    dozen places around its last one; first far and coarse, so that a run can move from one end of the row to the other,
    then close and fine. How close it comes to :func:`exact` is in benchmarks/results/clustering.md.
    """
    values = rows.T.astype(np.float64)
    middle = values[len(values) // 2].copy()
    values -= middle
    sums = np.zeros((len(values) + 1, values.shape[1]))
    np.cumsum(values, axis=0, out=sums[1:])
    cuts = _best(sums, *_coarse(_companded(values, entries)))
    cuts = _best(sums, *_coarse(_cells(cuts)))
    for span in _SPANS:
        cuts = _best(sums, cuts, _fine(cuts, span))
    counts = np.diff(cuts, axis=0)
    totals = np.diff(np.take_along_axis(sums, cuts, axis=0), axis=0)
    nearby = np.take_along_axis(values, np.minimum(cuts[:-1], len(values) - 1), axis=0)
    means = np.where(
        counts > 0, totals / np.maximum(counts, 1), nearby
    )  # an empty run: any value between its neighbours
    return (means + middle).T


def _companded(values: Array, entries: int) -> Array:
    """Boundaries of cells, ``(entries · _CELLS + 1, G)``, at equal steps of the integral of density^(1/3)."""
    n, width = values.shape
    at: Array = _sample_places(n)
    share = np.diff(at)[:, None].astype(np.float64)
    # a wide gap between two values says nothing of the density on both sides, and one boundary in it is enough
    gaps: Array = np.maximum.reduceat(np.diff(values, axis=0), at[:-1], axis=0)
    # density = share / width, so density^(1/3) · width:
    dense: Array = np.maximum(np.diff(values[at], axis=0) - gaps, 0) ** (2 / 3) * share ** (1 / 3)
    gaps = gaps ** (2 / 3)
    steps = dense + gaps
    for _ in range(4):  # no more runs in a stretch than it has values: outliers far away would take most of them
        one = steps.sum(axis=0) / entries
        steps = np.minimum(dense, (share - 1) * one) + np.minimum(gaps, one)
    curve: Array = np.zeros((len(at), width))
    np.cumsum(steps, axis=0, out=curve[1:])
    places = at.astype(np.float64)
    places[-1] = n
    cells = entries * _CELLS
    cuts: Array = np.empty((cells + 1, width), np.int64)
    for each in range(width):
        cuts[:, each] = np.interp(np.arange(cells + 1) * (curve[-1, each] / cells), curve[:, each], places)
    cuts[0], cuts[-1] = 0, n
    return cuts


def _sample_places(n: int) -> Array:
    """Places in a sorted row where its density is looked at: evenly, and ever more densely towards both ends."""
    tail = np.concatenate([np.arange(8), np.geomspace(8, max(9, n / 2), 96)])
    places = np.concatenate([tail, n - 1 - tail, np.linspace(0, n - 1, 257)])
    return np.unique(np.rint(_between(places, 0, n - 1)).astype(np.int64))


def _cells(cuts: Array) -> Array:
    """Each run between ``cuts`` cut into cells of as many values."""
    parts = (np.arange(_CELLS) / _CELLS)[None, :, None]
    inside = cuts[:-1, None] + ((cuts[1:] - cuts[:-1])[:, None] * parts + 0.5).astype(np.int64)
    return np.concatenate([inside.reshape(-1, cuts.shape[1]), cuts[-1:]])


def _coarse(cells: Array) -> tuple[Array, Array]:
    """Runs of ``_CELLS`` cells, and for each boundary the ``_REACH`` cells before and behind it as its places."""
    places = np.arange(0, len(cells), _CELLS)[:, None] + np.arange(-_REACH, _REACH + 1)
    return cells[::_CELLS], cells[_between(places, 0, len(cells) - 1)]


def _fine(cuts: Array, span: float) -> Array:
    """Places around each boundary, up to ``span`` of its neighbouring runs away, and its nearest places at least."""
    around = np.arange(-_STEPS, _STEPS + 1)[None, :, None]
    reach = np.zeros(cuts.shape)
    reach[1:-1] = (cuts[2:] - cuts[:-2]) * (span / 2)
    step = np.maximum(reach / _STEPS, 1)[:, None]
    return _between(cuts[:, None] + np.rint(around * step).astype(np.int64), 0, cuts[-1, 0])


def _between(values: Array, low: int, high: int) -> Array:
    return np.minimum(np.maximum(values, low), high)


def _best(sums: Array, cuts: Array, places: Array) -> Array:
    """The boundaries with the largest Σ S²/n among ``places``, each of which ascends along its middle axis."""
    entries, width = len(cuts) - 1, int(cuts.shape[1])
    every = np.arange(width)
    back = np.zeros((entries, places.shape[1], width), np.int8)
    start, below = np.zeros((1, width)), np.zeros((1, width))
    gain = np.zeros((1, width))
    for run in range(entries):
        ends = places[run + 1] if run + 1 < entries else cuts[-1:]
        end, above = ends.astype(np.float64), sums[ends, every]
        best, origin = np.full(ends.shape, -np.inf), back[run, : len(ends)]
        count, total, worse = np.empty_like(best), np.empty_like(best), np.empty(best.shape, bool)
        for place in range(len(start)):
            np.subtract(end, start[place], out=count)
            np.subtract(above, below[place], out=total)
            np.less(count, 0, out=worse)
            np.copyto(total, -np.inf, where=worse)
            # S²/n, with 0 for an empty run; -inf for one that ends before it begins
            np.maximum(count, 0.5, out=count)
            np.copyto(count, -1.0, where=worse)
            np.multiply(total, total, out=total)
            np.divide(total, count, out=total)
            np.add(total, gain[place], out=total)
            np.greater(total, best, out=worse)
            np.copyto(best, total, where=worse)
            np.copyto(origin, place, where=worse)
        start, below, gain = end, above, best
    chosen = np.zeros_like(cuts)
    chosen[-1] = cuts[-1]
    index: Array = np.zeros(width, np.int64)
    for run in range(entries - 1, 0, -1):
        index = back[run, index, every].astype(np.int64)
        chosen[run] = places[run, index, every]
    return chosen
