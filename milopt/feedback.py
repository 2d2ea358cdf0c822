"""Indices chosen one input channel after another, each making up for what those before it lost.

Frantar et al., "GPTQ: Accurate post-training quantization for generative pre-trained transformers" (2022), with tables
of any values in place of even steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from milopt.errors import MiloptError

__all__ = ["Compensation", "damped", "with_feedback"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow

_BLOCK = 128  # columns: what they lose is handed to all columns behind them by one product of matrices
_NO_MOMENTS = (
    "the products in the calibration are no sums of x xᵀ: the file is damaged, or made of inputs that overflow"
)
# Of the mean of the Hessian's diagonal, added to it: ten times the paper's. With the paper's hundredth, indices follow
# the text of the calibration so closely that other text loses by it (benchmarks/results/quality.md is with a tenth).
_DAMPING = 0.1


def with_feedback(rows: Array, lut: Array, products: Array) -> Array:
    """Indices ``(O, I)``, uint8, for weights ``rows (O, I)`` and ascending tables ``lut (tables, k)``, in order.

    ``products (I, I)`` is x xᵀ summed over inputs. Inputs go by their power, the largest first; of those that were
    never seen, weights are assigned to the nearest entry.
    """
    return Compensation.of(products).assigned(rows, lut)


@dataclass(frozen=True)
class Compensation:
    """How inputs make up for each other: they go in ``order (I,)``, and ``factor (I, I)``, fp32, is upper triangular.

    It takes I³ operations to find, and serves for all tables of a weight.
    """

    order: Array
    factor: Array

    @classmethod
    def of(cls, products: Array) -> Compensation:
        """That of inputs with these sums of x xᵀ. MiloptError where the products can't be such sums."""
        hessian = damped(products)
        order = np.argsort(-np.diagonal(hessian), kind="stable")
        try:
            inverse: Array = np.asarray(np.linalg.inv(hessian[np.ix_(order, order)]), np.float64)
            return cls(order, _upper(np.linalg.cholesky((inverse + inverse.T) / 2)))
        except np.linalg.LinAlgError:
            raise MiloptError(_NO_MOMENTS) from None

    def assigned(self, rows: Array, lut: Array) -> Array:
        """Indices as :func:`with_feedback` gives them."""
        # here, so that numba is loaded only where something is compressed
        from milopt.feedback_kernels import assign_block

        factor = self.factor
        weights: Array = np.ascontiguousarray(rows[:, self.order], np.float32)
        tables: Array = np.ascontiguousarray(lut, np.float64)
        group = len(rows) // len(lut)
        made = np.empty(weights.shape, np.uint8)
        for start in range(0, weights.shape[1], _BLOCK):
            part = slice(start, min(start + _BLOCK, weights.shape[1]))
            columns = np.ascontiguousarray(weights[:, part])
            indices, errors = np.empty(columns.shape, np.uint8), np.empty(columns.shape, np.float32)
            assign_block(columns, tables, group, np.ascontiguousarray(factor[part, part]), indices, errors)
            made[:, part] = indices
            weights[:, part.stop :] -= errors @ factor[part, part.stop :]
        result = np.empty_like(made)
        result[:, self.order] = made
        return result


def damped(products: Array) -> Array:
    """The Hessian (I, I) in float64, with something on its diagonal for inputs that were hardly seen.

    MiloptError where the products can't be sums of x xᵀ.
    """
    hessian = np.array(products, np.float64)
    if not np.isfinite(hessian).all():
        raise MiloptError(_NO_MOMENTS)
    np.fill_diagonal(hessian, np.diagonal(hessian) + max(_DAMPING * float(np.trace(hessian)) / len(hessian), 1e-12))
    return hessian


def _upper(lower: Array) -> Array:
    """The transpose in fp32."""
    return np.ascontiguousarray(lower.T, np.float32)
