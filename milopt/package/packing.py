"""Elements of 1, 2, 3, 4 and 6 bits: one per byte in numpy, packed in a package, the first in the lowest bits."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["pack", "unpack"]

Bytes = Any  # numpy.ndarray of bytes; its generic form is more than pyright strict can follow


def _group(bits: int) -> tuple[int, int]:
    """``(bytes, elements)`` of the shortest run of whole bytes that holds whole elements."""
    size = 1 if 8 % bits == 0 else 3
    return size, size * 8 // bits


def unpack(packed: Bytes, bits: int, count: int, *, signed: bool) -> Bytes:
    """The ``count`` elements in the bytes ``packed``, as int8 or uint8."""
    size, elements = _group(bits)
    groups = -(-count // elements)
    room = groups * size
    source: Any = packed if len(packed) == room else np.concatenate([packed, np.zeros(room - len(packed), np.uint8)])
    result = np.empty(groups * elements, np.uint8)
    mask = (1 << bits) - 1
    if size == 1:
        for index in range(elements):
            np.bitwise_and(source >> (index * bits), mask, out=result[index::elements])
    else:
        wide: Any = sum(source[k::size].astype(np.uint32) << (8 * k) for k in range(size))
        for index in range(elements):
            result[index::elements] = (wide >> (index * bits)) & mask
    result = result[:count]
    if signed:
        half = 1 << (bits - 1)
        return ((result ^ half).astype(np.int8) - np.int8(half)).astype(np.int8)
    return result


def pack(values: Bytes, bits: int) -> Bytes:
    """The bytes that hold ``values`` (int8 or uint8, one element each); the last byte is filled up with zeros.

    ``ValueError`` where a value needs more bits.
    """
    signed = values.dtype.kind == "i"
    if values.size:
        low, high = int(values.min()), int(values.max())
        least, most = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
        if low < least or high > most:
            raise ValueError(f"a value of {bits} bits is {low if low < least else high}, outside {least}..{most}")
    size, elements = _group(bits)
    groups = -(-values.size // elements)
    source: Any = np.zeros(groups * elements, np.uint8)
    np.bitwise_and(values.view(np.uint8), (1 << bits) - 1, out=source[: values.size])
    result: Any = np.zeros(groups * size, np.uint8)
    if size == 1:
        for index in range(elements):
            result |= source[index::elements] << (index * bits)
    else:
        wide: Any = sum(source[k::elements].astype(np.uint32) << (k * bits) for k in range(elements))
        for index in range(size):
            result[index::size] = (wide >> (8 * index)) & 0xFF
    return result[: (values.size * bits + 7) // 8]
