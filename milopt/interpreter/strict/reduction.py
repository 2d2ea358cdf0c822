"""Reductions that are more than one sum."""

from __future__ import annotations

import torch

from milopt.interpreter.impls import Impls, Ints, Rounding, Tensor
from milopt.interpreter.ops import core

__all__ = ["reduction"]

reduction = Impls("strict reduction")


def _sum(x: Tensor, axes: Ints | None, keep_dims: bool, r: Rounding) -> Tensor:
    """``reduce_sum``, accumulated in float64 and rounded once."""
    return r(core["reduce_sum"].function(x.double(), axes, keep_dims))


@reduction("reduce_mean")
def _(x: Tensor, axes: Ints | None = None, keep_dims: bool = False, *, r: Rounding) -> Tensor:
    """The sum, divided by the number of its terms; the documentation of ``reduce_mean`` speaks of the mean only.

    numpy's ``mean``, its ``value_inference``, adds up wider than fp16. A kernel that doesn't overflows here, which is
    what this precision is to show.
    """
    return r.share(_sum(x, axes, keep_dims, r), x)


@reduction("reduce_sum_square")
def _(x: Tensor, axes: Ints | None = None, keep_dims: bool = False, *, r: Rounding) -> Tensor:
    """``sum(square(x))`` (``get_operator`` of ``reduce_sum_square``)."""
    return _sum(r(x * x), axes, keep_dims, r)


@reduction("reduce_l2_norm")
def _(x: Tensor, axes: Ints | None = None, keep_dims: bool = False, *, r: Rounding) -> Tensor:
    """``sqrt(sum(square(x)))`` (``get_operator`` of ``reduce_l2_norm``)."""
    return r.of(torch.sqrt, _sum(r(x * x), axes, keep_dims, r))


@reduction("reduce_log_sum")
def _(x: Tensor, axes: Ints | None = None, keep_dims: bool = False, *, r: Rounding) -> Tensor:
    """``log(sum(x))`` (``get_operator`` of ``reduce_log_sum``)."""
    return r.of(torch.log, _sum(x, axes, keep_dims, r))


@reduction("reduce_log_sum_exp")
def _(x: Tensor, axes: Ints | None = None, keep_dims: bool = False, *, r: Rounding) -> Tensor:
    """``log(sum(exp(x - max(x)))) + max(x)`` (``get_operator`` of ``reduce_log_sum_exp``)."""
    largest = core["reduce_max"].function(x, axes, True)
    powers = r.of(torch.exp, r(x - largest))
    logarithm = r.of(torch.log, _sum(powers, axes, keep_dims, r))
    return r(logarithm + largest.reshape(logarithm.shape))
