"""MIL's blob storage, version 2, as it lies in a weight file.

Layout (little endian): a header of 64 bytes (count uint32, version uint32), then per tensor an entry of 64 bytes
(sentinel uint32, element code uint32, bytes uint64, offset of the data uint64, padding bits uint64) and its data,
both on multiples of 64. A specification points at the entry. Elements of less than a byte are packed, the first in
the lowest bits.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np
from coremltools.proto import MIL_pb2

from milopt.mil import types

__all__ = ["ALIGNMENT", "ELEMENTS", "ENTRY", "HEADER", "SENTINEL", "VERSION", "Element", "aligned", "element_named"]

ALIGNMENT = 64
HEADER = struct.Struct("<II")
ENTRY = struct.Struct("<IIQQQ")
SENTINEL = 0xDEADBEEF
VERSION = 2


class Element(NamedTuple):
    """How a MIL element type is stored: bits per element and the code in the entry."""

    name: str
    bits: int
    code: int

    @property
    def numpy(self) -> Any:
        """numpy's dtype of an unpacked element; PyMIL tells its sub-byte types by the dtype's metadata."""
        return np.dtype(types.nptype_from_builtin(types.string_to_builtin(self.name)))

    def nbytes(self, count: int) -> int:
        return (count * self.bits + 7) // 8


# By MIL's DataType; the codes are those of MILBlob's BlobDataType.
ELEMENTS = {
    getattr(MIL_pb2.DataType, proto): Element(name, bits, code)
    for proto, name, bits, code in (
        ("FLOAT16", "fp16", 16, 1),
        ("FLOAT32", "fp32", 32, 2),
        ("UINT8", "uint8", 8, 3),
        ("INT8", "int8", 8, 4),
        ("INT16", "int16", 16, 6),
        ("UINT16", "uint16", 16, 7),
        ("INT4", "int4", 4, 8),
        ("UINT1", "uint1", 1, 9),
        ("UINT2", "uint2", 2, 10),
        ("UINT4", "uint4", 4, 11),
        ("UINT3", "uint3", 3, 12),
        ("UINT6", "uint6", 6, 13),
        ("INT32", "int32", 32, 14),
        ("UINT32", "uint32", 32, 15),
    )
}
_BY_NAME = {element.name: element for element in ELEMENTS.values()}


def element_named(name: str) -> Element | None:
    """The element type of that MIL name, or ``None`` where a weight file has no such type."""
    return _BY_NAME.get(name)


def aligned(offset: int) -> int:
    """The next multiple of 64."""
    return -(-offset // ALIGNMENT) * ALIGNMENT
