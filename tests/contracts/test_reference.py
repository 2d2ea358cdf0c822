"""What counts as the reference's answer: rounding and ties do, another answer does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from milopt.contracts import Findings, check
from milopt.contracts.clients import HABITS, feed
from milopt.contracts.reference import Reference
from milopt.contracts.styles import APPLE
from milopt.errors import MiloptError
from milopt.interpreter import compile
from milopt.package import Model
from milopt.pipeline import Pipeline
from tests.contracts.planting import DEFECTS, kept

TOKENS = (3, 8, 1, 14, 6, 6, 2)
PROMPT = 4


def answered(
    made: Model,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Any], Any],
    model: Model | None = None,
    **options: Any,
) -> Findings:
    """The check of ``made``, where the reference says what ``model`` does, changed."""
    plan = compile(model or made, precision="float64")

    def answer(source: object, prompt: int, count: int, **sizes: int) -> Reference:
        assert (source, prompt, sizes["context"], sizes["vocabulary"]) == ("there", 7, 16, 19)
        tokens = [*TOKENS, *range(count)]
        return Reference(tuple(tokens), change(feed(plan, APPLE, tokens, prompt, HABITS[0])))

    monkeypatch.setattr("milopt.contracts.reference.answer", answer)
    return check(made, reference="there", tokens=PROMPT, **options)


def said(found: Findings) -> list[str]:
    return [each.detail for each in found.found if each.check.startswith("end = ")]


def shifted(share: float) -> Callable[[Any], Any]:
    """Every second logit off by a share of the largest."""

    def change(logits: Any) -> Any:
        changed = logits.copy()
        changed[:, ::2] += share * np.abs(logits).max()
        return changed

    return change


def swapped(margin: float) -> Callable[[Any], Any]:
    """The second likeliest token of each row likelier than the first by a share of the largest logit."""

    def change(logits: Any) -> Any:
        changed, rows = logits.copy(), np.arange(len(logits))
        order = logits.argsort(-1)
        changed[rows, order[:, -2]] = changed[rows, order[:, -1]] + margin * np.abs(logits).max()
        return changed

    return change


def test_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    found = answered(kept(), monkeypatch, lambda logits: logits)
    assert found, str(found)
    assert all(each.startswith("5 of 5 tokens as transformers, off by") for each in said(found))


def test_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    assert answered(kept(), monkeypatch, shifted(2e-3))
    found = answered(kept(), monkeypatch, shifted(5e-3))
    assert len(found.failed) == len(HABITS)
    assert all(each.endswith("the answer is another than the model's") for each in said(found))


def test_a_habit_that_is_broken_is_told_from_another_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    plant, failing, says = DEFECTS["slot 0 attended to"]
    found = answered(plant(kept()), monkeypatch, lambda logits: logits, kept())
    failed = {each.check: each.detail for each in found.failed}
    assert set(failed) == {habit.name for habit in HABITS if habit.spare}
    assert failed[failing].endswith(says)


def test_compressed_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their logits are others; the share of tokens that has to agree is the caller's."""
    made = kept()
    assert Pipeline.parse("palettize{bits=3,min_elements=8}").run(made)
    found = answered(made, monkeypatch, lambda logits: logits, kept(), agreement=0.0)
    assert found, str(found)
    assert not answered(made, monkeypatch, swapped(0.1), agreement=0.5)


def test_ties(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that the reference likes as well, up to rounding, is no other."""
    made = kept()
    assert Pipeline.parse("palettize{bits=3,min_elements=8}").run(made)
    found = answered(made, monkeypatch, swapped(1e-3))
    assert found, str(found)
    assert all(
        each.startswith("0 of 5 tokens as transformers, the others ties within rounding") for each in said(found)
    )
    found = answered(made, monkeypatch, swapped(1e-2))
    assert all(each.startswith("0 of 5 tokens as transformers, off by") for each in said(found))
    assert len(found.failed) == len(HABITS)


def test_a_reference_that_is_none() -> None:
    with pytest.raises(MiloptError, match="no such file or directory"):
        check(kept(), reference="absent")
