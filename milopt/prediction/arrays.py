"""Multi-arrays in and out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from milopt.errors import EvaluationError
from milopt.interpreter.values import Array, is_float

__all__ = ["ArrayInput", "ArrayOutput", "Shapes"]

Bounds = tuple[int, int | None]


@dataclass(frozen=True)
class Shapes:
    """The shapes an input may have: one of ``enumerated``, or a size within ``bounds`` in every dimension.

    ``default`` is the one described first. A bound of None is open; ``names`` are the program's symbols.
    """

    default: tuple[int, ...]
    bounds: tuple[Bounds, ...]
    enumerated: tuple[tuple[int, ...], ...] = ()
    names: tuple[str, ...] = ()

    def takes(self, shape: Sequence[int]) -> bool:
        if self.enumerated:
            return tuple(shape) in self.enumerated
        return len(shape) == len(self.bounds) and all(
            low <= size and (high is None or size <= high) for size, (low, high) in zip(shape, self.bounds, strict=True)
        )

    def __str__(self) -> str:
        if self.enumerated:
            return " or ".join(f"[{', '.join(map(str, each))}]" for each in self.enumerated)
        names = self.names or ("",) * len(self.bounds)
        return f"[{', '.join(_size_text(bound, name) for bound, name in zip(self.bounds, names, strict=True))}]"


def _size_text(bounds: Bounds, name: str) -> str:
    low, high = bounds
    if low == high:
        return str(low)
    return f"{name}={low}..{'' if high is None else high}" if name else f"{low}..{'' if high is None else high}"


@dataclass(frozen=True)
class ArrayInput:
    """A multi-array. ``dtype`` and ``rank`` are the program's: a number is described as an array of one element."""

    name: str
    dtype: str
    rank: int
    shapes: Shapes
    optional: bool = False
    fill: float = 0.0

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}{self.shapes}"

    def read(self, value: Any) -> Array:
        """Numbers of any type and width are cast: floats to integers by dropping the fraction, as Core ML does."""
        array = _array(value)
        if array is None or array.dtype.kind not in "fiub":
            kind = type(value).__name__ if array is None else f"an array of {array.dtype}"
            raise EvaluationError(f"input {self.name!r} must be {self.dtype}{self.shapes}, got {kind}")
        shape = array.shape or (1,) * (self.rank == 0 or len(self.shapes.bounds) == 1)
        if not self.shapes.takes(shape):
            raise EvaluationError(
                f"input {self.name!r} must be {self.dtype}{self.shapes}, got {array.dtype}{list(array.shape)}"
            )
        return self._cast(np.reshape(array, () if self.rank == 0 else shape))

    def _cast(self, array: Array) -> Array:
        if is_float(self.dtype):
            return array if array.dtype.kind == "f" else array.astype(np.float64)
        if self.dtype == "bool":
            return array.astype(np.bool_)
        if array.dtype.kind != "f":
            return array.astype(np.int64)
        if not np.isfinite(array).all():
            raise EvaluationError(f"input {self.name!r} must be {self.dtype}{self.shapes}, but holds NaN or Inf")
        return array.astype(np.int64)

    def default(self) -> Array:
        return self._cast(np.full(() if self.rank == 0 else self.shapes.default, self.fill))


def _array(value: Any) -> Array | None:
    """The value as an array; None for what is no array of numbers."""
    if hasattr(value, "detach"):  # a torch tensor; numpy has no bfloat16
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    if isinstance(value, (str, bytes, dict)):
        return None
    try:
        return np.asarray(value)
    except ValueError:  # rows of unequal length
        return None


@dataclass(frozen=True)
class ArrayOutput:
    """A multi-array of the described type; a number comes as an array of one element."""

    name: str
    double: bool = False

    def write(self, value: Array) -> Array:
        value = np.reshape(value, (1,)) if value.ndim == 0 else value
        return value.astype(np.float64) if self.double else value
