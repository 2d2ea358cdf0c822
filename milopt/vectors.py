"""Tables of vectors: k-means of several numbers at a time, by Lloyd's iteration from spread seeds."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from milopt.clustering import Palette

__all__ = ["palettize_vectors"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow


def palettize_vectors(rows: Array, bits: int) -> Palette:
    """Tables of ``2**bits`` vectors for fp16 or fp32 weights ``(G, n, d)``, and the nearest entry of each vector.

    ``lut`` is ``(G, 2**bits, d)``, ``indices`` ``(G, n)``. The seeds are drawn as in k-means++ (Arthur and
    Vassilvitskii, 2007), always the same ones, and moved until that gains less than 0.1%; no method finds the best
    tables in reasonable time. Fewer distinct vectors than entries are kept without loss (but -0 becomes 0).
    """
    # here, so that numba is loaded only where something is compressed
    from milopt.vector_kernels import vector_tables

    groups, count, dims = rows.shape
    lut, indices = np.zeros((groups, 1 << bits, dims)), np.zeros((groups, count), np.uint8)
    found = np.zeros((groups, 2))
    wrong = rows.size - int(np.count_nonzero(np.isfinite(rows)))
    if rows.size and not wrong:
        numbers: Array = np.ascontiguousarray(rows, np.float32)
        vector_tables(numbers, rows.dtype == np.float16, lut, indices, found)
    error, power = found.sum(axis=0)
    return Palette(lut.astype(rows.dtype), indices, float(error), float(power), wrong)
