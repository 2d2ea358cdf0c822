"""Programs in chunks compute what the whole did, to the last bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import milopt
from milopt.interpreter import compile_all, make_state
from milopt.mil import is_constant, is_state, mb, operations, shape_of, target, types
from milopt.package import Model
from milopt.package.tensors import stored_tensors
from milopt.pipeline import Pipeline
from milopt.session import Session
from milopt.sets import DeploymentSet, SetError, Table, chunk, compile_set, verify, weight_bytes
from milopt.text import text
from tests.sets.programs import CONTEXT, SIZE, VOCABULARY, WIDTH, Transformer

ENDS: dict[str, Any] = {"embedding": "package", "head": "package"}
PROMPT = [3, 60, 0, 7, 7, 21]


def _arrays(model: Model) -> list[Any]:
    return [
        op.outputs[0].val
        for function in model.functions.values()
        for op in operations(function)
        if is_constant(op.outputs[0]) and np.ndim(op.outputs[0].val) > 1
    ]


def _model(made: DeploymentSet, file: str) -> Model:
    found = made.files[file]
    assert isinstance(found, Model)
    return found


TRANSFORMERS = {
    "pair": Transformer(),
    "layers": Transformer(tied=True, states="layers", table=0),
    "uneven": Transformer(mlp=(8, 40, 8)),
}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("pair", {"count": 1}),
        ("pair", {"count": 3, **ENDS}),
        ("layers", {"count": 3, **ENDS}),
        ("layers", {"count": 2, "embedding": "table"}),
        ("uneven", {"at": (0, 1), **ENDS, "tied": "apart"}),
        ("layers", {"at": (0, 2), "after": "attention", "head": "package"}),
        ("uneven", {"max_bytes": 9_000, "shared": "recompute"}),
        ("uneven", {"count": 2, "shared": "pass", **ENDS}),
    ],
    ids=str,
)
def test_a_set_is_bit_equal_to_the_whole(kind: str, options: dict[str, Any]) -> None:
    model = TRANSFORMERS[kind].model()
    made = chunk(model, **options)
    assert (verdict := verify(model, made, trials=1)), verdict


def test_attention_beside_the_mlp() -> None:
    model = Transformer(parallel=True).model()
    made = chunk(model, count=3, **ENDS)
    assert (verdict := verify(model, made, trials=1)), verdict


def test_a_part_that_is_given_something_else_is_found() -> None:
    model = Transformer().model()
    made = chunk(model, count=2)
    first, second = made.parts
    step = second.steps["decode"]
    cos, sin = (name for name in step.takes if name.startswith("gather"))
    turned = {**step.takes, cos: step.takes[sin], sin: step.takes[cos]}
    made.parts = (first, replace(second, steps={**second.steps, "decode": replace(step, takes=turned)}))
    verdict = verify(model, made, trials=1)
    assert not verdict
    assert "output logits" in str(verdict)


def test_chunks_are_balanced_by_bytes() -> None:
    made = chunk(Transformer(mlp=(8, 8, 8, 300)).model(), count=2, **ENDS)
    sizes = made.sizes()
    assert sizes["chunk_01of02.mlpackage"] < sizes["chunk_02of02.mlpackage"]
    ops = [op.op_type for op in _model(made, "chunk_02of02.mlpackage").function("decode").operations]
    assert ops.count("softmax") == 1, "the large layer is alone"


def test_weights_are_the_arrays_of_the_whole_and_each_is_in_one_part() -> None:
    model = Transformer().model()
    whole = {id(array) for array in _arrays(model)}
    made = chunk(model, count=3, **ENDS)
    seen: list[int] = []
    for file in made.files:
        own = {id(array) for array in _arrays(_model(made, file))}
        assert own <= whole
        seen += own
    assert sorted(seen) == sorted(whole)


def test_the_whole_stays_as_it_was() -> None:
    model = Transformer().model()
    before = text(model, weights="hash")
    chunk(model, count=3, **ENDS)
    assert text(model, weights="hash") == before


def test_functions_share_weights_in_every_part_and_nothing_is_stored_twice(tmp_path: Path) -> None:
    Transformer(mlp=(40, 40, 40)).model().save(tmp_path / "whole.mlpackage")
    model = milopt.load(tmp_path / "whole.mlpackage")
    made = chunk(model, count=3, **ENDS)
    for file in made.files:
        part = _model(made, file)
        assert list(part.functions) == ["decode", "prefill4"]
        assert all(each.functions == ("decode", "prefill4") for each in stored_tensors(part) if each.bytes > 64)
    folder = made.save(tmp_path / "set")
    stored = [each.stat().st_size for each in folder.rglob("weight.bin")]
    assert sorted(stored) == sorted(made.sizes().values())
    (whole,) = (tmp_path / "whole.mlpackage").rglob("weight.bin")
    assert whole.stat().st_size == weight_bytes(model)
    assert sum(stored) <= weight_bytes(model) + 64 * len(made.files) + sum(
        each.bytes + 64 for each in stored_tensors(model) if each.bytes <= 256
    ), "weights of layers are stored once"


def test_a_tied_weight_is_stored_once() -> None:
    transformer = Transformer(tied=True)
    transformer.weights["embedding"] = np.zeros((400, WIDTH), np.float16)
    model = transformer.model()
    together, apart = chunk(model, count=1, **ENDS), chunk(model, count=1, tied="apart", **ENDS)
    assert list(together.files) == ["embeddings_and_head.mlpackage", "chunk_01of01.mlpackage"]
    assert list(apart.files) == ["embeddings.mlpackage", "chunk_01of01.mlpackage", "head.mlpackage"]
    assert sum(apart.sizes().values()) - sum(together.sizes().values()) >= 400 * WIDTH * 2
    assert any("weights in common" in note for note in apart.notes)
    assert not any("weights in common" in note for note in together.notes)


def test_states_are_declared_in_full_by_the_parts_that_use_them() -> None:
    made = chunk(Transformer().model(), count=3, **ENDS)
    for file in made.files:
        states = [var for var in _model(made, file).function("prefill4").inputs.values() if is_state(var)]
        wanted = ["key_cache", "value_cache"] if file.startswith("chunk") else []
        assert [var.name for var in states] == wanted
        assert all(shape_of(var) == (3, 2, CONTEXT, SIZE) for var in states)


def test_states_of_a_layer_go_with_its_chunk() -> None:
    made = chunk(Transformer(states="layers").model(), count=3)
    for layer, file in enumerate(made.files):
        states = [var.name for var in _model(made, file).function().inputs.values() if is_state(var)]
        assert states == [f"key_cache_{layer}", f"value_cache_{layer}"]


def _greedy(session: Session, count: int = 5) -> tuple[list[int], Any]:
    rows, tokens = [session.feed(PROMPT)], list[int]()
    for _ in range(count):
        tokens.append(int(rows[-1][-1].argmax()))
        rows.append(session.feed(tokens[-1:]))
    return tokens, np.concatenate(rows)


@pytest.mark.parametrize("precision", ["float64", "declared"])
def test_sessions_go_on_as_on_the_whole(precision: Any) -> None:
    model = Transformer().model()
    wanted, logits = _greedy(Session(model, precision=precision))
    session = Session(chunk(model, count=2, **ENDS), precision=precision)
    for _ in range(2):
        tokens, found = _greedy(session)
        assert tokens == wanted
        np.testing.assert_array_equal(found, logits)
        session.reset()


@pytest.mark.parametrize("spec", ["split-head{slices=3,output=slices}", "split-head{slices=2,output=top-k,k=3}"])
def test_heads_in_slices(spec: str) -> None:
    model = Transformer().model()
    Pipeline.parse(spec).run(model, verify=None)
    made = chunk(model, count=2, **ENDS)
    assert (verdict := verify(model, made, trials=1)), verdict
    assert set(made.part("head").steps["decode"].gives) == {var.name for var in model.function("decode").outputs}
    wanted = Session(model, precision="float64").feed(PROMPT)
    np.testing.assert_array_equal(Session(made, precision="float64").feed(PROMPT), wanted)


def test_one_state_of_the_first_chunks_prefill_function_serves_all() -> None:
    model = Transformer().model()
    made = chunk(model, count=3, **ENDS)
    state = make_state(_model(made, "chunk_01of03.mlpackage"), "prefill4")
    own = milopt.make_state(model)
    plans, whole = compile_set(made, precision="float64"), compile_all(model, precision="float64")
    rng = np.random.default_rng(5)
    for name, query, place in (("prefill4", 4, 0), ("decode", 1, 4), ("prefill4", 4, 5)):
        inputs: dict[str, Any] = {
            "input_ids": rng.integers(VOCABULARY, size=(1, query)).astype(np.int32),
            "position_ids": np.arange(place, place + query, dtype=np.int32)[None],
            "causal_mask": rng.standard_normal((1, 1, query, CONTEXT)).astype(np.float16),
            "current_pos": np.array([place], np.int32),
        }
        np.testing.assert_array_equal(
            plans[name].run(inputs, state)["logits"].numpy(), whole[name].run(inputs, own)["logits"].numpy()
        )
    np.testing.assert_array_equal(state["key_cache"], own["key_cache"])


def test_the_table_holds_the_rows() -> None:
    transformer = Transformer()
    made = chunk(transformer.model(), count=1, embedding="table")
    table = made.files["embeddings.npy"]
    assert isinstance(table, Table)
    np.testing.assert_array_equal(table.array, transformer.weights["embedding"])
    inputs: dict[str, Any] = {
        "input_ids": np.array([[VOCABULARY]], np.int32),
        "position_ids": np.zeros((1, 1), np.int32),
        "causal_mask": np.zeros((1, 1, 1, CONTEXT), np.float16),
        "current_pos": np.zeros(1, np.int32),
    }
    with pytest.raises(milopt.MiloptError, match="a token of the call is not one of the 64 that embeddings has"):
        compile_set(made)["decode"].run(inputs, milopt.make_state(transformer.model()))


def test_an_embedding_that_is_more_than_a_look_up_is_no_table() -> None:
    @mb.program(input_specs=[mb.TensorSpec((1, 4), types.fp32)], opset_version=target.iOS15)
    def program(x: Any) -> Any:
        weight = np.eye(4, dtype=np.float32)
        x = mb.linear(x=x, weight=weight)
        for _ in range(2):
            shares = mb.softmax(x=mb.matmul(x=x, y=x, transpose_x=True), axis=-1)
            x = mb.linear(x=mb.add(x=x, y=mb.matmul(x=x, y=shares)), weight=weight)
        return x

    with pytest.raises(SetError, match=r"the embedding is more than a look-up in a table \(linear\)"):
        chunk(milopt.load(program), count=1, embedding="table")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 4}, "4 chunks are too many: the program has 3 layers that can be cut apart"),
        ({"count": 0}, "the number of chunks is 1 or more, not 0"),
        ({}, "say one of: the number of chunks, the most bytes of one, or the layers to cut behind"),
        ({"count": 2, "max_bytes": 10**6}, "say one of"),
        ({"max_bytes": 5_000}, r"no cut between layers keeps every chunk within 5,000 bytes: layer \d and what"),
        ({"max_bytes": 2_100, "count": None, **ENDS}, "no cut between layers keeps every chunk within 2,100 bytes"),
        ({"at": (2,)}, "no cut can be made behind layer 2: there are 0, 1"),
        ({"at": (1, 0)}, "the layers to cut behind are given once each and in order, not 1, 0"),
        ({"at": (0, 0)}, "given once each and in order, not 0, 0"),
    ],
)
def test_what_can_not_be_done_is_said_in_a_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SetError, match=message) as caught:
        chunk(Transformer().model(), **options)
    assert "\n" not in str(caught.value)


def test_a_limit_that_the_ends_alone_break() -> None:
    transformer = Transformer()
    transformer.weights["embedding"] = np.zeros((VOCABULARY * 20, WIDTH), np.float16)
    with pytest.raises(SetError, match=r"keeps embeddings\.mlpackage within 9,000 bytes: it has 41,088"):
        chunk(transformer.model(), max_bytes=9_000, **ENDS)


def test_nothing_to_cut_off() -> None:
    parallel = Transformer(parallel=True).model()
    with pytest.raises(SetError, match="no layer has a place between its attention and what follows"):
        chunk(parallel, at=(0,), after="attention")

    @mb.program(input_specs=[mb.TensorSpec((1, 4), types.fp32)], opset_version=target.iOS15)
    def program(x: Any) -> Any:
        return mb.linear(x=x, weight=np.eye(4, dtype=np.float32))

    with pytest.raises(SetError, match="nothing comes before the layers that could be a part of its own"):
        chunk(milopt.load(program), count=1, embedding="package")
    with pytest.raises(SetError, match="nothing comes behind the layers that could be a part of its own"):
        chunk(milopt.load(program), count=1, head="package")


def test_programs_of_open_sizes_are_refused() -> None:
    size = milopt.mil.get_new_symbol()

    @mb.program(input_specs=[mb.TensorSpec((1, size, 4), types.fp32)], opset_version=target.iOS15)
    def program(x: Any) -> Any:
        weight = np.eye(4, dtype=np.float32)
        return mb.linear(x=mb.relu(x=mb.linear(x=x, weight=weight)), weight=weight)

    with pytest.raises(SetError, match="input 'x' of function 'main' has an open size"):
        chunk(milopt.load(program), count=2)
