"""Comparisons, logic on bools, choices between values, and casts."""

from __future__ import annotations

from collections.abc import Callable

import torch

from milopt.interpreter.impls import Impls, Tensor

__all__ = ["logic", "truncated"]

logic = Impls("logic")

_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "equal": torch.eq,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "not_equal": torch.ne,
}


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    def apply(x: Tensor, y: Tensor) -> Tensor:
        return function(x, y)

    return apply


for _name, _function in _BINARY.items():
    logic(_name)(_binary(_function))


@logic("logical_not")
def _(x: Tensor) -> Tensor:
    return torch.logical_not(x)


@logic("select", moves=True)
def _(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(cond, a, b)


_INTEGERS = {
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "uint16": torch.int32,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint32": torch.int64,
}


# held in wider types, where they don't wrap by themselves
_HELD_WIDER = {"uint16": 0xFFFF, "uint32": 0xFFFFFFFF}


def truncated(x: Tensor) -> Tensor:
    """Floats as int32, NaN and what lies beyond int32 as the smallest one.

    That is numpy's ``astype`` on x86, on which coremltools' value inference rests; torch leaves it open.
    """
    lowest = -(2.0**31)
    return torch.where((x >= lowest) & (x < -lowest), x, torch.full_like(x, lowest)).to(torch.int32)


@logic("cast", shares="x")
def _(x: Tensor, dtype: str) -> Tensor:
    """Floats become integers by truncation. Between floats nothing is done: the run rounds to the declared type.

    NaN and what lies beyond int32 become the smallest int32, from which narrower types wrap: see :func:`truncated`.
    """
    if dtype == "bool":
        return x != 0
    if dtype in _INTEGERS:
        if x.is_floating_point() and dtype not in ("int64", "uint32"):
            x = truncated(x)
        held = x.to(_INTEGERS[dtype])
        return held & _HELD_WIDER[dtype] if dtype in _HELD_WIDER else held
    return x if x.is_floating_point() else x.double()
