"""One-dimensional k-means: the cut of sorted values into runs with the least squared error, exactly.

In one dimension a best clustering consists of runs of the sorted values, so it is a choice of boundaries. A run of
weight W and sum S has the squared error Σw·x² - S²/W; the least error is therefore the largest Σ S²/W over the runs.

The gain S²/W fulfils the quadrangle inequality (Grønlund et al., arXiv:1701.07204), so the largest gain of k runs is a
concave function of k, and a price for each run tells how many there are: at the right price the best of all cuts has k
runs, and is then the best of those with k. At a given price one pass over the values is enough, with a queue of the
places where the last run may begin (Galil and Park, "A linear-time algorithm for concave one-dimensional dynamic
programming", 1990). Where prices jump over k, a cut with k runs is spliced from those on both sides, at no loss
(Aggarwal, Schieber and Tokuyama, "Finding a minimum-weight k-link path in graphs with the concave Monge property",
1994).
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from milopt.compiled import compiled

__all__ = ["cut", "exact"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow

# The first price comes from a cut of values taken together, this many per run: it is mostly within the few percent
# that are asked for, and its passes cost little beside those over all values.
_COARSE = 32
# With smooth values the second or third price is right; where prices jump, another way of finding them ends sooner.
_GUESSES = 8


def exact(values: Array, weights: Array, entries: int) -> Array:
    """The best ``entries`` centroids (fewer where there are fewer values) of ascending distinct values with weights.

    ``values (n,)``, ``weights (n,)``, all positive -> float64 ``(min(entries, n),)``, ascending. Time is O(n log n)
    whatever the number of entries, about 0.1 µs for each value.
    """
    count = len(values)
    sums, totals = np.zeros(count + 1), np.zeros(count + 1)
    middle = float(values[count // 2])
    # less the middle one: gains are squares of sums, in which values far from zero would drown their differences
    np.cumsum((values.astype(np.float64) - middle) * weights, out=sums[1:])
    np.cumsum(weights, out=totals[1:])
    cuts = cut(totals, sums, min(entries, count))
    return np.diff(sums[cuts]) / np.diff(totals[cuts]) + middle


@compiled()
def cut(totals: Array, sums: Array, runs: int) -> Array:
    """The best boundaries ``(runs + 1,)``, from 0 to n.

    ``totals (n + 1,)`` and ``sums (n + 1,)``: the weight and the weighted sum of the first values, ascending ones.
    """
    count = len(totals) - 1
    if runs >= count:
        return np.arange(count + 1)
    if runs == 1:
        return np.array([0, count])
    price = _first_price(totals, sums, runs)
    step = count // (_COARSE * runs)
    if step >= 4:
        places = np.append(np.arange(0, count, step), count)
        price = _priced(totals[places], sums[places], runs, price)[1]
    return _priced(totals, sums, runs, price)[0]


@compiled()
def _first_price(totals: Array, sums: Array, runs: int) -> float:
    """What one run more would gain if the values were normal: 2/k of the error, which is √3π/2 · σ²/k².

    That is the error of many runs after Panter and Dite, "Quantization distortion in pulse-count modulation with
    nonuniform spacing of levels" (1951).
    """
    count = len(totals) - 1
    power = 0.0
    for at in range(count):
        power += (sums[at + 1] - sums[at]) ** 2 / (totals[at + 1] - totals[at])
    spread = power - sums[count] ** 2 / totals[count]
    return float(max(5.4 * spread / runs**3, 1e-290))


@compiled()
def _priced(totals: Array, sums: Array, runs: int, price: float) -> tuple[Array, float]:
    """The best boundaries, and a price at which they are the best of all cuts, found from a first guess; 1 < runs < n.

    ``few`` and ``many`` are the best cuts known that have fewer and more runs.
    """
    count = len(totals) - 1
    gains, places = np.empty(count + 1), np.empty((3, count + 1), np.int32)
    few, many = np.array([0, count]), np.arange(count + 1)
    low, high = 0.0, np.inf
    for _ in range(_GUESSES):
        cuts = _cut_at(totals, sums, price, gains, places)
        found = len(cuts) - 1
        if found == runs:
            return cuts, price
        if found < runs:
            few, high = cuts, price
        else:
            many, low = cuts, price
        price *= min(max((found / runs) ** 3, 0.02), 50.0)  # the price of one run goes as 1/k³
        if not low < price < high:
            price = np.sqrt(low) * np.sqrt(high)
    while True:
        # here both are worth the same: either some cut between them is worth more, or all between are worth as much
        price = (_gain(totals, sums, many) - _gain(totals, sums, few)) / (len(many) - len(few))
        cuts = _cut_at(totals, sums, price, gains, places)
        found = len(cuts) - 1
        if found == runs:
            return cuts, price
        if not len(few) < len(cuts) < len(many):
            return _spliced(few, many, runs), price
        if found < runs:
            few = cuts
        else:
            many = cuts


@compiled()
def _gain(totals: Array, sums: Array, cuts: Array) -> float:
    gain = 0.0
    for at in range(len(cuts) - 1):
        gain += _run_gain(totals, sums, cuts[at], cuts[at + 1])
    return gain


@compiled()
def _run_gain(totals: Array, sums: Array, start: int, end: int) -> float:
    change = sums[end] - sums[start]
    return float(change * change / (totals[end] - totals[start]))


@compiled()
def _spliced(few: Array, many: Array, runs: int) -> Array:
    """``runs`` runs of two cuts that are best at one price: the first ones of ``many``, the last ones of ``few``.

    They change where a run of ``few`` holds one of ``many``: exchanging the ends of these two loses nothing.
    """
    ahead = runs + 1 - len(few)
    at = 0
    while few[at + 1] < many[at + 1 + ahead]:
        at += 1
    return np.concatenate((many[: at + ahead + 1], few[at + 1 :]))


@compiled()
def _cut_at(totals: Array, sums: Array, price: float, gains: Array, places: Array) -> Array:
    """The boundaries with the largest gain, less ``price`` for each run.

    ``gains (n + 1,)`` and ``places (3, n + 1)`` are room. A queue holds the starts of runs that are the best for some
    end that is not reached yet, ``queue[head]`` for the next ones, and since which end each of them is.
    """
    count = len(totals) - 1
    back, queue, since = places[0], places[1], places[2]
    gains[0] = 0.0
    head = last = 0
    queue[0], since[0] = 0, 1
    for end in range(1, count + 1):
        while head < last and since[head + 1] <= end:
            head += 1
        start = queue[head]
        gains[end] = gains[start] + _run_gain(totals, sums, start, end) - price
        back[end] = start
        # which ends is a run from here better for? Those from some place on: the quadrangle inequality
        while end < count:
            known, first = queue[last], max(since[last], end + 1)
            if _later(totals, sums, gains, known, end, first):
                if since[last] > end:
                    last -= 1
                    continue
                queue[last], since[last] = end, first
                break
            reach = 1
            while first + reach < count and not _later(totals, sums, gains, known, end, first + reach):
                first += reach
                reach *= 2
            after = min(first + reach, count)
            if after == count and not _later(totals, sums, gains, known, end, count):
                break
            while after - first > 1:
                middle = (first + after) // 2
                if _later(totals, sums, gains, known, end, middle):
                    after = middle
                else:
                    first = middle
            last += 1
            queue[last], since[last] = end, after
            break
    length = 0
    end = count
    while end > 0:
        end = back[end]
        length += 1
    cuts = np.zeros(length + 1, np.int64)
    end = count
    for at in range(length, 0, -1):
        cuts[at] = end
        end = back[end]
    return cuts


@compiled()
def _later(totals: Array, sums: Array, gains: Array, one: int, other: int, end: int) -> bool:
    """Whether a last run up to ``end`` had better begin at ``other`` than at ``one``."""
    return bool(gains[other] + _run_gain(totals, sums, other, end) > gains[one] + _run_gain(totals, sums, one, end))
