"""Integer activations: quantize and dequantize, and the old convolution with quantized weights."""

from __future__ import annotations

import torch

from milopt.interpreter.impls import Impls, Ints, Tensor
from milopt.interpreter.ops.convolution import conv

__all__ = ["quantization"]

quantization = Impls("quantization")

_RANGES = {"int8": (torch.int8, -128, 127), "uint8": (torch.uint8, 0, 255)}


@quantization("quantize")
def _(
    input: Tensor, scale: Tensor, output_dtype: str, zero_point: Tensor | None = None, axis: int | None = None
) -> Tensor:
    """``round(input / scale) + zero_point``, halves to even, kept within the range of the output."""
    dtype, low, high = _RANGES[output_dtype]
    y = (input / _along(scale, input, axis)).round()
    if zero_point is not None:
        y = y + _along(zero_point, input, axis)
    return y.clamp(low, high).to(dtype)


@quantization("dequantize")
def _(input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: int | None = None) -> Tensor:
    """``scale * (input - zero_point)``."""
    y = input.to(scale.dtype)
    if zero_point is not None:
        y = y - _along(zero_point, input, axis)
    return y * _along(scale, input, axis)


def _along(values: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """A scalar, or a vector laid along ``axis`` of ``x``."""
    if values.dim() == 0 or axis is None:
        return values
    return values.reshape([-1 if i == axis % x.dim() else 1 for i in range(x.dim())])


@quantization("conv_quantized")
def _(
    x: Tensor,
    weight: Tensor,
    quantization_type: str,
    quant_scale: Tensor,
    quant_bias: Tensor,
    nbits: int = 8,
    bias: Tensor | None = None,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    """``weight * quant_scale + quant_bias`` are the weights, with a scale and a bias, or one per output channel."""
    if quantization_type != "linear":
        raise ValueError(f"quantization_type {quantization_type!r} has no definition in MIL")
    shape = [-1, *[1] * (weight.dim() - 1)]
    dense = weight.to(x.dtype) * quant_scale.reshape(shape) + quant_bias.reshape(shape)
    offset = None if bias is None else bias.to(x.dtype)
    return conv(x, dense, offset, strides, pad_type, pad, dilations, groups)
