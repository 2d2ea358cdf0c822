"""Functions of ``x + epsilon``."""

from __future__ import annotations

import torch

from milopt.interpreter.impls import Impls, Rounding, Tensor

__all__ = ["elementwise"]

elementwise = Impls("strict elementwise")


@elementwise("inverse")
def _(x: Tensor, epsilon: float = 1e-4, *, r: Rounding) -> Tensor:
    """``1 / (x + epsilon)`` (documentation of ``inverse``)."""
    return r(1 / r(x + epsilon))


@elementwise("log")
def _(x: Tensor, epsilon: float = 1e-45, *, r: Rounding) -> Tensor:
    """``log(x + epsilon)`` (documentation of ``log``)."""
    return r.of(torch.log, r(x + epsilon))


@elementwise("rsqrt")
def _(x: Tensor, epsilon: float = 1e-12, *, r: Rounding) -> Tensor:
    """``1 / sqrt(x + epsilon)`` (documentation of ``rsqrt``)."""
    return r(1 / r.of(torch.sqrt, r(x + epsilon)))
