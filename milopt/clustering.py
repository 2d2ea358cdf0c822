"""Weights -> a table of a few values per group of channels, and an index per weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np

__all__ = ["Palette", "integer_tables", "nearest", "packed", "palettize"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow

_AT_ONCE = 1 << 22  # fp32 weights that are sorted at once


@dataclass(frozen=True)
class Palette:
    """``lut (G, entries)`` ascending in each row, in the weights' dtype; ``indices`` uint8, in the weights' shape.

    ``error`` is Σ (weight - decoded)² and ``power`` Σ weight², both in float64. Where ``wrong`` weights are NaN or
    infinite, the rest means nothing.
    """

    lut: Array
    indices: Array
    error: float
    power: float
    wrong: int = 0

    def decoded(self) -> Array:
        """The weights as the table gives them."""
        if self.lut.ndim == 3:  # entries are vectors
            return np.take_along_axis(self.lut, self.indices[:, :, None], axis=1)
        flat = self.indices.reshape(len(self.lut), -1)
        return np.reshape(np.take_along_axis(self.lut, flat, axis=1), self.indices.shape)


def palettize(rows: Array, bits: int, importance: Array = None) -> Palette:
    """The table of ``2**bits`` entries for each row with the least squared error, and the nearest entry of each weight.

    ``rows (G, n)``, or ``(G, a, b, c)``: fp16 or fp32 weights, one row per group. ``importance``, of a shape that
    broadcasts to that of ``rows``, multiplies the squared errors that are minimised. Each table is exact k-means
    (:mod:`milopt.kmeans`): on the histogram of the bits of fp16, of which there are 65,536 at most, and on sorted fp32
    values. A row with no more distinct values than entries is kept without loss (but -0 becomes 0); its last entry is
    then repeated.

    Entries are rounded to the weights' dtype, and weights assigned to the rounded entries.
    """
    # here, so that numba is loaded only where something is compressed
    from milopt.clustering_kernels import fp16_tables

    shape = rows.shape if rows.ndim == 4 else (len(rows), 1, 1, *rows.shape[1:])
    lut = np.zeros((len(rows), 1 << bits))
    indices: Array = np.empty_like(rows, np.uint8)  # in the order of the weights in memory
    found = np.zeros((len(rows), 3))
    wide, places = cast("Array", np.reshape(rows, shape)), np.reshape(indices, shape)
    if importance is not None:
        importance = np.reshape(np.broadcast_to(np.asarray(importance, np.float64), rows.shape), shape)
    if rows.size and rows.dtype == np.float16:
        fp16_tables(wide.view(np.uint16), _fp16_numbers(), importance, lut, places, found)
    elif rows.size:
        _fp32_tables(wide, importance, lut, places, found)
    error, power, wrong = found.sum(axis=0)
    return Palette(lut.astype(rows.dtype), indices, float(error), float(power), int(wrong))


def integer_tables(lut: Array) -> tuple[Array, Array, Array]:
    """Tables ``(G, k)`` as int8 ``(G, k)``, scales ``(G, 1)`` and the entries that they decode to, ascending still."""
    from milopt.quantizing import quantize

    made = quantize(lut, (len(lut), 1), "int8")
    return made.data, made.scale, made.data.astype(lut.dtype) * made.scale


def nearest(rows: Array, lut: Array) -> Palette:
    """The nearest entries of given tables ``(G, k)``, ascending ones, for finite weights ``(G, a, b, c)``."""
    from milopt.clustering_kernels import nearest_entries

    indices: Array = np.empty(rows.shape, np.uint8)
    found = np.zeros((len(rows), 3))
    tables = lut.astype(np.float64)
    for group in range(len(rows)):  # one at a time in fp32
        part = slice(group, group + 1)
        nearest_entries(np.asarray(rows[part], np.float32), tables[part], indices[part], found[part])
    error, power, _ = found.sum(axis=0)
    return Palette(lut, indices, float(error), float(power))


def _fp32_tables(rows: Array, importance: Array, lut: Array, indices: Array, found: Array) -> None:
    from milopt.clustering_kernels import nearest_entries, sorted_tables

    length = rows[0].size
    step = max(1, _AT_ONCE // length)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        flat: Array = rows[part].reshape(-1, length)
        wrong = length - np.count_nonzero(np.isfinite(flat), axis=1)
        found[part, 2] = wrong
        if wrong.any():
            continue
        if importance is None:
            sorted_tables(np.sort(flat, axis=1), None, lut[part])
        else:
            order = np.argsort(flat, axis=1)
            weights = np.take_along_axis(importance[part].reshape(-1, length), order, axis=1)
            sorted_tables(np.take_along_axis(flat, order, axis=1), weights, lut[part])
        nearest_entries(rows[part], lut[part], indices[part], found[part])


def _fp16_numbers() -> Array:
    """What the bits of fp16 mean, by their value as an integer; infinities and NaN among them."""
    patterns: Array = np.arange(1 << 16, dtype=np.uint16)
    return np.frombuffer(patterns, np.float16).astype(np.float64)


def packed(indices: Array, bits: int) -> Array:
    """``indices`` (flat, uint8) in ``bits`` each, the least significant bit of the first byte first."""
    from milopt.clustering_kernels import pack

    if bits == 8:
        return indices
    result = np.zeros((len(indices) * bits + 7) // 8, np.uint8)
    pack(indices, bits, result)
    return result
