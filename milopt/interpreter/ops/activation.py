"""Activation functions. They compute in the dtype of the run; only their result is rounded."""

from __future__ import annotations

from math import sqrt

import torch
from torch.nn import functional as F

from milopt.interpreter.impls import Impls, Tensor

__all__ = ["activation"]

activation = Impls("activation")


@activation("relu")
def _(x: Tensor) -> Tensor:
    return torch.relu(x)


@activation("relu6")
def _(x: Tensor) -> Tensor:
    return x.clamp(0, 6)


@activation("sigmoid")
def _(x: Tensor) -> Tensor:
    return torch.sigmoid(x)


@activation("silu")
def _(x: Tensor) -> Tensor:
    return F.silu(x)


@activation("gelu")
def _(x: Tensor, mode: str = "EXACT") -> Tensor:
    """By the documented formulas; torch's exact float32 gelu of infinity is NaN."""
    if mode == "TANH_APPROXIMATION":
        return F.gelu(x, approximate="tanh")
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return torch.erf(x * sqrt(0.5)).add_(1).mul_(0.5).mul_(x)


@activation("softmax")
def _(x: Tensor, axis: int = -1) -> Tensor:
    return torch.softmax(x, axis)


@activation("leaky_relu")
def _(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x < 0, alpha * x, x)


@activation("elu")
def _(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x < 0, alpha * torch.expm1(x), x)


@activation("prelu")
def _(x: Tensor, alpha: Tensor) -> Tensor:
    return x.clamp(min=0) + _per_channel(alpha, x) * x.clamp(max=0)


@activation("clamped_relu")
def _(x: Tensor, alpha: float, beta: float) -> Tensor:
    """``min(beta, x)`` where ``x >= 0``, else ``min(beta, alpha * x)``."""
    return torch.where(x >= 0, x, alpha * x).clamp(max=beta)


@activation("thresholded_relu")
def _(x: Tensor, alpha: float) -> Tensor:
    """``x`` where ``x >= alpha``, else 0."""
    return torch.where(x < alpha, torch.zeros_like(x), x)


@activation("linear_activation")
def _(x: Tensor, alpha: float, beta: float) -> Tensor:
    return alpha * x + beta


@activation("scaled_tanh")
def _(x: Tensor, alpha: float, beta: float) -> Tensor:
    return alpha * torch.tanh(beta * x)


@activation("sigmoid_hard")
def _(x: Tensor, alpha: float, beta: float) -> Tensor:
    return (alpha * x + beta).clamp(0, 1)


@activation("softplus")
def _(x: Tensor) -> Tensor:
    """``log(1 + exp(x))`` without torch's switch to the identity above 20."""
    return torch.log1p(torch.exp(-x.abs())) + x.clamp(min=0)


@activation("softplus_parametric")
def _(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """``alpha * log(1 + exp(beta * x))`` with a pair per channel."""
    scaled = _per_channel(beta, x) * x
    return _per_channel(alpha, x) * (torch.log1p(torch.exp(-scaled.abs())) + scaled.clamp(min=0))


@activation("softsign")
def _(x: Tensor) -> Tensor:
    return x / (1 + x.abs())


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (x.dim() - 2))
