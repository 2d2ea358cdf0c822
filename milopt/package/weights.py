"""Weight files: mapped, checked before they are believed, and read without copying.

The arrays are views of the mapping, whatever is done to the file's name afterwards; elements of less than a byte are
unpacked when they are first asked for. :func:`piece_of` finds the way back, from an array to the bytes it views.
"""

from __future__ import annotations

import collections.abc
import copy
import mmap
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import numpy as np

from milopt.errors import PackageError
from milopt.package.blobs import ALIGNMENT, ELEMENTS, ENTRY, HEADER, SENTINEL, VERSION, Element
from milopt.package.container import relative_path
from milopt.package.packing import unpack

__all__ = ["PREFIX", "Mapping", "Packed", "Piece", "WeightFile", "Weights", "mapping_of", "packed_of", "piece_of"]

Array = Any  # numpy.ndarray; its generic form is more than pyright strict can follow

PREFIX = "@model_path/"
_CHUNK = 1 << 20  # bytes that are unpacked at a time


class Mapping(mmap.mmap):
    """A mapped weight file; ``entries`` has the 64 bytes of the entry by where its data begins.

    ``handle`` reads the file, without the mapping; it is closed with it. ``where`` is the file for messages.
    """

    address: int
    entries: dict[int, bytes]
    handle: int
    where: str

    def check(self) -> None:
        """Refuse a file that was cut since it was mapped: looking at what is missing would end the process (SIGBUS)."""
        held = os.fstat(self.handle).st_size
        if held < len(self):
            raise self.cut(held)

    def cut(self, held: int) -> PackageError:
        return PackageError(f"{self.where} was cut to {held} bytes since it was loaded, when it had {len(self)}")

    def bytes_at(self, start: int, size: int) -> bytes:
        """Bytes of the file, read without the mapping; PackageError where the file has become shorter."""
        parts: list[bytes] = []
        while size:
            part = os.pread(self.handle, size, start)
            if not part:
                raise self.cut(os.fstat(self.handle).st_size)
            parts.append(part)
            start, size = start + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


@dataclass(frozen=True)
class Piece:
    """Some bytes of a mapped file."""

    mapping: Mapping
    start: int
    size: int

    @property
    def key(self) -> tuple[object, ...]:
        """The same for the same bytes of one file."""
        return id(self.mapping), self.start, self.size

    def view(self) -> Array:
        return np.frombuffer(self.mapping, np.uint8, self.size, self.start)

    def read(self, first: int, size: int) -> bytes:
        """``size`` bytes from ``first`` on, or as many as there are; see :meth:`Mapping.bytes_at`."""
        return self.mapping.bytes_at(self.start + first, max(0, min(size, self.size - first)))


class _Packing:
    """Packed elements, and the array of them once someone asked for it.

    The array is kept from then on: weights are told apart by the address of their arrays.
    """

    def __init__(self, piece: Piece, element: Element, count: int) -> None:
        self.piece = piece
        self.element = element
        self.count = count
        self._flat: Array = None

    def flat(self) -> Array:
        if self._flat is None:
            self._flat = self.unpacked()
        return self._flat

    def unpacked(self) -> Array:
        """The array; a new one, which is not kept, unless someone asked for the one that is."""
        if self._flat is not None:
            return self._flat
        self.piece.mapping.check()
        return _unpacked(self.piece.view(), self.element, self.count)


class Packed:
    """PyMIL's box around the value of a constant, for packed elements: they are unpacked when it is opened."""

    def __init__(self, packing: _Packing, shape: tuple[int, ...]) -> None:
        self._packing: _Packing | None = packing
        self._shape = shape
        self._value: Array = None

    @classmethod
    def around(cls, piece: Piece, element: Element, shape: tuple[int, ...]) -> Packed:
        """A box around bytes that hold ``shape`` elements packed: the file may have them as bytes, not as elements."""
        return cls(_Packing(piece, element, prod(shape)), shape)

    def __deepcopy__(self, memo: dict[int, Any]) -> Packed:
        """Another box around the same elements: a mapping has no copy."""
        del memo
        return copy.copy(self)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def piece(self) -> Piece | None:
        """Where the elements lie packed; ``None`` once another value was put into the box."""
        return None if self._packing is None else self._packing.piece

    @property
    def dtype(self) -> Any:
        """numpy's dtype of the elements once they are unpacked."""
        return self._value.dtype if self._packing is None else self._packing.element.numpy

    def reshape(self, *shape: int) -> Packed:
        """Another box around the same elements in order; they stay packed."""
        assert self._packing is not None, "the box has been refilled"
        assert prod(shape) == self._packing.count, f"{self._shape} can't become {shape}"
        return Packed(self._packing, shape)

    def opened(self) -> Array:
        """The elements as an array that the box does not keep."""
        if self._value is not None or self._packing is None:
            return self._value
        return self._packing.unpacked().reshape(self._shape)

    @property
    def val(self) -> Array:
        if self._value is None and self._packing is not None:
            self._value = self._packing.flat().reshape(self._shape)
        return self._value

    @val.setter
    def val(self, value: Array) -> None:
        if value is not self._value:
            self._packing, self._value = None, value


def packed_of(var: Any) -> Packed | None:
    """The closed box that a value's elements are in; ``None`` where it has none, or something else was put into it."""
    box = getattr(var, "_sym_val", None)
    return box if isinstance(box, Packed) and box.piece is not None else None


def _unpacked(packed: Array, element: Element, count: int) -> Array:
    result: Array = np.empty(count, element.numpy)
    per = _CHUNK * 24 // element.bits  # whole groups of elements
    for first in range(0, count, per):
        some = min(per, count - first)
        begin = first * element.bits // 8
        part = packed[begin : begin + element.nbytes(some)]
        result[first : first + some] = unpack(part, element.bits, some, signed=element.name.startswith("int"))
    result.flags.writeable = False
    return result


def piece_of(array: Array) -> Piece | None:
    """The bytes of a mapped weight file that the array views in their order; ``None`` for any other array."""
    mapping = mapping_of(array) if array.flags.c_contiguous else None
    if mapping is None:
        return None
    return Piece(mapping, int(array.__array_interface__["data"][0]) - mapping.address, int(array.nbytes))


def mapping_of(array: Array) -> Mapping | None:
    """The mapped weight file that the array views; ``None`` where its elements are in memory."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    mapping = base.obj if isinstance(base, memoryview) else base
    return mapping if isinstance(mapping, Mapping) else None


class WeightFile:
    """A mapped weight file. The mapping outlives the file's name: a deleted or replaced package stays readable."""

    def __init__(self, path: Path, where: str) -> None:
        self._where = where
        self._used: dict[int, tuple[int, int]] = {}
        self._packings: dict[tuple[int, int], _Packing] = {}
        try:
            with path.open("rb") as file:
                self._map = Mapping(file.fileno(), 0, access=mmap.ACCESS_READ)
                self._map.handle = os.dup(file.fileno())
                self._map.where = where
            weakref.finalize(self._map, os.close, self._map.handle)
        except (OSError, ValueError) as error:  # ValueError: an empty file can't be mapped
            raise PackageError(f"{where} can't be read: {error}") from error
        if len(self._map) < ALIGNMENT or HEADER.unpack_from(self._map)[1] != VERSION:
            raise PackageError(f"{where} is not a weight file of version {VERSION}")
        self._map.address = int(np.frombuffer(self._map, np.uint8, 1).__array_interface__["data"][0])
        self._map.entries = {}

    def value(self, offset: int, dtype: int, shape: tuple[int, ...]) -> Array | Packed:
        """The tensor whose entry lies at ``offset``: a view of the file, or a box where its elements are packed."""
        element = ELEMENTS.get(dtype)
        if element is None:
            raise PackageError(f"{self._where}: tensor at offset {offset} has element type {dtype}, which is unknown")
        piece = self._checked(offset, element, prod(shape))
        if element.bits >= 8:
            count = piece.size // element.numpy.itemsize
            array: Array = np.frombuffer(self._map, element.numpy, count, piece.start)
            return array.reshape(shape)
        packing = self._packings.setdefault((offset, dtype), _Packing(piece, element, prod(shape)))
        return Packed(packing, shape)

    def _checked(self, offset: int, element: Element, count: int) -> Piece:
        """The data's place in the file, after every claim of the entry has been checked."""
        where = f"{self._where}: tensor at offset {offset}"
        held = len(self._map)
        if offset % ALIGNMENT:
            raise PackageError(f"{where} is not on a multiple of {ALIGNMENT}")
        if offset + ALIGNMENT > held:
            raise PackageError(f"{where} lies past the end of the file, which has {held} bytes")
        sentinel, code, size, start, padding = ENTRY.unpack_from(self._map, offset)
        if sentinel != SENTINEL:
            raise PackageError(f"{where} has no entry there (0x{sentinel:08x} instead of 0x{SENTINEL:08x})")
        if code != element.code:
            raise PackageError(f"{where} holds element code {code}, the specification says {element.name}")
        wanted = element.nbytes(count)
        # Whole-byte types have no padding, and older writers leave anything in that field.
        if size != wanted or (element.bits < 8 and padding != wanted * 8 - count * element.bits):
            raise PackageError(f"{where} holds {size} bytes, its shape needs {wanted}")
        if start % ALIGNMENT or start < offset + ALIGNMENT:
            raise PackageError(f"{where} says its data is at {start}, which can't be")
        if start + size > held:
            raise PackageError(f"{where} needs {size} bytes at {start}, the file has {held}")
        self._used[offset] = int(start), int(size)
        self._map.entries[int(start)] = self._map[offset : offset + ALIGNMENT]
        return Piece(self._map, int(start), int(size))

    def check(self) -> None:
        """Refuse a file whose tensors, or their entries, share bytes."""
        taken = [(offset, offset + ALIGNMENT, offset) for offset in self._used]
        taken += [(start, start + size, offset) for offset, (start, size) in self._used.items() if size]
        taken.sort()
        for (_, end, one), (start, _, other) in pairwise(taken):
            if start < end:
                raise PackageError(f"{self._where}: the tensors at offsets {one} and {other} overlap")
        if taken and taken[0][0] < ALIGNMENT:
            raise PackageError(f"{self._where}: the tensor at offset {taken[0][2]} overlaps the header")


class Weights:
    """All weight files of one model, opened when first asked for.

    ``find`` takes a path relative to the specification's folder and returns the file; ``name`` is the package's, for
    messages. ``instead`` are arrays for the tensors at some offsets, which the files need not hold.
    """

    def __init__(
        self,
        find: Callable[[str], Path],
        name: str,
        instead: collections.abc.Mapping[int, Array] = MappingProxyType({}),
    ) -> None:
        self._find = find
        self._name = name
        self._instead = instead
        self._files: dict[str, WeightFile] = {}

    @property
    def paths(self) -> tuple[str, ...]:
        """The files that were opened, relative to the specification's folder."""
        return tuple(self._files)

    def value(self, value: Any) -> tuple[Array | Packed, str]:
        """What a ``MIL.Value`` with a ``blobFileValue`` holds, and the path of its file."""
        blob = value.blobFileValue
        where = f"{self._name}: weight file {blob.fileName[:200]!r}"
        if value.type.WhichOneof("type") != "tensorType":
            raise PackageError(f"{where} is used for something that is no tensor")
        tensor = value.type.tensorType
        if any(dim.WhichOneof("dimension") != "constant" for dim in tensor.dimensions):
            raise PackageError(f"{where}: tensor at offset {blob.offset} has no fixed shape")
        shape = tuple(int(dim.constant.size) for dim in tensor.dimensions)
        path, file = self._file(blob.fileName, where)
        array = self._instead.get(int(blob.offset))
        if array is not None:
            element = ELEMENTS[int(tensor.dataType)]
            if (tuple(array.shape), array.dtype) != (shape, element.numpy):
                raise PackageError(
                    f"{where}: tensor at offset {blob.offset} is not the {element.name} that it should be"
                )
            return array, path
        return file.value(int(blob.offset), int(tensor.dataType), shape), path

    def _file(self, stored: str, where: str) -> tuple[str, WeightFile]:
        if not stored.startswith(PREFIX):
            raise PackageError(f"{where} does not start with {PREFIX}")
        path = str(PurePosixPath(relative_path(stored[len(PREFIX) :], where)))
        if path not in self._files:
            self._files[path] = WeightFile(self._find(path), f"{self._name}: {path}")
        return path, self._files[path]

    def check(self) -> None:
        """To be called when everything has been read: see :meth:`WeightFile.check`."""
        for file in self._files.values():
            file.check()
