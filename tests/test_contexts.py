"""One program of open sizes as functions for several numbers of tokens and contexts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milopt.cli import main
from milopt.contexts import CONTEXTS_KEY, joined, multifunction, names_of
from milopt.errors import MiloptError, VerificationError
from milopt.interpreter import State, compile_all
from milopt.mil import get_new_symbol, mb, set_ranges, shape_of, target, types
from milopt.multifunction import extract, merge
from milopt.package import Model, load
from milopt.package.tensors import stored_tensors
from milopt.pipeline import Pipeline
from milopt.session import Session
from milopt.sets import weight_bytes
from milopt.sets.deployment import interface
from milopt.sets.roles import decoder_of
from milopt.specialising import SpecialisingError, difference, specialise
from tests.cli.support import contents

HEADS, SIZE, WIDTH, WORDS, MOST = 2, 4, 8, 32, 16
STATES = Pipeline.parse("canonicalize,kv-to-state{layout=unified}")


def _weight(name: str, *shape: int) -> Any:
    seed = sum(map(ord, name))
    return (np.random.default_rng(seed).standard_normal(shape) * 1.5 / np.sqrt(shape[-1])).astype(np.float16)


def ranged(scale: float = 0.5) -> Model:
    """One attention layer of open sizes, in the past form, as a conversion with ranged shapes makes it."""
    query, total, past = (get_new_symbol() for _ in range(3))
    specs = [
        mb.TensorSpec((1, query), types.int32),
        mb.TensorSpec((1, 1, query, total), types.fp16),
        mb.TensorSpec((1, HEADS, past, SIZE), types.fp16),
        mb.TensorSpec((1, HEADS, past, SIZE), types.fp16),
    ]

    @mb.program(input_specs=specs, opset_version=target.iOS18)
    def program(input_ids: Any, causal_mask: Any, past_key_0: Any, past_value_0: Any) -> Any:
        x = mb.gather(x=_weight("embedding", WORDS, WIDTH), indices=input_ids, axis=0)
        heads: dict[str, Any] = {}
        for kind in ("query", "key", "value"):
            flat = mb.linear(x=x, weight=_weight(kind, HEADS * SIZE, WIDTH))
            heads[kind] = mb.transpose(x=mb.reshape(x=flat, shape=[1, -1, HEADS, SIZE]), perm=[0, 2, 1, 3])
        key = mb.concat(values=(past_key_0, heads["key"]), axis=2, name="present_key_0")
        value = mb.concat(values=(past_value_0, heads["value"]), axis=2, name="present_value_0")
        scores = mb.mul(x=mb.matmul(x=heads["query"], y=key, transpose_y=True), y=np.float16(scale))
        shares = mb.softmax(x=mb.add(x=scores, y=causal_mask), axis=-1)
        mixed = mb.transpose(x=mb.matmul(x=shares, y=value), perm=[0, 2, 1, 3])
        size = mb.shape(x=input_ids)
        shape = mb.concat(values=(size, np.array([HEADS * SIZE], np.int32)), axis=0)
        out = mb.linear(x=mb.reshape(x=mixed, shape=shape), weight=_weight("out", WIDTH, HEADS * SIZE))
        logits = mb.linear(x=mb.add(x=x, y=out), weight=_weight("head", WORDS, WIDTH), name="logits")
        return logits, key, value

    model = Model(program, 9)
    model.metadata["milopt.context"] = str(MOST)
    function = model.function()
    for name, bounds in {
        "input_ids": [(1, 1), (1, MOST - 1)],
        "causal_mask": [(1, 1), (1, 1), (1, MOST - 1), (2, MOST)],
        "past_key_0": [(1, 1), (HEADS, HEADS), (1, MOST - 1), (SIZE, SIZE)],
        "past_value_0": [(1, 1), (HEADS, HEADS), (1, MOST - 1), (SIZE, SIZE)],
    }.items():
        set_ranges(function, name, bounds, default=2)
    return model


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ranged().save(tmp_path_factory.mktemp("ranged") / "ranged.mlpackage")


@pytest.mark.parametrize(("query", "context"), [(1, 2), (1, 16), (5, 9), (15, 16)])
def test_a_function_of_fixed_sizes_is_the_open_one(query: int, context: int, package: Path) -> None:
    model = load(package)
    made = specialise(model, query, context)
    past = ["fp16", 1, HEADS, context - query, SIZE]
    assert interface(made.model, "main") == {
        "inputs": {
            "input_ids": ["int32", 1, query],
            "causal_mask": ["fp16", 1, 1, query, context],
            "past_key_0": past,
            "past_value_0": past,
        },
        "outputs": {
            "logits": ["fp16", 1, query, WORDS],
            "present_key_0": ["fp16", 1, HEADS, context, SIZE],
            "present_value_0": ["fp16", 1, HEADS, context, SIZE],
        },
        "states": {},
    }
    assert difference(model, made) == 0
    assert not [op for op in made.model.function().operations if op.op_type == "shape"], "sizes are known"


def test_another_program_is_not_the_open_one(package: Path) -> None:
    model = load(package)
    made = specialise(model, 2, 8)
    assert difference(ranged(0.6), made) > 1e-4


def _call(plans: Any, name: str, ids: Sequence[int], place: int, state: State, context: int) -> Any:
    slots = np.arange(place, place + len(ids))
    mask = np.where(np.arange(context)[None] <= slots[:, None], 0, -1e4).astype(np.float16)[None, None]
    inputs = {"input_ids": np.array([ids], np.int32), "causal_mask": mask, "current_pos": np.array([place], np.int32)}
    return plans[name].run(inputs, state)["logits"].numpy()[0]


@pytest.mark.parametrize("layout", ["unified", "pair", "per-layer"])
def test_functions_of_several_contexts_share_one_state(layout: str, package: Path, tmp_path: Path) -> None:
    passes = Pipeline.parse(f"canonicalize,kv-to-state{{layout={layout}}}")
    made = multifunction(load(package), (1, 4), (8, 16), passes=passes)
    model = load(made.save(tmp_path / "made.mlpackage"))
    assert model.default_function == "decode_ctx16"
    assert model.metadata[CONTEXTS_KEY] == "8,16"
    assert set(model.functions) == {"decode_ctx8", "decode_ctx16", "prefill_ctx8", "prefill_ctx16"}
    kinds = [interface(model, name)["states"] for name in model.functions]
    assert all(each == kinds[0] and all(kind[3] == 16 for kind in each.values()) for each in kinds)
    plans = compile_all(model, precision="float64")
    state, alone = (State(plans["decode_ctx8"].states) for _ in range(2))
    tokens = [3, 9, 30, 1, 8, 8, 25, 2]
    mixed = [_call(plans, "prefill_ctx8", tokens[:4], 0, state, 8)]
    wanted = [_call(plans, "prefill_ctx16", tokens[:4], 0, alone, 16)]
    for place in range(4, 8):
        context = 8 if place % 2 else 16
        mixed.append(_call(plans, f"decode_ctx{context}", tokens[place : place + 1], place, state, context))
        wanted.append(_call(plans, "decode_ctx16", tokens[place : place + 1], place, alone, 16))
    # softmax over 8 slots adds less zeros than over 16
    np.testing.assert_allclose(np.concatenate(mixed), np.concatenate(wanted), rtol=1e-12)
    session = Session(model, precision="float64")
    assert (session.context, session.query_lengths) == (16, (1, 4))
    np.testing.assert_allclose(session.feed(tokens), np.concatenate(wanted), rtol=1e-5)


def test_weights_are_stored_once_and_clustered_once(package: Path, tmp_path: Path) -> None:
    model = load(package)
    made = multifunction(model, (1, 4), (8, 16), passes=STATES)
    large = [each for each in stored_tensors(made) if len(each.shape) == 2]
    assert len(large) == 6
    assert all(len(each.functions) == 4 for each in large)
    assert weight_bytes(made) == weight_bytes(model)
    palettize = Pipeline.parse("palettize{bits=4,min_elements=32}")
    palettize.run(made, verify=None)
    one = multifunction(model, (1,), (16,), passes=STATES)
    palettize.run(one, verify=None)
    assert weight_bytes(made) == weight_bytes(one) < weight_bytes(model)
    # what was palettized before stays as it is
    before = load(package)
    palettize.run(before, verify=None)
    again = multifunction(before, (1, 4), (8, 16), passes=STATES)
    assert weight_bytes(again) == weight_bytes(one)


def test_clients_get_the_functions_of_the_longest_context(package: Path) -> None:
    made = multifunction(load(package), (1, 4), (8, 16), passes=STATES)
    decoder = decoder_of(made)
    assert decoder.many is not None
    assert (decoder.one.name, decoder.many.name, decoder.slots) == ("decode_ctx16", "prefill_ctx16", 16)


def test_names() -> None:
    assert names_of((1, 64), (512,)) == {(1, 512): "decode", (64, 512): "prefill"}
    assert names_of((1, 8, 64), ()) == {(1, None): "q1", (8, None): "q8", (64, None): "q64"}
    assert names_of((1,), (8, 16)) == {(1, 8): "main_ctx8", (1, 16): "main_ctx16"}


def test_a_text_encoder_has_no_context(tmp_path: Path) -> None:
    length = get_new_symbol()

    @mb.program(input_specs=[mb.TensorSpec((1, length), types.int32)], opset_version=target.iOS18)
    def program(input_ids: Any) -> Any:
        x = mb.gather(x=_weight("embedding", WORDS, WIDTH), indices=input_ids, axis=0)
        return mb.softmax(x=mb.matmul(x=x, y=x, transpose_y=True), axis=-1)

    model = Model(program, 9)
    made = multifunction(model, (4, 8))
    assert {name: shape_of(each.outputs[0]) for name, each in made.functions.items()} == {
        "q4": (1, 4, 4),
        "q8": (1, 8, 8),
    }
    with pytest.raises(SpecialisingError, match="function 'main' remembers no other tokens: there is no context"):
        multifunction(model, (4,), (8,))


@pytest.mark.parametrize(
    ("lengths", "contexts", "message"),
    [
        ((1, 4), (), "takes any number of tokens in all: give a context"),
        ((1, 1), (8,), "query lengths are given once each, not 1, 1"),
        ((1,), (8, 8), "contexts are given once each, not 8, 8"),
        ((), (8,), "give at least one query length"),
        ((0,), (8,), "a call takes one token at least, not 0"),
        ((8,), (8,), "a context of 8 has no room for 8 new tokens and one before them"),
        ((1,), (2**31,), "a context of 2147483648 is more than an axis can be long"),
        ((1,), (17,), "axis 3 of input 'causal_mask' is 2 to 16 long, not 17"),
    ],
)
def test_sizes_that_can_not_be(lengths: Any, contexts: Any, message: str, package: Path) -> None:
    with pytest.raises(MiloptError, match=message) as caught:
        multifunction(load(package), lengths, contexts)
    assert "\n" not in str(caught.value)


def test_programs_that_can_not_be_specialised(package: Path) -> None:
    fixed = specialise(load(package), 1, 8).model
    with pytest.raises(SpecialisingError, match="has fixed sizes, which can't be others: convert it with"):
        specialise(fixed, 4, 8)
    states = load(package)
    Pipeline.parse("canonicalize,kv-to-state{read=prefix}").run(states, verify=None)
    with pytest.raises(SpecialisingError, match="its cache is in states, of which a call reads as many slots as"):
        specialise(states, 4, 8)


def test_a_cache_written_in_every_slot_has_one_context(package: Path) -> None:
    passes = Pipeline.parse("canonicalize,kv-to-state{update=mask}")
    with pytest.raises(MiloptError, match=r"is written or read in every slot, or in a ring \(kv-to-state"):
        multifunction(load(package), (1, 4), (8, 16), passes=passes)
    assert len(multifunction(load(package), (1, 4), (8,), passes=passes).functions) == 2


def test_a_function_that_computes_something_else(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def differing(model: Model, made: object) -> float:
        return float("nan")

    monkeypatch.setattr("milopt.contexts.difference", differing)
    with pytest.raises(VerificationError, match="decode computes something else than the program of open sizes"):
        multifunction(load(package), (1, 4), (8,))


def test_packages_of_fixed_sizes_are_joined(package: Path) -> None:
    made = multifunction(load(package), (1, 4), (8,), passes=STATES)
    other = multifunction(load(package), (1,), (16,), passes=STATES)
    parts = {"decode": extract(made, "decode"), "prefill": extract(made, "prefill"), "long": extract(other, "main")}
    whole = joined(parts)
    assert whole.default_function == "long"
    assert whole.metadata[CONTEXTS_KEY] == "8,16"
    assert {str(interface(whole, name)["states"]) for name in whole.functions} == {
        str({"kv_cache": ["fp16", 2, HEADS, 16, SIZE]})
    }
    assert weight_bytes(whole) == weight_bytes(load(package))


def test_states_that_can_not_serve_both(package: Path) -> None:
    one = multifunction(load(package), (1,), (8,), passes=STATES)
    other = multifunction(load(package), (4,), (8,), passes=Pipeline.parse("canonicalize,kv-to-state"))
    assert len(joined({"a": extract(one, "main"), "b": extract(other, "main")}).functions) == 2
    from milopt.mil import rename_input

    rename_input(other.function(), "key_cache", "kv_cache")
    with pytest.raises(MiloptError, match=r"state 'kv_cache' is .* one state can't serve both"):
        joined({"a": extract(one, "main"), "b": extract(other, "main")})


def test_the_command(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.mlpackage"
    command = ["multifunction", str(package), "-o", str(out)]
    assert main([*command, "--query-lengths", "1,4", "--contexts", "8,16"]) == 0
    told = capsys.readouterr().out
    assert "decode_ctx8" in told
    assert str(out) in told
    before = contents(out)
    for options, message in (
        (["--query-lengths", "1,4", "--contexts", "8"], "exists; give --force"),
        (["--force"], "say which functions one package becomes, --query-lengths 1,64, or give several to merge"),
        (
            ["--force", "--query-lengths", "x"],
            "takes numbers with commas between, such as 1,64, not 'x'",
        ),
        (["--force", "--query-lengths", "99", "--contexts", "8"], "a context of 8 has no room for 99 new tokens"),
        (
            ["--force", str(package), "--query-lengths", "1"],
            "are for one package of open sizes, not for several",
        ),
        (["--force", str(package), "--passes", "canonicalize"], "--passes are for one package of open sizes"),
        (["--force", "--query-lengths", "9" * 5000], "takes numbers with commas between"),
    ):
        assert main([*command, *options]) == 2
        told = capsys.readouterr().err
        assert message in told
        assert told.count("\n") == 1
    assert contents(out) == before
    parts: list[str] = []
    for name in ("decode_ctx16", "prefill_ctx8"):
        parts.append(str(tmp_path / f"{name}.mlpackage"))
        assert main(["extract-function", str(out), "-o", parts[-1], "--function", name]) == 0
    assert main(["multifunction", *parts, "-o", str(tmp_path / "again.mlpackage")]) == 0
    assert set(load(tmp_path / "again.mlpackage").functions) == {"decode_ctx16", "prefill_ctx8"}
    capsys.readouterr()
    assert main(["multifunction", parts[0], str(out), "-o", str(tmp_path / "third.mlpackage")]) == 2
    assert "two functions would be called 'decode_ctx16'" in capsys.readouterr().err


def test_a_model_of_several_functions_loses_none(package: Path) -> None:
    two = merge({"one": load(package), "other": ranged(0.6)}, default="one")
    with pytest.raises(MiloptError, match="the model has functions one, other: milopt extract-function makes"):
        multifunction(two, (1, 4), (8,))


def _masked(kind: Any, *, past: bool) -> Model:
    """Attention whose mask is 0 and 1 for all tokens, (1, tokens), as tokenizers give it."""
    query, total, before = (get_new_symbol() for _ in range(3))
    specs = {"input_ids": mb.TensorSpec((1, query), types.int32), "attention_mask": mb.TensorSpec((1, total), kind)}
    if past:
        specs["past_key_0"] = mb.TensorSpec((1, before, WIDTH), types.fp16)

    def attend(*given: Any) -> Any:
        x = mb.gather(x=_weight("embedding", WORDS, WIDTH), indices=given[0], axis=0)
        key = mb.concat(values=(given[2], x), axis=1, name="present_key_0") if past else x
        hidden = mb.sub(x=np.float16(1), y=mb.cast(x=given[1], dtype="fp16"))
        bias = mb.expand_dims(x=mb.mul(x=hidden, y=np.float16(-1e4)), axes=[1])
        out = mb.softmax(x=mb.add(x=mb.matmul(x=x, y=key, transpose_y=True), y=bias), axis=-1)
        return (out, key) if past else out

    if past:

        @mb.program(input_specs=list(specs.values()), opset_version=target.iOS18)
        def program(input_ids: Any, attention_mask: Any, past_key_0: Any) -> Any:
            return attend(input_ids, attention_mask, past_key_0)

        return Model(program, 9)

    @mb.program(input_specs=list(specs.values()), opset_version=target.iOS18)
    def encoder(input_ids: Any, attention_mask: Any) -> Any:
        return attend(input_ids, attention_mask)

    return Model(encoder, 9)


@pytest.mark.parametrize("query", [1, 4])
def test_a_mask_of_numbers_is_as_long_as_the_context(query: int) -> None:
    """With one token a mask of one column would be broadcast over all."""
    made = specialise(_masked(types.int32, past=True), query, 8).model
    assert shape_of(made.function().inputs["attention_mask"]) == (1, 8)


def test_the_mask_of_an_encoder_is_as_long_as_its_tokens() -> None:
    model = _masked(types.int32, past=False)
    made = multifunction(model, (4, 8))
    found = {name: shape_of(each.inputs["attention_mask"]) for name, each in made.functions.items()}
    assert found == {"q4": (1, 4), "q8": (1, 8)}
    with pytest.raises(SpecialisingError, match="no input of function 'main' is a past: its context is its 4 tokens"):
        specialise(model, 4, 1)


def test_functions_that_are_joined_again(package: Path) -> None:
    made = multifunction(load(package), (1, 4), (8, 16), passes=STATES)
    parts = {name: extract(made, name) for name in ("decode_ctx8", "prefill_ctx16")}
    whole = joined(parts)
    assert (whole.default_function, whole.metadata[CONTEXTS_KEY]) == ("prefill_ctx16", "8,16")
    other = multifunction(load(package), (1,), (15,), passes=STATES)
    third = {"short": extract(made, "decode_ctx8"), "long": extract(other, "main")}
    with pytest.raises(MiloptError, match="functions of all contexts are made or joined at once") as caught:
        joined(third)
    assert "\n" not in str(caught.value)


def test_a_function_taken_out_has_its_own_context(package: Path) -> None:
    made = multifunction(load(package), (1,), (8, 16), passes=STATES)
    short, long = (Session(extract(made, name), precision="float64") for name in made.functions if "main" in name)
    sessions = {session.context: session for session in (short, long)}
    assert set(sessions) == {8, 16}
    tokens = [3, 9, 30, 1, 8]
    np.testing.assert_allclose(sessions[8].feed(tokens), sessions[16].feed(tokens), rtol=1e-6)
