"""layout-bc1s{io=free}: inputs, outputs and states in the layouts they are used in, declared, and the same numbers."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from milopt.errors import PackageError
from milopt.layout.graphs import Graph
from milopt.mil import get_new_symbol, is_state, mb, shape_of, target, types
from milopt.package import Model, load
from milopt.passes.convolution import LinearToConv
from milopt.passes.layout import LayoutBc1s
from milopt.passes.layout_reading import read_free
from milopt.pipeline import Pipeline
from milopt.reports import Report
from milopt.session import Session
from milopt.signature import CacheSignature
from milopt.signature_layout import LAYOUT_KEY, LayoutSignature, Relaid
from milopt.text import text
from milopt.verify import compare
from tests.layout.integers import integers
from tests.testing.layouts import attentions, weight
from tests.verify.decoders import Decoder

from .support import op_types
from .test_layout import brute_force
from .test_layout_ops import layouts

CHECKS = tuple(cast("Any", HealthCheck))
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
PLAIN = "linear-to-conv,layout-bc1s"
FREE = "linear-to-conv,layout-bc1s{io=free}"


def laid_out(before: Model, passes: str = FREE) -> tuple[Model, Report]:
    """The model after the passes, each compared with what was there before."""
    after = before.clone()
    report = Pipeline.parse(passes).run(after, verify="each")
    after.program.validate()
    verdict = compare(before, after)
    assert verdict, str(verdict)
    return after, report


def decoder(*, stateful: bool, queries: tuple[int, ...] = (1, 4)) -> Model:
    """Two layers of grouped heads, attention written out without repeated keys; the cache in states, or handed on."""
    model = Decoder().stateless(queries)
    kept = "kv-to-state," if stateful else ""
    Pipeline.parse(f"canonicalize,fuse-sdpa,{kept}decompose-sdpa").run(model)
    assert any(map(is_state, model.function("prefill4").inputs.values())) == stateful
    return model


def shapes(model: Model, function: str) -> dict[str, tuple[Any, ...]]:
    graph = model.function(function)
    return {name: tuple(shape_of(var)) for name, var in graph.inputs.items()} | {
        var.name: tuple(shape_of(var)) for var in graph.outputs
    }


def transposes(model: Model) -> int:
    return sum(op.op_type == "transpose" for function in model.functions.values() for op in function.operations)


def test_states_are_in_the_order_that_products_read() -> None:
    before = decoder(stateful=True)
    public, _ = laid_out(before, PLAIN)
    after, report = laid_out(before)
    for function in ("decode", "prefill4"):
        assert shapes(after, function)["key_cache"] == shapes(after, function)["value_cache"] == (2, 2, 4, 12)
        assert list(after.function(function).inputs) == list(before.function(function).inputs)
    assert transposes(after) <= transposes(public) - 4
    notes = [note for part in report.parts for note in part.notes]
    assert "prefill4: key_cache is 2 x 2 x 4 x 12, no longer 2 x 2 x 12 x 4" in notes
    signature = CacheSignature.from_metadata(after.metadata)
    assert signature is not None
    assert {signature.axis_of(slot) for slot in signature.slots} == {3}


def test_a_session_counts_in_the_old_layout() -> None:
    before = decoder(stateful=True)
    after, _ = laid_out(before)
    tokens = [3, 1, 4, 1, 5, 9, 2]
    given, wanted = (Session(each, precision="float64").feed(tokens) for each in (after, before))
    np.testing.assert_allclose(given, wanted, rtol=1e-6, atol=1e-6)  # given back in fp32


def test_what_comes_out_goes_in_again() -> None:
    """The past of a function may be what another gave back."""
    before = decoder(stateful=False)
    after, _ = laid_out(before)
    signature = LayoutSignature.from_metadata(after.metadata)
    assert signature is not None
    changed = signature.of("prefill4")
    assert {"past_key_0", "present_key_0", "past_value_1", "present_value_1"} <= set(changed)
    for name in ("key_0", "value_0", "key_1", "value_1"):
        kinds = [
            shapes(after, each)[f"{kind}_{name}"] for each in ("decode", "prefill4") for kind in ("past", "present")
        ]
        assert {shape[:3] for shape in kinds} == {(1, 2, 4)}
    # the logits of one token have no order to change
    assert ("logits" in changed, "logits" in signature.of("decode")) == (True, False)


def test_a_package_says_so_itself(tmp_path: Path) -> None:
    before = load(decoder(stateful=True).save(tmp_path / "before.mlpackage"))
    assert before.description is not None
    after, _ = laid_out(before)
    saved = load(after.save(tmp_path / "free.mlpackage"))
    assert shapes(saved, "decode") == shapes(after, "decode")
    assert compare(before, saved)
    assert compare(saved, before)
    np.testing.assert_array_equal(Session(saved).feed([7, 8, 9]), Session(after).feed([7, 8, 9]))
    entries = json.loads(saved.metadata[LAYOUT_KEY])
    assert entries["decode"]["key_cache"] == [[2, 2, 12, 4], [2, 2, 12, 4], [0, 1, 3, 2], [2, 2, 4, 12]]


def test_a_wrong_declaration_is_noticed() -> None:
    before = decoder(stateful=False, queries=(4,))
    after, _ = laid_out(before)
    signature = LayoutSignature.from_metadata(after.metadata)
    assert signature is not None
    one = signature.of("prefill4")["logits"]
    wrong = Relaid(one.name, one.public, one.stored, tuple(range(len(one.stored))), one.stored)
    others = tuple(each for each in signature.of("prefill4").values() if each.name != "logits")
    after.metadata[LAYOUT_KEY] = LayoutSignature({"prefill4": (*others, wrong)}).to_json()
    assert not compare(before, after)
    del after.metadata[LAYOUT_KEY]
    assert "before" in str(compare(before, after))


def test_the_cache_can_be_given_back() -> None:
    after, _ = laid_out(decoder(stateful=True))
    report = Pipeline.parse("state-to-kv").run(after, verify="each")
    assert report.parts[0].applied == 8
    assert shapes(after, "prefill4")["past_key_0"] == (1, 2, 4, 8)
    assert compare(decoder(stateful=False), after)
    assert compare(after, decoder(stateful=True))


def test_states_of_nested_blocks_stay() -> None:
    state = mb.StateTensorSpec((1, 4, 6), types.fp16)
    given = mb.TensorSpec((1, 4, 3), types.fp16)

    @mb.program(input_specs=[given, mb.TensorSpec((1,), types.bool), state], opset_version=target.iOS18)
    def program(x: Any, flag: Any, held: Any) -> Any:
        y = mb.linear(x=x, weight=weight(6, 3).astype(np.float16))
        y = mb.add(x=y, y=mb.read_state(input=held))
        y = mb.linear(x=y, weight=weight(6, 6).astype(np.float16))
        return mb.cond(
            pred=mb.squeeze(x=flag, axes=[0]),
            _true_fn=lambda: mb.coreml_update_state(state=held, value=mb.relu(x=y)),
            _false_fn=lambda: mb.identity(x=y),
        )

    after, _ = laid_out(load(program))
    assert shapes(after, "main")["held"] == (1, 4, 6)


def test_a_state_of_which_nothing_is_a_cache() -> None:
    state = mb.StateTensorSpec((1, 4, 6), types.fp16)

    @mb.program(input_specs=[mb.TensorSpec((1, 4, 3), types.fp16), state], opset_version=target.iOS18)
    def program(x: Any, held: Any) -> Any:
        y = mb.add(x=mb.linear(x=x, weight=weight(6, 3).astype(np.float16)), y=mb.read_state(input=held))
        y = mb.coreml_update_state(state=held, value=y)
        return mb.linear(x=y, weight=weight(2, 6).astype(np.float16), name="y")

    before = load(program)
    after, _ = laid_out(before)
    assert shapes(after, "main") == {"x": (1, 3, 1, 4), "held": (1, 6, 4), "y": (1, 2, 1, 4)}
    assert "transpose" not in op_types(after.program)
    assert is_state(after.function("main").inputs["held"])


def test_what_has_no_length_yet_stays() -> None:
    @mb.program(input_specs=[mb.TensorSpec((1, get_new_symbol(), 8), types.fp32)], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        return mb.relu(x=mb.linear(x=x, weight=weight(4, 8)), name="y")

    after, _ = laid_out(load(program))
    assert LAYOUT_KEY not in after.metadata
    assert [len(shape) for shape in shapes(after, "main").values()] == [3, 3]


def test_what_nothing_is_gained_by_stays() -> None:
    """An output that is needed as it was, an input that is an output too."""

    @mb.program(input_specs=[mb.TensorSpec((1, 4, 6), types.fp32)], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        y = mb.linear(x=x, weight=weight(6, 6), name="y")
        z = mb.gather(x=y, indices=np.array([2, 0], np.int32), axis=1)
        return y, mb.linear(x=z, weight=weight(3, 6), name="z"), x

    after, _ = laid_out(load(program))
    assert shapes(after, "main") == {"x": (1, 4, 6), "y": (1, 4, 6), "z": (1, 3, 1, 2)}


def test_some_functions_alone_keep_theirs() -> None:
    model = decoder(stateful=True)
    LinearToConv().run(model)
    before = text(model, weights="hash")
    report = Pipeline((LayoutBc1s(io="free"),)).run(model, functions=["decode"])
    (miss,) = [each for each in report.all_misses() if each.declined and each.rule != "move"]
    assert miss.reason == "the pass runs on some functions only: inputs, outputs and states keep their layouts"
    assert LAYOUT_KEY not in model.metadata
    assert before.partition("prefill4")[2] == text(model, weights="hash").partition("prefill4")[2]


def test_again_changes_nothing() -> None:
    after, _ = laid_out(decoder(stateful=True, queries=(4,)))
    before = text(after, weights="hash")
    report = LayoutBc1s(io="free").run(after)
    assert not report
    assert text(after, weights="hash") == before
    assert [miss.reason for miss in report.misses if miss.rule != "move"] == [
        "some have other layouts already: inputs, outputs and states keep their layouts"
    ]


def test_what_can_not_be_read() -> None:
    for wrong in ("[]", '{"main":{"x":[[2,3],[2,3],[0,0],[3,2]]}}', '{"main":{"x":[[2,3]]}}', "{"):
        with pytest.raises(PackageError, match=r"metadata 'milopt\.layout' does not describe layouts"):
            LayoutSignature.from_metadata({LAYOUT_KEY: wrong})


def test_a_cache_along_an_axis_that_its_state_lacks() -> None:
    after, _ = laid_out(decoder(stateful=True, queries=(4,)))
    flat = {"prefill4": {"key_cache": [[8, 4], [8, 4], [1, 0], [4, 8]]}}
    after.metadata[LAYOUT_KEY] = json.dumps(flat)
    with pytest.raises(PackageError, match=r"metadata 'milopt\.layout' says nothing of axis 3 of state 'key_cache'"):
        Session(after)


# The minimum, with inputs, outputs and states to choose as well.


def stateful(rows: int, length: int, heads: int, turned: bool, fused: bool, whole: bool = True) -> Model:
    """Attention over a state, written at the front, of which one row of several is this layer's; or just its scores."""
    slots, head, width = 5, 2, 3
    state = mb.StateTensorSpec((rows, heads, slots, head), types.fp16)

    def projected(x: Any) -> Any:
        x = mb.linear(x=x, weight=weight(heads * head, width).astype(np.float16))
        return mb.transpose(x=mb.reshape(x=x, shape=[1, length, heads, head]), perm=[0, 2, 1, 3])

    @mb.program(input_specs=[mb.TensorSpec((1, length, width), types.fp16), state], opset_version=target.iOS18)
    def program(x: Any, held: Any) -> Any:
        keys = mb.read_state(input=held)
        keys = mb.slice_update(x=keys, update=projected(x), begin=[rows - 1, 0, 0, 0], end=[rows, heads, length, head])
        keys = mb.coreml_update_state(state=held, value=keys)
        keys = mb.slice_by_index(x=keys, begin=[rows - 1, 0, 0, 0], end=[rows, heads, slots, head])
        query = projected(x)
        if fused:
            y = mb.scaled_dot_product_attention(query=query, key=keys, value=keys)
        else:
            scores = mb.matmul(x=keys, y=query, transpose_y=True) if turned else None
            scores = mb.matmul(x=query, y=keys, transpose_y=True) if scores is None else scores
            if not whole:
                return mb.relu(x=scores, name="y")
            shares = mb.softmax(x=scores, axis=2 if turned else 3)
            y = mb.matmul(x=shares, y=keys, transpose_x=turned)
        y = mb.reshape(x=mb.transpose(x=y, perm=[0, 2, 1, 3]), shape=[1, length, heads * head])
        return mb.linear(x=y, weight=weight(width, heads * head).astype(np.float16), name="y")

    model = load(program)
    LinearToConv().run(model)
    return model


SIZES = (st.integers(1, 2), st.integers(1, 3), st.integers(1, 2), st.booleans())
SMALL = st.builds(stateful, *SIZES, st.booleans(), st.just(False))
STATEFUL = st.builds(stateful, *SIZES, st.booleans())


def free(model: Model) -> Graph:
    return next(iter(read_free(model.functions, 64, {}).values())).graph


# tried one by one, at some 100 µs each
MOST = 3000


def is_least(graph: Graph) -> bool:
    modes = graph.modes()
    assume(prod(map(len, modes)) <= MOST)
    choice = graph.choose()
    assert graph.cost_of(choice.modes) == pytest.approx(choice.cost)
    return choice.cost == pytest.approx(brute_force(graph, modes))


@settings(max_examples=20, deadline=None, phases=PHASES, suppress_health_check=CHECKS)
@given(attentions())
def test_nothing_is_cheaper(program: Any) -> None:
    model = load(program)
    LinearToConv().run(model)
    assert is_least(free(model))


@settings(max_examples=15, deadline=None, phases=PHASES, suppress_health_check=CHECKS)
@given(SMALL)
def test_no_order_of_a_state_is_cheaper(model: Model) -> None:
    assert is_least(free(model))


@settings(max_examples=15, deadline=None, phases=PHASES, suppress_health_check=CHECKS)
@given(STATEFUL)
def test_another_solver_finds_nothing_cheaper(model: Model) -> None:
    graph = free(model)
    problem, _ = graph.problem(graph.modes())
    assume(problem.sizes)
    cost, _ = integers(problem)
    assert graph.choose().cost == pytest.approx(cost)


@settings(max_examples=15, deadline=None, phases=PHASES, suppress_health_check=CHECKS)
@given(STATEFUL, st.data())
def test_no_other_layout_is_worth_having(model: Model, data: Any) -> None:
    graph = free(model)
    also = [(number, data.draw(layouts(len(tensor.sizes)))) for number, tensor in enumerate(graph.tensors)]
    # inputs and outputs could be any of these as well, and as cheaply: what is moved between them is what counts
    assert graph.choose(also).cost == pytest.approx(graph.choose().cost)


@settings(max_examples=15, deadline=None, phases=PHASES, suppress_health_check=CHECKS)
@given(STATEFUL)
def test_attention_over_a_state_stays_the_same(model: Model) -> None:
    laid_out(model, "layout-bc1s{io=free}")
