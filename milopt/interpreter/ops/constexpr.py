"""Decoding of compressed constants, on numpy arrays and with coremltools' rules to the bit.

The iOS16 ops store flat packed bytes and a ``shape``; the iOS18 ops of the same name store arrays of small integers.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from math import prod

import numpy as np

from milopt.interpreter.impls import Array, Impls, Ints

__all__ = ["constexpr"]

constexpr = Impls("constexpr")

_SMALL_BLOCK = 1 << 10  # elements: with fewer, a loop over blocks is slow
_AT_ONCE = 1 << 20  # elements that are looked up at once


@constexpr("constexpr_cast", decodes=True)
def _(source_val: Array, output_dtype: str) -> Array:
    """fp16 to fp32, the only cast there is."""
    return source_val.astype(np.float32)


@constexpr("constexpr_affine_dequantize", decodes=True)
def _(quantized_data: Array, zero_point: Array, scale: Array, axis: int) -> Array:
    """``scale * (quantized_data - zero_point)``, scalars or vectors along ``axis``; computed in fp32, then narrowed."""
    shape = [1] * quantized_data.ndim
    shape[axis] = -1
    data = quantized_data.astype(np.float32)
    data -= np.reshape(zero_point.astype(np.float32), shape if zero_point.ndim else ())
    data *= np.reshape(scale, shape if scale.ndim else ())
    return data.astype(scale.dtype)


@constexpr("constexpr_blockwise_shift_scale", decodes=True)
def blockwise_shift_scale(data: Array, scale: Array, offset: Array | None = None) -> Array:
    """``scale * (data - offset)`` with one scale per block, computed in the dtype of ``scale`` (fp16 rounds twice).

    The block sizes are ``data.shape / scale.shape``.
    """
    split = _blocks(data.astype(scale.dtype), scale.shape)
    if offset is not None:
        split = split - _per_block(offset)
    return np.reshape(_per_block(scale) * split, data.shape)


def _blocks(data: Array, counts: tuple[int, ...]) -> Array:
    """``data`` with each axis split into (blocks, block size)."""
    return np.reshape(data, _flat((count, size // count) for size, count in zip(data.shape, counts, strict=True)))


def _per_block(values: Array) -> Array:
    """``values (b0, b1, ...)`` as ``(b0, 1, b1, 1, ...)``, to go with :func:`_blocks`."""
    return np.reshape(values, _flat((count, 1) for count in values.shape))


def _flat(pairs: Iterable[tuple[int, int]]) -> list[int]:
    return [each for pair in pairs for each in pair]


@constexpr("constexpr_lut_to_dense", decodes=True)
def lut_to_dense(indices: Array, lut: Array, shape: Ints | None = None, vector_axis: int | None = None) -> Array:
    """``shape`` given: the iOS16 op, else the iOS18 one."""
    if shape is not None:
        bits = int(lut.size).bit_length() - 1
        return np.reshape(lut[_unpacked(indices, bits, prod(shape))], shape)
    return _grouped(indices, lut, 0 if vector_axis is None else vector_axis)


def _unpacked(packed: Array, bits: int, count: int) -> Array:
    """``count`` unsigned integers of ``bits`` bits, the least significant bit of the first byte first."""
    if bits == 8:
        return packed[:count]
    flags = np.reshape(np.unpackbits(packed, bitorder="little")[: count * bits], (count, bits))
    return np.packbits(flags, axis=1, bitorder="little")[:, 0]


def _grouped(indices: Array, lut: Array, vector_axis: int) -> Array:
    """One table per block of ``indices``; entries are vectors laid along ``vector_axis``.

    ``indices (d0, d1, ...)``, ``lut (b0, b1, ..., entries, vector)`` -> ``(d0, ..., d_axis * vector, ...)``.
    """
    sizes = [size // count for size, count in zip(indices.shape, lut.shape[:-2], strict=True)]
    dense: Array = np.empty((*indices.shape, lut.shape[-1]), lut.dtype)
    if prod(sizes) < _SMALL_BLOCK:
        _fill(dense, indices, lut, sizes[0])
    for block in product(*map(range, lut.shape[:-2])) if prod(sizes) >= _SMALL_BLOCK else ():
        part = tuple(slice(i * size, (i + 1) * size) for i, size in zip(block, sizes, strict=True))
        dense[part] = lut[block][indices[part]]
    if lut.shape[-1] == 1:
        return dense[..., 0]
    axis = vector_axis % indices.ndim
    shape = list(indices.shape)
    shape[axis] = -1
    return np.reshape(np.moveaxis(dense, -1, axis + 1), shape)


def _fill(dense: Array, indices: Array, lut: Array, size: int) -> None:
    """``dense`` from tables of many small blocks, which have ``size`` rows: all entries are one list then."""
    *counts, entries, vector = lut.shape
    step = max(1, _AT_ONCE // max(1, size * prod(indices.shape[1:])))
    for first in range(0, counts[0], step):
        tables, rows = lut[first : first + step], slice(first * size, (first + step) * size)
        starts = np.reshape(np.arange(prod(tables.shape[:-2])) * entries, tables.shape[:-2])
        places = _blocks(indices[rows].astype(np.intp), tables.shape[:-2]) + _per_block(starts)
        dense[rows] = np.reshape(tables, (-1, vector))[np.reshape(places, indices[rows].shape)]


@constexpr("constexpr_sparse_to_dense", decodes=True)
def sparse_to_dense(nonzero_data: Array, mask: Array, shape: Ints | None = None) -> Array:
    """``shape`` given: the iOS16 op, whose mask is packed bits; else the iOS18 one."""
    if shape is not None:
        mask = np.reshape(np.unpackbits(mask, bitorder="little")[: prod(shape)], shape)
    dense: Array = np.zeros(mask.shape, nonzero_data.dtype)
    dense[mask != 0] = nonzero_data
    return dense


@constexpr("constexpr_lut_to_sparse", decodes=True)
def _(
    indices_mask: Array, indices_nonzero_data: Array, lut: Array, vector_axis: int | None = None
) -> tuple[Array, Array]:
    """The mask, and the values looked up for its ones; vectors widen both along ``vector_axis``."""
    indices = sparse_to_dense(indices_nonzero_data, indices_mask)
    dense = lut_to_dense(indices, lut, None, vector_axis)
    mask = indices_mask if vector_axis is None else np.repeat(indices_mask, lut.shape[-1], axis=vector_axis)
    return mask, dense[mask != 0]


@constexpr("constexpr_sparse_blockwise_shift_scale", decodes=True)
def _(data_mask: Array, nonzero_data: Array, scale: Array, offset: Array | None = None) -> tuple[Array, Array]:
    dense = blockwise_shift_scale(sparse_to_dense(nonzero_data, data_mask), scale, offset)
    return data_mask, dense[data_mask != 0]
