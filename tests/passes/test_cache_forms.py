"""kv-to-state on caches of every kind: layouts, updates, rings; the same tokens through both forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from milopt.interpreter import evaluate, make_state
from milopt.mil import Program, is_state, mb, shape_of, target, types
from milopt.package import Model, load
from milopt.passes.cache import KvToState
from milopt.reports import Report
from milopt.text import text
from milopt.verify import compare

from .cache_programs import CONTEXT, GROUPS, SIZE, WIDTH, Layer, flexible, model
from .support import op_types


def agree(made: Model, *, trials: int = 3, **options: Any) -> tuple[Model, Report]:
    """The rewritten model, after the same tokens went through both."""
    before = made.clone()
    report = KvToState(**options).run(made)
    assert report, str(report)
    made.program.validate()
    verdict = compare(before, made, trials=trials, signature=report.signature)
    assert verdict, str(verdict)
    return made, report


def states_of(made: Model) -> dict[str, tuple[Any, ...]]:
    return {name: shape_of(var) for name, var in made.function().inputs.items() if is_state(var)}


LAYOUTS = {
    "pair": {"key_cache": (2, GROUPS, CONTEXT, SIZE), "value_cache": (2, GROUPS, CONTEXT, SIZE)},
    "unified": {"kv_cache": (4, GROUPS, CONTEXT, SIZE)},
    "per-layer": {f"{kind}_cache_{at}": (1, GROUPS, CONTEXT, SIZE) for at in (0, 1) for kind in ("key", "value")},
}


@pytest.mark.parametrize("update", ["slice", "mask", "ring"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_and_updates(layout: str, update: str) -> None:
    made, report = agree(model(), layout=layout, update=update)
    assert report.applied == 8
    assert states_of(made) == LAYOUTS[layout]
    kinds = op_types(made.program, "q4")
    assert kinds.count("coreml_update_state") == 4
    assert ("select" in kinds) == (update == "mask")


FORMS: dict[str, list[Layer]] = {
    "keys transposed": [Layer(transposed=True), Layer(transposed=True)],
    "keys and values together": [Layer(together=True), Layer(together=True)],
    "some layers": [Layer(cached=False), Layer(), Layer(cached=False), Layer()],
    "only the new columns go out": [Layer(returned="new"), Layer(returned="new")],
    "some of each": [Layer(), Layer(transposed=True, returned="new")],
    "other heads in each layer": [Layer(), Layer(groups=4)],
}


@pytest.mark.parametrize("update", ["slice", "mask"])
@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str, update: str) -> None:
    layout = "per-layer" if form in ("some of each", "other heads in each layer") else "pair"
    agree(model(layers=FORMS[form]), update=update, layout=layout)


ROLLING = [Layer(kept=5, returned="kept"), Layer(kept=5, returned="kept")]
MIXED = [Layer(kept=5, returned="kept"), Layer()]
SLIDING = [Layer(sliding=True), Layer()]


@pytest.mark.parametrize("update", ["slice", "mask"])
@pytest.mark.parametrize("layers", [ROLLING, MIXED], ids=["rolling", "mixed"])
def test_a_past_that_forgets_becomes_a_ring(layers: list[Layer], update: str) -> None:
    made, report = agree(model(layers=layers), update=update, trials=6)
    # the 5 tokens kept, the one that is fed and 3 more of a call of 4
    assert states_of(made)["key_cache_local"] == (len([1 for each in layers if each.kept]), GROUPS, 9, SIZE)
    assert report.signature is not None
    assert report.signature.rings == (("last_5_mask", 9),)


@pytest.mark.parametrize("fused", [False, True])
def test_sliding_layers_become_rings(fused: bool) -> None:
    made, _ = agree(model(layers=SLIDING, window=4, fused=fused), update="ring", trials=6)
    assert states_of(made) == {
        "key_cache": (1, GROUPS, CONTEXT, SIZE),
        "value_cache": (1, GROUPS, CONTEXT, SIZE),
        "key_cache_local": (1, GROUPS, 7, SIZE),
        "value_cache_local": (1, GROUPS, 7, SIZE),
    }
    assert shape_of(made.function("q4").inputs["sliding_mask"]) == (1, 1, 4, 7)
    assert shape_of(made.function("q1").inputs["causal_mask"]) == (1, 1, 1, CONTEXT)


@pytest.mark.parametrize("position", ["current_pos", "position_ids", "causal_mask"])
def test_flexible_programs_read_a_prefix(position: str) -> None:
    made, report = agree(flexible(), position=position)
    assert report.signature is not None
    assert report.signature.prefix
    assert states_of(made) == LAYOUTS["pair"]


def test_what_masks_and_the_position_mean_is_said() -> None:
    made, _ = agree(model(layers=SLIDING, window=4), update="ring")
    assert made.text_of("q4", "sliding_mask") == (
        "Mask over the 7 slots of a ring: token t is in slot t mod 7, and column j is about the newest token "
        "t < current_pos + Q with t mod 7 = j, if there is one."
    )
    assert made.text_of("q4", "causal_mask").startswith("Mask over the 12 slots of the states: column j is slot j")
    assert made.text_of("q4", "current_pos") == (
        "The first slot the new tokens are written to; current_pos + Q must not exceed 12. "
        "Their slots in a ring are the remainders by its size."
    )
    made, _ = agree(model(layers=ROLLING))
    assert made.text_of("q4", "current_pos") == (
        "The position of the first new token, counted from 0; its slot is the remainder by the ring's size."
    )
    made, _ = agree(flexible())
    assert made.text_of(None, "causal_mask") == ""  # its columns are what they were
    assert made.text_of(None, "current_pos").startswith("The first slot the new tokens are written to")


def test_positions_tell_the_slot() -> None:
    made, report = agree(model(), position="position_ids")
    assert "current_pos" not in made.function().inputs
    assert report.signature is not None
    assert (report.signature.position, report.signature.counts) == ("", "position_ids")


@pytest.mark.parametrize("context", [8, 32])
def test_another_context(context: int) -> None:
    made, _ = agree(model(), context=context)
    assert states_of(made)["key_cache"] == (2, GROUPS, context, SIZE)
    assert shape_of(made.function().inputs["causal_mask"]) == (1, 1, 1, context)


REFUSALS: dict[str, tuple[Callable[[], Model], dict[str, Any], str]] = {
    "a prefix of fixed shapes": (
        model,
        {"read": "prefix"},
        "its shapes are fixed, and a prefix is as long as the conversation: read all slots",
    ),
    "no context for flexible shapes": (
        lambda: _without_metadata(flexible()),
        {},
        "its shape is flexible: say how many slots there are (context=N)",
    ),
    "a select in every slot for any number of tokens": (
        flexible,
        {"update": "mask"},
        "a call takes any number of tokens, and update=mask needs to know how many",
    ),
    "all slots of flexible shapes": (flexible, {"read": "full"}, "its shape is not static"),
    "a context shorter than a call": (model, {"context": 3}, "a call takes 4 tokens, the context is 3"),
    "a mask for the position": (model, {"position": "causal_mask"}, "there is an input named causal_mask already"),
    "a call longer than what is kept": (
        lambda: model((8,), [Layer(kept=5, returned="kept")]),
        {},
        "a call takes 8 tokens, and the past keeps 5",
    ),
    "one state for other heads": (
        lambda: model(layers=[Layer(), Layer(groups=4)]),
        {"layout": "unified"},
        "is (1, 4, 12, 4), but another cached tensor is (1, 2, 12, 4)",
    ),
    "one state for keys in another layout": (
        lambda: model(layers=[Layer(transposed=True)]),
        {"layout": "unified"},
        "is (1, 2, 12, 4), but another cached tensor is (1, 2, 4, 12)",
    ),
}


def _without_metadata(made: Model) -> Model:
    made.metadata.clear()
    return made


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses_with_its_reason(case: str) -> None:
    build, options, reason = REFUSALS[case]
    made = build()
    before = text(made)
    report = KvToState(**options).run(made)
    assert not report
    assert reason in [miss.reason for miss in report.misses]
    assert text(made) == before


def part_of_a_past(how: str) -> Program:
    half = types.fp32 if how == "cast" else types.fp16
    specs = [mb.TensorSpec((2, 2, 5, SIZE), half), mb.TensorSpec((1, 2, 1, SIZE), types.fp16)]

    @mb.program(input_specs=specs, opset_version=target.iOS18)
    def program(past: Any, x: Any) -> Any:
        new = mb.relu(x=x)
        if how == "moved":
            whole = mb.reshape(x=mb.transpose(x=past, perm=[0, 2, 1, 3]), shape=[1, 2, 10, SIZE])
            return mb.concat(values=[whole, new], axis=2, name="whole")
        held = mb.cast(x=past, dtype="fp16") if how == "cast" else past
        old = mb.slice_by_size(x=held, begin=[0, 0, 0, 0], size=[1, 2, 5, SIZE])
        if how == "computed":
            old = mb.relu(x=old)
        if how == "interleaved":
            old = mb.slice_by_index(x=old, begin=[0, 0, 0, 0], end=[1, 2, 1, SIZE])
        values = [old, new, new] if how == "three" else [old, new]
        whole = mb.concat(values=values, axis=2, interleave=how == "interleaved", name="whole")
        if how == "kept inside":
            return mb.reduce_sum(x=whole)
        stacked = mb.stack(values=[whole, whole], axis=0)
        return mb.squeeze(x=mb.cast(x=stacked, dtype="fp32"), axes=[1], name="present")

    return program


@pytest.mark.parametrize("how", ["stacked", "cast"])
def test_parts_of_a_past_that_go_out_beside_others(how: str) -> None:
    report = KvToState().run(load(part_of_a_past(how)))
    assert [miss.place for miss in report.misses] == ["past"]
    assert report.misses[0].reason.endswith("its parts overlap, differ in size, or are not all of it")


@pytest.mark.parametrize("how", ["moved", "computed", "interleaved", "three", "kept inside"])
def test_what_is_no_part_of_a_past(how: str) -> None:
    report = KvToState().run(load(part_of_a_past(how)))
    assert (report.misses, report.notes) == ([], ["main: no output is a concat of an input and something new"])


def last_columns(how: str) -> Program:
    """One layer that hands on 5 of 6 columns: the last, the first, or the last to another attention as well."""
    specs = [mb.TensorSpec((1, 2, rows, SIZE), types.fp16) for rows in (1, 5, 5)]
    masks = [mb.TensorSpec((1, 1, 1, 6), types.fp16), mb.TensorSpec((1, 1, 1, 5), types.fp16)]

    @mb.program(input_specs=[*specs, *masks], opset_version=target.iOS18)
    def program(x: Any, past_key: Any, past_value: Any, mask: Any, short_mask: Any) -> Any:
        wholes = [mb.concat(values=[past, mb.relu(x=x)], axis=2) for past in (past_key, past_value)]
        tails = [
            mb.slice_by_index(
                x=whole,
                begin=[0, 0, 1, 0],
                end=[1, 2, 5 if how == "first" else 6, SIZE],
                begin_mask=[False, False, how == "first", False],
                name=f"present_{at}",
            )
            for at, whole in enumerate(wholes)
        ]
        x = mb.scaled_dot_product_attention(query=x, key=wholes[0], value=wholes[1], attn_mask=mask)
        if how == "used":
            x = mb.scaled_dot_product_attention(query=x, key=tails[0], value=tails[1], attn_mask=short_mask)
        return (mb.identity(x=x, name="hidden"), *tails)

    return program


def test_what_hands_on_its_last_columns() -> None:
    assert KvToState().run(load(last_columns("last"))).applied == 2


@pytest.mark.parametrize("how", ["first", "used"])
def test_what_hands_on_other_columns_or_uses_them_is_no_cache(how: str) -> None:
    """A ring holds the last columns in another order, and more of them."""
    report = KvToState().run(load(last_columns(how)))
    assert report.notes == ["main: no output is a concat of an input and something new"]


def test_advice_has_the_number_of_its_constraint() -> None:
    layers = [Layer(kept=5, returned="kept"), Layer()]
    report = KvToState().run(model(layers=layers))
    assert report.notes == [
        "S4: 4 states; with more than 2 the Neural Engine fails at prediction",
        "S5: states of 2 different shapes fail on the Neural Engine of M1 and A14",
        "S6: 9 slots are no multiple of 32, and the Neural Engine may not load the model",
        "S6: 12 slots are no multiple of 32, and the Neural Engine may not load the model",
    ]
    assert KvToState().run(model(context=32)).notes == []


def test_a_window_as_long_as_the_context_needs_no_ring() -> None:
    made, _ = agree(model(layers=SLIDING, window=9), update="ring")
    assert states_of(made) == LAYOUTS["pair"]


@pytest.mark.parametrize("beside", [[], [Layer(kept=8, returned="kept")]], ids=["alone", "beside a ring as long"])
def test_a_mask_never_writes_beyond_the_context(beside: list[Layer]) -> None:
    """Rows of padding that have no slot are dropped, where slices would move back over other tokens, and rings turn."""
    made = model((4,), [*beside, Layer()])
    assert KvToState(update="mask").run(made)
    rng, state = np.random.default_rng(4), make_state(made)
    held = rng.standard_normal((1, GROUPS, CONTEXT, SIZE))
    for name in state:
        state[name] = held
    masks = [name for name in made.function().inputs if name.endswith("mask")]
    evaluate(
        made,
        {
            "x": rng.standard_normal((1, 4, WIDTH)),
            "position_ids": np.arange(10, 14, dtype=np.int32)[None],
            **{name: np.zeros((1, 1, 4, CONTEXT)) for name in masks},
            "current_pos": np.array([10], np.int32),
        },
        state=state,
        precision="float64",
    )
    assert len(masks) == len(beside) + 1
    for name in ("key_cache", "value_cache"):
        kept = state.numpy(name)
        np.testing.assert_allclose(kept[:, :, :10], held[:, :, :10], rtol=1e-3)  # states are handed in as fp16
        assert not np.allclose(kept[:, :, 10:], held[:, :, 10:], rtol=1e-2)
