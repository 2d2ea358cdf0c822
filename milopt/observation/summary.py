"""A few facts about a value: its type and shape, its range, and what in it is no number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from milopt.interpreter.lists import Elements
from milopt.interpreter.state import Cell

__all__ = ["Summary", "number", "shape_text", "summarize"]

Dim = int | tuple[int, int]


@dataclass(frozen=True)
class Summary:
    """``minimum`` and ``maximum`` are over finite numbers, None where there is none; ``nan`` and ``inf`` are counts.

    ``dtype`` is the declared one, ``shape`` the actual one: a pair (smallest, largest) in it stands for a dimension
    that differed from turn to turn. ``text`` describes what is no tensor: a label, or the elements of a list, over
    which range and counts are then taken.
    """

    dtype: str
    shape: tuple[Dim, ...] | None
    minimum: float | int | bool | None = None
    maximum: float | int | bool | None = None
    nan: int = 0
    inf: int = 0
    text: str = ""

    @property
    def shape_text(self) -> str:
        """The shape as ``1x64x2..8``; what the value is, if it is no tensor."""
        return self.text if self.shape is None else shape_text(self.shape)

    def merged(self, other: Summary) -> Summary:
        """What holds of both values; the later one's text."""
        lows = [each for each in (self.minimum, other.minimum) if each is not None]
        highs = [each for each in (self.maximum, other.maximum) if each is not None]
        return Summary(
            self.dtype,
            _merged(self.shape, other.shape),
            min(lows, default=None),
            max(highs, default=None),
            self.nan + other.nan,
            self.inf + other.inf,
            other.text or self.text,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; a dimension that differed is a list of its smallest and largest size."""
        shape = None if self.shape is None else [list(dim) if isinstance(dim, tuple) else dim for dim in self.shape]
        facts: dict[str, Any] = {"dtype": self.dtype, "shape": shape, "min": self.minimum, "max": self.maximum}
        return {**facts, "nan": self.nan, "inf": self.inf, **({"text": self.text} if self.text else {})}


def summarize(value: Any, dtype: str) -> Summary:
    """The summary of what an op takes or gives, of the declared ``dtype``."""
    if isinstance(value, Cell):
        value = value.read()
    if isinstance(value, torch.Tensor):
        return _of_tensor(value, dtype)
    if isinstance(value, Elements):
        return _of_elements(value, dtype)
    return Summary(dtype, None, text=repr(value))


def number(value: float | int | bool | None) -> str:
    """A number in few digits; nothing for None."""
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def shape_text(shape: tuple[Dim, ...]) -> str:
    dims = (f"{dim[0]}..{dim[1]}" if isinstance(dim, tuple) else str(dim) for dim in shape)
    return "x".join(dims) or "scalar"


def _of_tensor(value: torch.Tensor, dtype: str) -> Summary:
    shape = tuple(value.shape)
    if value.numel() == 0:
        return Summary(dtype, shape)
    if not value.is_floating_point():
        numbers = value.to(torch.uint8) if value.dtype is torch.bool else value
        low, high = numbers.min().item(), numbers.max().item()
        return Summary(dtype, shape, bool(low), bool(high)) if dtype == "bool" else Summary(dtype, shape, low, high)
    low, high = float(value.min()), float(value.max())
    if math.isfinite(low) and math.isfinite(high):  # a NaN would be both
        return Summary(dtype, shape, low, high)
    nan, inf = int(value.isnan().sum()), int(value.isinf().sum())
    if nan + inf == value.numel():
        return Summary(dtype, shape, nan=nan, inf=inf)
    finite = value[value.isfinite()]
    low, high = float(finite.min()), float(finite.max())
    return Summary(dtype, shape, low, high, nan, inf)


def _of_elements(value: Elements, dtype: str) -> Summary:
    """Range and counts over the elements written so far."""
    written = [_of_tensor(item, dtype) for item in value.items if item is not None]
    text = f"{len(value.items)} elements"
    whole = Summary(dtype, None)
    for each in written:
        whole = whole.merged(each)
    return Summary(dtype, None, whole.minimum, whole.maximum, whole.nan, whole.inf, text)


def _merged(one: tuple[Dim, ...] | None, other: tuple[Dim, ...] | None) -> tuple[Dim, ...] | None:
    if one is None or other is None or len(one) != len(other):
        return other
    return tuple(_span(a, b) for a, b in zip(one, other, strict=True))


def _span(one: Dim, other: Dim) -> Dim:
    if one == other:
        return one
    ends = [*(one if isinstance(one, tuple) else (one,)), *(other if isinstance(other, tuple) else (other,))]
    return min(ends), max(ends)
