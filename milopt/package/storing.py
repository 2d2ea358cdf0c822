"""Weight files are written: laid out first, then streamed.

A tensor that views a mapped weight file is copied as bytes, in chunks, and its entry with it; nothing of it is held
in memory. Tensors of one file with the same bytes are stored once. What came from a file keeps its order there, so
that a program whose weights nobody touched gets the same file again.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from milopt.errors import PackageError
from milopt.mil import weight_key
from milopt.package.blobs import ALIGNMENT, ENTRY, HEADER, SENTINEL, VERSION, Element, aligned, element_named
from milopt.package.packing import pack
from milopt.package.weights import Mapping, Packed, Piece, mapping_of, piece_of

__all__ = ["Store", "same_contents"]

_CHUNK = 1 << 23  # bytes that are read or converted at a time
_COPY = 1 << 26  # bytes that the system copies at a time, so that Ctrl-C is heard
_WORTH_A_COPY = 1 << 20  # bytes below which a copy by the system is no faster
_UNSUPPORTED = frozenset({errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EBADF, errno.EPERM, errno.EOPNOTSUPP})
_HEAD = 4096  # bytes that tell most tensors of one size apart
# Equal tensors smaller than this stay apart where one file has them apart: so small ones are not worth another layout.
_SMALL = 512

Array = Any  # numpy.ndarray; its generic form is more than pyright strict can follow


@dataclass(eq=False)
class _Tensor:
    """Elements that are to be stored; ``blobs`` are the protos that wait for the offset of the entry."""

    element: Element
    count: int
    piece: Piece | None
    array: Array
    blobs: list[Any] = field(default_factory=list[Any])
    offset: int = 0

    @property
    def size(self) -> int:
        return self.element.nbytes(self.count)

    @property
    def mapping(self) -> Mapping | None:
        """The file that its bytes come from."""
        return mapping_of(self.array) if self.piece is None else self.piece.mapping

    def chunks(self) -> Iterator[Any]:
        """The bytes to be stored."""
        if self.piece is not None:
            yield from (self.piece.read(at, _CHUNK) for at in range(0, self.size, _CHUNK))
            return
        for part in _parts(self.array):
            yield memoryview(self._stored(part))

    def head(self) -> bytes:
        """The first bytes."""
        if self.piece is not None:
            return self.piece.read(0, _HEAD)
        some: Array = np.asarray(self.array.flat[: _HEAD * 8 // self.element.bits])
        return bytes(memoryview(self._stored(some)))[:_HEAD]

    def digest(self) -> bytes:
        content = hashlib.blake2b(digest_size=20)
        for chunk in self.chunks():
            content.update(chunk)
        return content.digest()

    def _stored(self, part: Array) -> Array:
        row: Array = np.ascontiguousarray(part.astype(self.element.numpy, copy=False))
        values = row.reshape(-1)
        return pack(values, self.element.bits) if self.element.bits < 8 else values.view(np.uint8)

    def entry(self) -> bytes:
        """The 64 bytes of the entry: those it had, which tell more than is known of them, else new ones."""
        start = self.offset + ALIGNMENT
        if self.piece is not None:
            raw = self.piece.mapping.entries.get(self.piece.start, b"")
            if raw and ENTRY.unpack_from(raw)[1:3] == (self.element.code, self.size):
                return raw[:16] + start.to_bytes(8, "little") + raw[24:]
        padding = self.size * 8 - self.count * self.element.bits if self.element.bits < 8 else 0
        return ENTRY.pack(SENTINEL, self.element.code, self.size, start, padding).ljust(ALIGNMENT, b"\0")


def _parts(array: Array) -> Iterator[Array]:
    """The array in runs of its elements, in order; all but the last hold a multiple of eight."""
    most = _CHUNK // max(array.dtype.itemsize, 1)
    if array.flags.c_contiguous or array.size <= most:
        flat = array.reshape(-1)
        yield from (flat[at : at + most] for at in range(0, flat.size, most))
        return
    row = prod(array.shape[1:])
    if row % 8 or row > most:
        # the rows don't fill whole bytes, or are too large to be copied whole
        yield from (np.asarray(array.flat[at : at + most]) for at in range(0, array.size, most))
        return
    rows = most // row
    yield from (array[at : at + rows] for at in range(0, array.shape[0], rows))


class Store:
    """The weight files of one package, by path relative to the specification's folder."""

    def __init__(self) -> None:
        self._files: dict[str, list[_Tensor]] = {}
        self._known: dict[object, _Tensor] = {}

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(self._files)

    def add(self, path: str, element: Element, count: int, value: Array | Packed, blob: Any) -> None:
        """Have ``value`` stored in the file ``path``, and the offset of its entry set in ``blob`` by :meth:`write`."""
        tensor = _tensor(element, count, value)
        own = weight_key(tensor.array) if tensor.piece is None else tensor.piece.key
        key = (path, element.code, *own)
        if key not in self._known:
            self._known[key] = tensor
            self._files.setdefault(path, []).append(tensor)
        self._known[key].blobs.append(blob)

    def write(self, folder: Path) -> None:
        """Write all files below ``folder`` and tell the protos where their tensors lie."""
        for mapping in {tensor.mapping for tensors in self._files.values() for tensor in tensors}:
            if mapping is not None:
                mapping.check()
        for path, tensors in self._files.items():
            kept = _merged(_ordered(tensors))
            end = ALIGNMENT
            for tensor in kept:
                tensor.offset = aligned(end)
                end = tensor.offset + ALIGNMENT + tensor.size
                for blob in tensor.blobs:
                    blob.offset = tensor.offset
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with target.open("wb", buffering=0) as file:
                    _write(file, kept)
            except PackageError:
                raise
            except ValueError as error:
                raise PackageError(f"{path} can't be written: {error}") from error


def _ordered(tensors: list[_Tensor]) -> list[_Tensor]:
    """Those from files in their order there, file by file, then the others."""
    files: dict[int, list[_Tensor]] = {}
    for tensor in tensors:
        files.setdefault(0 if tensor.piece is None else id(tensor.piece.mapping), []).append(tensor)
    new = files.pop(0, [])
    old = (sorted(each, key=lambda tensor: tensor.piece.start if tensor.piece else 0) for each in files.values())
    return [*(tensor for each in old for tensor in each), *new]


def same_contents(values: Sequence[tuple[str, tuple[int, ...], Array | Packed]]) -> list[list[int]]:
    """Which of the tensors, each an element type, a shape and its elements, would be stored as the same bytes.

    Groups of two and more, as positions in ``values``; what is no element type of weight files is in none.
    """
    tensors: dict[_Tensor, int] = {}
    for index, (dtype, shape, value) in enumerate(values):
        if (element := element_named(dtype)) is not None:
            tensors[_tensor(element, prod(shape), value)] = index
    return [[tensors[each] for each in same] for same in _equal(tensors)]


def _tensor(element: Element, count: int, value: Array | Packed) -> _Tensor:
    piece = value.piece if isinstance(value, Packed) else None
    if piece is not None:
        return _Tensor(element, count, piece, None)
    array: Array = np.asarray(value.val if isinstance(value, Packed) else value)
    if element.bits >= 8 and array.dtype == element.numpy:
        piece = piece_of(array)
    return _Tensor(element, count, piece, None if piece else array)


def _equal(tensors: Iterable[_Tensor]) -> Iterator[list[_Tensor]]:
    """Those of the same element type and bytes; read whole only where type, size and the first bytes agree."""
    for same_size in _groups(tensors, _kind_and_size):
        for same_head in _groups(same_size, _Tensor.head):
            yield from _groups(same_head, _Tensor.digest)


def _merged(tensors: list[_Tensor]) -> list[_Tensor]:
    """The tensors without those that have the bytes of an earlier one, which takes over their protos."""
    gone: set[_Tensor] = set()
    for same in _equal(tensors):
        for other in same[1:]:
            if not _stay_apart(same[0], other):
                same[0].blobs += other.blobs
                gone.add(other)
    return [tensor for tensor in tensors if tensor not in gone]


def _kind_and_size(tensor: _Tensor) -> object:
    return tensor.element.code, tensor.size


def _stay_apart(one: _Tensor, other: _Tensor) -> bool:
    if one.piece is None or other.piece is None:
        return False
    return one.piece.mapping is other.piece.mapping and one.size < _SMALL


def _groups(tensors: Iterable[_Tensor], key: Callable[[_Tensor], object]) -> Iterator[list[_Tensor]]:
    """Those that agree in ``key``, where there are several."""
    found: dict[object, list[_Tensor]] = {}
    for tensor in tensors:
        found.setdefault(key(tensor), []).append(tensor)
    return (each for each in found.values() if len(each) > 1)


def _write(file: BinaryIO | Any, tensors: list[_Tensor]) -> None:
    _put(file, HEADER.pack(len(tensors), VERSION).ljust(ALIGNMENT, b"\0"))
    end = ALIGNMENT
    for tensor in tensors:
        _put(file, bytes(tensor.offset - end) + tensor.entry())
        if tensor.piece is None or not _copied(file, tensor.piece):
            for chunk in tensor.chunks():
                _put(file, chunk)
        end = tensor.offset + ALIGNMENT + tensor.size


def _copied(file: Any, piece: Piece) -> bool:
    """Have the system copy the bytes from file to file; False, with nothing written, where it can't."""
    if piece.size < _WORTH_A_COPY or not hasattr(os, "copy_file_range"):
        return False
    done = 0
    while done < piece.size:
        wanted = min(piece.size - done, _COPY)
        try:
            some = os.copy_file_range(piece.mapping.handle, file.fileno(), wanted, piece.start + done)
        except OSError as error:
            if done == 0 and error.errno in _UNSUPPORTED:
                return False
            raise
        if some == 0:
            raise piece.mapping.cut(os.fstat(piece.mapping.handle).st_size)
        done += some
    return True


def _put(file: Any, content: Any) -> None:
    """Write all of it; a system call may write less than it is given."""
    rest = memoryview(content).cast("B")
    while rest:
        rest = rest[file.write(rest) :]
