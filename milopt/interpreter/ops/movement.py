"""Ops that move, repeat or make elements without computing on them."""

from __future__ import annotations

from math import prod

import torch
from torch.nn import functional as F

from milopt.interpreter.impls import Impls, Ints, Tensor, Tensors

__all__ = ["movement"]

movement = Impls("movement")


@movement("identity", moves=True, shares="x")
def _(x: Tensor) -> Tensor:
    return x


@movement("reshape", moves=True, shares="x")
def _(x: Tensor, shape: Ints) -> Tensor:
    """A 0 keeps the dimension of ``x`` that lies as far from the end (iOS17's rule; iOS15's where ranks are equal)."""
    if 0 in shape:
        shape = tuple(size or _from_end(x, len(shape) - i) for i, size in enumerate(shape))
    return x.reshape(shape)


def _from_end(x: Tensor, distance: int) -> int:
    return x.shape[-distance] if distance <= x.dim() else 1


@movement("reshape_like", moves=True, shares="x")
def _(x: Tensor, ref_tensors: Tensors, begins: Ints, ends: Ints, end_masks: Ints) -> Tensor:
    shape: list[int] = []
    for ref, begin, end, mask in zip(ref_tensors, begins, ends, end_masks, strict=True):
        shape += ref.shape[begin : None if mask else end]
    return x.reshape(shape)


@movement("transpose", moves=True, shares="x")
def _(x: Tensor, perm: Ints) -> Tensor:
    return x.permute(perm)


@movement("expand_dims", moves=True, shares="x")
def _(x: Tensor, axes: Ints) -> Tensor:
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@movement("squeeze", moves=True, shares="x")
def _(x: Tensor, axes: Ints | None = None) -> Tensor:
    """Axes longer than 1 are left, as torch does and numpy doesn't."""
    return x.squeeze() if axes is None else x.squeeze(axes)


@movement("flatten2d", moves=True, shares="x")
def _(x: Tensor, axis: int = 1) -> Tensor:
    return x.reshape(prod(x.shape[:axis]), prod(x.shape[axis:]))


@movement("concat", moves=True)
def _(values: Tensors, axis: int, interleave: bool = False) -> Tensor:
    """Scalars are put into a vector."""
    if values[0].dim() == 0:
        return torch.stack(values)
    if interleave:
        axis %= values[0].dim()
        return torch.stack(values, axis + 1).flatten(axis, axis + 1)
    return torch.cat(values, axis)


@movement("stack", moves=True)
def _(values: Tensors, axis: int) -> Tensor:
    return torch.stack(values, axis)


@movement("tile", moves=True)
def _(x: Tensor, reps: Ints) -> Tensor:
    """Repetitions below 1, which MIL doesn't allow, count as 1.

    Older converters wrote ``expand(n, -1)`` of a ranged input as a tile by ``-1 / size``; such packages are published.
    """
    return x.repeat([max(1, count) for count in reps])


@movement("pad", moves=True)
def _(x: Tensor, pad: Ints, mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """``pad`` lists before and after for the last dimensions, in their order; torch counts from the last one.

    reflect and replicate work along one axis at a time, so any number of them may be padded.
    """
    if mode == "constant":
        pairs = zip(pad[-2::-2], pad[::-2], strict=True)
        return F.pad(x, [each for pair in pairs for each in pair], value=constant_val)
    first = x.dim() - len(pad) // 2
    for axis in range(first, x.dim()):
        before, after = pad[2 * (axis - first) : 2 * (axis - first) + 2]
        places = torch.arange(-before, x.shape[axis] + after)
        last = x.shape[axis] - 1
        if mode == "reflect":
            if max(before, after) > last:
                raise ValueError(f"reflecting {before} and {after} elements along an axis of {last + 1}")
            places = last - (last - places.abs()).abs()
        else:
            places = places.clamp(0, last)
        x = x.index_select(axis, places)
    return x


@movement("reverse", moves=True)
def _(x: Tensor, axes: Ints | None = None) -> Tensor:
    return x.flip(tuple(range(x.dim())) if axes is None else axes)


@movement("shape")
def _(x: Tensor) -> Tensor:
    return torch.tensor(x.shape, dtype=torch.int32)


@movement("fill")
def _(shape: Ints, value: Tensor | None = None) -> Tensor:
    return (torch.zeros(()) if value is None else value).expand(shape).clone()


@movement("fill_like")
def _(ref_tensor: Tensor, value: Tensor | None = None) -> Tensor:
    return (torch.zeros(()) if value is None else value).expand(ref_tensor.shape).clone()


@movement("range_1d")
def _(end: Tensor, start: Tensor, step: Tensor) -> Tensor:
    """``ceil((end - start) / step)`` elements, as numpy's ``arange``."""
    kind = torch.float64 if end.is_floating_point() else torch.int64
    return torch.arange(start.item(), end.item(), step.item(), dtype=kind)


@movement("band_part", moves=True)
def _(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    """Zero outside ``lower`` subdiagonals and ``upper`` superdiagonals; a negative number keeps them all."""
    below = torch.arange(x.shape[-2])[:, None] - torch.arange(x.shape[-1])
    band = torch.ones_like(below, dtype=torch.bool)
    if lower >= 0:
        band &= below <= lower
    if upper >= 0:
        band &= -below <= upper
    return torch.where(band, x, torch.zeros_like(x))
