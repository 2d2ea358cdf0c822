"""The runs of a calibration: the same inputs again and again, and somebody who listens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from milopt.errors import MiloptError
from milopt.package import Model
from milopt.precisions import Precision

__all__ = ["Runs", "sample_runs", "text_runs"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow


class Runs(ABC):
    """Runs of a model on inputs that are known."""

    @abstractmethod
    def outputs(self, listener: Callable[[str], object]) -> Iterator[list[Array]]:
        """Run everything once; the floats that come out, run by run. ``listener`` makes one for each function."""

    @abstractmethod
    def loss(self, before: Sequence[Array], after: Sequence[Array]) -> float:
        """What the outputs of one run have lost."""


class _Samples(Runs):
    def __init__(self, plan: Any, samples: Iterable[Mapping[str, Array]]) -> None:
        self._plan = plan
        self._samples = samples

    def outputs(self, listener: Callable[[str], object]) -> Iterator[list[Array]]:
        for sample in self._samples:
            found = self._plan.run(sample, listeners=(listener(self._plan.function),))
            yield [
                each.double().cpu().numpy()
                for each in found.values()
                if getattr(each, "dtype", None) is not None and each.is_floating_point()
            ]

    def loss(self, before: Sequence[Array], after: Sequence[Array]) -> float:
        """The share of the outputs' power that the difference has, their mean."""
        found = [_share(one, other) for one, other in zip(before, after, strict=True)]
        return float(np.mean(found)) if found else 0.0


def _share(before: Array, after: Array) -> float:
    power = float(np.sum(before**2))
    return float(np.sum((after - before) ** 2)) / power if power else 0.0


class _Text(Runs):
    def __init__(self, plans: Any, windows: Sequence[Sequence[int]]) -> None:
        self._plans = plans
        self._windows = windows
        self._heard = [_Heard(function.plan) for function in plans.functions.values()]
        for function, heard in zip(plans.functions.values(), self._heard, strict=True):
            function.plan = heard

    def outputs(self, listener: Callable[[str], object]) -> Iterator[list[Array]]:
        from milopt.session import Session

        for heard in self._heard:
            heard.listener = listener(heard.function)
        for window in self._windows:
            yield [Session(self._plans).feed(window)]

    def loss(self, before: Sequence[Array], after: Sequence[Array]) -> float:
        """Nats: the mean of Σ p·ln(p / q) over the tokens, p before and q after."""
        p, q = (_log_softmax(each[0].astype(np.float64)) for each in (before, after))
        return max(float(np.sum(np.exp(p) * (p - q))) / len(p), 0.0)


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))


class _Heard:
    """A plan that is run with a listener."""

    listener: object = None

    def __init__(self, plan: Any) -> None:
        self._plan = plan

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plan, name)

    def run(self, inputs: Any, state: Any = None, listeners: Iterable[object] = ()) -> Any:
        return self._plan.run(inputs, state, (*listeners, self.listener))


def sample_runs(
    model: Model,
    samples: Iterable[Mapping[str, Array]],
    *,
    function: str | None = None,
    precision: Precision = "declared",
) -> Runs:
    """Runs of ``function`` (the default one if None) on samples of its inputs, by name."""
    from milopt.interpreter import compile

    return _Samples(compile(model, function, precision=precision), samples)


def text_runs(
    model: Model, tokens: Iterable[int], *, window: int | None = None, precision: Precision = "declared"
) -> Runs:
    """A language model fed with ``tokens`` in windows (of its context if None), each a sequence of its own."""
    from milopt.plans import Plans

    plans, every = Plans(model, precision=precision), list(tokens)
    size = min(window or plans.context, plans.context)
    if size < 1 or not every:
        raise MiloptError("calibration needs at least one token, and windows of at least one")
    return _Text(plans, [every[start : start + size] for start in range(0, len(every), size)])
