"""Random values. A seed other than -1 gives the same values at every run, though not those of Core ML."""

from __future__ import annotations

import torch

from milopt.interpreter.devices import placed
from milopt.interpreter.impls import Impls, Ints, Tensor

__all__ = ["randomness"]

randomness = Impls("randomness")


def _generator(seed: int) -> torch.Generator | None:
    """On the CPU, so that a seed gives the same numbers on every device."""
    return None if seed == -1 else torch.Generator("cpu").manual_seed(seed)


def _uniform(shape: Ints, seed: int) -> Tensor:
    return torch.rand(shape, generator=_generator(seed), dtype=torch.float64, device="cpu")


@randomness("random_bernoulli")
def _(shape: Ints, prob: float = 0.5, seed: int = -1) -> Tensor:
    """1 with probability ``prob``, else 0."""
    return placed((_uniform(shape, seed) < prob).float())


@randomness("random_normal")
def _(shape: Ints, mean: float = 0.0, stddev: float = 1.0, seed: int = -1) -> Tensor:
    drawn = torch.randn(shape, generator=_generator(seed), dtype=torch.float64, device="cpu")
    return placed(drawn * stddev + mean)


@randomness("random_uniform")
def _(shape: Ints, low: float = 0.0, high: float = 1.0, seed: int = -1) -> Tensor:
    return placed(_uniform(shape, seed) * (high - low) + low)


@randomness("random_categorical")
def _(x: Tensor, mode: str = "logits", size: int = 1, seed: int = -1) -> Tensor:
    """``size`` draws with replacement from each distribution in the last dimension; class numbers as floats."""
    rows = x.reshape(-1, x.shape[-1])
    weights = torch.softmax(rows, -1) if mode == "logits" else rows
    drawn = torch.multinomial(weights.cpu(), size, replacement=True, generator=_generator(seed))
    return drawn.reshape(*x.shape[:-1], size).to(x.device, x.dtype)
