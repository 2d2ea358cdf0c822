"""Working copies of weights live as long as a comparison, and take no more memory than is granted."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import torch

from milopt.interpreter.weights import Constant
from milopt.package import load
from milopt.verify import compare, freeze
from milopt.verify.lending import LentWeights
from tests.verify.programs import two_layers

# large enough not to be kept anyway
LARGE = [Constant(np.full((128, 128), number, np.float16), "fp16", (128, 128)) for number in (1, 2, 3)]
BYTES = 8 * 128 * 128


def _copies(weights: LentWeights) -> list[torch.Tensor]:
    return [weights.prepare(each) for each in LARGE]


def _again(weights: LentWeights) -> list[bool]:
    """Which of the weights are the same copy when they are asked for twice."""
    return [one.data_ptr() == two.data_ptr() for one, two in zip(_copies(weights), _copies(weights), strict=True)]


def test_lent_copies_are_made_once() -> None:
    weights = LentWeights("float64")
    assert _again(weights) == [False] * 3
    with weights.lent():
        assert _again(weights) == [True] * 3
    assert _again(weights) == [False] * 3


def test_the_budget_is_kept() -> None:
    weights = LentWeights("float64", budget=2 * BYTES)
    with weights.lent():
        assert _again(weights) == [True, True, False]
        assert [float(each[0, 0]) for each in _copies(weights)] == [1, 2, 3]


def test_they_are_dropped() -> None:
    weights = LentWeights("float64")
    with weights.lent():
        copy = weakref.ref(getattr(_copies(weights)[0], "_base"))  # noqa: B009
        gc.collect()
        assert copy() is not None
    gc.collect()
    assert copy() is None


def test_a_snapshot_can_be_compared_with_itself_and_again() -> None:
    frozen = freeze(load(two_layers()))
    assert compare(frozen, frozen)
    assert compare(frozen, two_layers())
