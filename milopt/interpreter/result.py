"""What an op's result must be, and how it is held."""

from __future__ import annotations

import copy
from typing import Any

import torch

from milopt.errors import EvaluationError
from milopt.interpreter.values import Precision, ValueInfo, held_dtype, is_float

__all__ = ["Result"]


# Elements that are rounded at once: so many fit a core's cache, and no second copy of a large value is made.
_PIECE = 1 << 16


class Result:
    """Where a step's result goes and what it must be: the op's declared shape and dtype are checked at every run.

    ``fresh``: nobody else has the memory of what is settled, so it is rounded where it is.
    """

    __slots__ = ("_fresh", "_held", "_kind", "_mask", "_rounds", "_shape", "_static", "info", "slot")

    def __init__(self, slot: int, info: ValueInfo, precision: Precision, rounds: bool, fresh: bool = False) -> None:
        self.slot = slot
        self.info = info
        self._held = held_dtype(info.dtype, precision)
        self._kind = "float" if is_float(info.dtype) else "bool" if info.dtype == "bool" else "int"
        self._mask = {"uint16": 0xFFFF, "uint32": 0xFFFFFFFF}.get(info.dtype)
        self._rounds = rounds and info.dtype == "fp16" and precision != "float64"
        self._fresh = fresh
        self._shape = info.shape  # compared with a torch.Size, which is a tuple
        self._static = info.shape is not None and all(isinstance(dim, int) for dim in info.shape)

    @property
    def is_static(self) -> bool:
        """Whether the declared shape has no symbols."""
        return self._static

    @property
    def held(self) -> torch.dtype | None:
        """The torch dtype of what is settled."""
        return self._held

    @property
    def sizes(self) -> tuple[int, ...]:
        """The declared shape, where it is static."""
        return tuple(size for size in self._shape or () if isinstance(size, int))

    def at(self, other: Result) -> Result:
        """This kind of result in the slot and the shape of the other."""
        result = copy.copy(self)
        result.slot, result.info, result._shape, result._static = other.slot, other.info, other._shape, other._static
        return result

    def settle(self, value: Any, sizes: dict[str, int]) -> Any:
        """The value as it is held, rounded to its declared dtype; EvaluationError if it isn't what is declared."""
        if self._held is None:
            return value
        if value.dtype is not self._held:
            value = self._converted(value)
        if value.shape != self._shape and (self._static or not self._unifies(value.shape, sizes)):
            raise EvaluationError(f"gave shape {tuple(value.shape)} for {self.info.name!r}, declared {self.info}")
        if not self._rounds:
            return value
        if not self._fresh:
            return value.half().float()
        return value.copy_(value.half()) if value.numel() <= _PIECE else _rounded(value)

    def _converted(self, value: torch.Tensor) -> torch.Tensor:
        kind = "float" if value.is_floating_point() else "bool" if value.dtype is torch.bool else "int"
        if kind != self._kind:
            raise EvaluationError(f"gave {value.dtype} for {self.info.name!r}, declared {self.info}")
        if self._mask is not None:
            value = value.to(torch.int64) & self._mask
        return value.to(self._held)

    def _unifies(self, shape: torch.Size, sizes: dict[str, int]) -> bool:
        if self._shape is None:
            return True
        if len(shape) != len(self._shape):
            return False
        return all(
            want == "?" or (sizes.setdefault(want, have) if isinstance(want, str) else want) == have
            for have, want in zip(shape, self._shape, strict=True)
        )


def _rounded(value: torch.Tensor) -> torch.Tensor:
    """The float32 tensor with its numbers rounded to fp16 in place."""
    if value.is_contiguous():
        flat = value.view(-1)
    elif value.dim() > 2 and value.movedim(1, -1).is_contiguous():  # channels last
        flat = value.movedim(1, -1).view(-1)
    else:
        return value.copy_(value.half())
    for piece in torch.split(flat, _PIECE):
        piece.copy_(piece.half())
    return value
