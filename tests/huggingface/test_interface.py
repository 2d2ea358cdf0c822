"""What goes into a converted decoder and what comes out: masks, sizes, batches, and which logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from milopt.errors import MiloptError
from milopt.huggingface import MASK_VALUE, ConversionError, Interface, Masks, causal_mask, convert
from milopt.huggingface.features import Sizes
from milopt.huggingface.interface import LayerCache
from milopt.interpreter import compile
from milopt.mil import shape_of
from milopt.package import Model, load
from milopt.quality import cross_entropy
from milopt.session import Session
from tests.huggingface.families import FAMILIES
from tests.huggingface.support import VOCABULARY, llama

LAYERS = (LayerCache(2, 16, 16), LayerCache(1, 24, 8))
USUAL: dict[str, Any] = {"context": 12, "query_lengths": (1, 4)}
PROMPT = [5, 300, 17, 2, 9, 444, 31]


def _interface(**options: Any) -> Interface:
    usual: dict[str, Any] = {"context": 12, "query_length": 4, "vocabulary": 9, "layers": LAYERS}
    return Interface(**{**usual, **options})


def test_layers_may_differ() -> None:
    interface = _interface()
    assert [each.shape for each in interface.inputs.values()][3:] == [
        (1, 2, 8, 16),
        (1, 2, 8, 16),
        (1, 1, 8, 24),
        (1, 1, 8, 8),
    ]
    assert interface.outputs["present_value_1"].shape == (1, 1, 12, 8)


def test_masks_of_every_kind() -> None:
    def masks(**options: Any) -> dict[str, str]:
        inputs = _interface(masks=Masks(**options)).inputs
        return {name: each.text for name, each in inputs.items() if name.endswith("mask")}

    plain = "added to the attention scores: 0 where a query may look, -1e4 elsewhere; columns are [past | new]"
    sliding = f"{plain}; a query looks at the last 7 tokens, itself included"
    assert masks() == {"causal_mask": plain}
    assert masks(full=False, window=7) == {"causal_mask": sliding}
    assert masks(window=7) == {"causal_mask": plain, "sliding_mask": sliding}


def test_sizes_of_a_batch_and_of_the_last_logits() -> None:
    interface = _interface(batch=3, logits="last")
    assert interface.inputs["causal_mask"].shape == (3, 1, 4, 12)
    assert interface.outputs["logits"].shape == (3, 1, 9)


def test_flexible_sizes_are_shared_by_name() -> None:
    inputs = _interface(query_length=None).inputs
    query, columns = inputs["causal_mask"].shape[2:]
    assert (query, columns) == (Sizes("query", 1, 11, 11), Sizes("columns", 2, 12, 12))
    assert inputs["input_ids"].shape == (1, query)
    assert inputs["past_key_0"].shape[2] == Sizes("past", 1, 11, 1)


def test_a_sliding_mask() -> None:
    mask = causal_mask(8, 3, past=4, window=3)[0, 0]
    seen = [[column for column in range(8) if row[column] == 0] for row in mask]
    assert seen == [[3, 4, 5], [4, 5, 6], [5, 6, 7]]
    assert sorted({float(each) for each in mask.ravel()}) == [MASK_VALUE, 0.0]
    np.testing.assert_array_equal(causal_mask(8, 3, past=4, window=8), causal_mask(8, 3, past=4))
    np.testing.assert_array_equal(causal_mask(8, 3, past=1, window=4)[0, 0, 0] == 0, [c in (4, 5) for c in range(8)])
    with pytest.raises(ConversionError, match="at least one token"):
        causal_mask(8, 3, past=4, window=0)


@pytest.fixture(scope="module")
def source() -> Any:
    return llama(num_hidden_layers=1)


@pytest.fixture(scope="module")
def whole(source: Any) -> Any:
    """Logits of every token of the prompt."""
    return Session(convert(source, context=12, query_lengths=(1, 4), dtype="float32")).feed(PROMPT)


def test_logits_of_the_last_token_alone(source: Any, whole: Any) -> None:
    model = convert(source, context=12, query_lengths=(1, 4), dtype="float32", logits="last")
    assert shape_of(model.function("prefill").outputs[0]) == (1, 1, VOCABULARY)
    session = Session(model)
    # 4 + 1 + 1 + 1: a padded block's last row would be padding
    np.testing.assert_allclose(session.feed(PROMPT, last_only=True), whole[-1:], rtol=0, atol=1e-4)
    session.reset()
    with pytest.raises(MiloptError, match="logits of the last token it is fed, not of all"):
        session.feed(PROMPT)
    with pytest.raises(MiloptError, match="not of all"):
        cross_entropy(model, PROMPT)
    assert session.position == 0


def test_portions_that_can_not_be_filled_up(source: Any) -> None:
    session = Session(convert(source, context=12, query_lengths=(4,), dtype="float32", logits="last"))
    with pytest.raises(MiloptError, match="3 tokens can't be fed: no function takes fewer than 4"):
        session.feed(PROMPT, last_only=True)


def test_sequences_of_a_batch_do_not_mix(source: Any, whole: Any) -> None:
    model = convert(source, context=12, query_lengths=(7,), dtype="float32", batch=2)
    plan = compile(model)
    shapes: dict[str, Any] = {name: info.shape for name, info in plan.inputs.items()}
    feeds: dict[str, Any] = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    feeds["input_ids"] = np.array([PROMPT[::-1], PROMPT], np.int32)
    feeds["position_ids"] = np.array([range(7)] * 2, np.int32)
    feeds["causal_mask"] = np.repeat(causal_mask(12, 7, past=0), 2, axis=0)
    np.testing.assert_allclose(plan.run(feeds)["logits"][1].numpy(), whole, rtol=0, atol=1e-4)
    # a session has one sequence, which it feeds to all
    np.testing.assert_allclose(Session(model).feed(PROMPT), whole, rtol=0, atol=1e-4)


def test_flexible_shapes_survive_a_file(source: Any, whole: Any, tmp_path: Any) -> None:
    model = convert(source, context=12, query_lengths="flexible", dtype="float32")
    saved = load(model.save(tmp_path / "flexible.mlpackage"))
    assert saved.metadata["milopt.query_lengths"] == "flexible"
    (past,) = [each for each in saved.description.input if each.name == "past_key_0"] if saved.description else [None]
    assert past is not None
    ranges = past.type.multiArrayType.shapeRange.sizeRanges
    assert [(each.lowerBound, each.upperBound) for each in ranges][2] == (1, 11)
    session = Session(saved)
    np.testing.assert_allclose(session.feed(PROMPT), whole, rtol=0, atol=1e-4)
    session.reset()
    rows = [session.feed(PROMPT[:3]), session.feed(PROMPT[3:4]), session.feed(PROMPT[4:])]
    np.testing.assert_allclose(np.concatenate(rows), whole, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"logits": "first"}, "unknown logits 'first': all or last"),
        ({"batch": 0}, "at least one sequence, not 0"),
        ({"route": "script"}, "unknown route 'script'"),
        ({"query_lengths": "dynamic"}, "query lengths are numbers or 'flexible', not 'dynamic'"),
        ({"query_lengths": "flexible", "context": 2}, "a context of 2 leaves nothing to be flexible"),
    ],
)
def test_options_that_do_not_fit(source: Any, options: Any, words: str) -> None:
    with pytest.raises(ConversionError, match=words):
        convert(source, **{**USUAL, **options})


def test_an_encoder_refuses_what_is_for_decoders() -> None:
    with pytest.raises(ConversionError, match="logits of the last token alone are for causal language models"):
        convert(FAMILIES["bert"].make(), context=12, logits="last")
    with pytest.raises(ConversionError, match="texts of 13 tokens do not fit a context of 12"):
        convert(FAMILIES["bert"].make(), context=12, query_lengths=(13,))


def test_functions_of_an_encoder_are_named_by_their_length() -> None:
    model: Model = convert(FAMILIES["bert"].make(), context=12, query_lengths=(4, 12))
    assert list(model.functions) == ["s4", "s12"]
    assert shape_of(model.function("s4").inputs["attention_mask"]) == (1, 4)
