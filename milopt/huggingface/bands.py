"""Arrays in blocks, a band of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

__all__ = ["Band", "bands", "in_blocks", "merged", "per_block"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow

_AT_ONCE = 1 << 21  # elements


@dataclass(frozen=True)
class Band:
    """Some rows of an array, and the blocks along its first axis that they lie in."""

    rows: slice
    blocks: slice


def bands(shape: tuple[int, ...], counts: tuple[int, ...], *, whole_blocks: bool = False) -> Iterator[Band]:
    """Rows of an array with ``counts`` blocks along each axis: those of several blocks, or some of one block's."""
    run = shape[0] // counts[0]
    fitting = max(1, _AT_ONCE // max(1, prod(shape[1:])))
    step = max(1, fitting // run)
    if fitting >= run or whole_blocks:
        for first in range(0, counts[0], step):
            last = min(first + step, counts[0])
            yield Band(slice(first * run, last * run), slice(first, last))
        return
    for block in range(counts[0]):
        for first in range(block * run, (block + 1) * run, fitting):
            yield Band(slice(first, min(first + fitting, (block + 1) * run)), slice(block, block + 1))


def in_blocks(array: Array, counts: tuple[int, ...]) -> Array:
    """``array`` with each axis split in two: the block, and the place in it."""
    pairs = ((count, size // count) for size, count in zip(array.shape, counts, strict=True))
    return array.reshape([each for pair in pairs for each in pair])


def per_block(values: Array) -> Array:
    """One value for each block, in the shape that goes with :func:`in_blocks`."""
    return values.reshape([each for count in values.shape for each in (count, 1)])


def merged(split: Array, shape: tuple[int, ...]) -> Array:
    """What :func:`in_blocks` split, as it was."""
    return split.reshape(shape)
