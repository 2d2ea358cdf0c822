"""Gathering and scattering by index.

Indices below zero count from the end: iOS15 and iOS16 allow them. From iOS17 on they are out of bounds: then
``validate_indices`` makes them an error, and without it MIL leaves open what they do. Too large ones always raise.
"""

from __future__ import annotations

import torch

from milopt.interpreter.impls import Impls, Tensor

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


_REDUCE = {"mul": "prod", "max": "amax", "min": "amin"}


@selection("scatter")
def _(
    data: Tensor, indices: Tensor, updates: Tensor, axis: int = 0, mode: str = "add", validate_indices: bool = False
) -> Tensor:
    """``updates`` has the shape of ``data`` but for ``axis``, where it is as long as ``indices``."""
    axis %= data.dim()
    shape = [-1 if i == axis else 1 for i in range(data.dim())]
    places = _wrapped(indices, data.shape[axis], validate_indices).reshape(shape).expand(updates.shape)
    return _scattered(data, axis, places, updates, mode)


@selection("scatter_along_axis")
def _(
    data: Tensor, indices: Tensor, updates: Tensor, axis: int = 0, mode: str = "add", validate_indices: bool = False
) -> Tensor:
    return _scattered(data, axis, _wrapped(indices, data.shape[axis], validate_indices), updates, mode)


@selection("scatter_nd")
def _(data: Tensor, indices: Tensor, updates: Tensor, mode: str = "add", validate_indices: bool = False) -> Tensor:
    """``data[indices[i]] = updates[i]``, or combined with what is there, element by element of the flat tensor."""
    flat = torch.arange(data.numel()).reshape(data.shape)[_places(data, indices, validate_indices)]
    return _scattered(data.reshape(-1), 0, flat.reshape(-1), updates.reshape(-1), mode).reshape(data.shape)


def _scattered(data: Tensor, axis: int, places: Tensor, updates: Tensor, mode: str) -> Tensor:
    """Where an index comes twice, updates add up, multiply...; with ``update`` it is open which one stays."""
    if mode == "update":
        return data.scatter(axis, places, updates)
    if mode in ("add", "sub"):
        return data.scatter_add(axis, places, updates if mode == "add" else -updates)
    if mode == "div":
        return data / torch.ones_like(data).scatter_reduce(axis, places, updates, "prod")
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
