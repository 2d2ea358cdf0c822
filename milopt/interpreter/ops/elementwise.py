"""Arithmetic on elements: one or two tensors in, one out, broadcast as numpy does."""

from __future__ import annotations

from collections.abc import Callable

import torch

from milopt.interpreter.impls import Impls, Tensor

__all__ = ["elementwise"]

elementwise = Impls("elementwise")

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "floor": torch.floor,
    "round": torch.round,
    "sign": torch.sign,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
}

_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "floor_div": torch.floor_divide,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "mod": torch.remainder,
    "mul": torch.mul,
    "pow": torch.pow,
    "sub": torch.sub,
}


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def apply(x: Tensor) -> Tensor:
        return function(x)

    return apply


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    def apply(x: Tensor, y: Tensor) -> Tensor:
        return function(x, y)

    return apply


for _name, _function in _UNARY.items():
    elementwise(_name)(_unary(_function))
for _name, _operator in _BINARY.items():
    elementwise(_name)(_binary(_operator))


@elementwise("real_div")
def _(x: Tensor, y: Tensor) -> Tensor:
    """Quotients of int32 are int32 by the op's type; they are truncated, as C does."""
    if x.is_floating_point():
        return x / y
    return torch.div(x, y, rounding_mode="trunc")


@elementwise("clip")
def _(x: Tensor, alpha: float, beta: float) -> Tensor:
    """The upper bound wins where ``alpha > beta``, as in coremltools' ``minimum(maximum(x, alpha), beta)``."""
    return x.clamp(alpha, beta)


@elementwise("threshold")
def _(x: Tensor, alpha: float) -> Tensor:
    return x.clamp(min=alpha)


@elementwise("inverse")
def _(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    return torch.reciprocal(x + epsilon)


@elementwise("log")
def _(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    return torch.log(x + epsilon)


@elementwise("rsqrt")
def _(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    return torch.rsqrt(x + epsilon)
