"""Parts of tensors: slices, splits, and writes into slices."""

from __future__ import annotations

from functools import lru_cache
from types import EllipsisType

import torch

from milopt.interpreter.impls import Impls, Ints, Tensor

__all__ = ["slicing"]

slicing = Impls("slicing")

Index = tuple[slice | int | EllipsisType, ...]


@slicing("slice_by_index", moves=True, shares="x")
def _(
    x: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Ints | None = None,
    end_mask: Ints | None = None,
    squeeze_mask: Ints | None = None,
) -> Tensor:
    reverse, index = _index(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    return (x.flip(reverse) if reverse else x)[index]


@slicing("slice_update", moves=True, shares="x")
def _(
    x: Tensor,
    update: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Ints | None = None,
    end_mask: Ints | None = None,
    squeeze_mask: Ints | None = None,
    in_place: bool = False,
) -> Tensor:
    """``x`` with ``update`` in the place of the slice. ``in_place``: nobody else needs the old ``x``."""
    reverse, index = _index(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    if reverse:
        y = x.flip(reverse)  # a copy
        y[index] = update.reshape(y[index].shape)
        return y.flip(reverse)
    y = x if in_place else x.clone()
    target = y[index]
    target.copy_(update.reshape(target.shape))
    return y


@lru_cache(maxsize=4096)  # a step of a decoder asks the same few hundred questions at every token
def _index(
    shape: torch.Size,
    begin: Ints,
    end: Ints,
    stride: Ints | None,
    begin_mask: Ints | None,
    end_mask: Ints | None,
    squeeze_mask: Ints | None,
) -> tuple[tuple[int, ...], Index]:
    """numpy's rules (coremltools' ``solve_slice_by_index_slice``), with negative strides turned for torch.

    Returns the axes to reverse first, and the index to take then.
    """
    reverse: list[int] = []
    index: list[slice | int | EllipsisType] = []
    for axis, size in enumerate(shape):
        first = None if begin_mask and begin_mask[axis] else begin[axis]
        last = None if end_mask and end_mask[axis] else end[axis]
        step = stride[axis] if stride else 1
        if squeeze_mask and squeeze_mask[axis]:
            index.append(first or 0)
        elif step > 0:
            index.append(slice(first, last, step))
        else:
            start, stop, _ = slice(first, last, step).indices(size)
            reverse.append(axis)
            index.append(slice(size - 1 - start, size - 1 - stop, -step))
    return tuple(reverse), tuple(index)


@slicing("slice_by_size", moves=True, shares="x")
def _(x: Tensor, begin: Ints, size: Ints) -> Tensor:
    """A size of -1 takes the rest."""
    index: list[slice] = []
    for length, first, count in zip(x.shape, begin, size, strict=True):
        start = first + length if first < 0 else first
        stop = length if count == -1 else start + count
        if not 0 <= start <= stop <= length:
            raise IndexError(f"begin {begin} and size {size} leave the shape {tuple(x.shape)}")
        index.append(slice(start, stop))
    return x[tuple(index)]


@slicing("split", moves=True, shares="x")
def _(
    x: Tensor, axis: int, num_splits: int | None = None, split_sizes: Ints | None = None
) -> Tensor | tuple[Tensor, ...]:
    if split_sizes is not None:
        parts = torch.split(x, list(split_sizes), axis)
    elif num_splits is None:
        raise ValueError("neither num_splits nor split_sizes is given")
    elif x.shape[axis] % num_splits:
        raise ValueError(f"num_splits {num_splits} does not divide {x.shape[axis]}")
    else:
        parts = torch.split(x, x.shape[axis] // num_splits, axis)
    first, *others = parts
    return (first, *others) if others else first


@slicing("sliding_windows", moves=True, shares="x")
def _(x: Tensor, axis: int, size: int, stride: int = 1) -> Tensor:
    axis %= x.dim()
    return x.unfold(axis, size, stride).movedim(-1, axis + 1)
