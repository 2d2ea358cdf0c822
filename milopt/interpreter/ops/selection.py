"""Gathering and scattering by index.

Indices below zero count from the end: iOS15 and iOS16 allow them. From iOS17 on, where the ops have the input
``validate_indices``, they are out of bounds: an error with it, and without it MIL leaves open what they do, but for
memory. Gathering then still counts them from the end, as coremltools' value inference does, and refuses too large ones
like it; scattering leaves out what would be written out of bounds.
"""

from __future__ import annotations

import torch

from milopt.interpreter.impls import Impls, Tensor
from milopt.interpreter.ops.elementwise import quotients

__all__ = ["selection"]

selection = Impls("selection")


@selection("gather", moves=True)
def _(x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """``x (*D), indices (*N) -> D[:axis] + N[batch_dims:] + D[axis+1:]``."""
    axis %= x.dim()
    places = _wrapped(indices, x.shape[axis], validate_indices)
    if batch_dims == 0:
        y = x.index_select(axis, places.reshape(-1))
        return y.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))
    index = (*_grid(indices, batch_dims), places)
    y = x.movedim(axis, batch_dims)[index]
    # batch, indices, what lay before the axis, the rest -> batch, before, indices, rest
    first, middle = indices.dim(), indices.dim() + axis - batch_dims
    return y.permute(*range(batch_dims), *range(first, middle), *range(batch_dims, first), *range(middle, y.dim()))


def _grid(indices: Tensor, batch_dims: int) -> list[Tensor]:
    """The place of each index along each of its batch dimensions, ready to broadcast with it."""
    return [
        torch.arange(indices.shape[axis]).reshape([-1 if i == axis else 1 for i in range(indices.dim())])
        for axis in range(batch_dims)
    ]


@selection("gather_along_axis", moves=True)
def _(x: Tensor, indices: Tensor, axis: int = 0, validate_indices: bool = False) -> Tensor:
    return x.gather(axis, _wrapped(indices, x.shape[axis], validate_indices))


@selection("gather_nd", moves=True, shares="x")
def _(x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """``x (*D), indices (*K) -> K[:-1] + D[batch_dims + K[-1]:]``."""
    return x[_places(x, indices, validate_indices, batch_dims)]


def _places(x: Tensor, indices: Tensor, validate: bool, batch_dims: int = 0) -> tuple[Tensor, ...]:
    """An advanced index for what the last dimension of ``indices`` points at."""
    batch = _grid(indices[..., 0], batch_dims)
    return (*batch, *(_wrapped(indices[..., i], x.shape[batch_dims + i], validate) for i in range(indices.shape[-1])))


def _wrapped(indices: Tensor, size: int, validate: bool) -> Tensor:
    places = indices.to(torch.int64)
    if validate and bool((places < 0).any()):
        raise IndexError(f"index {int(places.min())} is out of bounds")
    return torch.where(places < 0, places + size, places)


def _bounded(indices: Tensor, size: int, validate: bool | None) -> Tensor:
    """Where to scatter along an axis of ``size``: one beyond it for what is left out."""
    places = indices.to(torch.int64)
    if validate is None:
        places = torch.where(places < 0, places + size, places)
    outside = (places < 0) | (places >= size)
    if validate is not False and bool(outside.any()):
        raise IndexError(f"index {int(places[outside][0])} is out of bounds for {size} elements")
    return places.masked_fill(outside, size)


_REDUCE = {"mul": "prod", "max": "amax", "min": "amin"}


@selection("scatter")
def _(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool | None = None,
) -> Tensor:
    """``updates`` has the shape of ``data`` but for ``axis``, where it is as long as ``indices``."""
    axis %= data.dim()
    shape = [-1 if i == axis else 1 for i in range(data.dim())]
    places = _bounded(indices, data.shape[axis], validate_indices).reshape(shape).expand(updates.shape)
    return _scattered(data, axis, places, updates, mode)


@selection("scatter_along_axis")
def _(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool | None = None,
) -> Tensor:
    return _scattered(data, axis, _bounded(indices, data.shape[axis], validate_indices), updates, mode)


@selection("scatter_nd")
def _(
    data: Tensor, indices: Tensor, updates: Tensor, mode: str = "add", validate_indices: bool | None = None
) -> Tensor:
    """``data[indices[i]] = updates[i]``, or combined with what is there, element by element of the flat tensor."""
    sizes = data.shape[: indices.shape[-1]]
    starts = torch.zeros(indices.shape[:-1], dtype=torch.int64)
    inside = torch.ones(indices.shape[:-1], dtype=torch.bool)
    for i, size in enumerate(sizes):
        places = _bounded(indices[..., i], size, validate_indices)
        starts = starts * size + places
        inside &= places < size
    each = data.shape[len(sizes) :].numel()
    flat = starts[..., None] * each + torch.arange(each)
    flat = torch.where(inside[..., None], flat, data.numel())
    return _scattered(data.reshape(-1), 0, flat.reshape(-1), updates.reshape(-1), mode).reshape(data.shape)


def _scattered(data: Tensor, axis: int, places: Tensor, updates: Tensor, mode: str) -> Tensor:
    """Where an index comes twice, updates add up, multiply...; with ``update`` it is open which one stays.

    ``places`` may point one beyond the axis, at a row that is dropped.
    """
    size = data.shape[axis]
    if places.numel() and int(places.max()) == size:
        spare = data.new_ones([1 if i == axis % data.dim() else each for i, each in enumerate(data.shape)])
        return _scattered(torch.cat([data, spare], axis), axis, places, updates, mode).narrow(axis, 0, size)
    if mode == "update":
        return data.scatter(axis, places, updates)
    if mode in ("add", "sub"):
        return data.scatter_add(axis, places, updates if mode == "add" else -updates)
    if mode == "div":
        return quotients(data, torch.ones_like(data).scatter_reduce(axis, places, updates, "prod"))
    return data.scatter_reduce(axis, places, updates, _REDUCE[mode])


@selection("one_hot")
def _(
    indices: Tensor,
    one_hot_vector_size: int,
    axis: int = -1,
    on_value: Tensor | None = None,
    off_value: Tensor | None = None,
) -> Tensor:
    """1 and 0 by default; indices out of range give a vector of ``off_value``."""
    hot = indices.unsqueeze(-1) == torch.arange(one_hot_vector_size)
    on = torch.ones((), dtype=torch.int32) if on_value is None else on_value
    off = torch.zeros((), dtype=torch.int32) if off_value is None else off_value
    return torch.where(hot, on, off).movedim(-1, axis)


@selection("non_zero")
def _(x: Tensor) -> Tensor:
    return torch.nonzero(x)
