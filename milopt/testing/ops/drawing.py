"""What the properties draw: shapes, axes, and arrays with the values at which arithmetic has its edges."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from hypothesis import strategies as st

from milopt.interpreter.values import Array
from milopt.mil import Target, target

__all__ = ["F16", "F32", "FLOATS", "I32", "NUMBERS", "Draw"]

F16, F32, I32 = np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.int32)
FLOATS = (F16, F32)
NUMBERS = (F16, F32, I32)


Edges: TypeAlias = Literal["all", "special", "finite", "none"]


def _edges(dtype: np.dtype[Any], kind: Edges) -> list[Any]:
    if dtype.kind != "f":
        info = np.iinfo(dtype)
        return [info.min, info.max, 0, 1, info.min + 1, info.max - 1]
    info = np.finfo(dtype)
    small = [0.0, info.tiny, info.smallest_subnormal, 0.5, 1.0, 1.5, 2.5]
    if kind == "finite":
        return [*small, *(-each for each in small)]
    special = [*small, np.nan, np.inf] if kind == "special" else [*small, np.nan, np.inf, info.max]
    return [*special, *(-each for each in special)]


class Source(Protocol):
    """What draws from a strategy: hypothesis' ``data()``, or a strategy of one's own."""

    @property
    def draw(self) -> Callable[[Any], Any]: ...


class Draw:
    """A source of random choices for one example: what is drawn shrinks to small shapes and round numbers."""

    def __init__(self, data: Source, opset: Target) -> None:
        self.data = data
        self.opset = opset

    @property
    def newer(self) -> bool:
        """Whether the opset has the ops as iOS17 redefined them."""
        return bool(self.opset >= target.iOS17)

    def pick(self, *options: Any) -> Any:
        return self.data.draw(st.sampled_from(options))

    def flag(self) -> bool:
        drawn: bool = self.data.draw(st.booleans())
        return drawn

    def number(self, low: int, high: int) -> int:
        drawn: int = self.data.draw(st.integers(low, high))
        return drawn

    def numbers(self, count: int, low: int, high: int) -> list[int]:
        return [self.number(low, high) for _ in range(count)]

    def some(self, **values: Any) -> dict[str, Any]:
        """A part of the optional inputs; the others take their defaults."""
        return {name: value for name, value in values.items() if self.flag()}

    def shape(self, min_rank: int = 1, max_rank: int = 4, *, max_size: int = 4, empty: bool = True) -> tuple[int, ...]:
        """A shape of sizes from 1; with ``empty`` one size in a few shapes is 0."""
        shape = self.numbers(self.number(min_rank, max_rank), 1, max_size)
        if empty and shape and self.number(0, 7) == 7:
            shape[self.number(0, len(shape) - 1)] = 0
        return tuple(shape)

    def broadcastable(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A shape that broadcasts to ``shape``: some of its last sizes, some of them 1."""
        kept = shape[self.number(0, len(shape)) :]
        return tuple(1 if self.number(0, 3) == 3 else size for size in kept)

    def axis(self, rank: int) -> int:
        """An axis, counted from either end."""
        return self.number(-rank, rank - 1)

    def axes(self, rank: int, min_count: int = 0) -> list[int]:
        """Different axes in any order, each counted from either end."""
        order = self.data.draw(st.permutations(range(rank)))
        return [axis - rank * self.flag() for axis in order[: self.number(min_count, rank)]]

    def array(
        self,
        shape: tuple[int, ...],
        dtype: Any = F32,
        *,
        low: float | None = None,
        high: float | None = None,
        edges: Edges | None = None,
    ) -> Any:
        """Floats around 0 or of many magnitudes, small or any integers; with bounds, numbers between them.

        Half of the arrays hold ``edges`` as well: zeros of both signs, subnormals and what rounds (``finite``), NaN and
        the infinities (``special``), and the extremes of the type (``all``, but for arrays with bounds the default).
        """
        dtype = np.dtype(dtype)
        source = np.random.default_rng(self.number(0, 9999))
        if dtype.kind == "b":
            return np.asarray(source.random(shape) < 0.5)
        if low is not None and high is not None:
            drawn = source.integers(int(low), int(high) + 1, shape) if dtype.kind in "iu" else None
            between = low + (high - low) * source.random(shape) if drawn is None else drawn
            values: Any = np.asarray(between).astype(dtype)
        else:
            values = np.asarray(self._numbers(source, shape, dtype))
            edges = edges or "all"
        if edges not in (None, "none") and self.flag():
            places = source.random(shape) < 0.4
            values[places] = source.choice(np.array(_edges(dtype, edges), dtype), int(places.sum()))
        return values

    def _numbers(self, source: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        if dtype.kind in "iu":
            info = np.iinfo(dtype)
            if self.flag():
                return source.integers(info.min, info.max, shape, dtype, endpoint=True)
            return source.integers(max(info.min, -9), 10, shape, dtype)
        kind = self.pick("round", "normal", "wide")
        if kind == "round":
            return (source.integers(-6, 7, shape) / 2).astype(dtype)
        spread = 2.0 ** source.uniform(-6, 6, shape) if kind == "wide" else 1.0
        return (source.standard_normal(shape) * spread).astype(dtype)

    def other_float(self, dtype: Any) -> Any:
        """A float type for parameters: any from iOS17 on, before that the one of the input."""
        return self.pick(*FLOATS) if self.newer else dtype

    def scalar(self, dtype: Any = F32, low: float = -2.0, high: float = 2.0) -> Any:
        """A number of the type, as MIL's constants are."""
        return self.array((), dtype, low=low, high=high)[()]

    def places(self, shape: tuple[int, ...], size: int, dtype: Any = I32) -> Any:
        """Indices into an axis of ``size``; before iOS17 some count from the end."""
        count = 0 if size == 0 else prod(shape)
        assert count == prod(shape), "an axis of size 0 has no places"
        low = 0 if self.newer or np.dtype(dtype).kind == "u" else -size
        return self.array(shape, dtype, low=low, high=max(size - 1, 0))
