"""A decoder as ANEMLL's clients load it: their names and shapes, and the program's own answers."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milopt.contracts.anemll_checking import compare_with
from milopt.mil import add_input, operations, rename_input
from milopt.package import Model, load
from milopt.package.tensors import stored_tensors
from milopt.passes.head import SplitHead
from milopt.pipeline import Pipeline
from milopt.sets import SetError, weight_bytes
from milopt.sets.anemll import AnemllSet, anemll_set
from milopt.sets.coreml_llm import monolith
from milopt.sets.deployment import interface
from milopt.signature import METADATA_KEY, CacheSignature
from milopt.text import text
from tests.cli.support import contents
from tests.sets.programs import CONTEXT, HEADS, SIZE, VOCABULARY, WIDTH, Transformer

UNIFIED = Transformer(states="unified")
TWO: dict[str, Any] = {"count": 2}
ROWS = ["fp16", 6, HEADS, CONTEXT, SIZE]


def test_interfaces_are_the_clients() -> None:
    made = anemll_set(UNIFIED.model(), count=2, prefix="tiny", slices=4)
    names = ["tiny_embeddings", "tiny_FFN_PF_chunk_01of02", "tiny_FFN_PF_chunk_02of02", "tiny_lm_head"]
    assert list(made.packages) == [f"{name}.mlpackage" for name in names]
    assert list(made.embeddings.functions) == ["main"]
    for chunk in made.chunks:
        assert list(chunk.functions) == ["infer", "prefill"]
        for name, length in (("infer", 1), ("prefill", 4)):
            assert interface(chunk, name) == {
                "inputs": {
                    "hidden_states": ["fp16", 1, length, WIDTH],
                    "position_ids": ["int32", length],
                    "causal_mask": ["fp16", 1, 1, length, CONTEXT],
                    "current_pos": ["int32", 1],
                },
                "outputs": {"output_hidden_states": ["fp16", 1, length, WIDTH]},
                "states": {"model_model_kv_cache_0": ROWS},
            }
    quarter = ["fp16", 1, 1, VOCABULARY // 4]
    assert interface(made.head, "main") == {
        "inputs": {"hidden_states": ["fp16", 1, 1, WIDTH]},
        "outputs": {f"logits{at}": quarter for at in range(1, 5)},
        "states": {},
    }


def test_metadata_and_meta_yaml() -> None:
    yaml: Any = importlib.import_module("yaml")
    whole = UNIFIED.model()
    Pipeline.parse("palettize{bits=4,min_elements=100}").run(whole, verify=None)
    whole.metadata["milopt.architecture"] = "LlamaForCausalLM"
    made = anemll_set(whole, count=3, prefix="tiny", slices=4)
    assert list(made.packages)[1] == "tiny_FFN_PF_lut4_chunk_01of03.mlpackage"
    said: Any = yaml.safe_load(made.files["meta.yaml"])["model_info"]
    assert said["architecture"] == "llama"
    assert said["parameters"] == {
        "context_length": CONTEXT,
        "batch_size": 4,
        "lut_embeddings": 4,
        "lut_ffn": 4,
        "lut_lmhead": 4,
        "num_chunks": 3,
        "model_prefix": "tiny",
        "embeddings": "tiny_embeddings_lut4.mlmodelc",
        "lm_head": "tiny_lm_head_lut4.mlmodelc",
        "ffn": "tiny_FFN_PF_lut4_chunk_01of03.mlmodelc",
        "split_lm_head": 4,
        "state_length": CONTEXT,
        "prefill_dynamic_slice": True,
    }
    own = {key: value for key, value in made.chunks[1].metadata.items() if key.startswith("com.anemll.")}
    assert own.pop("com.anemll.info").startswith("Made by milopt")
    assert own == {
        "com.anemll.context_length": str(CONTEXT),
        "com.anemll.state_length": str(CONTEXT),
        "com.anemll.batch_size": "4",
        "com.anemll.num_chunks": "3",
        "com.anemll.chunk_no": "2",
        "com.anemll.lut_bits": "4",
        "com.anemll.functions": "infer,prefill",
    }
    assert made.head.metadata["com.anemll.lm_head_chunk_sizes"] == "16,16,16,16"


@pytest.mark.parametrize(
    ("transformer", "options"),
    [
        (UNIFIED, {"count": 3}),
        (replace(UNIFIED, tied=True, table=0), {"at": (0,)}),
        (replace(UNIFIED, parallel=True), {"count": 1, "slices": 3}),
    ],
    ids=["three", "tied", "parallel"],
)
def test_the_set_answers_as_the_program(transformer: Transformer, options: dict[str, Any]) -> None:
    model = transformer.model()
    before = text(model, weights="hash")
    finding = compare_with(model, anemll_set(model, **options), tokens=4)
    assert finding.passed, finding
    assert "5 of 5 tokens as the package" in finding.detail
    assert text(model, weights="hash") == before


def test_a_set_of_another_program_does_not() -> None:
    other = Transformer(states="unified", mlp=(24, 24, 23))
    assert not compare_with(UNIFIED.model(), anemll_set(other.model(), count=2), tokens=4).passed


def test_other_layouts_inside_are_rows_outside() -> None:
    model = UNIFIED.model()
    Pipeline.parse("canonicalize,linear-to-conv,layout-bc1s{sequence=1}").run(model, verify=None)
    kinds = {op.op_type for op in operations(model.function("prefill4"))}
    assert "conv" in kinds
    made = anemll_set(model, count=2)
    assert interface(made.chunks[0], "prefill")["outputs"] == {"output_hidden_states": ["fp16", 1, 4, WIDTH]}
    assert compare_with(model, made, tokens=4).passed


def test_nothing_is_stored_twice_but_a_tied_weight(tmp_path: Path) -> None:
    model = load(replace(UNIFIED, mlp=(40, 40, 40)).model().save(tmp_path / "whole.mlpackage"))
    made = anemll_set(model, count=2)
    for chunk in made.chunks:
        assert all(each.functions == ("infer", "prefill") for each in stored_tensors(chunk) if each.bytes > 64)
    folder = made.save(tmp_path / "set")
    stored = {each.parents[3].name: each.stat().st_size for each in folder.rglob("weight.bin")}
    assert stored == made.sizes()
    # each file has a head, and each part its angles
    assert sum(stored.values()) <= weight_bytes(model) + 1024 * len(stored)


def test_files_for_the_client(tmp_path: Path) -> None:
    from tests.cli.support import with_tokenizer

    model = with_tokenizer(UNIFIED.model())
    folder = anemll_set(model, count=1).save(tmp_path / "set")
    assert {each.name for each in folder.iterdir() if each.is_file()} == {
        "meta.yaml",
        "milopt.json",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (folder / "tokenizer.json").read_bytes() == model.attachments["milopt/tokenizer.json"]
    assert not load(folder / "model_embeddings.mlpackage").attachments
    given = anemll_set(model, count=1, carried={"config.json": b"{}"})
    assert given.files["config.json"] == b"{}"


def test_a_set_is_not_replaced_unless_it_is_one(tmp_path: Path) -> None:
    made = anemll_set(UNIFIED.model(), count=1)
    folder = made.save(tmp_path / "set")
    before = contents(folder)
    with pytest.raises(Exception, match="is replaced only on request"):
        made.save(folder)
    made.save(folder, overwrite=True)
    assert contents(folder) == before
    (tmp_path / "other").mkdir()
    with pytest.raises(Exception, match="is no ANEMLL set; it is not replaced"):
        made.save(tmp_path / "other", overwrite=True)


def _with(**changes: Any) -> Model:
    return replace(UNIFIED, **changes).model()


def _renamed(old: str, new: str) -> Model:
    model = _with()
    for function in model.functions.values():
        rename_input(function, old, new)
    return model


def _turned() -> Model:
    """Values before keys."""
    model = _with()
    signature = CacheSignature.from_metadata(model.metadata)
    assert signature is not None
    slots = tuple(replace(slot, row=(slot.row + 3) % 6) for slot in signature.slots)
    model.metadata[METADATA_KEY] = replace(signature, slots=slots).to_json()
    return model


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (lambda: _with(states="pair"), TWO, r"the program has key_cache, value_cache: kv-to-state\{layout=unified\}"),
        (
            lambda: _with(states="layers"),
            {},
            "keeps one state of all keys and values, and the program has key_cache_0",
        ),
        (lambda: UNIFIED.model((4, 8)), TWO, "no function takes one token: they take 4, 8; convert it with"),
        (lambda: UNIFIED.model((1,)), TWO, "no function takes several tokens at once: convert it with"),
        (_with, {**TWO, "batch": 8}, "no function takes 8 tokens: they take 1, 4"),
        (_with, {"count": 4}, "4 chunks are too many: the program has 3 layers that can be cut apart"),
        (_with, {**TWO, "slices": 1}, "the client joins 2 slices of the logits or more, not 1"),
        (_with, {**TWO, "slices": 99}, "the head can't be cut into slices of the vocabulary"),
        (_with, {**TWO, "prefix": "a/b"}, "the prefix 'a/b' is no beginning of a file name"),
        (lambda: _renamed("input_ids", "words"), TWO, "input 'words' of function 'decode', int32"),
        (_turned, TWO, r"has not one row for each layer, keys first \(past_key_0 is in row 3\)"),
    ],
)
def test_what_the_client_does_not_know_is_said_in_a_line(model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SetError, match=message) as caught:
        anemll_set(model(), **options)
    assert "\n" not in str(caught.value)


def test_a_value_beside_the_stream_is_refused() -> None:
    from milopt.sets.anemll_parts import chunk_part, prepared
    from milopt.sets.deployment import Part, Step
    from milopt.sets.roles import decoder_of

    model = UNIFIED.model()
    decoder = decoder_of(model)
    takes = {"hidden_states": "embeddings/x", "gate": "embeddings/gate"}
    part = Part("chunk_01of01", "", {name: Step(name, takes, {"y": "y"}) for name in ("infer", "prefill")})
    with pytest.raises(SetError, match="needs hidden_states, gate, and the client hands over hidden_states"):
        chunk_part(prepared(model, decoder), part, decoder)


def test_the_embedding_takes_any_of_the_shapes() -> None:
    from milopt.interpreter import compile

    made: AnemllSet = anemll_set(UNIFIED.model(), count=1)
    plan = compile(made.embeddings, precision="declared")
    for length in (1, 4):
        ids = np.arange(length, dtype=np.int32)[None]
        rows = plan.run({"input_ids": ids})["hidden_states"]
        np.testing.assert_array_equal(rows.numpy()[0], UNIFIED.weights["embedding"][ids[0]])


@pytest.mark.parametrize(
    "title", ["current_pos", "position_ids", "input_ids", "model_model_kv_cache_0", "hidden_states"]
)
def test_a_mask_under_a_name_that_the_client_has_for_another(title: str) -> None:
    model = UNIFIED.model()
    del model.metadata[METADATA_KEY]
    for function in model.functions.values():
        if title in function.inputs:
            rename_input(function, title, "other" if title != "input_ids" else "tokens")
        rename_input(function, "causal_mask", title)
        if "other" in function.inputs and title == "position_ids":
            rename_input(function, "other", "positions")
        if "other" in function.inputs:
            rename_input(function, "other", "causal_mask")
    assert compare_with(model, anemll_set(model, count=2), tokens=3).passed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 1}, "prompts are fed in blocks of 2 tokens or more, not 1"),
        ({"prefix": "a\nb"}, "is no beginning of a file name"),
        ({"count": 4}, "4 chunks are too many"),
    ],
)
def test_options_that_can_not_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SetError, match=message):
        anemll_set(UNIFIED.model(), **{**TWO, **options})


def test_inputs_that_could_both_be_the_place() -> None:
    model = UNIFIED.model()
    for function in model.functions.values():
        add_input(function, "other", (1,), "int32")
    with pytest.raises(SetError, match="takes current_pos and other: the client gives the place of new tokens once"):
        anemll_set(model, count=2)


def test_slices_that_there_are_already() -> None:
    model = UNIFIED.model()
    SplitHead(slices=4, output="slices").run(model)
    assert anemll_set(model, count=1, slices=4).slices == 4
    with pytest.raises(SetError, match="the program's logits are in 4 slices already, not 8"):
        anemll_set(model, count=1, slices=8)


def test_notes_on_what_a_client_would_miss() -> None:
    told = " ".join(anemll_set(UNIFIED.model((1, 5)), count=1).notes)
    assert "the package carries no tokenizer" in told
    assert "12 tokens are no whole blocks of 5" in told


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b'{"eos_token_id": 0}', 0), (b'{"eos_token_id": []}', None), (b'{"eos_token_id": [3]}', 3)],
)
def test_the_token_that_ends(content: bytes, expected: int | None) -> None:
    model = UNIFIED.model()
    model.attachments |= {"milopt/tokenizer.json": b"{}", "milopt/tokenizer_config.json": content}
    settings: Any = json.loads(anemll_set(model, count=1).files["tokenizer_config.json"])
    assert settings.get("eos_token_id") == expected
    assert json.loads(monolith(model).files["model_config.json"]).get("eos_token_id") == expected


@pytest.mark.parametrize("content", [b"[1]", b"{", b"\xff", b"[" * 100_000])
def test_settings_that_are_none(content: bytes) -> None:
    model = UNIFIED.model()
    with pytest.raises(SetError, match=r"^config.json (is no mapping|can't be read)[^\n]*$"):
        monolith(model, carried={"config.json": content})
    model.attachments |= {"milopt/tokenizer.json": b"{}", "milopt/tokenizer_config.json": content}
    with pytest.raises(SetError, match=r"^the package's tokenizer_config.json"):
        anemll_set(model, count=1)
