"""The loops of :mod:`milopt.clustering`: distinct values, their tables, and an index for each weight.

Weights come as ``(G, a, b, c)``, a table for each of the G; importance, where it is given, in the same shape.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np

from milopt.compiled import compiled
from milopt.kmeans import cut

__all__ = ["fp16_tables", "nearest_entries", "pack", "sorted_tables", "to_fp16"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow

_IMPORTANCE = ("none", "Array(float64, 4, 'A', True)")


@compiled()
def to_fp16(value: float) -> float:
    """The nearest number of fp16, the even one of two; ``value`` is no larger than they are."""
    _, exponent = math.frexp(value)
    unit = math.ldexp(1.0, max(exponent, -13) - 11)
    return float(np.rint(value / unit) * unit)


@compiled()
def _table(values: Array, weights: Array, fp16: bool, lut: Array) -> None:
    """Fill one table with the best centroids of distinct values; the last one is repeated where there are too few.

    Entries are rounded to fp16 or fp32. Zeros, where no value counts.
    """
    count = len(values)
    if count == 0:
        lut[:] = 0.0
        return
    totals, sums = np.empty(count + 1), np.empty(count + 1)
    totals[0] = sums[0] = 0.0
    middle = values[count // 2]  # as in kmeans.exact
    for at in range(count):
        totals[at + 1] = totals[at] + weights[at]
        sums[at + 1] = sums[at] + weights[at] * (values[at] - middle)
    cuts = cut(totals, sums, min(len(lut), count))
    for entry in range(len(lut)):
        if entry >= len(cuts) - 1:
            lut[entry] = lut[entry - 1]
            continue
        start, end = cuts[entry], cuts[entry + 1]
        if end == start + 1:
            centroid = values[start]
        else:
            centroid = (sums[end] - sums[start]) / (totals[end] - totals[start]) + middle
        lut[entry] = (to_fp16(centroid) if fp16 else np.float64(np.float32(centroid))) + 0.0  # -0 becomes 0


@compiled(
    *(
        f"void(Array(uint16, 4, 'A', True), float64[::1], {importance}, float64[:, ::1], uint8[:, :, :, :], "
        "float64[:, ::1])"
        for importance in _IMPORTANCE
    )
)
def fp16_tables(rows: Array, numbers: Array, importance: Array, lut: Array, indices: Array, found: Array) -> None:
    """Tables and indices of fp16 weights, by a histogram of their bits.

    ``rows``: the bits, uint16. ``numbers (65536,)``: what each means. ``importance``: that of each weight, or None.
    To be filled: ``lut (G, entries)``, float64 numbers of fp16; ``indices``, uint8, as ``rows``; ``found (G, 3)``: the
    squared error, the sum of squares, and how many weights are no numbers, of which nothing else is then said.
    """
    counts, heavy = np.zeros(1 << 16, np.int64), np.zeros(1 << 16)
    present, place = np.empty(1 << 16, np.int32), np.zeros(1 << 16, np.uint8)
    values, weights = np.empty(1 << 16), np.empty(1 << 16)
    for group in range(len(rows)):
        top = 0
        for a in range(rows.shape[1]):
            for b in range(rows.shape[2]):
                for c in range(rows.shape[3]):
                    bits = rows[group, a, b, c]
                    counts[bits] += 1
                    if importance is not None:
                        heavy[bits] += importance[group, a, b, c]
                    top = max(top, bits & 0x7FFF)
        if top >= 0x7C00:
            for sign in (0, 0x8000):
                found[group, 2] += counts[sign + 0x7C00 : sign + 0x8000].sum()
            counts[:] = 0
            heavy[:] = 0.0
            continue
        counts[0] += counts[0x8000]  # -0 is 0
        heavy[0] += heavy[0x8000]
        size = distinct = 0
        for at in range(-top, top + 1):
            bits = 0x8000 - at if at < 0 else at
            if counts[bits] == 0:
                continue
            present[size] = bits
            size += 1
            weight = np.float64(counts[bits]) if importance is None else heavy[bits]
            if weight > 0:
                values[distinct], weights[distinct] = numbers[bits], weight
                distinct += 1
        _table(values[:distinct], weights[:distinct], True, lut[group])
        entry = 0
        error = power = 0.0
        for at in range(size):
            bits = present[at]
            value, count = numbers[bits], counts[bits]
            while entry + 1 < lut.shape[1] and value > (lut[group, entry] + lut[group, entry + 1]) / 2:
                entry += 1
            place[bits] = entry
            error += count * (value - lut[group, entry]) ** 2
            power += count * value * value
            counts[bits] = 0
            heavy[bits] = 0.0
        place[0x8000] = place[0]
        counts[0x8000] = 0
        heavy[0x8000] = 0.0
        found[group, 0], found[group, 1] = error, power
        for a in range(rows.shape[1]):
            for b in range(rows.shape[2]):
                for c in range(rows.shape[3]):
                    indices[group, a, b, c] = place[rows[group, a, b, c]]


@compiled(*(f"void(float32[:, ::1], {importance}, float64[:, ::1])" for importance in ("none", "float64[:, ::1]")))
def sorted_tables(rows: Array, importance: Array, lut: Array) -> None:
    """``lut (G, entries)``, float64 numbers of fp32, for ascending fp32 weights ``(G, n)``; importance, or None."""
    values, weights = np.empty(rows.shape[1]), np.empty(rows.shape[1])
    for group in range(len(rows)):
        distinct = 0
        for at in range(rows.shape[1]):
            value = np.float64(rows[group, at])
            weight = 1.0 if importance is None else importance[group, at]
            if weight <= 0:
                continue
            if distinct and values[distinct - 1] == value:
                weights[distinct - 1] += weight
                continue
            values[distinct], weights[distinct] = value, weight
            distinct += 1
        _table(values[:distinct], weights[:distinct], False, lut[group])


@compiled("void(Array(float32, 4, 'A', True), float64[:, ::1], uint8[:, :, :, :], float64[:, ::1])")
def nearest_entries(rows: Array, lut: Array, indices: Array, found: Array) -> None:
    """The index of the entry nearest to each fp32 weight, the lower one of two as near; ``found`` as in fp16_tables."""
    entries = lut.shape[1]
    middles = np.empty(entries - 1)
    for group in range(len(rows)):
        for entry in range(entries - 1):
            middles[entry] = (lut[group, entry] + lut[group, entry + 1]) / 2
        error = power = 0.0
        for a in range(rows.shape[1]):
            for b in range(rows.shape[2]):
                for c in range(rows.shape[3]):
                    value = np.float64(rows[group, a, b, c])
                    low, count = 0, entries - 1
                    while count > 0:
                        half = count // 2
                        if middles[low + half] < value:
                            low += half + 1
                            count -= half + 1
                        else:
                            count = half
                    indices[group, a, b, c] = low
                    error += (value - lut[group, low]) ** 2
                    power += value * value
        found[group, 0], found[group, 1] = error, power


@compiled("void(Array(uint8, 1, 'C', True), int64, uint8[::1])")
def pack(values: Array, bits: int, result: Array) -> None:
    """Put ``values`` of ``bits`` each one after another, the least significant bit of the first byte first."""
    if bits == 4:  # the most frequent one, several bytes at a time
        for at in range(len(values) // 2):
            result[at] = (values[2 * at] & 15) | (values[2 * at + 1] << 4)
        if len(values) % 2:
            result[len(values) // 2] = values[len(values) - 1] & 15
        return
    mask = (1 << bits) - 1
    held = count = place = 0
    for at in range(len(values)):
        held |= int(values[at] & mask) << count
        count += bits
        while count >= 8:
            result[place] = held & 0xFF
            held >>= 8
            count -= 8
            place += 1
    if count:
        result[place] = held
