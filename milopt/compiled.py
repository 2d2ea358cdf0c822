"""Loops over numbers, compiled by numba."""

from __future__ import annotations

import importlib
from collections.abc import Callable
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
    or in the user's cache folder where that can't be written; where neither can be, each process makes its own.
    ``finite`` promises that all numbers are finite, so that maxima may be taken of several at a time; sums are added up
    in their order all the same.
    """
    options = {"nogil": True, "error_model": "numpy", "fastmath": _FINITE if finite else False}

    def decorate(function: F) -> F:
        given = list(signatures) or None
        try:
            return cast("F", _numba.njit(given, cache=True, **options)(function))
        except RuntimeError:  # no folder that can be written
            return cast("F", _numba.njit(given, **options)(function))

    return decorate
