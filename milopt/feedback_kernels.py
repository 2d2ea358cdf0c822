"""The loop of :mod:`milopt.feedback`."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from milopt.compiled import compiled

__all__ = ["assign_block"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow


@compiled("void(float32[:, ::1], float64[:, ::1], int64, float32[:, ::1], uint8[:, ::1], float32[:, ::1])")
def assign_block(rows: Array, lut: Array, group: int, factor: Array, indices: Array, errors: Array) -> None:
    """Assign the columns of ``rows (O, b)`` one after another; what each loses is made up for in those behind it.

    ``lut (tables, k)`` has a table for every ``group`` rows, ``factor (b, b)`` is upper triangular. ``errors (O, b)``:
    what each column lost, over the factor's diagonal.
    """
    entries = lut.shape[1]
    for row in range(len(rows)):
        table = lut[row // group]
        for at in range(rows.shape[1]):
            value = np.float64(rows[row, at])
            low, count = 0, entries - 1
            while count > 0:
                half = count // 2
                if (table[low + half] + table[low + half + 1]) / 2 < value:
                    low += half + 1
                    count -= half + 1
                else:
                    count = half
            indices[row, at] = low
            lost = np.float32((value - table[low]) / factor[at, at])
            errors[row, at] = lost
            for behind in range(at + 1, rows.shape[1]):
                rows[row, behind] -= lost * factor[at, behind]
