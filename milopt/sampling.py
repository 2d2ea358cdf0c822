"""Which token comes next: greedy, or drawn at a temperature from the likeliest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from milopt.errors import EvaluationError, MiloptError

__all__ = ["Sampler", "Sampling"]


@dataclass(frozen=True)
class Sampling:
    """How to draw. The order is transformers': temperature, then the ``top_k`` likeliest, then the ``top_p`` nucleus.

    ``temperature`` 0 takes the likeliest token; ``top_k`` 0 and ``top_p`` 1 leave all of them in. ``seed`` makes draws
    repeatable; ``None`` does not.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise MiloptError(f"the temperature is 0 or more, not {self.temperature}")
        if self.top_k < 0:
            raise MiloptError(f"top-k is 0 (all) or more, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise MiloptError(f"top-p is above 0 and at most 1, not {self.top_p}")
        if self.seed is not None and self.seed < 0:
            raise MiloptError(f"the seed is 0 or more, not {self.seed}")


class Sampler:
    """Draws tokens one after another; two samplers of equal settings with a seed draw the same."""

    def __init__(self, settings: Sampling) -> None:
        self.settings = settings
        self._random = np.random.default_rng(settings.seed)

    def __call__(self, logits: npt.NDArray[Any]) -> int:
        """The next token for ``logits`` (V,). Of equally likely tokens the lowest comes first."""
        scores = np.asarray(logits, np.float64)
        if np.isnan(scores).any():
            raise EvaluationError("the model's logits are not numbers (NaN): its fp16 arithmetic overflows somewhere")
        if self.settings.temperature == 0:
            return int(scores.argmax())
        tokens, chances = self.candidates(scores)
        return int(self._random.choice(tokens, p=chances))

    def candidates(self, logits: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """The tokens that may be drawn, likeliest first, and their chances, which add up to 1."""
        settings = self.settings
        scores = np.asarray(logits, np.float64)
        tokens = np.argsort(-scores, kind="stable")
        if settings.top_k:
            tokens = tokens[: settings.top_k]
        # the largest is taken off before the division: no exponent is above 0, however low the temperature
        chances = np.exp((scores[tokens] - scores[tokens[0]]) / settings.temperature)
        chances /= chances.sum()
        if settings.top_p < 1:
            # a token stays as long as those before it do not reach top_p yet: the first always does
            kept = int(np.count_nonzero(np.cumsum(chances) - chances < settings.top_p))
            tokens, chances = tokens[:kept], chances[:kept] / chances[:kept].sum()
        return tokens, chances
