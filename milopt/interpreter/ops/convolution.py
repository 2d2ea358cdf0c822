"""Convolutions in one to three dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import torch
from torch.nn import functional as F

from milopt.interpreter.impls import Impls, Ints, Tensor

__all__ = ["conv", "convolution", "is_pointwise", "padded", "paddings", "pointwise"]

convolution = Impls("convolution")

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@convolution("conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    """A kernel of one element with stride 1 is a matrix product, and run as one: torch's convolution is slower."""
    kernel = weight.shape[2:]
    if is_pointwise(weight.shape, strides, pad_type, pad, dilations, groups):
        return pointwise(x, weight.view(weight.shape[:2]), bias)
    strides = strides or (1,) * len(kernel)
    dilations = dilations or (1,) * len(kernel)
    before_after = paddings(pad_type, pad, x.shape[2:], kernel, strides, dilations)
    if before_after[::2] != before_after[1::2]:
        x = padded(x, before_after)
        before_after = (0,) * len(before_after)
    return _CONV[len(kernel)](x, weight, bias, strides, before_after[::2], dilations, groups)


def pointwise(x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """``matrix (O,I), x (N,I,*S) -> (N,O,*S)``, laid out in memory as ``x`` is: its channels apart or side by side."""
    batch, channels, *size = x.shape
    if x.numel() == batch * channels:
        return F.linear(x.reshape(batch, channels), matrix, bias).view(batch, -1, *size)
    if x.stride(1) == 1:
        return F.linear(x.movedim(1, -1), matrix, bias).movedim(-1, 1)
    product = torch.matmul(matrix, x.reshape(batch, channels, -1))
    if bias is not None:
        product += bias[:, None]
    return product.view(batch, -1, *size)


def is_pointwise(
    weight: Sequence[int],
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> bool:
    """Whether a convolution with a weight of that shape multiplies a matrix with the channels of each position."""
    padding_given = pad_type == "custom" and any(pad or ())
    return groups == 1 and set(weight[2:]) == {1} and set(strides or (1,)) == {1} and not padding_given


def paddings(
    pad_type: str, pad: Ints | None, size: Sequence[int], kernel: Sequence[int], strides: Ints, dilations: Ints
) -> tuple[int, ...]:
    """Elements to add before and after each spatial dimension: ``(before_0, after_0, before_1, ...)``.

    ``same`` pads to ``ceil(size / stride)`` outputs as TensorFlow does, an odd element going after, with
    ``same_lower`` before. The totals are those of coremltools' ``aggregated_pad``.
    """
    if pad_type == "valid":
        return (0, 0) * len(kernel)
    if pad_type == "custom":
        return tuple(pad or (0, 0) * len(kernel))
    both: list[int] = []
    for length, taps, stride, dilation in zip(size, kernel, strides, dilations, strict=True):
        total = max(0, stride * ceil(length / stride) - length + (taps - 1) * dilation + 1 - stride)
        less, more = total // 2, total - total // 2
        both += [less, more] if pad_type == "same" else [more, less]
    return tuple(both)


def padded(x: Tensor, before_after: Sequence[int], value: float = 0.0) -> Tensor:
    """``x`` with elements of ``value`` added around its last dimensions, as :func:`paddings` gives them."""
    if not any(before_after):
        return x
    pairs = zip(before_after[-2::-2], before_after[::-2], strict=True)  # torch counts from the last dimension
    return F.pad(x, [each for pair in pairs for each in pair], value=value)


@convolution("conv_transpose")
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: Ints | None = None,
    output_shape: Ints | None = None,
    pad_type: str = "valid",
    strides: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    """The full transposed convolution, from which the window that ``pad_type`` asks for is cut."""
    kernel = weight.shape[2:]
    strides = strides or (1,) * len(kernel)
    dilations = dilations or (1,) * len(kernel)
    starts: list[int] = []
    sizes: list[int] = []
    beyond: list[int] = []
    for i, (length, taps, stride, dilation) in enumerate(zip(x.shape[2:], kernel, strides, dilations, strict=True)):
        full = (length - 1) * stride + (taps - 1) * dilation + 1
        if pad_type == "custom" and pad is not None:
            start, size = pad[2 * i], full - pad[2 * i] - pad[2 * i + 1]
        else:
            start, size = 0, full
        if pad_type.startswith("same"):
            size = length * stride
        if output_shape is not None:
            size = output_shape[2 + i]
        if pad_type.startswith("same"):
            start = paddings(pad_type, None, (size,), (taps,), (stride,), (dilation,))[0]
        starts.append(start)
        sizes.append(size)
        beyond.append(max(0, start + size - full))
    y = _CONV_TRANSPOSE[len(kernel)](x, weight, bias, strides, 0, beyond, groups, dilations)
    for i, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        y = y.narrow(2 + i, start, size)
    return y
