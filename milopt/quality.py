"""How well a language model predicts a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from milopt.errors import MiloptError
from milopt.package import Model
from milopt.session import Session

__all__ = ["Feeder", "QualityResult", "cross_entropy"]

# Logits of a vocabulary of 50,000 take 200 kB a token: they are looked at this many tokens at a time.
_CHUNK = 128


class Feeder(Protocol):
    """What is measured: takes the next tokens of one sequence and gives logits (len(tokens), V).

    :class:`~milopt.session.Session` is one, and a reference model becomes one with a few lines.
    """

    def feed(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]: ...


@dataclass(frozen=True)
class QualityResult:
    """``nll``: mean of -ln p(token) over the scored tokens, in nats (the cross-entropy). ``top1``: the likeliest token
    at each scored place, int64. ``targets``: the tokens that really stood there.
    """

    nll: float
    top1: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]

    @property
    def scored(self) -> int:
        return len(self.top1)

    @property
    def accuracy(self) -> float:
        """Share of places where the likeliest token is the right one."""
        return _share(self.top1, self.targets)

    def agreement(self, other: QualityResult) -> float:
        """Share of places where both models find the same token likeliest."""
        if self.top1.shape != other.top1.shape:
            raise MiloptError(f"{self.scored} scored tokens can't be compared with {other.scored}")
        return _share(self.top1, other.top1)


def cross_entropy(
    model: Model | Session | Callable[[], Feeder],
    tokens: Sequence[int],
    *,
    window: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> QualityResult:
    """Score ``tokens`` in windows that don't overlap, each fed to a fresh sequence; a window's first is not scored.

    ``model`` is a model, a session (whose own sequence is left alone), or a function that starts a sequence; for the
    last, ``window`` must be given, else it is the model's context. ``progress`` gets tokens done and tokens in all.
    """
    start: Callable[[], Feeder]
    if isinstance(model, (Model, Session)):
        session = model if isinstance(model, Session) else Session(model)
        window = session.context if window is None else window
        if window > session.context:
            raise MiloptError(f"windows of {window} tokens do not fit a context of {session.context}")
        start = session.fork
    else:
        start = model
    if window is None or window < 2 or len(tokens) < 2:
        raise MiloptError("cross-entropy needs windows, and a text, of at least two tokens")
    total, scores, best, targets = 0.0, 0, list[npt.NDArray[np.int64]](), list[int]()
    for first in range(0, len(tokens), window):
        part = tokens[first : first + window]
        if len(part) < 2:
            break
        feeder = start()
        for at in range(0, len(part) - 1, _CHUNK):
            fed = part[at : min(at + _CHUNK, len(part) - 1)]
            wanted = part[at + 1 : at + 1 + len(fed)]
            logits = np.asarray(feeder.feed(fed), np.float64)
            total += float(_nll(logits, wanted).sum())
            best.append(logits.argmax(-1))
            targets += wanted
            scores += len(fed)
            if progress is not None:
                progress(first + at + len(fed), len(tokens))
    return QualityResult(total / scores, np.concatenate(best), np.array(targets, np.int64))


def _share(one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> float:
    return float(np.count_nonzero(one == other)) / len(one)


def _nll(logits: npt.NDArray[np.float64], wanted: Sequence[int]) -> npt.NDArray[np.float64]:
    """-ln softmax(logits)[wanted], row by row."""
    largest = logits.max(-1, keepdims=True)
    total = np.log(np.exp(logits - largest).sum(-1)) + largest[:, 0]
    result: npt.NDArray[np.float64] = total - logits[np.arange(len(wanted)), list(wanted)]
    return result
