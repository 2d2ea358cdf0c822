"""Inverse frequencies of rotary positions that fp16 has rounded, made exact again."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["exact_frequencies", "fit_theta"]

Array = np.ndarray[Any, Any]

# Published models use 10000, 500000, 130000, 1e6...; a longer number would fit anything.
_DIGITS = 3
# transformers computes the frequencies in fp32, each 1e-7 off, before anything rounds them to fp16
_SLACK = 1e-6


def exact_frequencies(values: Array) -> tuple[Array, str]:
    """``values`` in float64, and what was found out about them.

    The n frequencies of a default fp16 conversion are ``theta ** (-i / n) / factor`` rounded to fp16: with theta 1e5
    and n = 32 an angle is 0.19 rad off at position 2048. Where a theta of at most three digits explains every one of
    them to the last bit, the unrounded ones are returned. The same where the n stand there twice, as [f, f].
    """
    exact = values.astype(np.float64)
    if values.dtype != np.float16 or values.size < 2:
        return exact, ""
    row = values.ravel()
    half = row.size // 2
    twice = row.size % 2 == 0 and np.array_equal(row[:half], row[half:])
    row = row[:half] if twice else row
    fitted = fit_theta(row)
    if fitted is None:
        return exact, "the angles keep the fp16 rounding of the inverse frequencies: no theta explains them"
    theta, factor = fitted
    exact = theta ** (-np.arange(row.size) / row.size) / factor
    note = f"inverse frequencies that fp16 had rounded were restored: theta {theta:g}"
    if factor != 1:
        note += f", divided by {factor}"
    return np.reshape(np.tile(exact, 2) if twice else exact, values.shape), note


def fit_theta(row: Array) -> tuple[float, int] | None:
    """The theta and the whole factor whose frequencies all round to the fp16 numbers ``row``.

    The one of fewest digits, at most three; ``None`` where there is none, or several of as many.
    """
    if row.size < 2 or not 0 < row[0] <= 1 or np.any(row < 0):
        return None
    factor = round(1 / float(row[0]))
    below, above = np.nextafter(row, np.float16(-1)), np.nextafter(row, np.float16(2))
    exact = row.astype(np.float64)
    # frequency i rounds to row[i] where it lies half way to the neighbours
    low = (exact + below) / 2 * factor * (1 - _SLACK)
    high = (exact + above) / 2 * factor * (1 + _SLACK)
    if not low[0] <= 1 <= high[0]:
        return None
    power = row.size / np.arange(1, row.size)
    with np.errstate(divide="ignore"):
        least = float(np.max(high[1:] ** -power))
        most = float(np.min(np.maximum(low[1:], 0.0) ** -power))
    for digits in range(1, _DIGITS + 1):
        step = 10.0 ** (np.floor(np.log10(least)) - digits + 1)
        theta = float(np.ceil(least / step) * step)
        if 1 < theta <= most:
            return (theta, factor) if theta + step > most else None
    return None
