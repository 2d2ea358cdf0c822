"""Compressed tensors on their way into a package, in a file without a name: they take no memory meanwhile."""

from __future__ import annotations

import mmap
import os
import weakref
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from milopt.package.blobs import ALIGNMENT, aligned, element_named
from milopt.package.weights import Mapping, Packed, Piece
from milopt.scratch import room_needed, scratch_file

__all__ = ["Slot", "Spool"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow

_WHAT = "compressed weights"


@dataclass(frozen=True)
class Slot:
    """Where a tensor lies: ``count`` elements of MIL's ``dtype``, packed if they have less than 8 bits."""

    start: int
    size: int
    dtype: str
    count: int


class Spool:
    """Takes the bytes of tensors first, and gives the tensors when all are there.

    The file lies in the folder for temporary files (``TMPDIR``), and goes with the last tensor that is a view of it.
    """

    def __init__(self) -> None:
        self._file = scratch_file(_WHAT)
        self._end = ALIGNMENT
        self._mapping: Mapping | None = None

    def add(self, data: Array, dtype: str, count: int) -> Slot:
        """Write ``count`` elements of MIL's ``dtype``: ``data`` holds them, or the bytes in which they lie packed."""
        flat: Array = np.ascontiguousarray(data)
        flat = flat.reshape(-1).view(np.uint8)
        slot = Slot(self._end, flat.nbytes, dtype, count)
        with room_needed(_WHAT):
            self._file.seek(slot.start)
            self._file.write(flat)
        self._end = aligned(slot.start + slot.size)
        return slot

    def finish(self) -> None:
        """All is there."""
        with room_needed(_WHAT):
            self._file.seek(self._end)
            self._file.write(b"\0")
            self._file.flush()
            mapping = Mapping(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            mapping.handle = os.dup(self._file.fileno())
        mapping.where = "the file of compressed weights"
        mapping.address = int(np.frombuffer(mapping, np.uint8, 1).__array_interface__["data"][0])
        mapping.entries = {}
        weakref.finalize(mapping, os.close, mapping.handle)
        self._file.close()
        self._mapping = mapping

    def flat(self, slot: Slot) -> Array | Packed:
        """The elements: a view of the file, or a box of those that are packed."""
        assert self._mapping is not None, "the spool is still open"
        element = element_named(slot.dtype)
        assert element is not None
        if element.bits < 8:
            return Packed.around(Piece(self._mapping, slot.start, slot.size), element, (slot.count,))
        return np.frombuffer(self._mapping, element.numpy, slot.count, slot.start)
