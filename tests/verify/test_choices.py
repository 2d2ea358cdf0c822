"""A router that takes another entry is told of, with the scores that were so near."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from milopt.mil import Program, mb, target
from milopt.verify import Verdict, compare

# rows of scores; in the second, the entries 2 and 0 are near
X: Any = np.array([[3.0, 1.0, -2.0], [0.5, -4.0, 0.501]], np.float32)


def router(kind: str, axis: int, nudge: float = 0.0) -> Program:
    """Scores from which entries are chosen, and what is looked up with them; ``nudge`` moves entry 0's."""
    shape = (2, 3) if axis == -1 else (3, 2)
    more = np.array([[nudge, 0, 0]] if axis == -1 else [[nudge], [0], [0]], np.float32)

    @mb.program(input_specs=[mb.TensorSpec(shape)], opset_version=target.iOS18)
    def built(x: Any) -> Any:
        scores = mb.add(x=x, y=more, name="scores")
        if kind == "topk":
            _, chosen = mb.topk(x=scores, k=2, axis=axis, name="routed")
        elif kind == "topk, its order":
            _, chosen = mb.topk(x=scores, k=3, axis=axis, name="routed")
            chosen = mb.slice_by_index(x=chosen, begin=[0, 0], end=[1, 1])
        else:
            chosen = getattr(mb, kind)(x=scores, axis=axis, keep_dims=False, name="routed")
        return mb.gather(x=np.array([10, 20, 40], np.float32), indices=chosen, axis=0, name="out")

    return built


def told(kind: str, axis: int, nudge: float) -> Verdict:
    x = X if axis == -1 else np.ascontiguousarray(X.T)
    return compare(router(kind, axis), router(kind, axis, nudge), trials=0, inputs=[{"x": x}])


@pytest.mark.parametrize("axis", [-1, 0])
def test_another_entry(axis: int) -> None:
    verdict = told("reduce_argmax", axis, 0.01)
    line = "  choice that differs: routed (reduce_argmax) at (1,): 2 before, 0 after, whose scores were 0.501 and 0.5"
    assert line in str(verdict).splitlines()


@pytest.mark.parametrize("axis", [-1, 0])
def test_one_of_several(axis: int) -> None:
    verdict = told("topk", axis, -5.5)
    assert verdict.difference is not None
    choice = verdict.difference.choice
    assert choice is not None
    # of the first row, 0 and 1 are chosen before and 1 and 2 after
    assert (choice.op_type, choice.place, choice.before, choice.after) == ("topk", (0,), 0, 2)
    assert choice.scores == (3.0, -2.0)


def test_the_lowest() -> None:
    assert "choice that differs: routed (reduce_argmin) at (0,): 2 before, 0 after" in str(
        told("reduce_argmin", -1, -6.0)
    )


def test_the_same_entries_in_another_order_are_the_same_choice() -> None:
    verdict = told("topk, its order", -1, -9.0)
    assert not verdict
    assert "choice that differs" not in str(verdict)


def test_nothing_is_chosen_otherwise() -> None:
    assert told("topk", -1, 0.0001)
