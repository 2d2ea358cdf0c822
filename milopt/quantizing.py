"""Weights -> small integers, and a scale and an offset for each block of them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Literal, TypeAlias, cast

import numpy as np

__all__ = ["Clip", "IntegerType", "Quantized", "quantize"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow
IntegerType = Literal["int4", "uint4", "int8", "uint8"]
Clip = Literal["minmax", "mse"]

_AT_ONCE = 1 << 20  # weights that are held in fp32 at a time


@dataclass(frozen=True)
class Quantized:
    """``data`` (int8 or uint8, of the weights' shape), ``scale`` (their dtype) and ``offset`` (that of ``data``).

    ``offset`` is None where it is zero by the form. ``error`` is Σ (weight - decoded)² and ``power`` Σ weight², both in
    float64. Where ``wrong`` weights are NaN or infinite, the rest means nothing.
    """

    data: Array
    scale: Array
    offset: Array
    error: float
    power: float
    wrong: int = 0


def quantize(
    array: Array,
    counts: tuple[int, ...],
    dtype: IntegerType = "int4",
    *,
    symmetric: bool = True,
    clip: Clip = "minmax",
) -> Quantized:
    """Fp16 or fp32 weights as ``scale * (data - offset)``; axis ``a`` is cut into ``counts[a]`` blocks, a divisor.

    Symmetric: with ``m = 2**(bits - 1) - 1``, a block's scale is max|w| / m, and the integer for zero is 0, of unsigned
    types m. Otherwise the block's range and zero are spread over all integers, as coremltools does. Nothing is further
    from its weight than half a scale, but for the scale's rounding. With ``clip="mse"`` narrower ranges are tried, and
    the one with the least squared error is kept.
    """
    # here, so that numba is loaded only where something is compressed
    from milopt.quantizing_kernels import quantize_blocks

    low, high = _range(dtype, symmetric)
    split = [size for count, whole in zip(counts, array.shape, strict=True) for size in (count, whole // max(count, 1))]
    order = (*range(0, len(split), 2), *range(1, len(split), 2))
    blocks = cast("Array", np.transpose(np.reshape(array, split), order)).reshape(prod(counts), -1)
    length = blocks.shape[1]
    data = np.empty(blocks.shape, np.uint8 if dtype.startswith("u") else np.int8)
    scales, zeros, found = np.ones(len(blocks)), np.zeros(len(blocks), np.int64), np.zeros(2)
    wrong = 0
    step = max(1, _AT_ONCE // max(length, 1))
    for start in range(0, len(blocks) if length else 0, step):
        part = slice(start, start + step)
        numbers: Array = np.ascontiguousarray(blocks[part], np.float32)
        wrong += numbers.size - int(np.count_nonzero(np.isfinite(numbers)))
        if wrong:
            continue
        integers = np.empty(numbers.shape, np.int16)
        fp16 = array.dtype == np.float16
        quantize_blocks(numbers, low, high, symmetric, clip == "mse", fp16, integers, scales[part], zeros[part], found)
        data[part] = integers
    back = np.argsort(order)
    whole = np.reshape(np.transpose(np.reshape(data, [split[axis] for axis in order]), back), array.shape)
    signed = symmetric and low < 0
    offset = None if signed else np.reshape(zeros.astype(data.dtype), counts)
    return Quantized(
        whole, np.reshape(scales.astype(array.dtype), counts), offset, float(found[0]), float(found[1]), wrong
    )


def _range(dtype: IntegerType, symmetric: bool) -> tuple[int, int]:
    """The least and the largest integer used; symmetric forms leave one out, to have as many on both sides."""
    levels = 1 << (4 if dtype.endswith("4") else 8)
    if dtype.startswith("u"):
        return 0, levels - 1 - symmetric
    return symmetric - levels // 2, levels // 2 - 1
