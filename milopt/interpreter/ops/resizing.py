"""Resizing along axes: points are placed on the grid of the input, and values read there.

The five ``sampling_mode`` are those of coremltools' ``resize_bilinear``; the format's description of them (its
``SamplingMode``) is written for an interval, of which a whole image and a box are both examples.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from milopt.interpreter.impls import Impls, Ints, Tensor

__all__ = ["resizing", "sampling_points"]

resizing = Impls("resizing")


def sampling_points(last: float, count: int, mode: str) -> Tensor:
    """``count`` points in the interval from 0 to ``last``, in float64; an image of ``n`` pixels ends at ``n - 1``."""
    i = torch.arange(count, dtype=torch.float64)
    size = last + 1
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        if count == 1:
            return i + (last / 2 if mode == "ALIGN_CORNERS" else 0.0)
        return i * (last / (count - 1))
    if mode == "DEFAULT":
        return (i * (size / count)).clamp(max=max(last, 0.0))
    if mode == "OFFSET_CORNERS":
        return ((i + 0.5) * (max(1.0, last) / count)).clamp(max=max(last, 0.0))
    if mode == "UNALIGN_CORNERS":
        return ((i + 0.5) * (size / count) - 0.5).clamp(0.0, max(last, 0.0))
    raise ValueError(f"unknown sampling mode {mode!r}")


def linear_along(x: Tensor, axis: int, points: Tensor) -> Tensor:
    """``x`` read at ``points`` of an axis, in between linearly; points must lie in it."""
    low = points.floor().long()
    high = (low + 1).clamp(max=x.shape[axis] - 1)
    weight = (points - low).to(x.dtype if x.is_floating_point() else torch.float64)
    weight = weight.reshape([-1 if i == axis % x.dim() else 1 for i in range(x.dim())])
    y = x.index_select(axis, low) * (1 - weight) + x.index_select(axis, high) * weight
    return y if x.is_floating_point() else y.to(x.dtype)


def nearest_along(x: Tensor, axis: int, count: int) -> Tensor:
    """``x`` resized to ``count`` along an axis by repeating or leaving out elements: ``floor(i * size / count)``."""
    return x.index_select(axis, torch.arange(count) * x.shape[axis] // count)


def _scaled(size: int, factor: float) -> int:
    """The new size as coremltools infers it, in float32."""
    return math.floor(float(np.float32(factor * size)))


@resizing("upsample_nearest_neighbor", moves=True)
def _(x: Tensor, scale_factor_height: float = 1, scale_factor_width: float = 1) -> Tensor:
    y = nearest_along(x, -2, _scaled(x.shape[-2], scale_factor_height))
    return nearest_along(y, -1, _scaled(x.shape[-1], scale_factor_width))


@resizing("resize_nearest_neighbor", moves=True)
def _(x: Tensor, target_size_height: int, target_size_width: int) -> Tensor:
    return nearest_along(nearest_along(x, -2, target_size_height), -1, target_size_width)


@resizing("upsample_bilinear")
def _(
    x: Tensor,
    scale_factor_height: float = 1,
    scale_factor_width: float = 1,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    """The scale is taken again from the new size, torch's ``recompute_scale_factor=True``."""
    half = not align_corners if half_pixel_centers is None else half_pixel_centers
    mode = "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS" if half else "DEFAULT"
    height, width = _scaled(x.shape[-2], scale_factor_height), _scaled(x.shape[-1], scale_factor_width)
    return _bilinear(x, height, width, mode)


@resizing("resize_bilinear")
def _(x: Tensor, target_size_height: int = 1, target_size_width: int = 1, sampling_mode: str = "DEFAULT") -> Tensor:
    return _bilinear(x, target_size_height, target_size_width, sampling_mode)


def _bilinear(x: Tensor, height: int, width: int, mode: str) -> Tensor:
    y = linear_along(x, -2, sampling_points(x.shape[-2] - 1, height, mode))
    return linear_along(y, -1, sampling_points(x.shape[-1] - 1, width, mode))


@resizing("resize")
def _(
    x: Tensor,
    shape: Ints,
    resized_dims: int,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """The last ``resized_dims`` dimensions take the last sizes of ``shape``; a size of 0 leaves one as it is.

    The nearest element to sample i is ``floor((i + 1/2) * size / count)`` in the default mode: coremltools lowers
    TensorFlow's half-pixel resize to it, and the expectations of its tests agree; the older ops count without the half.
    """
    for axis in range(-resized_dims, 0):
        count = shape[axis] or x.shape[axis]
        if interpolation_mode == "NEAREST_NEIGHBOR":
            x = x.index_select(axis, _nearest(x.shape[axis], count, sampling_mode))
        else:
            x = linear_along(x, axis, sampling_points(x.shape[axis] - 1, count, sampling_mode))
    return x


def _nearest(size: int, count: int, mode: str) -> Tensor:
    if mode == "DEFAULT":
        return (2 * torch.arange(count) + 1) * size // (2 * count)
    return (sampling_points(size - 1, count, mode) + 0.5).floor().long().clamp(max=size - 1)


@resizing("crop", moves=True, shares="x")
def _(x: Tensor, crop_height: Ints, crop_width: Ints) -> Tensor:
    (top, bottom), (left, right) = crop_height, crop_width
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]
