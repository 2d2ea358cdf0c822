"""kv-to-state: the same tokens through past/present inputs and through states, and what it stays away from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milopt.interpreter import evaluate, make_state
from milopt.mil import Function, Program, get_new_symbol, mb, target, types
from milopt.package import Model, load
from milopt.passes.attention import FuseAttention
from milopt.passes.cache import KvToState, find_pairs
from milopt.reports import Report
from milopt.rules import apply
from milopt.signature import CacheSignature
from milopt.text import text

from .support import op_types

HEADS, GROUPS, CONTEXT, SIZE = 4, 2, 8, 4
WIDTH = HEADS * SIZE
HIDDEN = -1e4

Hook = Callable[..., Any]


def decoder(
    query: int = 2,
    *,
    layers: int = 2,
    dtype: type = types.fp16,
    opset: Any = target.iOS18,
    masked: bool = True,
    casts: bool = False,
    axis: int = 2,
    extra: Hook | None = None,
    swap: bool = False,
    interleave: bool = False,
    shared: int | None = None,
    batch: int = 1,
    groups: int | None = None,
    length: Any = None,
    unmasked: int | None = None,
) -> Program:
    """A decoder of ``layers`` attentions with grouped heads, the cache as past inputs and present outputs."""
    rng = np.random.default_rng(0)
    past = CONTEXT - query if length is None else length
    outer = types.fp32 if casts else dtype
    float_type = np.float16 if dtype is types.fp16 else np.float32
    inputs = {"x": mb.placeholder((batch, query, WIDTH), dtype), "mask": mb.placeholder((1, 1, query, CONTEXT), dtype)}
    for layer in range(layers):
        for kind in ("key", "value"):
            count = groups if layer and groups else GROUPS
            inputs[f"past_{kind}_{layer}"] = mb.placeholder((batch, count, past, SIZE), outer)

    def linear(x: Any, width: int) -> Any:
        return mb.linear(x=x, weight=rng.standard_normal((width, WIDTH)).astype(float_type) / 4)

    def heads(x: Any, count: int) -> Any:
        return mb.transpose(x=mb.reshape(x=x, shape=[batch, query, count, SIZE]), perm=[0, 2, 1, 3])

    def repeat(x: Any) -> Any:
        wide = mb.tile(x=mb.expand_dims(x=x, axes=[2]), reps=[1, 1, HEADS // int(x.shape[1]), 1, 1])
        return mb.reshape(x=wide, shape=[batch, HEADS, CONTEXT, SIZE])

    with Function(inputs, opset_version=opset) as function:
        args = function.inputs
        x, presents = args["x"], list[Any]()
        for layer in range(layers):
            q = heads(linear(x, WIDTH), HEADS)
            count = groups if layer and groups else GROUPS
            cached: dict[str, Any] = {}
            for kind in ("key", "value"):
                old, new = args[f"past_{kind}_{layer}"], heads(linear(x, count * SIZE), count)
                if casts:
                    old = mb.cast(x=old, dtype="fp16")
                values = (new, old) if swap else (old, new)
                name = f"cat_{kind}_{layer}" if casts else f"present_{kind}_{layer}"
                present = mb.concat(values=values, axis=axis, interleave=interleave, name=name)
                cached[kind] = present
                presents.append(mb.cast(x=present, dtype="fp32", name=f"present_{kind}_{layer}") if casts else present)
            if layer == shared:
                cached["value"] = cached["key"]
            scores = mb.mul(x=mb.matmul(x=q, y=repeat(cached["key"]), transpose_y=True), y=float_type(0.25))
            if masked and layer != unmasked:
                scores = mb.add(x=scores, y=args["mask"])
            mixed = mb.matmul(x=mb.softmax(x=scores, axis=-1), y=repeat(cached["value"]))
            merged = mb.reshape(x=mb.transpose(x=mixed, perm=[0, 2, 1, 3]), shape=[batch, query, WIDTH])
            x = mb.add(x=x, y=linear(merged, WIDTH), name=f"layer_{layer}")
        outputs = [x, *presents]
        if extra is not None:
            outputs.append(extra(args, presents))
        function.set_outputs(outputs)
    program = Program()
    program.add_function("main", function)
    return program


def rewritten(build: Callable[[], Program], **options: Any) -> tuple[Model, Report]:
    model = load(build())
    report = KvToState(**options).run(model)
    model.program.validate()
    return model, report


def drive(before: Program, after: Model, signature: CacheSignature, *, steps: int, seed: int = 0) -> None:
    """Feed the same vectors to both, block by block, and compare what comes out and what is kept.

    1e-12: float64 on programs with equal constants, whose only difference is the order of one sum.
    """
    rng = np.random.default_rng(seed)
    query, axis = before.functions["main"].inputs["x"].shape[1], signature.axis
    past = CONTEXT - query
    batch = before.functions["main"].inputs["x"].shape[0]
    kept = {slot.past: np.zeros((batch, GROUPS, CONTEXT, SIZE)) for slot in signature.slots}
    state = make_state(after)
    for step in range(steps):
        start = step * query
        x = rng.standard_normal((batch, query, WIDTH))
        slots = np.arange(CONTEXT, dtype=np.int64)
        visible = slots[None, :] <= start + np.arange(query, dtype=np.int64)[:, None]
        by_slot = np.where(visible, rng.standard_normal((query, CONTEXT)), HIDDEN)[None, None]
        # [past | new]: slots 0..past are the past's columns, those of the new tokens stand behind it
        columns = np.where(slots[:past] < start, by_slot[..., :past], HIDDEN)
        by_column = np.concatenate([columns, by_slot[..., start : start + query]], axis=-1)
        first = evaluate(
            before,
            {"x": x, "mask": by_column, **{name: array[:, :, :past] for name, array in kept.items()}},
            precision="float64",
        )
        position = np.array([start], np.int32)
        second = evaluate(
            after, {"x": x, "mask": by_slot, signature.position: position}, state=state, precision="float64"
        )
        assert set(second) == {name for name in first if not name.startswith("present")}
        for name, value in second.items():
            np.testing.assert_allclose(value, first[name], rtol=1e-12, atol=1e-12)
        for slot in signature.slots:
            kept[slot.past][:, :, start : start + query] = first[slot.present][:, :, past:]
            rows = state.numpy(slot.state)[slot.row : slot.row + slot.rows]
            np.testing.assert_allclose(rows, kept[slot.past], rtol=1e-12, atol=1e-12)
    assert axis == 2


@pytest.mark.parametrize("states", ["pair", "unified"])
@pytest.mark.parametrize("query", [1, 2, 4])
@pytest.mark.parametrize("fuse", [False, True])
def test_same_tokens_same_numbers(states: str, query: int, fuse: bool) -> None:
    def build() -> Program:
        program = decoder(query)
        if fuse:
            assert apply(FuseAttention(), program).applied == 2
        return program

    model, report = rewritten(build, layout=states)
    assert report.applied == 4, str(report)
    assert report.signature is not None
    drive(build(), model, report.signature, steps=CONTEXT // query)
    kinds = op_types(model.program)
    assert (kinds.count("slice_update"), kinds.count("coreml_update_state")) == (4, 4)
    expected = {"pair": {"key_cache", "value_cache"}, "unified": {"kv_cache"}}[states]
    assert {name for name in model.function().inputs if name.endswith("cache")} == expected


@pytest.mark.parametrize("states", ["pair", "unified"])
def test_a_batch_has_as_many_rows(states: str) -> None:
    model, report = rewritten(lambda: decoder(batch=3), layout=states)
    assert report.signature is not None
    drive(decoder(batch=3), model, report.signature, steps=4)
    rows = [(slot.row, slot.rows) for slot in report.signature.slots]
    assert rows == {"pair": [(0, 3), (0, 3), (3, 3), (3, 3)], "unified": [(0, 3), (6, 3), (3, 3), (9, 3)]}[states]


def test_keys_come_first_in_the_unified_state() -> None:
    _, report = rewritten(decoder, layout="unified")
    assert report.signature is not None
    rows = {slot.past: slot.row for slot in report.signature.slots}
    assert rows == {"past_key_0": 0, "past_key_1": 1, "past_value_0": 2, "past_value_1": 3}


def test_a_layer_without_a_mask_attends_over_slots_that_were_never_written() -> None:
    model = load(decoder(unmasked=1))
    report = KvToState().run(model)
    assert not report
    assert [miss.reason for miss in report.misses] == ["no mask hides the slots that are not written yet"]


def test_casts_around_the_cache_are_seen_through() -> None:
    model, report = rewritten(lambda: decoder(casts=True))
    assert report.applied == 4, str(report)
    assert report.signature is not None
    drive(decoder(casts=True), model, report.signature, steps=4)


def test_the_mask_means_something_else_afterwards() -> None:
    """The same mask fed to both programs gives different numbers: that is why the signature is declared."""
    model, report = rewritten(lambda: decoder(layers=1))
    assert report.signature is not None
    assert report.signature.masks == ("mask",)
    rng = np.random.default_rng(1)
    x, mask = rng.standard_normal((1, 2, WIDTH)), 30 * rng.standard_normal((1, 1, 2, CONTEXT))
    past = {slot.past: rng.standard_normal((1, GROUPS, CONTEXT - 2, SIZE)) for slot in report.signature.slots}
    state = make_state(model)
    for slot in report.signature.slots:
        state[slot.state] = np.concatenate([past[slot.past], np.zeros((1, GROUPS, 2, SIZE))], axis=2)
    first = evaluate(decoder(layers=1), {"x": x, "mask": mask, **past}, precision="float64")["layer_0"]
    position = np.array([2], np.int32)  # the new tokens take slots 2 and 3, where two of the past's columns stood
    inputs: dict[str, Any] = {"x": x, "mask": mask, report.signature.position: position}
    second = evaluate(model, inputs, state=state, precision="float64")["layer_0"]
    assert np.abs(first - second).max() > 0.1


def test_descriptions_and_metadata_say_what_changed() -> None:
    model, report = rewritten(decoder)
    assert CacheSignature.from_metadata(model.metadata) == report.signature
    assert model.text_of(None, "mask") == (
        "Mask over the 8 slots of the states: column j is slot j, "
        "and the new tokens are slots current_pos and following."
    )
    assert model.text_of(None, "current_pos") == (
        "The first slot the new tokens are written to; current_pos + Q must not exceed 8."
    )


def test_what_was_said_of_a_mask_is_kept() -> None:
    model = load(decoder())
    model.describe("main", "mask", "0 where a query may look.")
    assert KvToState().run(model)
    assert model.text_of(None, "mask") == (
        "0 where a query may look. (since kv-to-state: mask over the 8 slots of the states: column j is slot j, "
        "and the new tokens are slots current_pos and following)"
    )


def _past_used(args: Any, presents: Any) -> Any:
    return mb.relu(x=args["past_key_0"], name="peek")


def _columns_used(args: Any, presents: Any) -> Any:
    return mb.slice_by_index(x=presents[0], begin=[0, 0, 6, 0], end=[1, GROUPS, 8, SIZE], name="last")


def _order_kept(args: Any, presents: Any) -> Any:
    return mb.cumsum(x=presents[0], axis=2, name="sums")


def _returned(args: Any, presents: Any) -> Any:
    return mb.relu(x=presents[0], name="twice")


def _sum_is_fine(args: Any, presents: Any) -> Any:
    return mb.reduce_sum(x=presents[0], axes=[2], name="sums")


def _past_returned(args: Any, presents: Any) -> Any:
    return mb.cast(x=args["past_key_0"], dtype="fp32", name="peek")


def _attention_without_a_mask(args: Any, presents: Any) -> Any:
    query = mb.reduce_max(x=args["x"], axes=[2], keep_dims=True)
    query = mb.tile(x=mb.expand_dims(x=query, axes=[1]), reps=[1, GROUPS, 1, SIZE])
    return mb.scaled_dot_product_attention(query=query, key=presents[0], value=presents[1], name="mixed")


REFUSALS: dict[str, tuple[dict[str, Any], str, str]] = {
    "fp32 cache": ({"dtype": types.fp32}, "present_key_0", "the cache is fp32, and states are fp16"),
    "old opset": ({"opset": target.iOS17}, "present_key_0", "needs iOS18, the function is iOS17"),
    "no mask": ({"masked": False}, "present_key_0", "no mask hides the slots that are not written yet"),
    "one attention without a mask": (
        {"extra": _attention_without_a_mask},
        "present_key_0",
        "no mask hides the slots that are not written yet",
    ),
    "past used": ({"extra": _past_used}, "past_key_0", "the past is also used elsewhere"),
    "past returned": ({"extra": _past_returned}, "past_key_0", "the past is also used elsewhere"),
    "columns used": ({"extra": _columns_used}, "last", "it takes some of the slots"),
    "order used": ({"extra": _order_kept}, "sums", "cumsum may depend on the order of the cache's columns"),
    "columns returned": (
        {"extra": _returned},
        "twice",
        "its columns are in the order of the cache, and it is an output",
    ),
    "other groups": (
        {"groups": 4},
        "present_key_1",
        "is (1, 4, 8, 4), but another cached tensor is (1, 2, 8, 4)",
    ),
    "one tensor for keys and values": ({"shared": 1}, "present_value_1", "is it a key or a value?"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses_with_its_reason(case: str) -> None:
    options, place, reason = REFUSALS[case]
    before = text(decoder(**options))
    model, report = rewritten(lambda: decoder(**options))
    assert not report
    assert report.tried == 2 * options.get("layers", 2)
    assert [(miss.function, miss.place, miss.reason) for miss in report.misses] == [("main", place, reason)]
    assert text(model) == before
    assert not model.metadata


def cached(values: Callable[[Any, Any], list[Any]], *, shape: tuple[Any, ...], axis: int, **options: Any) -> Program:
    """One concat of a past and something new, and nothing that uses it."""

    @mb.program(
        input_specs=[mb.TensorSpec(shape, types.fp16), mb.TensorSpec(shape, types.fp16)], opset_version=target.iOS18
    )
    def program(past: Any, x: Any) -> Any:
        return mb.concat(values=values(past, mb.relu(x=x)), axis=axis, name="present", **options)

    return program


def test_shapes_that_are_not_static_are_refused() -> None:
    def build() -> Program:
        return cached(lambda past, new: [past, new], shape=(1, 2, get_new_symbol(), 4), axis=2)

    _, report = rewritten(build, read="full")
    assert [(miss.place, miss.reason) for miss in report.misses] == [("present", "its shape is not static")]


def test_slots_in_the_first_axis_are_refused() -> None:
    _, report = rewritten(lambda: cached(lambda past, new: [past, new], shape=(3, 2, 4, 4), axis=-4))
    assert [(miss.place, miss.reason) for miss in report.misses] == [("present", "the slots are the first axis")]


def test_slots_in_the_second_axis_are_no_obstacle_themselves() -> None:
    _, report = rewritten(lambda: cached(lambda past, new: [past, new], shape=(3, 2, 4, 4), axis=1))
    assert [miss.reason for miss in report.misses] == ["no mask hides the slots that are not written yet"]


@pytest.mark.parametrize(
    "program",
    [
        cached(lambda past, new: [past, new], shape=(1, 2, 3, 4), axis=2, interleave=True),
        cached(lambda past, new: [past, new, new], shape=(1, 2, 3, 4), axis=2),
        cached(lambda past, new: [past], shape=(1, 2, 3, 4), axis=2),
    ],
    ids=["interleaved", "three", "one"],
)
def test_other_concats_are_no_cache(program: Program) -> None:
    report = KvToState().run(load(program))
    assert (report.tried, report.notes) == (0, ["main: no output is a concat of an input and something new"])


def test_an_inner_concat_is_no_cache() -> None:
    @mb.program(input_specs=[mb.TensorSpec((1, 2, 3, 4), types.fp16)] * 2, opset_version=target.iOS18)
    def program(past: Any, x: Any) -> Any:
        return mb.reduce_sum(x=mb.concat(values=[past, x], axis=2))

    assert list(find_pairs(program.functions["main"])) == []


def test_pairs() -> None:
    (pair,) = find_pairs(
        cached(lambda past, new: [past, new], shape=(1, 2, 3, 4), axis=-2).functions["main"],
    )
    assert (pair.past, pair.present, pair.axis, pair.var.name) == ("past", "present", 2, "present")
    assert pair.new.op is not None
    assert pair.new.op.op_type == "relu"


def test_what_does_not_depend_on_the_order_is_no_obstacle() -> None:
    _, report = rewritten(lambda: decoder(extra=_sum_is_fine))
    assert report.applied == 4, str(report)


def test_new_before_old_is_not_a_cache() -> None:
    _, report = rewritten(lambda: decoder(swap=True))
    assert not report
    assert report.notes == ["main: no output is a concat of an input and something new"]


def test_a_name_that_is_taken_is_refused() -> None:
    _, report = rewritten(decoder, position="x")
    assert [(miss.function, miss.place, miss.reason) for miss in report.misses] == [
        ("main", "present_key_0", "there is an input named x already")
    ]


def test_functions_are_rewritten_together_or_not_at_all() -> None:
    def two(other: Program) -> Program:
        program = decoder(2)
        program.functions["decode"] = other.functions["main"]
        return program

    model, report = rewritten(lambda: two(decoder(1)))
    assert report.applied == 8
    assert "read_state" in op_types(model.program, "decode")
    _, report = rewritten(lambda: two(decoder(1, layers=1)))
    assert not report
    reason = "not every function of the program has the same cache"
    assert [(miss.function, miss.place, miss.reason) for miss in report.misses] == [("main", "", reason)]


def test_a_function_without_a_cache_keeps_all_from_having_states() -> None:
    def build() -> Program:
        program = decoder(2)
        plain = cached(lambda past, new: [new], shape=(1, 2, 3, 4), axis=2)
        program.functions["plain"] = plain.functions["main"]
        return program

    before = text(build())
    model, report = rewritten(build)
    assert (report.applied, report.tried) == (0, 4)
    reason = "not every function of the program has the same cache"
    assert [(miss.function, miss.place, miss.reason) for miss in report.misses] == [("main", "", reason)]
    assert report.notes == ["plain: no output is a concat of an input and something new"]
    assert text(model) == before


@pytest.mark.parametrize("cache", [True, False])
def test_some_functions_alone_are_refused(cache: bool) -> None:
    """The states would be those of one function, and the other would go on with inputs."""
    program = decoder(2) if cache else cached(lambda past, new: [new], shape=(1, 2, 3, 4), axis=2)
    program.functions["decode"] = decoder(1).functions["main"]
    model = load(program)
    before = text(model)
    with model.only(["main"]):
        report = KvToState().run(model)
    assert not report
    reason = "the pass runs on some functions only, and the cache is of all"
    expected = [("main", "", reason)] if cache else []
    assert [(miss.function, miss.place, miss.reason) for miss in report.misses] == expected
    assert (text(model), model.metadata) == (before, {})


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((1, 2, get_new_symbol(), 4), types.fp16, "its shape is not static"),
        ((1, 2, 3, 4), types.fp32, "the cache is fp32, and states are fp16"),
    ],
)
def test_the_second_tensor_is_looked_at_too(shape: Any, dtype: type, reason: str) -> None:
    kinds = [((1, 2, 3, 4), types.fp16)] * 2 + [(shape, dtype)] * 2

    @mb.program(input_specs=[mb.TensorSpec(*each) for each in kinds], opset_version=target.iOS18)
    def program(past: Any, x: Any, other: Any, y: Any) -> Any:
        first = mb.concat(values=[past, mb.relu(x=x)], axis=2, name="first")
        return first, mb.concat(values=[other, mb.relu(x=y)], axis=2, name="second")

    report = KvToState().run(load(program))
    assert [(miss.place, miss.reason) for miss in report.misses] == [("second", reason)]


def test_no_function_with_a_cache_is_no_reason() -> None:
    model, report = rewritten(lambda: cached(lambda past, new: [new], shape=(1, 2, 3, 4), axis=2))
    assert (report.misses, report.signature, model.metadata) == ([], None, {})


def test_golden() -> None:
    model, _ = rewritten(lambda: decoder(1, layers=1))
    words = ("read_state", "slice", "update_state", "current_pos", "concat")
    signature, *body = text(model).splitlines()
    assert "%current_pos: int32[1], %key_cache: state<fp16[1, 2, 8, 4]>, %value_cache: state<" in signature
    lines = [line for line in body if any(word in line for word in words)]
    assert "\n".join(lines) + "\n" == GOLDEN


GOLDEN = """\
  %6: int32[1] = add(x=%current_pos, y=[1])
  %7: fp16[1, 2, 8, 4] = read_state(input=%key_cache)
  %8: int32[4] = concat(values=([0, 0], %current_pos, [0]), axis=0)
  %9: int32[4] = concat(values=([1, 2], %6, [4]), axis=0)
  %10: fp16[1, 2, 8, 4] = slice_update(x=%7, update=%5, begin=%8, end=%9)
  %11: fp16[1, 2, 8, 4] = coreml_update_state(state=%key_cache, value=%10)
  %12: fp16[1, 2, 8, 4] = slice_by_index(x=%11, begin=[0, 0, 0, 0], end=[1, 2, 8, 4])
  %16: fp16[1, 2, 8, 4] = read_state(input=%value_cache)
  %17: fp16[1, 2, 8, 4] = slice_update(x=%16, update=%15, begin=%8, end=%9)
  %18: fp16[1, 2, 8, 4] = coreml_update_state(state=%value_cache, value=%17)
  %19: fp16[1, 2, 8, 4] = slice_by_index(x=%18, begin=[0, 0, 0, 0], end=[1, 2, 8, 4])
"""


def test_names() -> None:
    """Those of the values that go are free; a name that is taken gets a number."""

    def taken(args: Any, presents: Any) -> Any:
        return mb.relu(x=mb.abs(x=args["x"], name="key_cache_read"), name="current_pos_end")

    model, _ = rewritten(lambda: decoder(1, layers=1, extra=taken))
    function = model.function()
    names = [op.name for op in function.operations if op.op_type in ("read_state", "add", "slice_by_index")]
    names = [name for name in names if not name.startswith("add_")]
    assert names == [
        "current_pos_end_1",
        "key_cache_read_1",
        "present_key_0_slots",
        "value_cache_read",
        "present_value_0_slots",
        "layer_0",
    ]
    assert list(function.inputs) == ["x", "mask", "current_pos", "key_cache", "value_cache"]
    assert [var.name for var in function.outputs] == ["layer_0", "current_pos_end"]
    assert {name: tuple(var.shape) for name, var in function.inputs.items()} == {
        "x": (1, 1, WIDTH),
        "mask": (1, 1, 1, CONTEXT),
        "current_pos": (1,),
        "key_cache": (1, GROUPS, CONTEXT, SIZE),
        "value_cache": (1, GROUPS, CONTEXT, SIZE),
    }


@settings(max_examples=15, deadline=None)
@given(query=st.sampled_from([1, 2, 4]), layers=st.integers(1, 3), fuse=st.booleans(), seed=st.integers(0, 9))
def test_every_decoder_agrees(query: int, layers: int, fuse: bool, seed: int) -> None:
    def build() -> Program:
        program = decoder(query, layers=layers)
        if fuse:
            apply(FuseAttention(), program)
        return program

    model, report = rewritten(build)
    assert report.signature is not None
    drive(build(), model, report.signature, steps=2, seed=seed)
