"""Arithmetic on elements: one or two tensors in, one out, broadcast as numpy does."""

from __future__ import annotations

from collections.abc import Callable

import torch

from milopt.interpreter.impls import Impls, Tensor

__all__ = ["elementwise", "quotients"]

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
    "floor": torch.floor,
    "round": torch.round,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
}

_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "mul": torch.mul,
    "pow": torch.pow,
    "sub": torch.sub,
}

_EXACT = frozenset({"abs", "ceil", "floor", "maximum", "minimum", "round"})


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def apply(x: Tensor) -> Tensor:
        return function(x)

    return apply


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    def apply(x: Tensor, y: Tensor) -> Tensor:
        return function(x, y)

    return apply


for _name, _function in _UNARY.items():
    elementwise(_name, exact=_name in _EXACT)(_unary(_function))
for _name, _operator in _BINARY.items():
    elementwise(_name, exact=_name in _EXACT)(_binary(_operator))


@elementwise("sign", exact=True)
def _(x: Tensor) -> Tensor:
    """NaN stays NaN, as in coremltools; torch makes it 0."""
    return torch.where(x.isnan(), x, torch.sign(x)) if x.is_floating_point() else torch.sign(x)


@elementwise("exp2")
def _(x: Tensor) -> Tensor:
    """Powers of int32 are int32 by the op's type: 0 where x < 0, from 2**31 on the smallest int32, as in ``cast``."""
    if x.is_floating_point():
        return torch.exp2(x)
    power = torch.ones_like(x, dtype=torch.int64) << x.clamp(0, 31).long()
    return power.to(x.dtype).masked_fill(x < 0, 0)


def _floor_div(x: Tensor, y: Tensor) -> Tensor:
    """Towards minus infinity. An integer by 0 is 0, as numpy has it and so coremltools' value inference."""
    if x.is_floating_point():
        return torch.floor_divide(x, y)
    return torch.floor_divide(x, y.masked_fill(y == 0, 1)).masked_fill(y == 0, 0)


def _mod(x: Tensor, y: Tensor) -> Tensor:
    """With the sign of ``y``. An integer modulo 0 is 0, as numpy has it and so coremltools' value inference.

    In float64, for torch's ``remainder`` and ``fmod`` of float32 are NaN or inexact where the quotient is large.
    """
    if x.is_floating_point():
        rest = torch.fmod(x.double(), y.double())
        return torch.where((rest != 0) & ((rest < 0) != (y < 0)), rest + y, rest)
    return torch.remainder(x, y.masked_fill(y == 0, 1))


elementwise("floor_div")(_floor_div)
elementwise("mod")(_mod)


def quotients(x: Tensor, y: Tensor) -> Tensor:
    """Quotients of int32 are int32 by the op's type; they are truncated, as C does, and 0 where ``y`` is."""
    if x.is_floating_point():
        return x / y
    # in int64: the smallest int32 divided by -1 ends the process
    wide = torch.div(x.long(), y.masked_fill(y == 0, 1).long(), rounding_mode="trunc")
    return wide.to(x.dtype).masked_fill(y == 0, 0)


elementwise("real_div")(quotients)


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
