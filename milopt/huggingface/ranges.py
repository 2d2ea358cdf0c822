"""Arrays of any size that take no memory: addresses at which one short file is mapped over and over.

Every view of such an array, transposed, sliced or reshaped, tells by its address and strides which elements it has.
Their values are infinite, and whatever is computed from them is infinite or no number. The signs of the first ones
differ from array to array, so that no two are equal.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import tempfile
import threading
import weakref
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

__all__ = ["reserved"]

_BLOCK = 1 << 24  # bytes; Linux allows 65,530 mappings in a process
_FIXED = 0x10  # MAP_FIXED, on Linux and macOS alike
_FAILED = ctypes.c_void_p(-1).value
_lock = threading.Lock()
_files: dict[str, int] = {}
_numbers = itertools.count()
_BITS = 48


def reserved(shape: tuple[int, ...], dtype: str, freed: Callable[[], object]) -> Any:
    """A C-contiguous array ``shape`` of infinite ``float32`` or ``float16``; OSError where that can't be.

    Nobody may write to it, though numpy says so: torch warns of arrays that are read-only. When the last view of the
    array is gone, ``freed`` is called, and its addresses are given back.
    """
    size = max(prod(shape), 1) * np.dtype(dtype).itemsize
    whole = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    base = _map(None, whole, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, protection=0)
    try:
        for start in range(0, whole, _BLOCK):
            _map(base + start, min(_BLOCK, whole - start), mmap.MAP_SHARED | _FIXED, _file(dtype))
        _map(base, mmap.PAGESIZE, mmap.MAP_SHARED | _FIXED, *_page(dtype))
    except OSError:
        _library().munmap(base, whole)
        raise
    memory: Any = (ctypes.c_char * size).from_address(base)
    weakref.finalize(memory, _free, base, whole, freed).atexit = False
    flat: Any = np.frombuffer(memory, dtype, prod(shape))
    return flat.reshape(shape)


def _free(base: int, size: int, freed: Callable[[], object]) -> None:
    freed()
    _library().munmap(base, size)


def _library() -> Any:
    library: Any = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [
        *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64),
    ]
    library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return library


def _map(
    address: int | None, size: int, flags: int, file: int, start: int = 0, *, protection: int = mmap.PROT_READ
) -> int:
    got = _library().mmap(address, size, protection, flags, file, start)
    if got in (None, _FAILED):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(got)


def _file(dtype: str) -> int:
    """A file of one block of infinite elements."""
    with _lock:
        if dtype not in _files:
            _files[dtype] = _nameless(np.full(_BLOCK // np.dtype(dtype).itemsize, np.inf, dtype))
        return _files[dtype]


def _page(dtype: str) -> tuple[int, int]:
    """``(file, start)``: a page of infinite elements like no other, the signs of which are the bits of its number."""
    with _lock:
        number = next(_numbers)
        elements: Any = np.full(mmap.PAGESIZE // np.dtype(dtype).itemsize, np.inf, dtype)
        elements[:_BITS] = np.where([number >> bit & 1 for bit in range(_BITS)], -np.inf, np.inf)
        if "pages" not in _files:
            _files["pages"] = _nameless(elements)
        start = number * mmap.PAGESIZE
        os.pwrite(_files["pages"], elements.tobytes(), start)
        return _files["pages"], start


def _nameless(content: Any) -> int:
    """An open file with this content; it stays open, as whatever is mapped may."""
    with tempfile.TemporaryFile() as file:
        file.write(content.tobytes())
        file.flush()
        return os.dup(file.fileno())
