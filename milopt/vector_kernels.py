"""The loops of :mod:`milopt.vectors`."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from milopt.clustering_kernels import to_fp16
from milopt.compiled import compiled

__all__ = ["vector_tables"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow

_MOVES = 24  # most of what can be gained is, by then
_ENOUGH = 1e-3


@compiled("float64(float32[:, ::1], float32[:, ::1], uint8[::1], float32[::1])")
def _assign(rows: Array, columns: Array, indices: Array, room: Array) -> float:
    """The nearest entry of each vector ``(n, d)``, of entries ``(d, k)``; returns the sum of squared distances."""
    total = 0.0
    for at in range(len(rows)):
        room[:] = 0.0
        for axis in range(rows.shape[1]):
            value = rows[at, axis]
            for entry in range(len(room)):
                change = value - columns[axis, entry]
                room[entry] += change * change
        best = 0
        for entry in range(1, len(room)):
            if room[entry] < room[best]:
                best = entry
        indices[at] = best
        total += room[best]
    return total


@compiled("void(float32[:, ::1], float32[:, ::1])")
def _seed(rows: Array, columns: Array) -> None:
    """Entries ``(d, k)``: vectors drawn with the square of their distance from those drawn before."""
    count = len(rows)
    state: Any = np.uint64(0x9E3779B97F4A7C15)
    distance = np.full(count, np.inf)
    chosen = count // 2
    for entry in range(columns.shape[1]):
        for axis in range(rows.shape[1]):
            columns[axis, entry] = rows[chosen, axis]
        total = 0.0
        for at in range(count):
            length = 0.0
            for axis in range(rows.shape[1]):
                length += (rows[at, axis] - columns[axis, entry]) ** 2
            distance[at] = min(distance[at], length)
            total += distance[at]
        if total == 0.0:  # all vectors are entries already
            continue
        state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)  # Knuth's MMIX
        rest = total * (float(state >> np.uint64(11)) / 9007199254740992.0)
        chosen = 0
        while chosen < count - 1 and rest >= distance[chosen]:
            rest -= distance[chosen]
            chosen += 1


@compiled("void(float32[:, :, ::1], boolean, float64[:, :, ::1], uint8[:, ::1], float64[:, ::1])")
def vector_tables(rows: Array, fp16: bool, lut: Array, indices: Array, found: Array) -> None:
    """Fill ``lut (G, k, d)``, ``indices (G, n)`` and ``found (G, 2)``, the squared error and the sum of squares."""
    _, count, dims = rows.shape
    entries = lut.shape[1]
    columns, room = np.empty((dims, entries), np.float32), np.empty(entries, np.float32)
    for group in range(len(rows)):
        _seed(rows[group], columns)
        before = np.inf
        for _ in range(_MOVES):
            error = _assign(rows[group], columns, indices[group], room)
            if error >= before * (1 - _ENOUGH):
                break
            before = error
            sums, sizes = np.zeros((dims, entries)), np.zeros(entries)
            for at in range(count):
                entry = indices[group, at]
                sizes[entry] += 1
                for axis in range(dims):
                    sums[axis, entry] += rows[group, at, axis]
            for entry in range(entries):
                if sizes[entry] > 0:
                    for axis in range(dims):
                        columns[axis, entry] = sums[axis, entry] / sizes[entry]
        for entry in range(entries):
            for axis in range(dims):
                value = np.float64(columns[axis, entry])
                lut[group, entry, axis] = (to_fp16(value) if fp16 else value) + 0.0  # -0 becomes 0
                columns[axis, entry] = lut[group, entry, axis]
        _assign(rows[group], columns, indices[group], room)
        for at in range(count):
            for axis in range(dims):
                value = np.float64(rows[group, at, axis])
                found[group, 0] += (value - lut[group, indices[group, at], axis]) ** 2
                found[group, 1] += value * value
