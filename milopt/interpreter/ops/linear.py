"""Matrix products and attention. Sums run in the dtype of the run, at least fp32."""

from __future__ import annotations

from math import sqrt

import torch
from torch.nn import functional as F

from milopt.interpreter.impls import Impls, Tensor, Tensors

__all__ = ["attention", "linear"]

linear = Impls("linear")


@linear("linear")
def _(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if x.is_floating_point():
        return F.linear(x, weight, bias)
    product = x @ weight.mT  # torch has no integer linear
    return product if bias is None else product + bias


@linear("matmul")
def _(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """Transposing has no effect on a 1-D operand."""
    if transpose_x and x.dim() > 1:
        x = x.mT
    if transpose_y and y.dim() > 1:
        y = y.mT
    return torch.matmul(x, y)


@linear("einsum")
def _(values: Tensors, equation: str) -> Tensor:
    return torch.einsum(equation, *values)


@linear("scaled_dot_product_attention")
def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """``softmax(query @ keyᵀ / √E + mask) @ value``, written out as the op's documentation does.

    torch's own function gives zeros for a row that is masked altogether; the formula, and coremltools, give NaN.
    """
    scores = torch.matmul(query * (1 / sqrt(query.shape[-1])), key.mT)
    if attn_mask is None:
        pass
    elif attn_mask.dtype is torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    else:
        scores = scores + attn_mask
    return torch.matmul(torch.softmax(scores, -1), value)
