"""Cross-entropy by windows, against numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from milopt.errors import MiloptError
from milopt.quality import cross_entropy
from milopt.session import Session
from tests.verify.decoders import VOCABULARY, Decoder


class Uniform:
    """Knows nothing, and remembers what it was fed."""

    def __init__(self) -> None:
        self.fed: list[int] = []

    def feed(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        self.fed += tokens
        return np.zeros((len(tokens), 4), np.float32)


class Successor:
    """Is sure, by e⁵ to 1 against each other token, that ``t + 1`` follows ``t``."""

    def feed(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        return np.asarray(5 * np.eye(4)[(np.array(tokens) + 1) % 4], np.float32)


def test_uniform() -> None:
    feeders: list[Uniform] = []

    def start() -> Uniform:
        feeders.append(Uniform())
        return feeders[-1]

    result = cross_entropy(start, [0, 1, 2, 3, 0, 1, 2], window=3)
    assert result.nll == pytest.approx(np.log(4))
    assert result.scored == 4  # the first token of each window is not scored, and the last window has one
    assert [feeder.fed for feeder in feeders] == [[0, 1], [3, 0]]
    assert result.targets.tolist() == [1, 2, 0, 1]


def test_sure_and_right_but_once() -> None:
    result = cross_entropy(Successor, [0, 1, 2, 3, 3], window=5)
    right, wrong = np.log(1 + 3 * np.exp(-5)), np.log(1 + 3 * np.exp(-5)) + 5
    assert result.nll == pytest.approx((3 * right + wrong) / 4)
    assert result.top1.tolist() == [1, 2, 3, 0]
    assert result.accuracy == 0.75
    assert result.agreement(cross_entropy(Successor, [0, 1, 2, 3, 3], window=5)) == 1


def test_a_model_and_its_session() -> None:
    """Windows are sequences of their own, however the model was used before; the forms of the cache agree."""
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, 30).tolist()
    session = Session(Decoder().stateful(), precision="float64")
    session.feed(tokens[:5])
    told: list[tuple[int, int]] = []
    result = cross_entropy(session, tokens, progress=lambda done, total: told.append((done, total)))
    assert session.position == 5
    assert result.scored == 11 + 11 + 5
    assert told[-1] == (29, 30)
    other = cross_entropy(Session(Decoder().stateless(), precision="float64"), tokens)
    assert other.nll == pytest.approx(result.nll, rel=1e-6)  # logits are handed out as float32
    assert other.agreement(result) == 1
    assert cross_entropy(Decoder().stateful(), tokens).nll == pytest.approx(result.nll, abs=0.05)  # fp16


def test_fewer_than_two_tokens() -> None:
    with pytest.raises(MiloptError, match="at least two tokens"):
        cross_entropy(Successor, [1], window=5)
    with pytest.raises(MiloptError, match="at least two tokens"):
        cross_entropy(Successor, [1, 2, 3])


def test_windows_larger_than_the_context() -> None:
    with pytest.raises(MiloptError, match="windows of 13 tokens do not fit a context of 12"):
        cross_entropy(Decoder().stateful(), [1, 2, 3], window=13)
