"""Floats as integers, or as a few levels, times the scales of their blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np

from milopt.huggingface.bands import bands, in_blocks, merged, per_block
from milopt.huggingface.forms import Form, Tensor, bits_of, block_size, index_bits, kind_of

__all__ = ["NOT_FINITE", "Multiples", "multiples"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow

NOT_FINITE = "it holds numbers that are not finite"
_LARGEST = 255  # what a difference of two integers of 8 bits can be


@dataclass(frozen=True)
class Multiples:
    """``codes`` int16 times ``scale``; for ``levels`` they are the indices of these. ``low`` and ``high`` per block."""

    codes: Array
    scale: Array
    low: Array
    high: Array
    levels: Array

    @property
    def spread(self) -> int:
        """As many different values as a block can have."""
        return int((self.high - self.low).max()) + 1

    def forms(self) -> Iterator[Form]:
        """Those that there are, the simpler ones first."""
        if self.levels is None:
            yield from (each for each in (self._integers(4), self._integers(8)) if each is not None)
        if (table := self._one_table()) is not None:
            yield table

    def _integers(self, bits: int) -> Form | None:
        half, most = 1 << (bits - 1), (1 << bits) - 1
        scale = Tensor(self.scale, kind_of(self.scale))
        per = f"a scale for {block_size(self.codes.shape, self.scale.shape)}"
        if -half <= self.low.min() and self.high.max() < half:
            data = Tensor(self.codes.astype(np.int8), f"int{bits}")
            return Form(f"int{bits}, {per}", {"data": data, "scale": scale})
        if (self.high - self.low).max() > most or self.low.min() < -most or self.high.max() > most:
            return None
        offset: Array = np.minimum(np.maximum(-self.low, 0), most)
        raised = merged(in_blocks(self.codes, offset.shape) + per_block(offset), self.codes.shape).astype(np.uint8)
        tensors = {
            "data": Tensor(raised, f"uint{bits}"),
            "scale": scale,
            "offset": Tensor(offset.astype(np.uint8), f"uint{bits}"),
        }
        return Form(f"uint{bits}, a scale and an offset for {block_size(raised.shape, offset.shape)}", tensors)

    def _one_table(self) -> Form | None:
        """Indices of the different codes, of which there are few."""
        first = int(self.low.min())
        seen: Array = np.bincount((self.codes - first).reshape(-1))
        different: Array = np.flatnonzero(seen)
        bits = index_bits(len(different))
        if bits is None:
            return None
        entries: Array = np.zeros(1 << bits, self.scale.dtype)
        entries[: len(different)] = different + first if self.levels is None else self.levels[different + first]
        order: Array = np.zeros(len(seen), np.uint8)
        order[different] = np.arange(len(different))
        lut = entries.reshape(*[1] * self.codes.ndim, -1, 1)
        tensors = {
            "indices": Tensor(order[self.codes - first], f"uint{bits}"),
            "lut": Tensor(lut, kind_of(lut)),
            "scale": Tensor(self.scale, kind_of(self.scale)),
        }
        size = block_size(self.codes.shape, self.scale.shape)
        return Form(f"{bits} bits, one table, a scale for {size}", tensors)


def multiples(array: Array, scales: Array, levels: Array) -> Multiples | str:
    """The integers of which ``array`` are multiples of the scales, rounded to its type; or why it is none."""
    with np.errstate(over="ignore"):
        scale: Array = scales.astype(array.dtype)
    codes: Array = np.empty(array.shape, np.int16)
    low: Array = np.full(scale.shape, np.iinfo(np.int16).max, np.int16)
    high: Array = np.full(scale.shape, np.iinfo(np.int16).min, np.int16)
    inner = tuple(range(1, 2 * array.ndim, 2))
    for band in bands(array.shape, scale.shape):
        exact, rounded = per_block(scales[band.blocks]), per_block(scale[band.blocks]).astype(np.float32)
        values = in_blocks(array[band.rows].astype(np.float32), scale[band.blocks].shape)
        if not np.isfinite(values).all():
            return NOT_FINITE
        with np.errstate(all="ignore"):
            near = _nearest_integers(values, exact) if levels is None else _nearest_levels(values, exact, levels)
            if not (np.abs(near) <= _LARGEST).all():
                return _told(array, scales, scale, "it is no integers of 8 bits times its scales")
            products = (near if levels is None else levels[near]) * rounded
            same = bits_of(products.astype(array.dtype)) == bits_of(values.astype(array.dtype))
        if not same.all():
            return _told(array, scales, scale, "integers times its scales are other numbers")
        codes[band.rows] = merged(near, codes[band.rows].shape)
        low[band.blocks] = np.minimum(low[band.blocks], near.min(inner))
        high[band.blocks] = np.maximum(high[band.blocks], near.max(inner))
    return Multiples(codes, scale, low, high, levels)


def _nearest_integers(values: Array, scales: Array) -> Array:
    quotients: Array = values / scales
    shares: Array = np.rint(quotients) + np.float32(0)  # an integer of 0 has no sign
    if scales.all():
        return shares
    # nor has a scale of 0 a share; a zero has the sign that an integer gives it
    return _chosen(scales == 0, _chosen(_opposite(values, scales), -1, 0), shares)


def _nearest_levels(values: Array, scales: Array, levels: Array) -> Array:
    """Indices; zeros of both signs may be among the levels."""
    least = float(np.finfo(np.float32).tiny)
    signs = _chosen(_opposite(values, scales), -least, 0)
    shares = _chosen(values == 0, signs, values / scales)
    middles: Array = (levels[1:] + levels[:-1]) / 2
    return middles.searchsorted(shares, side="right")


def _chosen(condition: Array, one: Any, other: Any) -> Array:
    return cast("Array", np.where(condition, one, other))


def _opposite(values: Array, scales: Array) -> Array:
    different: Array = np.signbit(values) != np.signbit(scales)
    return different


def _told(array: Array, scales: Array, scale: Array, otherwise: str) -> str:
    inexact: Array = scales[scale.astype(np.float32) != scales]
    if not inexact.size:
        return otherwise
    # nine digits tell every float32 from its neighbours
    return f"{inexact.size} of {scales.size} scales have no {kind_of(array)} form, as {float(inexact.flat[0]):.9g}"
