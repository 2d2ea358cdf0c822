"""A cache as inputs and outputs, and the same as states, driven through the same tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from milopt.cachedrive import column_order, recognise
from milopt.errors import MiloptError
from milopt.interpreter import compile_all, evaluate, make_state
from milopt.metrics import Exact, Lossy
from milopt.passes.cache import KvToState
from milopt.pipeline import Pipeline
from milopt.verify import compare
from tests.verify.decoders import GROUPS, LAYERS, SIZE, VOCABULARY, Decoder, Weights


def test_both_forms_agree() -> None:
    decoder = Decoder()
    verdict = compare(decoder.stateless(), decoder.stateful())
    assert verdict
    assert verdict.max_relative < 1e-14  # the same sums in float64, their terms in another order
    names = {each.name for each in verdict.measured}
    assert {"logits", "present_key_0", "all slots of present_value_1"} <= names
    assert "arbitrary inputs, masks and cache" in verdict.tried[1]


def test_and_back() -> None:
    decoder = Decoder()
    assert compare(decoder.stateful(), decoder.stateless())


def test_one_form_with_itself() -> None:
    decoder = Decoder()
    assert compare(decoder.stateless(), decoder.stateless())
    assert compare(decoder.stateful(), decoder.stateful())


def test_without_a_declared_signature_the_change_is_a_difference() -> None:
    decoder = Decoder()
    verdict = compare(decoder.stateless(), decoder.stateful(declare=False))
    assert str(verdict) == "differs: input 'past_key_0' of function 'decode' is gone"
    assert compare(decoder.stateless(), decoder.stateful(declare=False), signature=decoder.signature())


def test_one_function_of_several() -> None:
    decoder = Decoder()
    verdict = compare(decoder.stateless(), decoder.stateful(), function="prefill4")
    assert verdict
    assert verdict.tried[0] == "random tokens, 4 + 4 at slot 0 of 12"


def test_saved_packages_declare_themselves(tmp_path: Any) -> None:
    decoder = Decoder()
    paths = [
        model.save(tmp_path / f"{name}.mlpackage")
        for name, model in (("before", decoder.stateless()), ("after", decoder.stateful()))
    ]
    assert compare(*paths)


def test_the_pass_itself() -> None:
    model = Decoder().stateless()
    report = Pipeline((KvToState(),)).run(model, verify="each")
    assert report
    assert len(report.verdicts) == 1
    assert str(report.verdicts[0]).startswith("kv-to-state: no difference in 3 trials (")


@pytest.mark.parametrize("mistake", ["rows", "place", "scale"])
def test_wrong_stateful_twins(mistake: str) -> None:
    verdict = compare(Decoder().stateless(), Decoder(mistake=mistake).stateful())
    assert not verdict
    assert verdict.difference is not None
    assert verdict.difference.where is not None


def test_other_weights() -> None:
    assert not compare(Decoder().stateless(), Decoder(weights=Weights(1)).stateful())


def test_a_late_error_is_located() -> None:
    """The order of columns differs between the forms, so intermediate values are told apart without it."""
    verdict = compare(Decoder().stateless(), Decoder(mistake="scale").stateful())
    assert "first value that differs: scaled_1 (by mul)" in str(verdict)


def test_meaning_of_mask_columns() -> None:
    """The same mask means different things to the two forms; with its columns permuted they agree."""
    decoder, position, query = Decoder(), 5, 4
    rng = np.random.default_rng(0)
    before, after = decoder.stateless([query]), decoder.stateful([query])
    inputs: dict[str, Any] = {
        "input_ids": rng.integers(0, VOCABULARY, (1, query)).astype(np.int32),
        "position_ids": np.arange(position, position + query, dtype=np.int32)[None],
    }
    mask = rng.standard_normal((1, 1, query, decoder.context)).astype(np.float16)
    cache = rng.standard_normal((2, LAYERS, GROUPS, decoder.context, SIZE)).astype(np.float16)
    order = column_order(decoder.context, position, query)
    past = {
        f"past_{kind}_{layer}": cache[index, layer : layer + 1][:, :, order[:-query]]
        for layer in range(LAYERS)
        for index, kind in enumerate(("key", "value"))
    }

    def stateful(columns: Any) -> Any:
        state = make_state(after)
        state["key_cache"], state["value_cache"] = cache
        place = {"current_pos": np.array([position], np.int32), "causal_mask": columns}
        return evaluate(after, {**inputs, **place}, state=state, precision="float64")["logits"]

    wanted = evaluate(before, {**inputs, **past, "causal_mask": mask[..., order]}, precision="float64")["logits"]
    assert np.abs(stateful(mask) - wanted).max() < 1e-13  # float64; the sums run in another order
    assert np.abs(stateful(mask[..., order]) - wanted).max() > 2


def test_column_order() -> None:
    assert column_order(6, 2, 3) == [0, 1, 5, 2, 3, 4]
    assert column_order(4, 0, 1) == [1, 2, 3, 0]
    assert column_order(4, 3, 1) == [0, 1, 2, 3]


def test_recognise() -> None:
    decoder = Decoder()
    past = recognise(compile_all(decoder.stateless()))
    assert past is not None
    assert (past.stateful, past.context) == (False, 12)
    assert {slot.past for slot in past.signature.slots} == {slot.past for slot in decoder.signature().slots}
    assert past.signature.masks == ("causal_mask",)
    assert recognise(compile_all(decoder.stateful())) is None
    state = recognise(compile_all(decoder.stateful()), decoder.signature())
    assert state is not None
    assert state.stateful


def test_prompts() -> None:
    decoder = Decoder()
    for tokens in ([3], [3, 1, 4, 1, 5], list(range(12))):
        verdict = compare(decoder.stateless(), decoder.stateful(), inputs=[tokens], trials=0)
        assert verdict
        assert verdict.tried == (f"a prompt of {len(tokens)} tokens",)
    with pytest.raises(MiloptError, match="a prompt of 13 tokens does not fit a context of 12"):
        compare(decoder.stateless(), decoder.stateful(), inputs=[[1] * 13], trials=0)


def test_inputs_by_name_are_in_slot_order() -> None:
    decoder = Decoder()
    inputs: dict[str, Any] = {
        "input_ids": np.array([[1, 2, 3, 4]], np.int32),
        "position_ids": np.arange(4, dtype=np.int32)[None],
        "causal_mask": np.random.default_rng(0).standard_normal((1, 1, 4, 12)).astype(np.float16),
    }
    before, after = decoder.stateless(), decoder.stateful()
    assert compare(before, after, inputs=[inputs], trials=0, function="prefill4")
    with pytest.raises(MiloptError, match=r"'past_key_0' follows from the cache: leave it out"):
        compare(before, after, inputs=[{**inputs, "past_key_0": np.zeros(1)}], trials=0, function="prefill4")


def test_a_lossy_verdict_across_the_forms() -> None:
    """fp16 rounding alone: 11 bits are 66 dB at best; attention with large scores costs some of it."""
    decoder = Decoder()
    verdict = compare(decoder.stateless(), decoder.stateful(), metric=Lossy(min_snr_db=40, min_top1=0.9))
    assert verdict
    assert verdict.snr_db is not None
    assert 40 < verdict.snr_db < 80
    wrong = Decoder(mistake="rows").stateful()
    assert not compare(decoder.stateless(), wrong, metric=Lossy(min_snr_db=40))


def test_exact_is_the_default() -> None:
    decoder = Decoder()
    assert compare(decoder.stateless(), decoder.stateful()).metric == Exact()
