"""Reductions over axes, and the search for extreme values."""

from __future__ import annotations

from collections.abc import Callable

import torch

from milopt.interpreter.impls import Impls, Ints, Tensor
from milopt.interpreter.ops.logic import truncated

__all__ = ["reduction"]

reduction = Impls("reduction")


def _prod(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _mean(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return _like(x, _real(x).mean(axes, keepdim=keep))


# Sums of int32 are taken in int64 by torch and wrap when they are put back into int32.
_REDUCTIONS: dict[str, Callable[[Tensor, tuple[int, ...], bool], Tensor]] = {
    "reduce_l1_norm": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "reduce_l2_norm": lambda x, axes, keep: _like(x, _real(x.square().sum(axes, keepdim=keep)).sqrt()),
    "reduce_log_sum": lambda x, axes, keep: _like(x, _real(x.sum(axes, keepdim=keep)).log()),
    "reduce_log_sum_exp": lambda x, axes, keep: _like(x, _real(x).logsumexp(axes, keepdim=keep)),
    "reduce_max": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "reduce_mean": _mean,
    "reduce_min": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "reduce_prod": _prod,
    "reduce_sum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "reduce_sum_square": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
}


def _real(x: Tensor) -> Tensor:
    return x if x.is_floating_point() else x.double()


def _like(x: Tensor, y: Tensor) -> Tensor:
    """What is computed of integers is cut to integers, as coremltools' value inference does."""
    return y if x.is_floating_point() else truncated(y).to(x.dtype)


def _reduction(function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Callable[..., Tensor]:
    def apply(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
        if axes == ():  # nothing to reduce over: one element each (torch takes no axes for all of them)
            return function(x.unsqueeze(-1), (-1,), False)
        return function(x, tuple(range(x.dim())) if axes is None else axes, keep_dims)

    return apply


for _name, _function in _REDUCTIONS.items():
    reduction(_name, exact=_name in ("reduce_max", "reduce_min"))(_reduction(_function))


@reduction("reduce_argmax")
def _(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """The first of equal values; MIL leaves it open which."""
    return torch.argmax(x, axis, keepdim=keep_dims)


@reduction("reduce_argmin")
def _(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    return torch.argmin(x, axis, keepdim=keep_dims)


@reduction("cumsum")
def _(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """Exclusive sums leave out the element at their place: the first is 0."""
    if reverse:
        x = x.flip(axis)
    y = x.cumsum(axis)
    if exclusive and y.shape[axis] > 0:
        y = torch.cat([torch.zeros_like(y.narrow(axis, 0, 1)), y.narrow(axis, 0, y.shape[axis] - 1)], axis)
    return y.flip(axis) if reverse else y


@reduction("argsort")
def _(x: Tensor, axis: int = -1, ascending: bool = False) -> Tensor:
    """Equal values keep their order, in both directions, and NaN comes last, as in coremltools' value inference."""
    return _order(x, axis, ascending)


def _order(x: Tensor, axis: int, ascending: bool) -> Tensor:
    if x.is_floating_point() and not ascending:
        x, ascending = -x, True  # torch takes NaN for the greatest
    return torch.argsort(x, dim=axis, descending=not ascending, stable=True)


@reduction("topk")
def _(
    x: Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> Tensor | tuple[Tensor, Tensor]:
    """The ``k`` greatest (smallest if ``ascending``) values and their indices; of equal ones the first, NaN last.

    ``sort=False`` leaves the order open, and they come sorted all the same.
    """
    k = x.shape[axis] if k == -1 else k
    indices = _order(x, axis, ascending).narrow(axis, 0, k)
    values = x.gather(axis, indices)
    return (values, indices) if return_indices else values
