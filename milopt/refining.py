"""Tables and indices improved in turn, for the squared error of a layer's outputs.

That error is Σ (w - q)ᵀ H (w - q) over rows, with H = Σ x xᵀ of the inputs. With the indices held it is quadratic in
the entries of a table, whose best are found by conjugate gradients; with the tables held, one index after another is
exchanged for the best one. Neither step makes it larger, but for the rounding of entries to the weights' type.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from milopt.feedback import damped

__all__ = ["output_error", "refined"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow

_STEPS = 8  # of conjugate gradients: more than these leave the error of tables of 16 entries as it is to 4 digits
_AT_ONCE = 1 << 22  # numbers whose gradient is held at a time


def refined(
    rows: Array, lut: Array, indices: Array, products: Array, *, weights: Array = None, rounds: int = 2
) -> tuple[Array, Array]:
    """Better tables and indices for ``rows (O, I)``: ``lut (tables, k)`` in its dtype, ascending; ``indices (O, I)``.

    ``products (I, I)`` is x xᵀ summed over inputs. ``weights (O,)`` multiply the squared errors of rows.
    """
    made, chosen = np.array(lut), np.array(indices)
    hessian = np.asarray(damped(products), np.float32)
    order = np.argsort(-np.diagonal(hessian), kind="stable")
    group = len(rows) // len(lut)
    step = max(1, _AT_ONCE // max(group * rows.shape[1], 1))
    for start in range(0, len(lut), step):
        part = slice(start * group, (start + step) * group)
        some = _Tables(
            np.asarray(rows[part], np.float32),
            np.array(made[start : start + step], np.float64),
            np.ascontiguousarray(chosen[part]),
            hessian,
            np.ones(len(rows[part])) if weights is None else np.asarray(weights[part], np.float64),
        )
        for _ in range(rounds):
            some.refit(lut.dtype)
            some.reassign(order)
        made[start : start + step], chosen[part] = some.lut, some.indices
    return made, chosen


def output_error(rows: Array, decoded: Array, products: Array) -> tuple[float, float]:
    """The squared error of the outputs that ``products`` belong to, and their power; both are sums."""
    weights = np.asarray(rows, np.float32)
    lost: Array = weights - np.asarray(decoded, np.float32)
    hessian = np.asarray(products, np.float32)
    return _square(lost, hessian), _square(weights, hessian)


def _square(rows: Array, hessian: Array) -> float:
    return float(np.sum((rows @ hessian) * rows, dtype=np.float64))


class _Tables:
    """Some tables and the rows that use them."""

    def __init__(self, rows: Array, lut: Array, indices: Array, hessian: Array, weights: Array) -> None:
        self.rows, self.lut, self.indices, self.hessian, self.weights = rows, lut, indices, hessian, weights
        self.group = len(rows) // len(lut)
        self._places: Array = (np.arange(len(rows)) // self.group)[:, None] * lut.shape[1]

    def refit(self, dtype: Any) -> None:
        """The best entries for the indices, rounded to ``dtype``."""
        diagonal = self._gathered(np.broadcast_to(np.diagonal(self.hessian), self.rows.shape))
        scale = np.where(diagonal > 0, 1 / np.maximum(diagonal, 1e-300), 0.0)
        left = self._gathered(self._gradient())
        change, step = np.zeros_like(left), scale * left
        slope: Array = np.sum(left * step, axis=1)
        for _ in range(_STEPS):
            ahead = self._gathered(self._looked_up(step) @ self.hessian)
            bend: Array = np.sum(step * ahead, axis=1)
            far = np.where(bend > 0, slope / np.maximum(bend, 1e-300), 0.0)[:, None]
            change += far * step
            left -= far * ahead
            before, slope = slope, np.sum(left * scale * left, axis=1)
            step = scale * left + np.where(before > 0, slope / np.maximum(before, 1e-300), 0.0)[:, None] * step
        entries: Array = np.asarray((self.lut + change).astype(dtype), np.float64) + 0.0  # -0 becomes 0
        order = np.argsort(entries, axis=1, kind="stable")
        self.lut = np.take_along_axis(entries, order, axis=1)
        ranks: Array = np.asarray(np.argsort(order, axis=1, kind="stable"))
        self.indices = np.ravel(ranks)[self._places + self.indices].astype(np.uint8)

    def reassign(self, order: Array) -> None:
        """One index after another, along ``order``, becomes that with the least error."""
        # here, so that numba is loaded only where something is compressed
        from milopt.feedback_kernels import exchange

        exchange(np.ascontiguousarray(self.lut), self.group, self.hessian, order, self._gradient(), self.indices)

    def _gradient(self) -> Array:
        """(w - q) H, half of what the error changes by."""
        lost: Array = self.rows - self._looked_up(self.lut)
        return lost @ self.hessian

    def _looked_up(self, entries: Array) -> Array:
        return entries.reshape(-1)[self._places + self.indices].astype(np.float32)

    def _gathered(self, values: Array) -> Array:
        """``values (O, I)`` added up for each entry of each table, rows by their weights."""
        places = (self._places + self.indices).reshape(-1)
        weighed: Array = values * self.weights[:, None]
        return np.reshape(np.bincount(places, np.ravel(weighed), minlength=self.lut.size), self.lut.shape)
