"""When a result is what an oracle says: to the bit, or within a bound derived from the unit roundoff."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy

from milopt.interpreter.values import Array
from milopt.testing.ops.untyped import np

__all__ = ["EXACT", "Oracle", "Within", "agree", "magnitudes", "roundoff"]

Oracle: TypeAlias = Callable[[Any], Any]


@dataclass(frozen=True)
class Within:
    """``|got - want| <= ulps * u * scale``, and the rounding of the result to its type.

    ``u`` is the unit roundoff of the arithmetic. ``scale`` is an oracle of how large the terms are that were rounded,
    where they cancel: often :func:`magnitudes` of the sum; without it, ``|want|``.
    """

    ulps: float
    scale: Oracle | None = None


EXACT = Within(0)


def magnitudes(oracle: Oracle) -> Oracle:
    """What ``oracle`` gives of the absolute values of floats."""
    return lambda given: oracle(given.magnitudes())


def roundoff(dtype: numpy.dtype[Any]) -> float:
    """Half the distance from 1 to the next number: 2**-53, 2**-24 or 2**-11."""
    return float(np.finfo(dtype).eps) / 2


def agree(got: Any, want: Any, bound: float, scale: Any, what: str) -> None:
    """AssertionError unless ``got`` is ``want`` (of a wider type) within ``bound * scale``; 0 asks for the same bits.

    Integers are compared as they wrap into the type of ``got``. Any NaN equals any other.
    """
    want = np.asarray(want)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, want {want.shape}"
    assert (got.dtype.kind == "f") == (want.dtype.kind == "f"), f"{what}: {got.dtype}, want {want.dtype}"
    if got.dtype.kind != "f":
        np.testing.assert_array_equal(got, want.astype(got.dtype), err_msg=what)
        return
    with np.errstate(all="ignore"):
        rounded = want.astype(got.dtype)
        same = (np.isnan(got) & np.isnan(rounded)) | ((got == rounded) & (np.signbit(got) == np.signbit(rounded)))
        if bound:
            same |= _close(got, want, bound, scale)
    if not same.all():
        place = tuple(int(each) for each in np.argwhere(~same)[0])
        raise AssertionError(f"{what}: {got[place]!r} at {place}, want {want[place]!r} ({int((~same).sum())} differ)")


def _close(got: Array, want: Array, bound: float, scale: Any) -> Array:
    """Finite numbers that lie within the bound; what overflows is as far as the number after the type's largest."""
    info = np.finfo(got.dtype)
    top = float(info.max) * (1 + roundoff(got.dtype))
    magnitude = np.abs(want) if scale is None else np.broadcast_to(np.abs(scale), want.shape)
    # rounding the result: half a unit in its last place, or half of the smallest number
    allowed = bound * magnitude + roundoff(got.dtype) * np.abs(want) + float(info.smallest_subnormal)
    wide: Any = np.clip(got.astype(np.float64), -top, top)
    close: Array = np.abs(wide - np.clip(want, -top, top)) <= allowed
    finite: Array = close & np.isfinite(want)
    return finite
