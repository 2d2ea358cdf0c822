"""Pooling in one to three dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from milopt.interpreter.impls import Impls, Ints, Tensor
from milopt.interpreter.ops.convolution import padded, paddings

__all__ = ["pooling"]

pooling = Impls("pooling")

_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_MEAN = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@pooling("max_pool")
def _(
    x: Tensor,
    kernel_sizes: Ints,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    strides = strides or (1,) * len(kernel_sizes)
    around, beyond = _borders(x.shape[2:], kernel_sizes, strides, pad_type, pad, ceil_mode)
    y = padded(padded(x, around, -torch.inf), beyond, -torch.inf)
    return _MAX[len(kernel_sizes)](y, kernel_sizes, strides)


@pooling("avg_pool")
def _(
    x: Tensor,
    kernel_sizes: Ints,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    ceil_mode: bool = False,
    exclude_padding_from_average: bool = False,
) -> Tensor:
    """The sum of a window divided by the number of elements that count.

    Padding counts unless excluded; what ``ceil_mode`` lets a window reach beyond the padding never does, as in torch.
    """
    strides = strides or (1,) * len(kernel_sizes)
    around, beyond = _borders(x.shape[2:], kernel_sizes, strides, pad_type, pad, ceil_mode)
    mean = _MEAN[len(kernel_sizes)]
    counts = x.new_ones((1, 1, *x.shape[2:]))
    counts = padded(padded(counts, around, 0.0 if exclude_padding_from_average else 1.0), beyond)
    return mean(padded(padded(x, around), beyond), kernel_sizes, strides) / mean(counts, kernel_sizes, strides)


@pooling("l2_pool")
def _(
    x: Tensor,
    kernel_sizes: Ints,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """The square root of the sum of squares of a window."""
    strides = strides or (1,) * len(kernel_sizes)
    around, beyond = _borders(x.shape[2:], kernel_sizes, strides, pad_type, pad, ceil_mode)
    squares = padded(padded(x.square(), around), beyond)
    size = torch.Size(kernel_sizes).numel()
    return (_MEAN[len(kernel_sizes)](squares, kernel_sizes, strides) * size).sqrt()


def _borders(
    size: Sequence[int], kernel: Ints, strides: Ints, pad_type: str, pad: Ints | None, ceil_mode: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Padding before and after each dimension, and what ``ceil_mode`` adds after it.

    The number of windows is that of coremltools' ``spatial_dimensions_out_shape``.
    """
    around = paddings(pad_type, pad, size, kernel, strides, (1,) * len(kernel))
    beyond = [0] * len(around)
    for i, (length, taps, stride) in enumerate(zip(size, kernel, strides, strict=True)):
        before, after = around[2 * i : 2 * i + 2]
        if not ceil_mode:
            continue
        windows = (length + before + after - taps + stride - 1) // stride + 1
        if (windows - 1) * stride >= length + before and before + after > 0:
            windows -= 1  # a window must not start in the padding after the input
        beyond[2 * i + 1] = max(0, (windows - 1) * stride + taps - length - before - after)
    return around, tuple(beyond)
