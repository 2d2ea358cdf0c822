"""Families of the front door, converted with ranged shapes: every kind of client gets what transformers answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from milopt.contracts import check
from milopt.contracts.clients import HABITS
from milopt.huggingface import convert
from milopt.pipeline import Pipeline
from tests.huggingface.families import CONTEXT, FAMILIES

_SLOW = ("opt", "qwen2", "mistral", "gemma-3", "smollm3")
PASSES = "canonicalize,fuse-sdpa,contract{style=apple,hub=org/name}"


@pytest.mark.parametrize("name", ["llama", "gpt-2", *(pytest.param(each, marks=pytest.mark.slow) for each in _SLOW)])
def test_clients_get_what_transformers_answers(name: str, tmp_path: Path) -> None:
    source = FAMILIES[name].make()
    model = convert(source, context=CONTEXT, query_lengths="flexible")
    Pipeline.parse(PASSES).run(model, verify="end")
    folder = tmp_path / "source"
    source.save_pretrained(folder)
    found = check(model.save(tmp_path / "apple.mlpackage"), "apple", reference=folder)
    assert found, str(found)
    answers = [each for each in found.found if each.check.startswith("end = ")]
    assert [each.detail.partition(",")[0] for each in answers] == ["17 of 17 tokens as transformers"] * 5


@pytest.mark.slow
def test_a_model_of_other_weights_is_no_reference() -> None:
    model = convert(FAMILIES["gpt-2"].make(), context=CONTEXT, query_lengths="flexible")
    Pipeline.parse(PASSES).run(model)
    found = check(model, "apple", reference=FAMILIES["gpt-2"].make(seed=1), tokens=4)
    assert [each.check for each in found.failed] == [habit.name for habit in HABITS]
    assert all(each.detail.endswith("the answer is another than the model's") for each in found.failed)
