"""The loops of :mod:`milopt.quantizing`: a scale, an offset and small integers for each block of numbers."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np

from milopt.compiled import compiled

__all__ = ["quantize_blocks"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow

# How much of a block's range is kept, at least, when clipping is tried: with 15 levels, normal weights in blocks of any
# size want 60% and more of it (the worst are blocks of thousands), and one outlier among zeros all of it.
_STEPS = 48
_SMALLEST = 0.4
# What is above them is decoded as infinity: from 65520 on fp16 has no number.
_MOST_FP16, _MOST_FP32 = 65519.0, float(np.finfo(np.float32).max)
_ROUNDS = 4  # of the best scale for the integers, and the best integers for that


@compiled("float64(float64, boolean)")
def _stored(scale: float, fp16: bool) -> float:
    """The nearest scale that the weights' type holds."""
    if not fp16:
        return float(np.float64(np.float32(scale)))
    _, exponent = math.frexp(scale)
    unit = math.ldexp(1.0, max(exponent, -13) - 11)
    return float(np.rint(scale / unit) * unit)


@compiled("float64(float64, boolean)")
def _above(scale: float, fp16: bool) -> float:
    """The next larger scale."""
    if not fp16:
        return float(np.float64(np.nextafter(np.float32(scale), np.float32(np.inf))))
    _, exponent = math.frexp(scale) if scale > 0 else (0.0, -13)
    return scale + math.ldexp(1.0, max(exponent, -13) - 11)


@compiled("float64(float64, boolean)")
def _below(scale: float, fp16: bool) -> float:
    """The next smaller scale."""
    if not fp16:
        return float(np.float64(np.nextafter(np.float32(scale), np.float32(0))))
    _, exponent = math.frexp(scale)
    return scale - math.ldexp(1.0, max(exponent, -13) - 11)


@compiled(
    "float64(Array(float32, 1, 'C', True), float64, int64, int64, int64, boolean, int16[::1], float32[::1])",
    finite=True,
)
def _put(row: Array, scale: float, zero: int, low: int, high: int, fp16: bool, data: Array, room: Array) -> float:
    """Fill ``data`` with rint(w / scale) + zero, between ``low`` and ``high``; returns the squared error.

    It is that of what is decoded: ``scale * (data - zero)``, rounded to the weights' type.
    """
    step = np.float32(scale)
    reach = np.floor((_MOST_FP16 if fp16 else _MOST_FP32) / scale)  # no level is decoded as infinity
    least, most = np.float32(max(low - zero, -reach)), np.float32(min(high - zero, reach))
    bits = room.view(np.uint32)
    for at in range(len(row)):
        level = min(max(np.rint(row[at] / step), least), most)
        data[at] = np.int16(np.int32(level) + np.int32(zero))  # pyright: ignore[reportUnknownArgumentType]
        room[at] = level * step
    if fp16:
        for at in range(len(row)):
            if abs(room[at]) < np.float32(2.0**-14):  # multiples of the smallest number of fp16
                room[at] = np.rint(room[at] * np.float32(2.0**24)) * np.float32(2.0**-24)
            else:  # to the nearest of 11 bits, the even one of two
                bits[at] = (bits[at] + np.uint32(0xFFF) + ((bits[at] >> np.uint32(13)) & np.uint32(1))) & np.uint32(
                    0xFFFFE000
                )
    error = 0.0
    for at in range(len(row)):
        change = np.float64(room[at]) - np.float64(row[at])
        error += change * change
    return error


@compiled()
def _best_scale(row: Array, data: Array, zero: int) -> float:
    """That with the least squared error for these integers, by the equation of normals; 0 where all stand for 0."""
    product = square = 0.0
    for at in range(len(row)):
        level = np.float64(data[at] - zero)
        product += level * np.float64(row[at])
        square += level * level
    return product / square if square > 0 else 0.0


@compiled(
    "void(Array(float32, 2, 'C', True), int64, int64, boolean, boolean, boolean, int16[:, ::1], float64[::1], "
    "int64[::1], float64[::1])",
    finite=True,
)
def quantize_blocks(
    rows: Array,
    low: int,
    high: int,
    symmetric: bool,
    clip: bool,
    fp16: bool,
    data: Array,
    scales: Array,
    zeros: Array,
    found: Array,
) -> None:
    """Fill ``data (N, n)``, ``scales (N,)`` and ``zeros (N,)`` for finite blocks ``rows (N, n)``.

    ``low`` and ``high`` are the ends of the integers' range. Symmetric: the middle of it stands for zero. Otherwise the
    integers cover the block's range, with zero in it, and the integer for zero is the offset. ``found (2,)``: the
    squared error and the sum of squares are added to it. With ``clip`` narrower ranges are tried, and the one with
    the least error is kept.
    """
    count = rows.shape[1]
    room, other = np.empty(count, np.float32), np.empty(count, np.int16)
    for block in range(len(rows)):
        row = rows[block]
        least, most = row[0], row[0]
        for at in range(count):
            least, most = min(least, row[at]), max(most, row[at])
        least, most = min(least, np.float32(0)), max(most, np.float32(0))
        if symmetric:
            zero, levels, largest = (low + high) // 2, (high - low) // 2, np.float64(max(most, -least))
        else:
            zero, levels, largest = 0, high - low, np.float64(most) - np.float64(least)
        power = 0.0
        for at in range(count):
            power += np.float64(row[at]) * np.float64(row[at])
        found[1] += power
        if largest == 0.0:  # all zeros: 0 * 1
            if not symmetric:
                zero = min(max(0, low), high)
            data[block, :] = zero
            scales[block], zeros[block] = 1.0, zero
            continue
        scale = _stored(largest / levels, fp16)
        # among the subnormals, rounding may take away so much that the largest number is past the last integer
        if largest > (levels + 0.5) * scale:
            scale = _above(scale, fp16)
        if symmetric and levels * scale > (_MOST_FP16 if fp16 else _MOST_FP32):
            scale = _below(scale, fp16)
        if not symmetric:
            zero = min(max(int(np.rint(low - np.float64(least) / scale)), low), high)
        error = _put(row, scale, zero, low, high, fp16, data[block], room)
        if clip:
            whole, middle = scale, zero
            for step in range(1, _STEPS + 1):
                tried = _stored(whole * (1 - (1 - _SMALLEST) * step / _STEPS), fp16)
                if tried <= 0.0:
                    break
                for shift in range(-1, 2):
                    offset = middle + shift
                    if offset < low or offset > high or (symmetric and shift):
                        continue
                    made = _put(row, tried, offset, low, high, fp16, other, room)
                    if made < error:
                        error, scale, zero = made, tried, offset
                        data[block, :] = other
            for _ in range(_ROUNDS):
                tried = _stored(_best_scale(row, data[block], zero), fp16)
                if tried <= 0.0:
                    break
                made = _put(row, tried, zero, low, high, fp16, other, room)
                if made >= error:
                    break
                error, scale = made, tried
                data[block, :] = other
        scales[block], zeros[block] = scale, zero
        found[0] += error
