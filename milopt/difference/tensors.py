"""Tensors by content: compared where they lie, a piece at a time."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from milopt.package.blobs import Element, element_named
from milopt.package.packing import pack, unpack
from milopt.package.weights import Packed

__all__ = ["Tensor", "numbers", "tensor_of"]

_CHUNK = 1 << 20  # elements; a multiple of 8, so that packed ones end with a byte


@dataclass(eq=False)
class Tensor:
    """The stored bytes of a constant; ``place`` is its weight file and offset, ``None`` in the specification."""

    dtype: str
    shape: tuple[int, ...]
    bytes: Any
    place: tuple[str, int] | None
    _digest: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"

    @property
    def digest(self) -> str:
        """The same for tensors of one element type with the same bytes."""
        if not self._digest:
            self._digest = hashlib.blake2b(self.bytes, digest_size=16, key=self.dtype.encode()).hexdigest()
        return self._digest

    def chunks(self) -> Iterator[Any]:
        """The elements in order, as numbers of at least a byte each."""
        element = element_named(self.dtype)
        count = math.prod(self.shape)
        for first in range(0, count, _CHUNK):
            some = min(_CHUNK, count - first)
            if element is None or element.bits >= 8:
                size = len(self.bytes) // count
                yield self.bytes[first * size : (first + some) * size].view(_numpy(self.dtype, element, size))
            else:
                part = self.bytes[first * element.bits // 8 :][: element.nbytes(some)]
                yield unpack(part, element.bits, some, signed=element.name.startswith("int"))


def _numpy(dtype: str, element: Element | None, size: int) -> Any:
    if element is not None:
        return np.dtype(element.numpy.str)
    return np.dtype({"fp64": "f", "bool": "?"}.get(dtype, "u" if dtype.startswith("uint") else "i") + str(size))


def tensor_of(value: Any, dtype: str, shape: tuple[int, ...], place: tuple[str, int] | None) -> Tensor:
    """The tensor of a value as a package's reader gives it: an array, or a box of packed elements."""
    if isinstance(value, Packed):
        assert value.piece is not None
        return Tensor(dtype, shape, value.piece.view(), place)
    element = element_named(dtype)
    row: Any = np.ascontiguousarray(value)
    flat: Any = row.reshape(-1)
    if element is not None and element.bits < 8:
        flat = pack(flat, element.bits)
    return Tensor(dtype, shape, flat.view(np.uint8), place)


def numbers(before: Tensor, after: Tensor) -> dict[str, Any]:
    """How far two tensors of one type and size are apart: elements that differ, the largest difference, SNR in dB.

    The signal-to-noise ratio, for floats, is 10·log10(Σ before² / Σ difference²). Elements that are not finite on
    either side are counted, and left out of the numbers.
    """
    differing, most, signal, noise, wild = 0, 0.0, 0.0, 0.0, 0
    old: Any
    new: Any
    for old, new in zip(before.chunks(), after.chunks(), strict=True):
        one, other = old.astype(np.float64), new.astype(np.float64)
        finite: Any = np.isfinite(one) & np.isfinite(other)
        differing += _differing(old, new)
        wild += int(len(old) - finite.sum())
        gap = np.where(finite, one, 0) - np.where(finite, other, 0)
        most = max(most, float(np.abs(gap).max(initial=0)))
        signal += float(np.square(np.where(finite, one, 0)).sum())
        noise += float(np.square(gap).sum())
    facts: dict[str, Any] = {"elements": differing, "max_abs": most}
    if before.dtype.startswith("fp") and noise and signal:
        facts["snr_db"] = round(10 * math.log10(signal / noise), 2)
    if wild:
        facts["not_finite"] = wild
    return facts


def _differing(old: Any, new: Any) -> int:
    """How many elements differ in their bytes."""
    width: Any = np.dtype(f"u{old.dtype.itemsize}")
    return int((old.view(width) != new.view(width)).sum())
