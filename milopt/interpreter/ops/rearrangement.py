"""Blocks of pixels between channels, batch and space; partial reversal."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from milopt.interpreter.impls import Impls, Ints, Tensor

__all__ = ["rearrangement"]

rearrangement = Impls("rearrangement")


@rearrangement("depth_to_space", moves=True)
def _(x: Tensor, block_size: int) -> Tensor:
    """Channels are ordered (block row, block column, channel), as in TensorFlow; ``pixel_shuffle`` differs."""
    n, c, h, w = x.shape
    b = block_size
    return x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // (b * b), h * b, w * b)


@rearrangement("space_to_depth", moves=True)
def _(x: Tensor, block_size: int) -> Tensor:
    n, c, h, w = x.shape
    b = block_size
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)


@rearrangement("pixel_shuffle", moves=True)
def _(x: Tensor, upscale_factor: int) -> Tensor:
    """Channels are ordered (channel, block row, block column)."""
    return F.pixel_shuffle(x, upscale_factor)


@rearrangement("pixel_unshuffle", moves=True)
def _(x: Tensor, downscale_factor: int) -> Tensor:
    return F.pixel_unshuffle(x, downscale_factor)


@rearrangement("space_to_batch", moves=True)
def _(x: Tensor, block_shape: Ints, paddings: Ints) -> Tensor:
    """``x (N,C,H,W)`` -> ``(N*b0*b1, C, H/b0, W/b1)``, the batch ordered (block row, block column, image)."""
    (b0, b1), (top, bottom, left, right) = block_shape, paddings
    x = F.pad(x, (left, right, top, bottom))
    n, c, h, w = x.shape
    return x.reshape(n, c, h // b0, b0, w // b1, b1).permute(3, 5, 0, 1, 2, 4).reshape(-1, c, h // b0, w // b1)


@rearrangement("batch_to_space", moves=True)
def _(x: Tensor, block_shape: Ints, crops: Ints) -> Tensor:
    (b0, b1), (top, bottom, left, right) = block_shape, crops
    n, c, h, w = x.shape
    y = x.reshape(b0, b1, n // (b0 * b1), c, h, w).permute(2, 3, 4, 0, 5, 1).reshape(-1, c, h * b0, w * b1)
    return y[:, :, top : h * b0 - bottom, left : w * b1 - right]


@rearrangement("reverse_sequence", moves=True)
def _(x: Tensor, lengths: Tensor, seq_axis: int = 0, batch_axis: int = 0) -> Tensor:
    """The first ``lengths[i]`` elements along ``seq_axis`` are reversed in item ``i`` of the batch."""
    steps = torch.arange(x.shape[seq_axis])
    last = lengths.long()[:, None]
    order = torch.where(steps < last, last - 1 - steps, steps)
    shape = [1] * x.dim()
    shape[batch_axis], shape[seq_axis] = order.shape
    if batch_axis % x.dim() > seq_axis % x.dim():
        order = order.mT
    return x.gather(seq_axis, order.reshape(shape).expand(x.shape))
