"""kv-to-state: the same tokens through past/present inputs and through states, and what it stays away from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milopt.interpreter import evaluate, make_state
from milopt.mil import Function, Program, mb, target, types
from milopt.package import Model, load
from milopt.passes.attention import FuseAttention
from milopt.passes.cache import KvToState
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
) -> Program:
    """A decoder of ``layers`` attentions with grouped heads, the cache as past inputs and present outputs."""
    rng = np.random.default_rng(0)
    past = CONTEXT - query
    outer = types.fp32 if casts else dtype
    float_type = np.float16 if dtype is types.fp16 else np.float32
    inputs = {"x": mb.placeholder((1, query, WIDTH), dtype), "mask": mb.placeholder((1, 1, query, CONTEXT), dtype)}
    for layer in range(layers):
        for kind in ("key", "value"):
            inputs[f"past_{kind}_{layer}"] = mb.placeholder((1, GROUPS, past, SIZE), outer)

    def linear(x: Any, width: int) -> Any:
        return mb.linear(x=x, weight=rng.standard_normal((width, WIDTH)).astype(float_type) / 4)

    def heads(x: Any, count: int) -> Any:
        return mb.transpose(x=mb.reshape(x=x, shape=[1, query, count, SIZE]), perm=[0, 2, 1, 3])

    def repeat(x: Any) -> Any:
        wide = mb.tile(x=mb.expand_dims(x=x, axes=[2]), reps=[1, 1, HEADS // GROUPS, 1, 1])
        return mb.reshape(x=wide, shape=[1, HEADS, CONTEXT, SIZE])

    with Function(inputs, opset_version=opset) as function:
        args = function.inputs
        x, presents = args["x"], list[Any]()
        for layer in range(layers):
            q = heads(linear(x, WIDTH), HEADS)
            cached: dict[str, Any] = {}
            for kind in ("key", "value"):
                old, new = args[f"past_{kind}_{layer}"], heads(linear(x, GROUPS * SIZE), GROUPS)
                if casts:
                    old = mb.cast(x=old, dtype="fp16")
                values = (new, old) if swap else (old, new)
                name = f"cat_{kind}_{layer}" if casts else f"present_{kind}_{layer}"
                present = mb.concat(values=values, axis=axis, name=name)
                cached[kind] = present
                presents.append(mb.cast(x=present, dtype="fp32", name=f"present_{kind}_{layer}") if casts else present)
            scores = mb.mul(x=mb.matmul(x=q, y=repeat(cached["key"]), transpose_y=True), y=float_type(0.25))
            if masked:
                scores = mb.add(x=scores, y=args["mask"])
            mixed = mb.matmul(x=mb.softmax(x=scores, axis=-1), y=repeat(cached["value"]))
            merged = mb.reshape(x=mb.transpose(x=mixed, perm=[0, 2, 1, 3]), shape=[1, query, WIDTH])
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
    kept = {slot.past: np.zeros((1, GROUPS, CONTEXT, SIZE)) for slot in signature.slots}
    state = make_state(after)
    for step in range(steps):
        start = step * query
        x = rng.standard_normal((1, query, WIDTH))
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

    model, report = rewritten(build, states=states)
    assert report.applied == 4, str(report)
    assert report.signature is not None
    drive(build(), model, report.signature, steps=CONTEXT // query)
    kinds = op_types(model.program)
    assert (kinds.count("slice_update"), kinds.count("coreml_update_state")) == (4, 4)
    expected = {"pair": {"key_cache", "value_cache"}, "unified": {"kv_cache"}}[states]
    assert {name for name in model.function().inputs if name.endswith("cache")} == expected


def test_keys_come_first_in_the_unified_state() -> None:
    _, report = rewritten(decoder, states="unified")
    assert report.signature is not None
    rows = {slot.past: slot.row for slot in report.signature.slots}
    assert rows == {"past_key_0": 0, "past_key_1": 1, "past_value_0": 2, "past_value_1": 3}


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
    assert "column j is slot j" in model.text_of(None, "mask")
    assert "must not exceed 8" in model.text_of(None, "current_pos")


def _past_used(args: Any, presents: Any) -> Any:
    return mb.relu(x=args["past_key_0"], name="peek")


def _columns_used(args: Any, presents: Any) -> Any:
    return mb.relu(x=mb.slice_by_index(x=presents[0], begin=[0, 0, 6, 0], end=[1, GROUPS, 8, SIZE]), name="last")


def _order_kept(args: Any, presents: Any) -> Any:
    return mb.cumsum(x=presents[0], axis=2, name="sums")


def _returned(args: Any, presents: Any) -> Any:
    return mb.relu(x=presents[0], name="twice")


def _sum_is_fine(args: Any, presents: Any) -> Any:
    return mb.reduce_sum(x=presents[0], axes=[2], name="sums")


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "fp32 cache": ({"dtype": types.fp32}, "the cache is fp32, and states are fp16"),
    "old opset": ({"opset": target.iOS17}, "states need iOS18, the function is iOS17"),
    "no mask": ({"masked": False}, "no mask hides the slots that are not written yet"),
    "past used": ({"extra": _past_used}, "the past is also used elsewhere"),
    "columns used": ({"extra": _columns_used}, "it takes some of the slots"),
    "order used": ({"extra": _order_kept}, "cumsum may depend on the order of the cache's columns"),
    "columns returned": ({"extra": _returned}, "its columns are in the order of the cache, and it is an output"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses_with_its_reason(case: str) -> None:
    options, reason = REFUSALS[case]
    before = text(decoder(**options))
    model, report = rewritten(lambda: decoder(**options))
    assert not report
    assert reason in [miss.reason for miss in report.misses if miss.declined]
    assert text(model) == before
    assert not model.metadata


def test_what_does_not_depend_on_the_order_is_no_obstacle() -> None:
    _, report = rewritten(lambda: decoder(extra=_sum_is_fine))
    assert report.applied == 4, str(report)


def test_new_before_old_is_not_a_cache() -> None:
    _, report = rewritten(lambda: decoder(swap=True))
    assert not report
    assert report.notes == ["main: no output is a concat of an input and something new"]


def test_a_name_that_is_taken_is_refused() -> None:
    _, report = rewritten(decoder, position="x")
    assert [miss.reason for miss in report.misses] == ["there is an input named x already"]


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
    assert "not every function of the program has the same cache" in [miss.reason for miss in report.misses]


def test_golden() -> None:
    model, _ = rewritten(lambda: decoder(1, layers=1))
    words = ("read_state", "slice", "update_state", "current_pos", "concat")
    signature, *body = text(model).splitlines()
    assert "%current_pos: int32[1], %key_cache: state<fp16[1, 2, 8, 4]>, %value_cache: state<" in signature
    lines = [line for line in body if any(word in line for word in words)]
    assert "\n".join(lines) + "\n" == GOLDEN


GOLDEN = """\
  %6: fp16[1, 2, 8, 4] = read_state(input=%key_cache)
  %7: fp16[1, 2, 8, 4] = read_state(input=%value_cache)
  %8: int32[1] = add(x=%current_pos, y=[1])
  %9: int32[4] = concat(values=([0, 0], %current_pos, [0]), axis=0)
  %10: int32[4] = concat(values=([1, 2], %8, [4]), axis=0)
  %11: fp16[1, 2, 8, 4] = slice_update(x=%6, update=%5, begin=%9, end=%10)
  %12: fp16[1, 2, 8, 4] = coreml_update_state(state=%key_cache, value=%11)
  %13: fp16[1, 2, 8, 4] = slice_by_index(x=%12, begin=[0, 0, 0, 0], end=[1, 2, 8, 4])
  %17: fp16[1, 2, 8, 4] = slice_update(x=%7, update=%16, begin=%9, end=%10)
  %18: fp16[1, 2, 8, 4] = coreml_update_state(state=%value_cache, value=%17)
  %19: fp16[1, 2, 8, 4] = slice_by_index(x=%18, begin=[0, 0, 0, 0], end=[1, 2, 8, 4])
"""


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
