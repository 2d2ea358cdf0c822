"""Loops over numbers, compiled by numba."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

__all__ = ["compiled"]

F = TypeVar("F", bound=Callable[..., Any])

_numba: Any = importlib.import_module("numba")

_FINITE = {"nnan", "ninf", "nsz"}


def compiled(*signatures: str, finite: bool = False) -> Callable[[F], F]:
    """Machine code in place of the function; other threads run meanwhile, and a division by zero is as in numpy.

    It is made for ``signatures`` in numba's notation when the function is defined, or, without one, for what it is
    first called with. An array that may be a weight is ``Array(uint16, 4, 'A', True)``: in any order, and of a file
    that can't be written to; one that is fits all the others. The code is kept beside the source for the next process,
    or in the user's cache folder where that can't be written; where neither can be, each process makes its own. It is
    made anew when any of milopt's loops has changed, since those that it calls are part of it.
    ``finite`` promises that all numbers are finite, so that maxima may be taken of several at a time; sums are added up
    in their order all the same.
    """
    options = {"nogil": True, "error_model": "numpy", "fastmath": _FINITE if finite else False}

    def decorate(function: F) -> F:
        try:
            made = _numba.njit(cache=True, **options)(function)
            _stamp(made)
        except RuntimeError:  # no folder that can be written
            made = _numba.njit(**options)(function)
        for signature in signatures:
            made.compile(signature)
        if signatures:
            made.disable_compile()
        return cast("F", made)

    return decorate


def _stamp(made: Any) -> None:
    """Let what is kept of a function hold for the loops of all modules as they are; numba looks at its own alone.

    numba's own stamp, of the function's file, is compared with the one in the index, which belongs to these files.
    """
    index = made._cache._cache_file
    index._source_stamp = (index._source_stamp, loops())


@lru_cache(maxsize=1)
def loops() -> str:
    """A hash of the source of every module whose functions are compiled."""
    sources = sorted(each for each in Path(__file__).parent.rglob("*.py") if each.stem.endswith(("kernels", "kmeans")))
    found = hashlib.blake2b(digest_size=16)
    for source in sources:
        found.update(source.name.encode() + b"\0" + source.read_bytes())
    return found.hexdigest()
