"""The places of NaN and Inf in a value, a bit for each number, compressed."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

__all__ = ["Places", "first", "has_odd"]


def has_odd(value: torch.Tensor) -> bool:
    """Whether there is NaN or Inf in a floating value."""
    # neither goes away in a sum, which is quicker than to ask each number; finite ones may overflow in it
    return not bool(value.sum().isfinite()) and not bool(value.isfinite().all())


def first(mask: torch.Tensor) -> tuple[int, ...]:
    """The first index where ``mask`` is true; there is one."""
    places: Any = mask.nonzero()[0].cpu().numpy()
    return tuple(int(each) for each in places)


@dataclass(frozen=True)
class Places:
    """Where a value holds NaN or Inf, and which of them."""

    shape: tuple[int, ...]
    _odd: bytes
    _nan: bytes
    _negative: bytes

    @property
    def nbytes(self) -> int:
        """How much memory this takes."""
        return len(self._odd) + len(self._nan) + len(self._negative)

    @classmethod
    def of(cls, value: torch.Tensor) -> Places:
        return cls(tuple(value.shape), *map(_packed, (~value.isfinite(), value.isnan(), value.isneginf())))

    def spurious(self, reference: torch.Tensor) -> torch.Tensor | None:
        """Where ``reference`` is finite and this is not; None if they have different shapes."""
        if tuple(reference.shape) != self.shape:
            return None
        return self._mask(self._odd).to(reference.device) & reference.isfinite()

    def at(self, index: tuple[int, ...]) -> float:
        """The NaN or Inf at one of the places."""
        if self._mask(self._nan)[index]:
            return float("nan")
        return float("-inf") if self._mask(self._negative)[index] else float("inf")

    def _mask(self, packed: bytes) -> torch.Tensor:
        count = int(np.prod(self.shape, dtype=np.int64))
        bits: Any = np.unpackbits(np.frombuffer(zlib.decompress(packed), np.uint8), count=count)
        return torch.as_tensor(bits.astype(np.bool_)).reshape(self.shape)


def _packed(mask: torch.Tensor) -> bytes:
    # level 1: such masks are regular, and shrink to almost nothing at any level
    return zlib.compress(np.packbits(mask.cpu().numpy()).tobytes(), 1)
