"""Sums of x xᵀ in a file without a name: they take disk, and of memory what a few rows of one need."""

from __future__ import annotations

import mmap
from typing import Any, TypeAlias

import numpy as np

from milopt.scratch import room_needed, scratch_file

__all__ = ["Products"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow
Tensor: TypeAlias = Any  # torch.Tensor, which is not imported before a model runs

_WHAT = "a calibration's products"
_AT_ONCE = 1 << 22  # sums that are in memory at a time


class Products:
    """Square matrices of float32, zeros at first, by names; they are views of the file when all is added.

    The file lies in the folder for temporary files (``TMPDIR``), and goes with the last of the views.
    """

    def __init__(self) -> None:
        self._file = scratch_file(_WHAT)
        self._places: dict[str, tuple[int, int]] = {}
        self._end = 0

    def add(self, name: str, rows: Tensor) -> None:
        """Add the products of all pairs of columns of ``rows (n, width)``, a part of the matrix after the other."""
        width = rows.shape[1]
        if new := name not in self._places:
            self._places[name] = self._end, width
            self._end += 4 * width * width
        start, _ = self._places[name]
        wide = rows.float()
        step = max(1, _AT_ONCE // max(width, 1))
        for first in range(0, width, step):
            part: Array = (wide[:, first : first + step].mT @ wide).cpu().numpy()
            place = start + 4 * width * first
            with room_needed(_WHAT):
                if not new:
                    self._file.seek(place)
                    known: Array = np.frombuffer(self._file.read(part.nbytes), np.float32)
                    part += np.reshape(known, part.shape)
                self._file.seek(place)
                self._file.write(part.data)

    def finish(self) -> dict[str, Array]:
        """All of them ``(width, width)``, by name."""
        with room_needed(_WHAT), self._file as file:
            file.flush()
            if not self._end:
                return {}
            memory = mmap.mmap(file.fileno(), self._end, access=mmap.ACCESS_READ)
        found = dict[str, Array]()
        for name, (start, width) in self._places.items():
            flat: Array = np.frombuffer(memory, np.float32, width * width, start)
            found[name] = np.reshape(flat, (width, width))
        return found
