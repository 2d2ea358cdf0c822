"""The loops of :mod:`milopt.feedback` and :mod:`milopt.refining`."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from milopt.compiled import compiled

__all__ = ["assign_block", "exchange"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow


@compiled()
def _nearest(table: Array, value: float) -> int:
    """The entry of an ascending table that is nearest to ``value``, the lower one of two as near."""
    low, count = 0, len(table) - 1
    while count > 0:
        half = count // 2
        if (table[low + half] + table[low + half + 1]) / 2 < value:
            low += half + 1
            count -= half + 1
        else:
            count = half
    return low


@compiled("void(float32[:, ::1], float64[:, ::1], int64, float32[:, ::1], uint8[:, ::1], float32[:, ::1])")
def assign_block(rows: Array, lut: Array, group: int, factor: Array, indices: Array, errors: Array) -> None:
    """Assign the columns of ``rows (O, b)`` one after another; what each loses is made up for in those behind it.

    ``lut (tables, k)`` has a table for every ``group`` rows, ``factor (b, b)`` is upper triangular. ``errors (O, b)``:
    what each column lost, over the factor's diagonal.
    """
    for row in range(len(rows)):
        table = lut[row // group]
        for at in range(rows.shape[1]):
            value = np.float64(rows[row, at])
            low = _nearest(table, value)
            indices[row, at] = low
            lost = np.float32((value - table[low]) / factor[at, at])
            errors[row, at] = lost
            for behind in range(at + 1, rows.shape[1]):
                rows[row, behind] -= lost * factor[at, behind]


@compiled("void(float64[:, ::1], int64, float32[:, ::1], int64[::1], float32[:, ::1], uint8[:, ::1])", finite=True)
def exchange(lut: Array, group: int, hessian: Array, order: Array, gradient: Array, indices: Array) -> None:
    """Exchange one index after another, along ``order``, for the one with the least error of the outputs.

    ``gradient (O, I)`` is (w - q) H, and kept so: with the others held, the best value in place of q is
    q + gradient / H's diagonal.
    """
    for row in range(len(indices)):
        table, slope = lut[row // group], gradient[row]
        for at in order:
            old = indices[row, at]
            new = _nearest(table, table[old] + np.float64(slope[at]) / np.float64(hessian[at, at]))
            if new == old:
                continue
            change = np.float32(table[new] - table[old])
            indices[row, at] = new
            for other in range(len(slope)):
                slope[other] -= change * hessian[at, other]
