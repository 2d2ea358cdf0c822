"""Products and what comes after them: a bias, a scale, a mask.

A matrix product or convolution is one step: the products are exact, they are accumulated in fp32, and the sum is
rounded once. The rounding before the bias is what these add to ``matmul``.
"""

from __future__ import annotations

from math import sqrt

import torch

from milopt.interpreter.impls import Impls, Ints, Rounding, Tensor
from milopt.interpreter.ops import core
from milopt.interpreter.strict.activation import softmax

__all__ = ["linear"]

linear = Impls("strict linear")


@linear("linear")
def _(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, r: Rounding) -> Tensor:
    """``x * weight.T + bias`` (documentation of ``linear``)."""
    product = r(core["linear"].function(x, weight))
    return product if bias is None else r(product + bias)


@linear("scaled_dot_product_attention")
def _(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *, r: Rounding) -> Tensor:
    """``softmax(query @ keyᵀ / √E + mask) @ value``, each product rounded before the next step.

    These are the steps of the documentation and ``value_inference`` of ``scaled_dot_product_attention``: the scores are
    divided by √E after the product, where they may have overflowed already.
    """
    scores = r(r(torch.matmul(query, key.mT)) / sqrt(query.shape[-1]))
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = r(scores + attn_mask)
    return r(torch.matmul(softmax(scores, -1, r=r), value))


@linear("conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
    *,
    r: Rounding,
) -> Tensor:
    """The convolution, then the bias "along output channels" (documentation of ``conv``)."""
    product = core["conv"].function(
        x, weight, strides=strides, pad_type=pad_type, pad=pad, dilations=dilations, groups=groups
    )
    return _with_bias(r(product), bias, r)


@linear("conv_transpose")
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
    *,
    r: Rounding,
) -> Tensor:
    """The transposed convolution, then the bias "along output channels" (documentation of ``conv_transpose``)."""
    product = core["conv_transpose"].function(
        x,
        weight,
        pad=pad,
        output_shape=output_shape,
        pad_type=pad_type,
        strides=strides,
        dilations=dilations,
        groups=groups,
    )
    return _with_bias(r(product), bias, r)


@linear("conv_quantized")
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
    *,
    r: Rounding,
) -> Tensor:
    """``conv`` with ``W_quantized * scale + bias`` as its weight (documentation of ``conv_quantized``)."""
    if quantization_type != "linear":
        raise ValueError(f"quantization_type {quantization_type!r} has no definition in MIL")
    shape = [-1, *[1] * (weight.dim() - 1)]
    dense = r(r(weight.to(x.dtype) * quant_scale.reshape(shape)) + quant_bias.reshape(shape))
    offset = None if bias is None else bias.to(x.dtype)
    return conv(x, dense, offset, strides, pad_type, pad, dilations, groups, r=r)


def _with_bias(y: Tensor, bias: Tensor | None, r: Rounding) -> Tensor:
    return y if bias is None else r(y + bias.reshape(-1, *[1] * (y.dim() - 2)))
