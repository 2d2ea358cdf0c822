"""How the ``declared-strict`` precision rounds what a composite op computes on the way to its result."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from milopt.interpreter.values import held_dtype
from milopt.precisions import Precision

__all__ = ["Rounding"]


class Rounding:
    """Rounds intermediate values to the MIL type of an op's result, held as a run holds it: fp16 numbers as float32.

    In ``declared`` and ``float64``, where only results are rounded, it leaves values as they are held.

    Sums and functions (sqrt, exp, log, tanh...) are computed in float64 first: neither the order of a sum nor a
    library's version of a function then shows in what is rounded. torch's float32 sqrt may be off in its last bit.
    """

    __slots__ = ("_dtype", "_half", "_held")

    def __init__(self, dtype: str, precision: Precision = "declared-strict") -> None:
        held = held_dtype(dtype, precision)
        if held is None:
            raise ValueError(f"values of type {dtype} can't be rounded")
        self._dtype = dtype
        self._held = held
        self._half = dtype == "fp16" and precision == "declared-strict"

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        """The value rounded to nearest, ties to even; infinite where it is beyond the type's largest number."""
        if self._half:
            return _odd(value).half().float()
        return value.to(self._held)

    def of(self, function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """``function(x)``, rounded once."""
        return self(function(x.double()))

    def sum(self, x: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
        """The sum over ``axes``, which are kept with size 1, rounded once."""
        return self(x.sum(tuple(axes), keepdim=True, dtype=torch.float64))

    def mean(self, x: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
        """The sum, rounded, divided by the number of its terms, and rounded again."""
        return self.share(self.sum(x, axes), x)

    def share(self, total: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``total``, the sums of ``x``, divided by the number of terms in each, and rounded."""
        return self(total.double() / (x.numel() / max(total.numel(), 1)))

    def __repr__(self) -> str:
        return f"to {self._dtype}"


def _odd(value: torch.Tensor) -> torch.Tensor:
    """As float32, such that rounding to fp16 gives what rounding at once gives: inexact numbers get an odd last bit.

    Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008.
    """
    near = value.float()
    if value.dtype != torch.float64:
        return near
    back = near.double()
    bits = near.view(torch.int32) - (back.abs() > value.abs()).int()  # towards zero
    return (bits | (back != value).int()).view(torch.float32)
