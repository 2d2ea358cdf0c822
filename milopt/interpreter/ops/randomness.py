"""Random values. A seed other than -1 gives the same values at every run, though not those of Core ML."""

from __future__ import annotations

import torch

from milopt.interpreter.impls import Impls, Ints, Tensor

__all__ = ["randomness"]

randomness = Impls("randomness")


def _generator(seed: int) -> torch.Generator | None:
    return None if seed == -1 else torch.Generator().manual_seed(seed)


@randomness("random_bernoulli")
def _(shape: Ints, prob: float = 0.5, seed: int = -1) -> Tensor:
    """1 with probability ``prob``, else 0."""
    return (torch.rand(shape, generator=_generator(seed), dtype=torch.float64) < prob).double()


@randomness("random_normal")
def _(shape: Ints, mean: float = 0.0, stddev: float = 1.0, seed: int = -1) -> Tensor:
    return torch.randn(shape, generator=_generator(seed), dtype=torch.float64) * stddev + mean


@randomness("random_uniform")
def _(shape: Ints, low: float = 0.0, high: float = 1.0, seed: int = -1) -> Tensor:
    return torch.rand(shape, generator=_generator(seed), dtype=torch.float64) * (high - low) + low


@randomness("random_categorical")
def _(x: Tensor, mode: str = "logits", size: int = 1, seed: int = -1) -> Tensor:
    """``size`` draws with replacement from each distribution in the last dimension; class numbers as floats."""
    rows = x.reshape(-1, x.shape[-1])
    weights = torch.softmax(rows, -1) if mode == "logits" else rows
    drawn = torch.multinomial(weights, size, replacement=True, generator=_generator(seed))
    return drawn.reshape(*x.shape[:-1], size).to(x.dtype)
