"""Normalizations step by step. Means, squares and their sums are rounded: in fp16 they end at 65504."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from milopt.interpreter.impls import Impls, Ints, Rounding, Tensor

__all__ = ["normalization"]

normalization = Impls("strict normalization")


@normalization("layer_norm")
def _(
    x: Tensor,
    axes: Ints | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
    *,
    r: Rounding,
) -> Tensor:
    """``gamma * (x - E[x]) / sqrt(Var[x] + epsilon) + beta`` in the steps of ``layer_norm``'s ``value_inference``."""
    chosen = list(range(x.dim())) if axes is None else sorted(axis % x.dim() for axis in axes)
    shape = [size if axis in chosen else 1 for axis, size in enumerate(x.shape)]
    return _affine(_normalized(x, chosen, epsilon, r), gamma, beta, shape, r)


@normalization("instance_norm")
def _(
    x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5, *, r: Rounding
) -> Tensor:
    """As ``layer_norm``, over the spatial dimensions of each channel; its documentation gives no formula."""
    shape = [-1, *[1] * (x.dim() - 2)]
    return _affine(_normalized(x, range(2, x.dim()), epsilon, r), gamma, beta, shape, r)


def _normalized(x: Tensor, axes: Sequence[int], epsilon: float, r: Rounding) -> Tensor:
    """``num / sqrt(sum(num²) / n + epsilon)`` with ``num = x - sum(x) / n``."""
    centred = r(x - r.mean(x, axes))
    return r(centred / r.of(torch.sqrt, r(r.mean(r(centred * centred), axes) + epsilon)))


def _affine(y: Tensor, gamma: Tensor | None, beta: Tensor | None, shape: Sequence[int], r: Rounding) -> Tensor:
    if gamma is not None:
        y = r(y * gamma.reshape(shape))
    return y if beta is None else r(y + beta.reshape(shape))


@normalization("batch_norm")
def _(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
    *,
    r: Rounding,
) -> Tensor:
    """``gamma * (x - mean) / sqrt(variance + epsilon) + beta`` (documentation of ``batch_norm``).

    In the order of ``layer_norm``: gamma comes after the quotient.
    """
    shape = [-1, *[1] * (x.dim() - 2)]
    root = r.of(torch.sqrt, r(variance + epsilon))
    return _affine(r(r(x - mean.reshape(shape)) / root.reshape(shape)), gamma, beta, shape, r)


@normalization("l2_norm")
def _(x: Tensor, epsilon: float = 1e-6, *, r: Rounding) -> Tensor:
    """``x / sqrt(sum(x²) + epsilon)`` over the last three dimensions (``value_inference`` of ``l2_norm``)."""
    return r(x / r.of(torch.sqrt, r(r.sum(r(x * x), (-3, -2, -1)) + epsilon)))


@normalization("local_response_norm")
def _(x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0, *, r: Rounding) -> Tensor:
    """``x / (k + alpha / size * sum(x²))^beta`` over ``size`` channels (documentation of ``local_response_norm``)."""
    squares = r(x * x).movedim(1, -1)
    windows = F.pad(squares, (size // 2, (size - 1) // 2)).unfold(-1, size, 1)
    total = r.sum(windows, [-1]).squeeze(-1).movedim(-1, 1)
    base = r(k + r(alpha / size * total))
    return r(x / r.of(lambda base: base**beta, base))
