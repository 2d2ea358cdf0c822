"""Activation functions step by step. sigmoid, tanh, erf and exp are single steps."""

from __future__ import annotations

from math import pi, sqrt

import torch

from milopt.interpreter.impls import Impls, Rounding, Tensor

__all__ = ["activation", "softmax"]

activation = Impls("strict activation")


@activation("silu")
def _(x: Tensor, *, r: Rounding) -> Tensor:
    """``x * sigmoid(x)`` (documentation of ``silu``)."""
    return r(x * r.of(torch.sigmoid, x))


@activation("gelu")
def _(x: Tensor, mode: str = "EXACT", *, r: Rounding) -> Tensor:
    """The three formulas of ``gelu``'s documentation, in the order of its ``value_inference``.

    ``0.5 x (1 + erf(x / √2))``, ``0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))`` and ``x sigmoid(1.702 x)``.
    """
    if mode == "SIGMOID_APPROXIMATION":
        return r(x * r.of(torch.sigmoid, r(1.702 * x)))
    if mode == "TANH_APPROXIMATION":
        cubes = r.of(lambda x: x**3, x)
        bell = r.of(torch.tanh, r(sqrt(2 / pi) * r(x + r(0.044715 * cubes))))
    else:
        bell = r.of(torch.erf, r(x / sqrt(2)))
    return r(r(0.5 * x) * r(1 + bell))


@activation("softmax")
def softmax(x: Tensor, axis: int = -1, *, r: Rounding) -> Tensor:
    """``t / sum(t)`` with ``t = exp(x - max(x))`` (``value_inference`` of ``softmax``)."""
    powers = r.of(torch.exp, r(x - x.amax(axis, keepdim=True)))
    return r(powers / r.sum(powers, [axis]))


@activation("elu")
def _(x: Tensor, alpha: float, *, r: Rounding) -> Tensor:
    """``x`` where ``x > 0``, else ``alpha * (exp(x) - 1)`` (documentation of ``elu``)."""
    return torch.where(x < 0, r(alpha * r(r.of(torch.exp, x) - 1)), x)


@activation("linear_activation")
def _(x: Tensor, alpha: float, beta: float, *, r: Rounding) -> Tensor:
    """``x * alpha + beta`` (documentation of ``linear_activation``)."""
    return r(r(alpha * x) + beta)


@activation("scaled_tanh")
def _(x: Tensor, alpha: float, beta: float, *, r: Rounding) -> Tensor:
    """``alpha * tanh(beta * x)`` (documentation of ``scaled_tanh``)."""
    return r(alpha * r.of(torch.tanh, r(beta * x)))


@activation("sigmoid_hard")
def _(x: Tensor, alpha: float, beta: float, *, r: Rounding) -> Tensor:
    """``min(max(alpha * x + beta, 0), 1)`` (documentation of ``sigmoid_hard``)."""
    return r(r(alpha * x) + beta).clamp(0, 1)


@activation("softplus")
def _(x: Tensor, *, r: Rounding) -> Tensor:
    """``log(1 + exp(-|x|)) + max(x, 0)`` (``value_inference`` of ``softplus``)."""
    return r(r.of(torch.log, r(1 + r.of(torch.exp, -x.abs()))) + x.clamp(min=0))


@activation("softplus_parametric")
def _(x: Tensor, alpha: Tensor, beta: Tensor, *, r: Rounding) -> Tensor:
    """``alpha_i * log(1 + exp(beta_i * x_i))`` (documentation and ``value_inference`` of ``softplus_parametric``)."""
    shape = [-1, *[1] * (x.dim() - 2)]
    powers = r.of(torch.exp, r(beta.reshape(shape) * x))
    return r(alpha.reshape(shape) * r.of(torch.log, r(1 + powers)))


@activation("softsign")
def _(x: Tensor, *, r: Rounding) -> Tensor:
    """``x / (1 + |x|)`` (documentation of ``softsign``)."""
    return r(x / r(1 + x.abs()))
