"""Normalizations. Statistics are taken in the dtype of the run, at least fp32; only the result is rounded."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from milopt.interpreter.impls import Impls, Ints, Tensor

__all__ = ["normalization"]

normalization = Impls("normalization")


@normalization("layer_norm")
def _(
    x: Tensor,
    axes: Ints | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """``axes`` need not be the last ones; gamma and beta have the sizes of those axes, in the order of ``x``."""
    chosen = sorted(axis % x.dim() for axis in axes) if axes is not None else list(range(x.dim()))
    if chosen == list(range(x.dim() - len(chosen), x.dim())):
        return F.layer_norm(x, x.shape[x.dim() - len(chosen) :], gamma, beta, epsilon)
    shape = [size if axis in chosen else 1 for axis, size in enumerate(x.shape)]
    variance, mean = torch.var_mean(x, chosen, correction=0, keepdim=True)
    y = (x - mean) * torch.rsqrt(variance + epsilon)
    if gamma is not None:
        y = y * gamma.reshape(shape)
    return y if beta is None else y + beta.reshape(shape)


@normalization("batch_norm")
def _(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    return F.batch_norm(x, mean, variance, gamma, beta, training=False, eps=epsilon)


@normalization("instance_norm")
def _(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    """Over the spatial dimensions of each channel; a single element normalizes to beta (torch refuses that)."""
    variance, mean = torch.var_mean(x, list(range(2, x.dim())), correction=0, keepdim=True)
    y = (x - mean) * torch.rsqrt(variance + epsilon)
    shape = [-1, *[1] * (x.dim() - 2)]
    if gamma is not None:
        y = y * gamma.reshape(shape)
    return y if beta is None else y + beta.reshape(shape)


@normalization("l2_norm")
def _(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Over the last three dimensions together."""
    return x * torch.rsqrt(x.square().sum((-3, -2, -1), keepdim=True) + epsilon)


@normalization("local_response_norm")
def _(x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """Over ``size`` neighbouring channels (axis 1), as documented.

    The numbers in coremltools' test of a rank 3 input say that Core ML sums over axis -3 there.
    """
    return F.local_response_norm(x, size, alpha, beta, k)
