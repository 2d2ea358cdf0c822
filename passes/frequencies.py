"""Inverse frequencies of rotary positions that fp16 has rounded, made exact again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from milopt.passes.rotary_forms import BASES, Form, Plain, Proportional, scaled_forms

__all__ = ["Frequencies", "angle_error", "exact_frequencies", "fit_theta", "is_rounded"]

Array: TypeAlias = np.ndarray[Any, Any]

# Published models use 10000, 500000, 130000, 1e6...; a longer number would fit anything.
_DIGITS = 3
# transformers computes the frequencies in fp32, each 1e-7 off, before anything rounds them to fp16
_SLACK = 1e-6
# No model has a larger one; frequencies of a larger one are zeros to fp16, which any base explains.
_LARGEST_BASE = 1e12
# What coremltools writes for a number that fp16 would make 0 (FP16ComputePrecision): anything below 1.5 times it.
_LEAST = 2.0**-24
# Two forms whose angles at the last position are this near give the same fp16 table, but for one rounding (2**-11)
# that goes the other way.
_SAME_ANGLE = 2.0**-12


@dataclass(frozen=True)
class Frequencies:
    """``values`` in float64, and the closed ``form`` that they have, or ``why`` none was found."""

    values: Array
    form: Form | None = None
    why: str = ""


def is_rounded(values: Array) -> bool:
    """Whether fp16 has rounded the array: it is fp16, or fp32 that holds fp16 numbers alone. Single numbers are not."""
    if values.size < 2 or values.dtype not in (np.float16, np.float32):
        return False
    with np.errstate(over="ignore"):
        return bool(np.array_equal(values.astype(np.float16).astype(values.dtype), values, equal_nan=True))


def angle_error(values: Array, last: int) -> float:
    """How far, in radians, an angle may be off at the position ``last`` because fp16 rounded the frequencies."""
    return last * float(np.max(np.spacing(np.abs(values.astype(np.float16))).astype(np.float64))) / 2


def exact_frequencies(values: Array, last: int = 0, *, wavelengths: bool = False) -> Frequencies:
    """``values`` in float64, and what was found out about them; they are used at the positions 0 to ``last``.

    The n frequencies of a default fp16 conversion are rounded: with base 1e5 and n = 32 an angle is 0.19 rad off at
    position 2048. Where a closed form rounds to every one of them, to the last bit, the unrounded ones are returned.
    The same where the n stand there twice, as [f, f]. Of several forms the simplest counts:

    1. ``base ** (-i / n) / factor`` with the first of :data:`~milopt.passes.rotary_forms.BASES` that fits, else with
       the base of fewest digits, at most three, if there is one of as many;
    2. the same with zeros at the end;
    3. llama3, yarn and dynamic scaling of those bases with parameters in use. Several of these are taken only if their
       angles at ``last`` are equal for fp16.

    fp32 numbers are taken as they are, unless fp16 has rounded them and 1 with a base of the list, 2 or 3 explains it.
    With ``wavelengths`` the values are the reciprocals of frequencies, and so are those returned.
    """
    stored = values.astype(np.float64)
    if not is_rounded(values):
        return Frequencies(stored)
    row = values.astype(np.float16).ravel()
    half = row.size // 2
    twice = np.array_equal(row[:half], row[half:])
    row = row[:half] if twice else row
    if row.size < 2:  # [1, 1]
        return Frequencies(stored)
    form, wide = _identified(row.tobytes(), wavelengths, last), values.dtype != np.float16
    if isinstance(form, str):
        return Frequencies(stored, None, "" if wide else form)
    if wide and form.base not in BASES:
        return Frequencies(stored)
    exact = form.frequencies(row.size)
    exact = 1 / exact if wavelengths else exact
    return Frequencies(np.reshape(np.tile(exact, 2) if twice else exact, values.shape), form)


@lru_cache
def _identified(row: bytes, wavelengths: bool, last: int) -> Form | str:
    """The closed form of fp16 numbers, or why there is none."""
    bounds = _bounds(np.frombuffer(row, np.float16), wavelengths)
    if bounds is None:
        return "they are no inverse frequencies: some are negative, or not finite"
    low, high = bounds
    simple = next(_simple(low, high), None)
    if simple is not None:
        return simple
    forms, table = scaled_forms(low.size)
    fits: list[int] = np.flatnonzero(((table >= low) & (table <= high)).all(1)).tolist()
    if not fits:
        return "no closed form explains them"
    first = table[fits[0]]
    apart = np.abs(table[fits] - first).max(1) * last
    if (other := int(np.argmax(apart))) and apart[other] > _SAME_ANGLE:
        return f"several closed forms explain them: {forms[fits[0]]}; {forms[fits[other]]}"
    return forms[fits[0]]


def _bounds(row: Array, wavelengths: bool) -> tuple[Array, Array] | None:
    """The frequencies that round to each number of ``row``: from low to high, half way to the neighbours."""
    if not np.all(np.isfinite(row)) or np.any(row < 0):
        return None
    exact = row.astype(np.float64)
    below = np.nextafter(row, np.float16(-np.inf)).astype(np.float64)
    with np.errstate(over="ignore"):
        above = np.nextafter(row, np.float16(np.inf)).astype(np.float64)
    above = np.where(np.isinf(above), 65536.0, above)
    low, high = (exact + below) / 2 * (1 - _SLACK), (exact + above) / 2 * (1 + _SLACK)
    low = np.where((exact == 0) | ((exact == _LEAST) & (not wavelengths)), 0.0, low)
    if not wavelengths:
        return low, high
    return (1 / high, 1 / low) if np.all(low > 0) else None


def _simple(low: Array, high: Array) -> Iterator[Form]:
    """The plain form, if one fits; else the one with zeros at the end."""
    if (fitted := _fit(low, high, low.size)) is not None:
        yield Plain(*fitted)
    turning = int(np.count_nonzero(low))
    if turning >= 2 and not np.any(low[turning:]):
        fitted = _fit(low[:turning], high[:turning], low.size)
        if fitted is not None:
            yield Proportional(*fitted, turning=turning)


def fit_theta(row: Array) -> tuple[float, float] | None:
    """The theta and the factor whose frequencies ``theta ** (-i / n) / factor`` all round to the fp16 numbers ``row``.

    The first published theta that fits, or else the one of fewest digits, at most three; ``None`` where there is none,
    or several of as many.
    """
    bounds = _bounds(row, wavelengths=False)
    return None if bounds is None or row.size < 2 else _fit(*bounds, row.size)


def _fit(low: Array, high: Array, count: int) -> tuple[float, float] | None:
    if low[0] <= 0 or low[1] <= 0 or high[0] > 1.001:  # 1 / factor is the first, and the base takes another
        return None
    factor = _shortest(1 / high[0], 1 / low[0])
    if factor is None:
        return None
    power = count / np.arange(1, low.size)
    with np.errstate(divide="ignore", over="ignore"):
        least = float(np.max((high[1:] * factor) ** -power))
        most = float(np.min((low[1:] * factor) ** -power))
    if least > min(most, _LARGEST_BASE):
        return None
    for base in BASES:
        if least <= base <= most:
            return base, factor
    theta = _shortest(max(least, 1.0), most)
    return None if theta is None else (theta, factor)


def _shortest(least: float, most: float) -> float | None:
    """The number of fewest digits, at most three, from ``least`` to ``most``, if it is the only one of as many."""
    for digits in range(1, _DIGITS + 1):
        step = 10.0 ** (np.floor(np.log10(least)) - digits + 1)
        number = float(np.ceil(least / step * (1 - 1e-12)) * step)
        if number <= most * (1 + 1e-12):
            return number if number + step > most else None
    return None
