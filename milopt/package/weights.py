"""Weight files: MIL's blob storage, version 2, checked before it is believed and read without copying.

Layout (little endian): a header of 64 bytes (count uint32, version uint32), then per tensor an entry of 64 bytes
(sentinel uint32, element code uint32, bytes uint64, offset of the data uint64, padding bits uint64) and its data,
both on multiples of 64. A specification points at the entry.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from coremltools.libmilstoragepython import _BlobStorageReader as Reader  # pyright: ignore[reportPrivateUsage]
from coremltools.proto import MIL_pb2

from milopt.errors import PackageError
from milopt.mil import types
from milopt.package.container import relative_path

__all__ = ["WeightFile", "Weights"]

Array = Any  # numpy.ndarray; its generic form is more than pyright strict can follow

_ALIGNMENT = 64
_HEADER = struct.Struct("<II")
_ENTRY = struct.Struct("<IIQQQ")
_SENTINEL = 0xDEADBEEF
_VERSION = 2
_PREFIX = "@model_path/"


class _Element(NamedTuple):
    """How a MIL element type is stored: bits per element and the code in the entry."""

    name: str
    bits: int
    code: int


# The codes are those of MILBlob's BlobDataType.
_ELEMENTS = {
    getattr(MIL_pb2.DataType, proto): _Element(name, bits, code)
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


class WeightFile:
    """A mapped weight file. The mapping outlives the file's name: a deleted or replaced package stays readable."""

    def __init__(self, path: Path, where: str) -> None:
        self._path = path
        self._where = where
        self._arrays: dict[tuple[int, int], Array] = {}
        try:
            with path.open("rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file can't be mapped
            raise PackageError(f"{where} can't be read: {error}") from error
        if len(self._bytes) < _ALIGNMENT or _HEADER.unpack_from(self._bytes)[1] != _VERSION:
            raise PackageError(f"{where} is not a weight file of version {_VERSION}")

    def array(self, offset: int, dtype: int, shape: tuple[int, ...]) -> Array:
        """The tensor whose entry lies at ``offset``: a view of the file, or unpacked (once) where bits are packed."""
        element = _ELEMENTS.get(dtype)
        if element is None:
            raise PackageError(f"{self._where}: tensor at offset {offset} has element type {dtype}, which is unknown")
        start, size = self._checked(offset, element, prod(shape))
        known = self._arrays.get((offset, dtype))
        if known is None:
            known = self._arrays[offset, dtype] = self._flat(offset, start, size, element)
        return known.reshape(shape)

    def _flat(self, offset: int, start: int, size: int, element: _Element) -> Array:
        numpy_type = np.dtype(types.nptype_from_builtin(types.string_to_builtin(element.name)))
        if element.bits >= 8:
            return np.frombuffer(self._bytes, numpy_type, size // numpy_type.itemsize, start)
        unpacked: Array = getattr(Reader(str(self._path)), f"read_{element.name}_data")(offset)
        return unpacked.view(numpy_type)

    def _checked(self, offset: int, element: _Element, count: int) -> tuple[int, int]:
        """``(start, size)`` of the data in bytes, after every claim of the entry has been checked."""
        where = f"{self._where}: tensor at offset {offset}"
        held = len(self._bytes)
        if offset % _ALIGNMENT:
            raise PackageError(f"{where} is not on a multiple of {_ALIGNMENT}")
        if offset + _ALIGNMENT > held:
            raise PackageError(f"{where} lies past the end of the file, which has {held} bytes")
        sentinel, code, size, start, padding = _ENTRY.unpack_from(self._bytes, offset)
        if sentinel != _SENTINEL:
            raise PackageError(f"{where} has no entry there (0x{sentinel:08x} instead of 0x{_SENTINEL:08x})")
        if code != element.code:
            raise PackageError(f"{where} holds element code {code}, the specification says {element.name}")
        wanted = (count * element.bits + 7) // 8
        # Whole-byte types have no padding, and older writers leave anything in that field.
        if size != wanted or (element.bits < 8 and padding != wanted * 8 - count * element.bits):
            raise PackageError(f"{where} holds {size} bytes, its shape needs {wanted}")
        if start % _ALIGNMENT or start < offset + _ALIGNMENT:
            raise PackageError(f"{where} says its data is at {start}, which can't be")
        if start + size > held:
            raise PackageError(f"{where} needs {size} bytes at {start}, the file has {held}")
        return int(start), int(size)


class Weights:
    """All weight files of one model, opened when first asked for.

    ``find`` takes a path relative to the specification's folder and returns the file; ``name`` is the package's, for
    messages.
    """

    def __init__(self, find: Callable[[str], Path], name: str) -> None:
        self._find = find
        self._name = name
        self._files: dict[str, WeightFile] = {}

    def array(self, value: Any) -> Array:
        """The array of a ``MIL.Value`` that holds a ``blobFileValue``."""
        blob = value.blobFileValue
        where = f"{self._name}: weight file {blob.fileName!r}"
        if value.type.WhichOneof("type") != "tensorType":
            raise PackageError(f"{where} is used for something that is no tensor")
        tensor = value.type.tensorType
        if any(dim.WhichOneof("dimension") != "constant" for dim in tensor.dimensions):
            raise PackageError(f"{where}: tensor at offset {blob.offset} has no fixed shape")
        shape = tuple(int(dim.constant.size) for dim in tensor.dimensions)
        return self._file(blob.fileName, where).array(int(blob.offset), int(tensor.dataType), shape)

    def _file(self, stored: str, where: str) -> WeightFile:
        if not stored.startswith(_PREFIX):
            raise PackageError(f"{where} does not start with {_PREFIX}")
        path = str(PurePosixPath(relative_path(stored[len(_PREFIX) :], where)))
        if path not in self._files:
            self._files[path] = WeightFile(self._find(path), f"{self._name}: {path}")
        return self._files[path]
