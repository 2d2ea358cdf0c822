"""The closed forms that inverse frequencies of rotary positions have: from a base and a few parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import ceil, floor, log, pi
from typing import Any, TypeAlias

import numpy as np

__all__ = ["BASES", "Dynamic", "Form", "Llama3", "Plain", "Proportional", "Yarn", "scaled_forms"]

Array: TypeAlias = np.ndarray[Any, Any]

# Bases of published models, those of the most models first. A base of more digits (Falcon 3: 1000042) is told from its
# neighbour here by no fp16 number: over 4,096 positions the two are 0.005 rad apart.
BASES = (1e4, 1e6, 5e5, 1e5, 1.5e5, 1e7, 5e6, 1.3e5, 2.5e5, 1.6e5, 8e6, 4e6, 2e6, 5e4, 7.5e7, 1e8, 2e5, 1e9, 1e11, 1e3)
_CONTEXTS = tuple(2**power for power in range(5, 19))
_FACTORS = (2.0, 4.0, 8.0, 16.0, 32.0, 40.0, 64.0, 3.0, 2.5, 1.5, 5.0, 6.0, 10.0, 20.0, 128.0)


@dataclass(frozen=True)
class Plain:
    """``base ** (-i / n) / factor``: transformers' types ``default`` and ``linear``."""

    base: float
    factor: float = 1.0

    def frequencies(self, count: int) -> Array:
        """The ``count`` inverse frequencies in float64."""
        return _plain(self.base, count) / self.factor

    @property
    def attention_factor(self) -> float:
        """What cosines and sines are multiplied with."""
        return 1.0

    def __str__(self) -> str:
        return f"theta {self.base:.12g}" + (f", divided by {self.factor:g}" if self.factor != 1 else "")


@dataclass(frozen=True)
class Proportional(Plain):
    """The plain ones, of which only the first ``turning`` are not zero."""

    turning: int = 0

    def frequencies(self, count: int) -> Array:
        return np.where(np.arange(count) < self.turning, super().frequencies(count), 0.0)

    def __str__(self) -> str:
        return f"{super().__str__()}, the first {self.turning}"


@dataclass(frozen=True)
class Dynamic(Plain):
    """NTK scaling: the base times ``ratio ** (n / (n - 1))``, ratio = factor · length / trained length - factor + 1."""

    ratio: float = 1.0

    def frequencies(self, count: int) -> Array:
        return _plain(self.base * self.ratio ** (count / max(count - 1, 1)), count)

    def __str__(self) -> str:
        return f"{super().__str__()}, dynamic: {self.ratio:g}"


@dataclass(frozen=True)
class Llama3(Plain):
    """Wavelengths beyond ``context / low`` times ``factor``, those below ``context / high`` kept, a ramp between."""

    low: float = 1.0
    high: float = 4.0
    context: int = 8192

    def frequencies(self, count: int) -> Array:
        exact = _plain(self.base, count)
        turns = self.context * exact / (2 * pi)
        kept = _ramp((turns - self.low) / (self.high - self.low))
        ramped: Array = (1 - kept) * exact / self.factor + kept * exact
        return ramped

    def __str__(self) -> str:
        return (
            f"theta {self.base:.12g}, llama3: factor {self.factor:g}, low {self.low:g}, high {self.high:g}, "
            f"trained on {self.context} positions"
        )


@dataclass(frozen=True)
class Yarn(Plain):
    """Dimensions of more than ``fast`` turns in ``context`` are kept, those of less than ``slow`` divided by factor.

    Between them is a ramp over the dimensions, whose ends are whole numbers with ``truncate``.
    """

    fast: float = 32.0
    slow: float = 1.0
    context: int = 4096
    truncate: bool = True

    def frequencies(self, count: int) -> Array:
        exact = _plain(self.base, count)
        begin, end = (count * log(self.context / (turns * 2 * pi)) / log(self.base) for turns in (self.fast, self.slow))
        if self.truncate:
            begin, end = floor(begin), ceil(end)
        begin, end = max(begin, 0), min(end, 2 * count - 1)
        divided = _ramp((np.arange(count) - begin) / ((end - begin) or 0.001))
        ramped: Array = (1 - divided) * exact + divided * exact / self.factor
        return ramped

    @property
    def attention_factor(self) -> float:
        return 1.0 if self.factor <= 1 else 0.1 * log(self.factor) + 1.0

    def __str__(self) -> str:
        ends = "" if self.truncate else ", ramp not truncated"
        return (
            f"theta {self.base:.12g}, yarn: factor {self.factor:g}, beta {self.fast:g} and {self.slow:g}, "
            f"trained on {self.context} positions{ends}"
        )


Form: TypeAlias = Plain
"""Formulas: transformers' ``modeling_rope_utils`` (5.x), ``_compute_{linear,dynamic,yarn,llama3,...}_parameters``."""


def _ramp(values: Array) -> Array:
    return np.minimum(np.maximum(values, 0.0), 1.0)


def _plain(base: float, count: int) -> Array:
    exact: Array = base ** (-np.arange(count) / count)
    return exact


@cache
def scaled_forms(count: int) -> tuple[tuple[Form, ...], Array]:
    """Every scaled form that is tried, of published bases, and its ``count`` frequencies, a row for each."""
    forms = tuple(form for base in BASES for form in _scaled(base))
    return forms, np.stack([form.frequencies(count) for form in forms])


def _scaled(base: float) -> Iterator[Form]:
    for factor, context in product(_FACTORS, _CONTEXTS):
        yield Yarn(base, factor, context=context)
        yield Yarn(base, factor, context=context, truncate=False)
        yield Llama3(base, factor, context=context)
    yield from (Dynamic(base, ratio=float(ratio)) for ratio in range(2, 65))
