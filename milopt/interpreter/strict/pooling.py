"""Pooling by sums: a window's sum is rounded before it is divided, or its root taken."""

from __future__ import annotations

import torch

from milopt.interpreter.impls import Impls, Ints, Rounding, Tensor
from milopt.interpreter.ops import core
from milopt.interpreter.ops.convolution import paddings

__all__ = ["pooling"]

pooling = Impls("strict pooling")


@pooling("avg_pool")
def _(
    x: Tensor,
    kernel_sizes: Ints,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    ceil_mode: bool = False,
    exclude_padding_from_average: bool = False,
    *,
    r: Rounding,
) -> Tensor:
    """The sum of a window, divided by the number of its elements that count (documentation of ``avg_pool``)."""
    total, counted, inside = _sums(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    return r(r(total) / (inside if exclude_padding_from_average else counted))


@pooling("l2_pool")
def _(
    x: Tensor,
    kernel_sizes: Ints,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    ceil_mode: bool = False,
    *,
    r: Rounding,
) -> Tensor:
    """The square root of the sum of squares of a window: the L2 norm; the op's documentation gives no formula."""
    total, _, _ = _sums(r(x * x), kernel_sizes, strides, pad_type, pad, ceil_mode)
    return r.of(torch.sqrt, r(total))


def _sums(
    x: Tensor, kernel: Ints, strides: Ints | None, pad_type: str, pad: Ints | None, ceil_mode: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The sums of all windows in float64, how many elements each of them counts, and how many of these lie in ``x``.

    ``avg_pool`` divides the sums by the first count; so that only one place knows where windows lie, they are taken
    back from its means.
    """
    strides = strides or (1,) * len(kernel)
    means = core["avg_pool"].function(x.double(), kernel, strides, pad_type, pad, ceil_mode)
    around = paddings(pad_type, pad, x.shape[2:], kernel, strides, (1,) * len(kernel))
    counted = inside = torch.ones((), dtype=torch.float64, device=x.device)
    for i, (size, taps, stride) in enumerate(zip(x.shape[2:], kernel, strides, strict=True)):
        before, after = around[2 * i : 2 * i + 2]
        start = torch.arange(means.shape[2 + i], device=x.device) * stride - before
        counted = counted[..., None] * ((start + taps).clamp(max=size + after) - start)
        inside = inside[..., None] * ((start + taps).clamp(max=size) - start.clamp(min=0)).clamp(min=0)
    return means * counted, counted, inside
