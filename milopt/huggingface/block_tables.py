"""Floats as indices into a table for each block, which has the different values in it."""

from __future__ import annotations

from math import prod
from typing import Any, TypeAlias

import numpy as np

from milopt.huggingface.bands import bands, in_blocks
from milopt.huggingface.forms import Form, Tensor, bits_of, block_size, index_bits, kind_of

__all__ = ["table_bytes", "tables_of"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow

_LONG = 1 << 14  # from as many elements of fp16 on, counting all 65,536 numbers is less work than sorting


def table_bytes(array: Array, tables: tuple[int, ...], bits: int) -> float:
    """What ``tables`` along each axis of the array, with indices of ``bits``, take."""
    return float(array.size * bits / 8 + (prod(tables) << bits) * array.itemsize)


def tables_of(array: Array, counts: tuple[int, ...], limit: float) -> Form | str:
    """A table of the different values in each block, in the order of their bits; or why there is none."""
    indices: Array = np.empty(array.shape, np.uint8)
    made: list[Array] = []
    bits, size = 1, prod(array.shape) // prod(counts)
    whole = array.shape[0] // counts[0]
    for band in bands(array.shape, counts, whole_blocks=True):
        keys, restore = _rows_of_blocks(bits_of(array[band.rows]), counts[1:], whole)
        entries, placed = _ranked(keys)
        most = entries.shape[1]
        needed = index_bits(most)
        if needed is None:
            return f"blocks of {size} hold {most} different numbers"
        bits = max(bits, needed)
        if (taken := table_bytes(array, counts, bits)) > limit:
            return (
                f"tables of {1 << bits} numbers for blocks of {size} would be {taken / array.nbytes:.0%} of the floats"
            )
        made.append(entries)
        indices[band.rows] = restore(placed)
    lut: Array = np.zeros((prod(counts), 1 << bits), bits_of(array).dtype)
    first = 0
    for entries in made:
        lut[first : first + len(entries), : entries.shape[1]] = entries
        first += len(entries)
    tensors = {
        "indices": Tensor(indices, f"uint{bits}"),
        "lut": Tensor(lut.view(array.dtype).reshape(*counts, 1 << bits, 1), kind_of(array)),
    }
    return Form(f"{bits} bits, a table for {block_size(array.shape, counts)}", tensors)


def _ranked(keys: Array) -> tuple[Array, Array]:
    """The different keys of each row, ascending and then zeros; and which of them each key is, of 256 at most."""
    if keys.dtype == np.uint16 and keys.shape[1] >= _LONG:
        found = [np.flatnonzero(np.bincount(row)) for row in keys]
        placed: Array = np.stack([_places(row, each) for row, each in zip(keys, found, strict=True)])
        entries: Array = np.zeros((len(keys), max(map(len, found))), keys.dtype)
        for row, each in zip(entries, found, strict=True):
            row[: len(each)] = each
        return entries, placed
    order: Array = np.argsort(keys, axis=1, kind="stable")
    ordered: Array = np.take_along_axis(keys, order, 1)
    ranks: Array = np.zeros(ordered.shape, np.int32)
    np.cumsum(ordered[:, 1:] != ordered[:, :-1], axis=1, out=ranks[:, 1:])
    entries = np.zeros((len(keys), int(ranks[:, -1].max()) + 1), keys.dtype)
    np.put_along_axis(entries, ranks, ordered, 1)
    placed = np.empty(keys.shape, np.uint8)
    np.put_along_axis(placed, order, ranks.astype(np.uint8), 1)
    return entries, placed


def _places(row: Array, found: Array) -> Array:
    places: Array = np.zeros(1 << 16, np.uint8)
    places[found] = np.arange(len(found)).astype(np.uint8)
    return places[row]


def _rows_of_blocks(array: Array, counts: tuple[int, ...], first: int) -> tuple[Array, Any]:
    """The elements of each block in a row; and what puts such rows back into the array's order."""
    found = (len(array) // first, *counts)
    split = in_blocks(array, found)
    axes = [*range(0, 2 * array.ndim, 2), *range(1, 2 * array.ndim, 2)]
    moved = split.transpose(axes)
    back = list(np.argsort(axes))

    def restore(rows: Array) -> Array:
        return rows.reshape(moved.shape).transpose(back).reshape(array.shape)

    return moved.reshape(prod(found), -1), restore
