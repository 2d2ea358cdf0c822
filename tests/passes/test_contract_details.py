"""contract: every refusal with its place, every name and text that is written, and where the first slot's name goes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from milopt.mil import Function, Program, get_new_symbol, mb, rename_input, target, types
from milopt.package import Model, load
from milopt.passes.cache import KvToState
from milopt.passes.contract import ClientContract
from milopt.passes.contract_writing import TRACE, writes_of
from milopt.reports import NoMatch, place_of
from milopt.signature import METADATA_KEY, WINDOW_KEY, CacheSignature
from milopt.text import text

from .cache_programs import Layer, flexible
from .contract_programs import CONTEXT, model
from .programs import One, Two
from .test_cache_written_details import function, held, placed, stored, two_layers

V, H, D = 11, 2, 4


def tiny(
    *,
    tokens: tuple[Any, ...] | None = None,
    masks: tuple[Any, ...] = ("mask",),
    past: tuple[Any, ...] | None = None,
    axis: int = 2,
    new: Any = None,
    values: bool = True,
    shared: bool = False,
    outputs: Callable[[dict[str, Any]], list[Any]] | None = None,
    kind: Any = types.fp16,
    opset: Any = target.iOS18,
    mask_shape: tuple[Any, ...] | None = None,
) -> Model:
    """One layer of attention on a cache; every part may be another."""
    length, columns, before = (get_new_symbol() for _ in range(3))
    new = length if new is None else new
    shape = (1, H, before, D) if past is None else tuple(before if dim == "s" else dim for dim in past)
    size = (1, length) if tokens is None else tuple(length if dim == "s" else dim for dim in tokens)
    over = (
        (1, 1, length, columns)
        if mask_shape is None
        else tuple({"q": length, "s": columns}.get(dim, dim) for dim in mask_shape)
    )
    fresh = tuple(new if at == axis else dim for at, dim in enumerate(shape))
    inputs = {"input_ids": mb.placeholder(size, types.int32)}
    inputs |= {name: mb.placeholder(over, kind) for name in masks}
    inputs |= {"past_key": mb.placeholder(shape, kind), "new_key": mb.placeholder(fresh, kind)}
    inputs |= {"past_value": mb.placeholder(shape, kind), "new_value": mb.placeholder(fresh, kind)}
    inputs |= {"q": mb.placeholder((1, H, length, D), kind)}
    program = Program()
    with Function(inputs, opset_version=opset) as made:
        args = dict(made.inputs)
        key = mb.concat(values=[args["past_key"], args["new_key"]], axis=axis, name="present_key")
        value = (
            key
            if shared
            else mb.concat(values=[args["past_value"], args["new_value"]], axis=axis, name="present_value")
        )
        found = {"key": key, "value": value, **args}
        made.set_outputs((outputs or attended)(found))
    program.add_function("main", made)
    result = load(program)
    result.metadata["milopt.context"] = str(CONTEXT)
    return result


def mixed(found: dict[str, Any]) -> Any:
    scores = mb.matmul(x=found["q"], y=found["key"], transpose_y=True)
    return mb.matmul(x=mb.softmax(x=scores, axis=-1), y=found["value"])


def attended(found: dict[str, Any]) -> list[Any]:
    made = mixed(found)
    return [
        mb.relu(x=made, name="logits"),
        *{found["key"].name: found["key"], found["value"].name: found["value"]}.values(),
    ]


def alone(found: dict[str, Any]) -> list[Any]:
    return [mb.relu(x=mixed(found), name="logits"), found["key"]]


def unused(found: dict[str, Any]) -> list[Any]:
    return [mb.relu(x=found["q"], name="logits"), found["key"], found["value"]]


def refused(made: Model, **options: Any) -> tuple[str, str]:
    """Where and why the pass stays away; symbols are s."""
    before = text(made.program), dict(made.metadata)
    report = ClientContract(**options).run(made)
    assert not report
    assert (text(made.program), dict(made.metadata)) == before
    ((place, why),) = [(miss.place, miss.reason) for miss in report.misses]
    return place, re.sub(r"\bis\d+\b", "s", why)


RANGED = "its shapes are fixed, and a client feeds any number of tokens: convert it with --shapes ranged"
NOT_PLAIN = "not (1, heads, slots, size)"
PASTS: dict[str, tuple[Callable[[], Model], tuple[str, str]]] = {
    "fixed shapes": (lambda: tiny(past=(1, H, 5, D), new=1), ("present_key", RANGED)),
    "one new token": (lambda: tiny(new=1), ("present_key", RANGED)),
    "two sequences": (
        lambda: tiny(past=(2, H, "s", D)),
        ("present_key", f"the cache is (2, 2, s + s, 4) with slots in axis 2, {NOT_PLAIN}"),
    ),
    "slots last": (
        lambda: tiny(past=(1, H, D, "s"), axis=3, outputs=unused),
        ("present_key", f"the cache is (1, 2, 4, s + s) with slots in axis 3, {NOT_PLAIN}"),
    ),
    "without a batch": (
        lambda: tiny(past=(H, "s", D), axis=1, outputs=unused),
        ("present_key", f"the cache is (2, s + s, 4) with slots in axis 1, {NOT_PLAIN}"),
    ),
    "neither keys nor values": (lambda: tiny(outputs=unused), ("present_key", "is it a key or a value?")),
    "keys that are values": (lambda: tiny(shared=True), ("present_key", "is it a key or a value?")),
    "keys without values": (lambda: tiny(outputs=alone), ("", "1 layers have keys, and 0 values")),
}


@pytest.mark.parametrize("case", PASTS)
def test_caches_that_are_refused(case: str) -> None:
    build, (place, reason) = PASTS[case]
    found = refused(build())
    assert re.sub(r"s \+ s|s", "s", found[1]) == re.sub(r"s \+ s|s", "s", reason)
    assert found[0] == place


def cache_of(**options: Any) -> Model:
    made = model()
    assert KvToState(**options).run(made)
    return made


def turned() -> Model:
    made = flexible([Layer(transposed=True)])
    assert KvToState().run(made)
    return made


def ring() -> Model:
    made = model(query=4, windows=(5, 0))
    assert KvToState(update="ring").run(made)
    return made


STATES: dict[str, tuple[Callable[[], Model], tuple[str, str]]] = {
    "fixed": (lambda: (made := model(query=4), KvToState().run(made))[0], ("", RANGED)),
    "rings": (ring, ("", f"its sliding layers are rings: {RANGED}")),
    "counted": (
        lambda: cache_of(position="position_ids"),
        ("", "input position_ids counts slots, and a client's first slot may not be 0"),
    ),
    "unified": (lambda: cache_of(layout="unified"), ("", "its states are kv_cache: kv-to-state{layout=pair}")),
    "per layer": (
        lambda: cache_of(layout="per-layer"),
        (
            "",
            "its states are key_cache_0, key_cache_1, value_cache_0, value_cache_1: kv-to-state{layout=pair}",
        ),
    ),
    "slots last": (turned, ("", "the cache is not (1, heads, slots, size)")),
}


@pytest.mark.parametrize("case", STATES)
def test_states_that_are_refused(case: str) -> None:
    build, expected = STATES[case]
    assert refused(build()) == expected


INPUTS: dict[str, tuple[Callable[[], Model], tuple[str, str]]] = {
    "two sequences": (lambda: tiny(tokens=(2, "s")), ("input_ids", "is (2, s): the client feeds one sequence")),
    "no sequence": (lambda: tiny(tokens=("s",)), ("input_ids", "is (s,): the client feeds one sequence")),
    "one token": (lambda: tiny(tokens=(1,)), ("input_ids", "is (1,): the client feeds one sequence")),
    "a sequence of rows": (
        lambda: tiny(tokens=(1, "s", 1)),
        ("input_ids", "is (1, s, 1): the client feeds one sequence"),
    ),
    "so many tokens": (lambda: tiny(tokens=(1, 4)), ("input_ids", RANGED)),
    "another input": (lambda: tiny(), ("new_key", "the client gives no fp16 (1, 2, s, 4)")),
    "a mask for each head": (
        lambda: tiny(mask_shape=(1, H, "q", "s")),
        ("mask", "the client gives no fp16 (1, 2, s, s)"),
    ),
    "a mask of rank 3": (lambda: tiny(mask_shape=(1, "q", "s")), ("mask", "the client gives no fp16 (1, s, s)")),
    "a mask of fixed columns": (
        lambda: tiny(mask_shape=(1, 1, "q", 5)),
        ("mask", "the client gives no fp16 (1, 1, s, 5)"),
    ),
    "a mask of two sequences": (
        lambda: tiny(mask_shape=(2, 1, "q", "s")),
        ("mask", "the client gives no fp16 (2, 1, s, s)"),
    ),
}


@pytest.mark.parametrize("case", INPUTS)
def test_inputs_that_are_refused(case: str) -> None:
    build, expected = INPUTS[case]
    assert refused(build()) == expected


def renamed(made: Model, **names: str) -> Model:
    for old, new in names.items():
        rename_input(made.function(), old, new)
    return made


def test_masks_that_are_refused() -> None:
    without = model(windows=(5, 0))
    del without.metadata[WINDOW_KEY]
    told = "it takes 2 masks, and the client has one: sliding_mask, causal_mask"
    assert refused(without) == ("", told)


def test_tokens_by_other_names() -> None:
    for tokens, positions in (("inputIds", "positionIds"), ("tokens", "positions")):
        made = renamed(model("table"), input_ids=tokens, position_ids=positions)
        report = ClientContract().run(made)
        assert report.signature is not None
        assert report.signature.renamed == ((tokens, "inputIds"), (positions, ""), ("causal_mask", "causalMask"))
    assert refused(renamed(model(), input_ids="ids"))[1] == "the client gives no int32 (1, s)"
    told = "no input takes token ids: input_ids, inputIds, tokens are known"
    made = renamed(model("table"), input_ids="positions", position_ids="positionIds")
    assert refused(made) == ("", told)


def with_output(made: Model, name: str, change: One) -> Model:
    function_ = made.function()
    logits = next(var for var in function_.outputs if var.name == "logits")
    with function_:
        more = change(logits)
    kept = [var for var in function_.outputs if var is not logits or name]
    function_.set_outputs([*kept, more])
    return made


def test_outputs_that_are_refused() -> None:
    made = with_output(model(), "hidden", lambda x: mb.relu(x=x, name="hidden"))
    assert refused(made) == ("", "the client reads logits alone, and it returns logits, hidden")
    made = with_output(model(), "", lambda x: mb.relu(x=x, name="scores"))
    assert refused(made) == ("", "the client reads logits alone, and it returns scores")
    last = model(logits="last")
    told = "the client reads row q - 1 of (1, q, vocabulary), and these are (1, 1, 19): --logits all"
    assert refused(last) == ("logits", told)


def test_logits_of_another_type_or_rank() -> None:
    made = with_logits(lambda x: mb.cast(x=x, dtype="fp32", name="logits"))
    assert refused(made) == ("logits", "the client reads fp16, and these are fp32")
    made = with_logits(lambda x: mb.squeeze(x=x, axes=[0], name="logits"))
    told = "the client reads row q - 1 of (1, q, vocabulary), and these are (s, 19): --logits all"
    assert refused(made) == ("logits", told)


def with_logits(change: One) -> Model:
    made = model()
    function_ = made.function()
    logits = next(var for var in function_.outputs if var.name == "logits")
    logits.name = "scores"
    with function_:
        more = change(logits)
    function_.set_outputs([more, *(var for var in function_.outputs if var is not logits)])
    return made


def test_reasons_of_the_pass_itself() -> None:
    made = model(opset=target.iOS17)
    assert refused(made) == ("", "needs iOS18, the function is iOS17")


def test_what_kv_to_state_refuses_is_told() -> None:
    made = model()
    del made.metadata["milopt.context"]
    assert refused(made) == (
        "present_key_0",
        "its shape is flexible: say how many slots there are (context=N)",
    )


@pytest.mark.parametrize("style", ["anemll", "coreml-llm"])
def test_contracts_of_folders(style: Any) -> None:
    made = model()
    before = text(made.program), dict(made.metadata)
    report = ClientContract(style=style).run(made)
    assert (text(made.program), dict(made.metadata)) == before
    told = f"the {style} contract is of a folder, which milopt contract --style {style} writes"
    assert [(miss.function, miss.place, miss.reason) for miss in report.misses] == [("main", "", told)]
    assert (report.applied, report.tried, report.notes) == (0, 1, [])


def saying(**fields: Any) -> Model:
    """States whose metadata say something else of the first tensor."""
    made = cache_of()
    signature = CacheSignature.from_metadata(made.metadata)
    assert signature is not None
    slots = (replace(signature.slots[0], **fields), *signature.slots[1:])
    made.metadata[METADATA_KEY] = replace(signature, slots=slots).to_json()
    return made


def test_states_that_hold_other_tensors() -> None:
    told = "the cache is not (1, heads, slots, size)"
    assert refused(saying(axis=3)) == ("", told)
    assert refused(saying(rows=2)) == ("", told)
    told = "its states are key_cache, kv_cache, value_cache: kv-to-state{layout=pair}"
    assert refused(saying(state="kv_cache")) == ("", told)


def plain(masks: tuple[str, ...] = (), **names: str) -> Model:
    """Attention of what tokens alone give, and so many masks."""
    length, columns, before = (get_new_symbol() for _ in range(3))
    inputs = {"input_ids": mb.placeholder((1, length), types.int32)}
    inputs |= {name: mb.placeholder((1, 1, length, columns), types.fp16) for name in masks}
    inputs |= {f"past_{kind}": mb.placeholder((1, H, before, D), types.fp16) for kind in ("key", "value")}
    program = Program()
    with Function(inputs, opset_version=target.iOS18) as made:
        args = dict(made.inputs)
        tokens = mb.expand_dims(x=mb.cast(x=args["input_ids"], dtype="fp16"), axes=[1, 3])
        query, key, value = (mb.mul(x=tokens, y=np.full((1, H, 1, D), at, np.float16)) for at in (1, 2, 3))
        key = mb.concat(values=[args["past_key"], key], axis=2, name="present_key")
        value = mb.concat(values=[args["past_value"], value], axis=2, name="present_value")
        scores = mb.matmul(x=query, y=key, transpose_y=True)
        for name in masks:
            scores = mb.add(x=scores, y=args[name])
        out = mb.matmul(x=mb.softmax(x=scores, axis=-1), y=value)
        logits = mb.reduce_sum(x=out, axes=[1], name="logits")
        made.set_outputs([logits, key, value])
    program.add_function("main", made)
    result = load(program)
    result.metadata["milopt.context"] = str(CONTEXT)
    return renamed(result, **names)


def test_masks_by_any_name_and_none() -> None:
    assert refused(plain()) == ("", "no mask tells how many columns there are")
    report = ClientContract().run(plain(("mask",), mask="positions"))
    assert report.signature is not None
    assert report.signature.renamed == (("input_ids", "inputIds"), ("positions", "causalMask"))
    assert refused(plain(("one", "two"))) == ("", "it takes 2 masks, and the client has one: one, two")
    windowed = plain(("one", "sliding_mask", "two"))
    windowed.metadata[WINDOW_KEY] = "3"
    told = "it takes 3 masks, and the client has one: one, sliding_mask, two"
    assert refused(windowed) == ("", told)


# --- what is written


def values_of(made: Model) -> set[str]:
    return {var.name for op in made.function().operations for var in op.outputs}


NAMES = {
    "keyCache_read", "valueCache_read", "slots_end", "tokens_count", "slots_begin", "slots_first", "slots_own", "slots",
    "slots_seen", "slots_keys", "slots_largest", "slots_written", "slots_first_written", "slots_opening",
    "sliding_mask_oldest", "sliding_mask_seen", "sliding_mask_hidden", "sliding_mask_added", "sliding_mask_and_hidden",
    "causal_mask_finite", "causal_mask_hidden", "causal_mask_added", "causal_mask_and_hidden", "positions",
    "positions_row",
}  # fmt: skip


def test_the_names_of_values() -> None:
    made = model("table", windows=(5, 0))
    new = [op.values[1].name for op in made.function().operations if op.op_type == "concat" and "present" in op.name]
    assert ClientContract().run(made)
    found = values_of(made)
    assert found >= NAMES
    first = new[0]
    assert {f"{first}_largest", f"{first}_silent", f"{first}_marked", f"{first}_marked_row"} <= found
    assert {f"{each}_row" for each in new[1:]} <= found
    assert {f"present_{kind}_{at}_slots_stacked" for kind in ("key", "value") for at in (0, 1)} <= found


def test_a_name_for_the_first_slot_that_is_free() -> None:
    made = model("table")
    assert ClientContract().run(made)
    assert "current_pos_end" in values_of(made)
    made = renamed(model("table"), causal_mask="current_pos")
    assert ClientContract().run(made)
    assert "current_pos_1_end" in values_of(made)


def test_what_is_said() -> None:
    made = model("table", windows=(5, 0))
    report = ClientContract(hub="org/other").run(made)
    assert made.text_of(None, "causalMask") == (
        "Added to the attention scores; zeros will do, in one row. Its number of columns, end, says where the q new "
        "tokens go: slots [end - q, end) of 16. What comes later than a token, and slots that were never written, are "
        "hidden by the program itself."
    )
    assert report.signature is not None
    assert report.signature.trace == TRACE == 2.0**-24
    assert (report.signature.position, report.signature.masks, report.signature.stacked) == ("", ("causalMask",), True)
    assert [slot.state for slot in report.signature.slots] == ["keyCache", "valueCache"] * 2
    assert (report.applied, report.tried) == (1, 1)


# --- states that are written


def writes(made: Function) -> list[tuple[str, str, str]]:
    return [tuple(op.outputs[0].name for op in each) for each in writes_of(made, "keys")]  # type: ignore[misc]


def no_writes(made: Function, state: str = "keys") -> tuple[str, str]:
    with pytest.raises(NoMatch) as why:
        writes_of(made, state)
    return place_of(why.value.at), str(why.value)


def test_writes_and_reads_in_order() -> None:
    assert writes(function(two_layers, rows=2)) == [
        ("written", "stored", "first_read"),
        ("written", "next", "second_read"),
    ] or writes(function(two_layers, rows=2))[0][1:] == ("stored", "first_read")


def test_other_writes_are_refused() -> None:
    def body(change: Two) -> Function:
        return function(lambda args, states: change(args, states["keys"]))

    read_only = body(lambda args, state: mb.relu(x=held(state)))
    assert no_writes(read_only) == ("keys", "nothing is written to state keys")
    assert no_writes(read_only, "others") == ("", "there is no state others")
    twice = body(lambda args, state: [mb.relu(x=held(state)), mb.relu(x=mb.read_state(input=state))])
    assert no_writes(twice) == ("keys", "state keys is read 2 times")
    told = ("stored", "state keys is not written by slice_update")
    assert no_writes(body(lambda args, state: mb.relu(x=stored(state, mb.relu(x=held(state)))))) == told
    bent = body(lambda args, state: mb.relu(x=stored(state, placed(mb.relu(x=held(state)), args))))
    assert no_writes(bent) == told
    told = ("stored", "state keys is read otherwise than up to the new tokens")
    assert no_writes(body(lambda args, state: mb.relu(x=stored(state, placed(held(state), args))))) == told

    def cut(x: Any, name: str) -> Any:
        return mb.relu(x=mb.slice_by_index(x=x, begin=[0, 0, 0, 0], end=[1, 2, 3, 4]), name=name)

    def both(args: Any, state: Any) -> Any:
        after = stored(state, placed(held(state), args))
        return [cut(after, "a"), cut(after, "b")]

    assert no_writes(body(both)) == told


def test_an_input_that_is_stored_is_no_slice() -> None:
    def body(args: Any, states: Any) -> Any:
        held(states["keys"])
        return mb.relu(x=stored(states["keys"], args["y"]))

    made = function(body, y=mb.placeholder((1, 2, 6, 4), types.fp16))
    assert no_writes(made) == ("stored", "state keys is not written by slice_update")
