"""Decoders with a sliding window as ANEMLL's clients load them: masks inside, two states, functions beyond it."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import pytest

from milopt.contracts.anemll_checking import compare_with
from milopt.mil import operations
from milopt.package.tensors import stored_tensors
from milopt.sets import SetError
from milopt.sets.anemll import AnemllSet, anemll_set
from milopt.sets.coreml_llm import monolith
from milopt.sets.deployment import interface
from milopt.signature import WINDOW_KEY
from tests.sets.programs import HEADS, SIZE, WIDTH, Transformer

LONG = 20
# the middle layer sees all; blocks of 4 begin within the window of 3 and end beyond it
MIXED = Transformer(states="unified", context=LONG, table=LONG, window=3, sliding=(0, 2))
RINGS = replace(MIXED, ring=6)
LOCAL, GLOBAL = "model_model_kv_cache_local", "model_model_kv_cache_global"
FOUR = ["infer", "prefill", "infer_rotate", "prefill_rotate"]


def _states(made: AnemllSet) -> list[dict[str, Any]]:
    return [interface(chunk, name)["states"] for chunk in made.chunks for name in chunk.functions]


def test_masks_of_layers_that_keep_the_whole_context_are_computed() -> None:
    made = anemll_set(MIXED.model(), count=2, slices=4)
    for name, length in (("infer", 1), ("prefill", 4)):
        assert interface(made.chunks[0], name)["inputs"] == {
            "hidden_states": ["fp16", 1, length, WIDTH],
            "position_ids": ["int32", length],
            "causal_mask": ["fp16", 1, 1, length, LONG],
            "current_pos": ["int32", 1],
        }
    assert _states(made) == 4 * [{"model_model_kv_cache_0": ["fp16", 6, HEADS, LONG, SIZE]}]
    assert made.window == 0


def test_rings_are_a_state_of_their_own_in_every_chunk() -> None:
    made = anemll_set(RINGS.model(), count=3, slices=4)
    both = {LOCAL: ["fp16", 4, HEADS, 6, SIZE], GLOBAL: ["fp16", 2, HEADS, LONG, SIZE]}
    assert [list(chunk.functions) for chunk in made.chunks] == 3 * [FOUR]
    assert _states(made) == 12 * [both]
    assert made.chunks[1].metadata["com.anemll.functions"] == ",".join(FOUR)
    yaml: Any = importlib.import_module("yaml")
    assert yaml.safe_load(made.files["meta.yaml"])["model_info"]["parameters"]["sliding_window"] == 3


def test_a_state_of_other_layers_is_used_and_left_as_it_is() -> None:
    made = anemll_set(RINGS.model(), count=3, slices=4)
    middle = made.chunks[1].function("infer")
    update = next(op for op in operations(middle) if op.op_type == "coreml_update_state" and op.state.name == LOCAL)
    assert update.value.op.op_type == "slice_update"
    assert update.value.op.update.op.op_type == "slice_by_index"
    assert update.value.op.update.op.x.op.op_type == "read_state"


def test_functions_for_beyond_the_window_store_no_weight_again() -> None:
    made = anemll_set(replace(RINGS, mlp=(40, 40, 40)).model(), count=2)
    for chunk in made.chunks:
        assert all(set(each.functions) == set(FOUR) for each in stored_tensors(chunk) if each.bytes > 64)


@pytest.mark.parametrize(
    "transformer",
    [
        MIXED,
        replace(MIXED, sliding=(0, 1, 2)),
        RINGS,
        replace(RINGS, sliding=(0, 1, 2)),
        replace(RINGS, window=4, ring=7),
        replace(RINGS, window=5, ring=9),
    ],
    ids=["mixed", "all", "rings", "all-rings", "whole-blocks", "longer-ring"],
)
def test_the_set_answers_as_the_program_beyond_the_window(transformer: Transformer) -> None:
    model = transformer.model()
    finding = compare_with(model, anemll_set(model, count=2, slices=4), tokens=6)
    assert finding.passed, finding
    assert "tokens as the package, off by 0 of the largest logit" in finding.detail


@pytest.mark.parametrize("sliding", [(0, 2), (0, 1, 2)])
def test_rings_answer_as_layers_that_keep_the_whole_context(sliding: tuple[int, ...]) -> None:
    whole = replace(MIXED, sliding=sliding)
    ring = replace(whole, ring=6, weights=whole.weights)
    expected = whole.model()
    finding = compare_with(expected, anemll_set(ring.model(), count=3, slices=4), tokens=6)
    assert finding.passed, finding


def test_another_window_is_another_answer() -> None:
    other = replace(RINGS, window=2, weights=RINGS.weights)
    assert not compare_with(RINGS.model(), anemll_set(other.model(), count=1, slices=4), tokens=6).passed


def test_a_window_as_long_as_the_context_is_none() -> None:
    model = replace(MIXED, sliding=(0, 1, 2)).model()
    model.metadata[WINDOW_KEY] = str(LONG)
    made = anemll_set(model, count=2, slices=4)
    assert not any(op.op_type == "select" for op in operations(made.chunks[0].function("infer")))


@pytest.mark.parametrize(
    ("transformer", "message"),
    [
        (replace(RINGS, ring=5), "state 'kv_cache_local' keeps 5 tokens, and 4 new ones that each see 3 need 6"),
        (
            replace(MIXED, states="layers"),
            r"keeps one state of all keys and values, and the program has key_cache_0, .*layout=unified",
        ),
        (replace(MIXED, states="pair"), "the program has key_cache, value_cache"),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(transformer: Transformer, message: str) -> None:
    with pytest.raises(SetError, match=message) as caught:
        anemll_set(transformer.model(), count=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("transformer", "message"),
    [
        (MIXED, "the client gives one causal mask, .* and 'decode' takes causal_mask, sliding_mask"),
        (replace(MIXED, sliding=(0, 1, 2)), r"its mask slides \(3 tokens\), which the client does not know"),
    ],
)
def test_the_other_client_knows_no_window(transformer: Transformer, message: str) -> None:
    with pytest.raises(SetError, match=message):
        monolith(transformer.model())
