"""Every family: converted, rewritten for a state, and fed token by token it says what transformers says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from milopt.cli import main
from milopt.huggingface import convert
from milopt.huggingface.programcheck import rounded_weights
from milopt.interpreter import compile
from milopt.mil import operations, shape_of
from milopt.package import Model
from milopt.pipeline import Pipeline
from milopt.session import Session
from milopt.verify import compare
from tests.huggingface.families import CONTEXT, FAMILIES, WINDOW, Family
from tests.huggingface.support import bpe_tokenizer

Array = np.ndarray[Any, Any]
# of kinds that differ most: a plain window, windows and full attention with two bases of RoPE, combined projections
_FAST = ("mistral", "gemma-3", "gpt-2")
# Float64 against float32 with weights rounded alike. Gemma's norms multiply with 1 + w, rounded as a sum in the
# program, and heads of 24 have a scale that fp16 rounds: 9e-4 of the largest logit was seen.
_RELATIVE = 3e-3


def _families(kind: str, fast: tuple[str, ...]) -> list[Any]:
    names = [name for name, family in FAMILIES.items() if family.kind == kind]
    return [pytest.param(name, marks=[] if name in fast else [pytest.mark.slow]) for name in names]


@pytest.mark.parametrize("name", _families("decoder", _FAST))
def test_a_decoder_through_its_state(name: str) -> None:
    family = FAMILIES[name]
    source = family.make()
    model = convert(source, context=CONTEXT, query_lengths=(1, 8))
    assert model.metadata.get("milopt.sliding_window") == (str(WINDOW) if family.window else None)
    before = model.clone()
    report = Pipeline.parse("kv-to-state").run(model)
    assert report.parts[0].applied == 2 * 2 * family.layers
    if name in _FAST:
        assert compare(before, model)
    _require_same(source, model, family)


@pytest.mark.parametrize("name", _families("decoder", ()))
def test_a_decoder_of_flexible_shapes(name: str) -> None:
    source = FAMILIES[name].make()
    model = convert(source, context=CONTEXT, query_lengths="flexible")
    assert list(model.functions) == ["main"]
    _require_same(source, model, FAMILIES[name])


def _require_same(source: Any, model: Model, family: Family) -> None:
    """Logits of more tokens than the window, fed in portions of several sizes, and of greedy tokens behind them."""
    tokens = np.random.default_rng(5).integers(0, source.config.vocab_size, 21).tolist()
    session = Session(model, precision="float64")
    logits = [session.feed(tokens[:11]), session.feed(tokens[11:13]), session.feed(tokens[13:])]
    for _ in range(CONTEXT - len(tokens)):
        tokens.append(int(logits[-1][-1].argmax()))
        logits.append(session.feed(tokens[-1:]))
    with torch.no_grad(), rounded_weights(source, True):
        wanted = source(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].numpy()
    np.testing.assert_allclose(np.concatenate(logits), wanted, rtol=0, atol=_RELATIVE * np.abs(wanted).max())
    if family.window is not None:
        _require_window_matters(source, tokens, wanted)


def _require_window_matters(source: Any, tokens: list[int], wanted: Array) -> None:
    source.config.sliding_window = CONTEXT
    with torch.no_grad():
        wide = source(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].numpy()
    assert np.abs(wide - wanted)[WINDOW + 1 :].max() > 10 * _RELATIVE * np.abs(wanted).max()


@pytest.mark.parametrize("name", _families("text-encoder", ("bert-pairs",)))
def test_an_encoder_of_text(name: str) -> None:
    source = FAMILIES[name].make()
    model = convert(source, context=20)
    function = model.function()
    types = ["token_type_ids"] if name == "bert-pairs" else []
    assert {key: shape_of(var) for key, var in function.inputs.items()} == dict.fromkeys(
        ["input_ids", "attention_mask", *types], (1, 20)
    )
    tokens = np.random.default_rng(6).integers(3, 300, (1, 20))
    mask = (np.arange(20) < 13).astype(np.int32)[None]
    with torch.no_grad():
        # padding changes nothing: the text alone says the same
        wanted = source(input_ids=torch.as_tensor(tokens[:, :13]), attention_mask=torch.ones(1, 13))
    feeds: dict[str, Array] = {"input_ids": tokens.astype(np.int32), "attention_mask": mask}
    feeds |= {each: np.zeros((1, 20), np.int32) for each in types}
    got = compile(model, precision="float64").run(feeds)
    assert list(got) == [each for each in ("last_hidden_state", "pooler_output", "logits") if each in wanted]
    for key, value in got.items():
        expected = wanted[key].numpy()
        found = value[:, :13].numpy() if key == "last_hidden_state" else value.numpy()
        # weights are rounded to fp16, by up to 5e-4 each
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-2 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "distilbert", "roberta"])
def test_an_encoder_of_texts_of_any_length(name: str) -> None:
    source = FAMILIES[name].make()
    plan = compile(convert(source, context=20, query_lengths="flexible", dtype="float32"), precision="float64")
    for length in (1, 7, 20):
        tokens = np.random.default_rng(length).integers(3, 300, (1, length)).astype(np.int32)
        got = plan.run({"input_ids": tokens, "attention_mask": np.ones((1, length), np.int32)})["last_hidden_state"]
        with torch.no_grad():
            wanted = source(input_ids=torch.as_tensor(tokens)).last_hidden_state
        np.testing.assert_allclose(got.numpy(), wanted.numpy(), rtol=0, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", _families("image-encoder", ("vit-classes",)))
def test_an_encoder_of_images(name: str) -> None:
    source = FAMILIES[name].make()
    model = convert(source, batch=2)
    pixels = np.random.default_rng(7).standard_normal((2, 3, 32, 32)).astype(np.float16)
    got = compile(model, precision="float64").run({"pixel_values": pixels})
    with torch.no_grad():
        wanted = source(pixel_values=torch.as_tensor(pixels).float())
    assert list(got) == [each for each in ("last_hidden_state", "pooler_output", "logits") if each in wanted]
    for key, value in got.items():
        expected = wanted[key].numpy()
        np.testing.assert_allclose(value.numpy(), expected, rtol=0, atol=1e-2 * np.abs(expected).max())
    assert not any(op.op_type == "shape" for op in operations(model.function()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma-3", "mistral"])
def test_a_sliding_window_on_the_command_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Converted, rewritten, compared and asked, each from files: the answer is transformers'."""
    monkeypatch.chdir(tmp_path)
    source = FAMILIES[name].make()
    source.resize_token_embeddings(400)
    source.save_pretrained("model")
    tokenizer = bpe_tokenizer()
    tokenizer.save_pretrained("model")
    options = ["--context", "48", "--batch-size", "16"]
    assert main(["convert", "model", "-o", "plain.mlpackage", *options, "--no-passes"]) == 0
    assert main(["optimize", "plain.mlpackage", "-o", "state.mlpackage", "--passes", "kv-to-state"]) == 0
    assert main(["verify", "plain.mlpackage", "state.mlpackage"]) == 0
    text = "the quick brown fox jumps over the lazy dog"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) > WINDOW
    with torch.no_grad():
        for _ in range(12):
            ids.append(int(source(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    capsys.readouterr()
    for package in ("plain", "state"):
        asked = ["generate", f"{package}.mlpackage", "--prompt", text, "--raw", "--max-tokens", "12"]
        assert main(asked) == 0
        assert capsys.readouterr().out.strip() == tokenizer.decode(ids[-12:], skip_special_tokens=True).strip()
