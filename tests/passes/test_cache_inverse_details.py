"""state-to-kv: every op that it writes, what it finds out by itself, and every refusal with its place."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from milopt.mil import Function, Program, dtype_name, is_state, mb, shape_of, target, types
from milopt.package import Model, load
from milopt.passes.cache import KvToState
from milopt.passes.cache_inverse import StateToKv
from milopt.signature import METADATA_KEY, CacheSignature, CacheSlot
from milopt.signature_layout import LAYOUT_KEY, LayoutSignature, Relaid
from milopt.text import text
from milopt.verify import compare

from .cache_small import HEADS, SIZE, named, small
from .programs import One
from .test_cache_combined import PARTS, ROWS, decoder, joined, row
from .test_cache_combined_details import news_joined, tails_joined
from .test_cache_states_details import CASES

LETTERS: dict[str, tuple[Callable[[], Model], dict[str, Any]]] = {
    **CASES,
    "fp32": (lambda: small(kind=types.fp32), {}),
    "new columns in fp32": (lambda: small(2, kind=types.fp32, returned="new"), {"update": "mask"}),
    "last columns": (lambda: small(2, returned="kept", layers=2), {"layout": "unified"}),
    "open, new columns": (lambda: small(None, None, returned="new"), {}),
    "two rings": (lambda: small(1, (5, 7), layers=2, masks=("one", "two"), returned="kept"), {}),
    "two rings under masks": (
        lambda: small(2, (5, 7), layers=2, masks=("one", "two"), returned="kept"),
        {"update": "mask"},
    ),
}


@pytest.mark.parametrize("case", [case for case in LETTERS if case != "a mask of another size"])
def test_the_program_is_the_same_to_the_letter(case: str) -> None:
    build, options = LETTERS[case]
    made = build()
    before = _alike(made)
    assert KvToState(**options).run(made)
    states = sum(map(is_state, made.function().inputs.values()))
    report = StateToKv().run(made)
    assert (report.applied, report.tried) == (
        sum(name.startswith("past_") for name in build().function().inputs),
        states,
    )
    assert _alike(made) == before
    assert METADATA_KEY not in made.metadata


def _alike(made: Model) -> str:
    """The text, in which all sizes that are open are one."""
    return re.sub(r"\bs\d+\b", "s", text(made))


def test_another_number_of_slots() -> None:
    """It stays: the past is what the new tokens leave of the slots that there are now."""
    made = small(2, returned="new", apart=(0,))
    assert KvToState(context=9).run(made)
    before = made.clone()
    report = StateToKv().run(made)
    assert text(made) == text(small(2, 7, returned="new", apart=(0,)))
    verdict = compare(before, made, signature=report.signature)
    assert verdict, str(verdict)


def test_a_ring_that_stays_beside_one_that_does_not() -> None:
    """The mask of a past that keeps two tokens is over three slots before and after."""
    made = small(1, (5, 2), layers=2, masks=("sliding_mask", "mask"), returned=("all", "kept"))
    made.metadata["milopt.sliding_window"] = "3"
    before = text(made)
    assert KvToState(update="ring").run(made)
    assert [shape_of(made.function().inputs[name])[-1] for name in ("sliding_mask", "mask")] == [3, 3]
    assert StateToKv().run(made)
    assert [shape_of(made.function().inputs[name])[-1] for name in ("sliding_mask", "mask")] == [6, 3]
    assert text(made) == before


def test_rings_of_sliding_layers() -> None:
    made = small(1, 5, layers=2, masks=("sliding_mask", "mask"))
    made.metadata["milopt.sliding_window"] = "3"
    before = text(made)
    assert KvToState(update="ring").run(made)
    assert shape_of(made.function().inputs["sliding_mask"]) == (1, 1, 1, 3)
    assert StateToKv().run(made)
    assert text(made) == before


def test_tensors_of_one_input() -> None:
    """Each is cut out of the rows that the input holds one behind another; what they become is put together again."""
    made = load(decoder(row, joined, ROWS))
    assert KvToState().run(made)
    assert StateToKv().run(made)
    lines = named(made)
    cut = (
        "slice_by_index(x={}, begin=[{}, 0, 0, 0, 0], end=[{}, 1, 1, 1, 1], end_mask=[false, true, true, true, true], "
    )
    cut += "squeeze_mask=[true, false, false, false, false])"
    rows = [line for line in lines if "reshape(x=past, shape=[4, 1, 2, -1, 4])" in line]
    assert len(rows) == PARTS
    for at, line in enumerate(rows):
        assert sum(cut.format(line.partition(" ")[0], at, at + 1) in each for each in lines) == 1
    wholes = [line.partition(" ")[0] for line in lines if "concat(" in line]
    stacked = next(line for line in lines if "stack(" in line)
    assert stacked.endswith(f"= stack(values=({', '.join(wholes)}), axis=0)")
    assert f"present = reshape(x={stacked.partition(' ')[0]}, shape=[4, 2, -1, 4])" in lines
    assert "past: fp16[4, 2, 5, 4]" in lines
    assert lines[-1] == "-> hidden, present"
    assert not [line for line in lines if line.startswith("present[") or "cast(" in line]


def in_fp32(past: Any, at: int, x: Any) -> Any:
    return row(mb.cast(x=past, dtype="fp16"), at, x)


def joined_in_fp32(wholes: list[Any], news: list[Any], x: Any) -> Any:
    return mb.cast(x=mb.concat(values=wholes, axis=0), dtype="fp32", name="present")


def test_tensors_of_one_input_in_fp32() -> None:
    made = load(decoder(in_fp32, joined_in_fp32, ROWS, kind=types.fp32))
    assert KvToState().run(made)
    assert "past" not in made.function().inputs
    before = made.clone()
    report = StateToKv().run(made)
    lines = named(made)
    assert "past: fp32[4, 2, 5, 4]" in lines
    assert sum("cast(x=" in line and 'dtype="fp16"' in line for line in lines) == PARTS
    assert next(line for line in lines if line.startswith("present =")).endswith('dtype="fp32")')
    verdict = compare(before, made, signature=report.signature)
    assert verdict, str(verdict)


def test_inputs_of_other_types() -> None:
    """Each present is of the type that its past has."""
    specs = [mb.TensorSpec((2, 2, 5, SIZE), kind) for kind in (types.fp16, types.fp32)]
    specs += [mb.TensorSpec((1, 2, 1, SIZE), types.fp16), mb.TensorSpec((1, 1, 1, 6), types.fp16)]

    @mb.program(input_specs=specs, opset_version=target.iOS18)
    def program(past: Any, wide: Any, x: Any, mask: Any) -> Any:
        outs: list[Any] = []
        for held in (past, mb.cast(x=wide, dtype="fp16")):
            parts = mb.split(x=held, num_splits=2, axis=0)
            key, value = (mb.concat(values=[part, mb.relu(x=x)], axis=2) for part in parts)
            outs.append(mb.concat(values=[key, value], axis=0, name=f"present{len(outs)}"))
            x = mb.scaled_dot_product_attention(query=x, key=key, value=value, attn_mask=mask)
        return mb.identity(x=x, name="hidden"), outs[0], mb.cast(x=outs[1], dtype="fp32", name="broad")

    made = load(program)
    assert KvToState().run(made)
    before = made.clone()
    report = StateToKv().run(made)
    assert [dtype_name(var) for var in made.function().outputs] == ["fp16", "fp16", "fp32"]
    assert [line.partition(" ")[0] for line in named(made) if 'dtype="fp32"' in line] == ["broad"]
    verdict = compare(before, made, signature=report.signature)
    assert verdict, str(verdict)


def test_more_tensors_than_digits() -> None:
    def program() -> Any:
        specs = [mb.TensorSpec((12, 2, 5, SIZE), types.fp16), mb.TensorSpec((1, 2, 1, SIZE), types.fp16)]

        @mb.program(input_specs=[*specs, mb.TensorSpec((1, 1, 1, 6), types.fp16)], opset_version=target.iOS18)
        def made(past: Any, x: Any, mask: Any) -> Any:
            parts = mb.split(x=past, num_splits=12, axis=0)
            wholes = [mb.concat(values=[part, x], axis=2) for part in parts]
            for key, value in zip(wholes[::2], wholes[1::2], strict=True):
                x = mb.scaled_dot_product_attention(query=x, key=key, value=value, attn_mask=mask)
            return mb.identity(x=x, name="hidden"), mb.concat(values=wholes, axis=0, name="present")

        return made

    made = load(program())
    assert KvToState().run(made)
    before = made.clone()
    report = StateToKv().run(made)
    verdict = compare(before, made, signature=report.signature, trials=1)
    assert verdict, str(verdict)


def stateful(**options: Any) -> Model:
    made = small(**options)
    assert KvToState().run(made)
    return made


def test_new_columns_that_have_another_name_by_now() -> None:
    made = stateful(returned="new")
    for op in made.function().operations:
        if op.name == "k0":
            op.name = op.outputs[0].name = "fresh"
    assert StateToKv().run(made)
    lines = named(made)
    assert "k0 = identity(x=fresh)" in lines
    assert not [line for line in lines if line.startswith("v0 = identity(x=v0")]
    assert lines[-1] == "-> mixed0, k0, v0"


# --- what a package says that is not so


def saying(made: Model, change: Callable[[CacheSignature], CacheSignature]) -> Model:
    signature = CacheSignature.from_metadata(made.metadata)
    assert signature is not None
    made.metadata[METADATA_KEY] = change(signature).to_json()
    return made


def first(**fields: Any) -> Callable[[CacheSignature], CacheSignature]:
    return lambda said: replace(said, slots=(replace(said.slots[0], **fields), *said.slots[1:]))


def refused(made: Model) -> list[tuple[str, str, str]]:
    before = text(made), dict(made.metadata)
    report = StateToKv().run(made)
    assert not report
    assert (text(made), dict(made.metadata)) == before
    return [(miss.function, miss.place, miss.reason) for miss in report.misses]


STATES = "the states are not those that the package's metadata name"
WRITTEN = "is not written as the package's metadata say"
UPDATE = "k0_coreml_update_state"
SAID: dict[str, tuple[Callable[[], Model], tuple[str, str]]] = {
    "another state": (lambda: saying(stateful(), first(state="keys")), ("", STATES)),
    "another row": (lambda: saying(stateful(), first(row=1)), ("", STATES)),
    "fewer states": (lambda: saying(stateful(), lambda said: replace(said, slots=said.slots[:1])), ("", STATES)),
    "more rows": (lambda: saying(stateful(), first(rows=2)), (UPDATE, WRITTEN)),
    "another axis": (lambda: saying(stateful(), first(axis=1)), (UPDATE, WRITTEN)),
    "a prefix": (lambda: saying(stateful(), lambda said: replace(said, prefix=True)), (UPDATE, WRITTEN)),
    "all slots": (
        lambda: saying(stateful(query=None, past=None), lambda said: replace(said, prefix=False)),
        (UPDATE, WRITTEN),
    ),
    "a past that is there": (
        lambda: saying(stateful(), first(past="mask")),
        (UPDATE, "there is a value named mask already"),
    ),
    "a present that is there": (
        lambda: saying(stateful(), first(present="mixed0")),
        (UPDATE, "there is a value named mixed0 already"),
    ),
    "all columns by the name of the new ones": (
        lambda: saying(stateful(), first(present="new_k0")),
        (UPDATE, "there is a value named new_k0 already"),
    ),
    "new columns by the name of another value": (
        lambda: saying(stateful(returned="new"), first(present="mixed0")),
        ("whole_k0_coreml_update_state", "there is a value named mixed0 already"),
    ),
    "another position": (
        lambda: saying(stateful(), lambda said: replace(said, position="place")),
        ("", "there is no input place"),
    ),
    "pasts of different lengths": (
        lambda: saying(stateful(), first(kept=3)),
        (UPDATE, "a mask is shared by pasts of different lengths"),
    ),
}


@pytest.mark.parametrize("case", SAID)
def test_what_is_said_and_is_not_so(case: str) -> None:
    build, expected = SAID[case]
    assert refused(build()) == [("main", *expected)]


def test_sizes_that_are_computed_with() -> None:
    """kv-to-state refuses them as well, where the number of slots changes."""

    def sizes(args: dict[str, Any], found: dict[str, Any]) -> list[Any]:
        return [mb.cast(x=mb.shape(x=found["k0"], name="sizes"), dtype="fp16", name="out")]

    def smaller(said: CacheSignature) -> CacheSignature:
        return replace(said, context=9)

    assert StateToKv().run(stateful(extra=sizes))
    told = "its size is computed with, and another is wanted"
    assert refused(saying(stateful(extra=sizes), smaller)) == [("main", "sizes", told)]


# --- programs that say nothing of themselves


def silent(made: Model) -> Model:
    made.metadata.pop(METADATA_KEY)
    return made


def masked(made: Model) -> Model:
    assert KvToState(update="mask").run(made)
    return silent(made)


def test_what_is_found_out() -> None:
    report = StateToKv().run(silent(stateful(layers=2, perm=(0, 2, 1, 3))))
    assert report.signature == CacheSignature(
        tuple(
            CacheSlot(f"past_{kind}_{at}", f"present_{kind}_{at}", f"{kind}_cache", at, 1)
            for at in (0, 1)
            for kind in ("key", "value")
        ),
        "current_pos",
        ("mask",),
        6,
        1,
    )
    report = StateToKv().run(silent(stateful(query=None, past=None)))
    assert report.signature is not None
    assert (report.signature.prefix, report.signature.masks, report.signature.context) == (True, ("mask",), 6)


def _attention(query: Any, key: Any, value: Any, mask: Any) -> Any:
    return mb.scaled_dot_product_attention(query=query, key=key, value=value, attn_mask=mask)


def two_states(
    *,
    shared: bool = False,
    used: bool = True,
    slots: tuple[int, int] = (6, 6),
    axes: tuple[int, int] = (2, 2),
    moved: One = lambda x: x,
) -> Model:
    """An attention on two states, written at one or two inputs, ``moved``; or the values of each go out summed."""
    shapes = [
        tuple(size if at == axis else (1, HEADS, SIZE, SIZE)[at] for at in range(4))
        for size, axis in zip(slots, axes, strict=True)
    ]
    inputs = {"x": mb.placeholder((1, HEADS, SIZE, SIZE), types.fp16)}
    masks = ("mask", "mask" if slots[0] == slots[1] else "other")
    inputs |= {mask: mb.placeholder((1, 1, SIZE, size), types.fp16) for mask, size in zip(masks, slots, strict=True)}
    inputs |= {"here": mb.placeholder((1,), types.int32)}
    inputs |= {"there": mb.placeholder((1,), types.int32)} if not shared else {}
    inputs |= {name: mb.state_tensor_placeholder(shape, types.fp16) for name, shape in zip("ab", shapes, strict=True)}
    with Function(inputs, opset_version=target.iOS18) as function:
        args, held = function.inputs, list[Any]()
        for name, shape, axis, place in zip("ab", shapes, axes, ("here", "here" if shared else "there"), strict=True):
            place_ = moved(args[place])
            ends = mb.add(x=place_, y=np.array([SIZE], np.int32))
            begin: list[Any] = [np.array([0], np.int32)] * 4
            end: list[Any] = [np.array([dim], np.int32) for dim in shape]
            begin[axis], end[axis] = place_, ends
            written = mb.slice_update(
                x=mb.read_state(input=args[name]),
                update=args["x"],
                begin=mb.concat(values=begin, axis=0),
                end=mb.concat(values=end, axis=0),
            )
            held.append(mb.coreml_update_state(state=args[name], value=written, name=f"stored_{name}"))
        if slots[0] != slots[1]:
            mixed = [_attention(args["x"], each, each, args[mask]) for each, mask in zip(held, masks, strict=True)]
            out = mb.add(x=mixed[0], y=mixed[1])
        elif used:
            out = _attention(args["x"], held[0], held[1], args["mask"])
        else:
            out = mb.add(x=held[0], y=held[1])
        function.set_outputs([mb.identity(x=out, name="out")])
    program = Program()
    program.add_function("main", function)
    return load(program)


def test_programs_by_others() -> None:
    report = StateToKv().run(two_states(shared=True))
    assert report.signature is not None
    assert [slot.past for slot in report.signature.slots] == ["past_key_0", "past_value_0"]
    assert [slot.axis for slot in report.signature.slots] == [None, None]
    told = "its states are written at several inputs"
    assert refused(two_states()) == [("main", "", told)]
    told = "its states have different numbers of slots"
    assert refused(two_states(shared=True, slots=(6, 7))) == [("main", "", told)]
    assert refused(two_states(shared=True, used=False)) == [("main", "stored_a", "is it a key or a value?")]
    assert refused(masked(small())) == [("main", UPDATE, "it is not written at an input")]


MOVED: list[One] = [
    lambda x: mb.expand_dims(x=mb.squeeze(x=x, axes=[0]), axes=[0]),
    lambda x: mb.reshape(x=mb.reshape(x=x, shape=[1, 1]), shape=[1]),
]


@pytest.mark.parametrize("moved", MOVED)
def test_positions_that_are_moved(moved: One) -> None:
    report = StateToKv().run(two_states(shared=True, moved=moved))
    assert report.signature is not None
    assert (report.signature.position, report.applied) == ("here", 2)


def test_keys_and_values_in_one() -> None:
    shape = (1, HEADS, 6, SIZE)
    inputs = {
        "x": mb.placeholder((1, HEADS, 1, SIZE), types.fp16),
        "mask": mb.placeholder((1, 1, 1, 6), types.fp16),
        "place": mb.placeholder((1,), types.int32),
        "both": mb.state_tensor_placeholder(shape, types.fp16),
    }
    with Function(inputs, opset_version=target.iOS18) as function:
        args = function.inputs
        zeros, ends = np.array([0, 0], np.int32), mb.add(x=args["place"], y=np.array([1], np.int32))
        written = mb.slice_update(
            x=mb.read_state(input=args["both"]),
            update=args["x"],
            begin=mb.concat(values=[zeros, args["place"], np.array([0], np.int32)], axis=0),
            end=mb.concat(values=[np.array([1, HEADS], np.int32), ends, np.array([SIZE], np.int32)], axis=0),
        )
        held = mb.coreml_update_state(state=args["both"], value=written)
        mixed = mb.scaled_dot_product_attention(query=args["x"], key=held, value=held, attn_mask=args["mask"])
        function.set_outputs([mb.identity(x=mixed, name="out")])
    program = Program()
    program.add_function("main", function)
    report = StateToKv().run(load(program))
    assert report.signature is not None
    assert report.signature.slots == (CacheSlot("past_kv_0", "present_kv_0", "both", 0, 1),)


def test_states_of_another_layout() -> None:
    """What was said of the states is said of pasts and presents, and the signature is that of the layout before."""
    made = stateful()
    relaid = Relaid("key_cache", (1, 6, 2, 4), (1, 6, 2, 4), (0, 2, 1, 3), (1, 2, 6, 4))
    made.metadata[LAYOUT_KEY] = LayoutSignature({"main": (relaid,)}).to_json()
    report = StateToKv().run(made)
    assert report.signature is not None
    assert [(slot.past, slot.axis) for slot in report.signature.slots] == [("past_k0", 1), ("past_v0", None)]
    assert LayoutSignature.from_metadata(made.metadata) == LayoutSignature(
        {
            "main": (
                Relaid("past_k0", (1, 5, 2, 4), (1, 5, 2, 4), (0, 2, 1, 3), (1, 2, 5, 4)),
                Relaid("k0", (1, 6, 2, 4), (1, 6, 2, 4), (0, 2, 1, 3), (1, 2, 6, 4)),
            )
        }
    )


# --- several functions


def functions(*models: Model) -> Model:
    program = models[0].program
    for at, each in enumerate(models[1:]):
        program.functions[f"other{at}"] = each.function()
    made = load(program)
    made.metadata.update(models[0].metadata)
    return made


def test_functions_that_differ() -> None:
    told = "not every function of the program has the same cache"
    assert refused(functions(stateful(), small())) == [("main", "", told)]
    assert refused(functions(silent(stateful()), silent(stateful(past=6)))) == [("main", "", told)]
    with_both = functions(stateful(), stateful())
    with with_both.only(["main"]):
        told = "the pass runs on some functions only, and the cache is of all"
        assert refused(with_both) == [("main", "", told)]
    report = StateToKv().run(with_both)
    assert (report.applied, report.tried) == (4, 4)


def test_the_function_that_is_refused_is_named() -> None:
    made = functions(stateful(), saying(stateful(), first(rows=2)))
    other = made.function("other0")
    read = next(each for each in other.operations if each.op_type == "read_state")
    with other:
        peek = mb.relu(x=read.outputs[0], name="peek")
    other.set_outputs([*other.outputs, peek])
    assert refused(made) == [("other0", "key_cache_read", "state key_cache is read and used in another way")]


def test_ranges_of_a_past_of_any_length() -> None:
    made = stateful(query=None, past=None)
    assert StateToKv().run(made)
    declared = {each.name: each.shape.shape for each in made.function().input_types}
    assert list(declared) == ["past_k0", "past_v0"]
    sizes = [shape[2] for shape in declared.values()]
    assert [(size.lower_bound, size.upper_bound, size.default) for size in sizes] == [(1, 5, 1)] * 2
    made = small(None, None)
    assert KvToState(context=100).run(made)
    assert StateToKv().run(made)
    sizes = [each.shape.shape[2] for each in made.function().input_types]
    assert [(size.lower_bound, size.upper_bound, size.default) for size in sizes] == [(1, 99, 36)] * 2


def test_nothing_to_do() -> None:
    report = StateToKv().run(small())
    assert (report.notes, report.misses, report.tried) == (["there are no states"], [], 0)


@pytest.mark.parametrize("together", [news_joined, tails_joined, joined])
def test_what_goes_out_of_one_output(together: Any) -> None:
    made = load(decoder(row, together, ROWS))
    before = made.clone()
    assert KvToState().run(made)
    stateful_ = made.clone()
    report = StateToKv().run(made)
    for one, signature in ((before, None), (stateful_, report.signature)):
        verdict = compare(one, made, signature=signature)
        assert verdict, str(verdict)


def test_parts_that_are_not_so() -> None:
    def states() -> Model:
        made = load(decoder(row, joined, ROWS))
        assert KvToState().run(made)
        return made

    def turned(said: CacheSignature) -> CacheSignature:
        return replace(said, combined=(replace(said.combined[0], part=(1, SIZE, 0, 2)),))

    assert refused(saying(states(), turned)) == [("main", "whole_0_coreml_update_state", WRITTEN)]
    assert refused(saying(states(), first(rows=2))) == [("main", "whole_0_coreml_update_state", WRITTEN)]


TWO, THREE = np.array([2], np.int32), np.array([3], np.int32)
USES: list[tuple[One, tuple[str, str]]] = [
    (lambda x: mb.add(x=x, y=THREE, name="more"), ("more", "add also uses the position")),
    (lambda x: mb.floor_div(x=mb.add(x=x, y=THREE), y=TWO, name="half"), ("half", "floor_div also uses the position")),
    (lambda x: mb.identity(x=x, name="same"), ("same", "identity also uses the position")),
    (
        lambda x: mb.identity(x=mb.floor_div(x=x, y=TWO, name="half"), name="same"),
        ("half", "floor_div also uses the position"),
    ),
]


@pytest.mark.parametrize(("change", "expected"), USES)
def test_the_position_is_used_besides(change: One, expected: tuple[str, str]) -> None:
    made = stateful()
    function = made.function()
    with function:
        more = change(function.inputs["current_pos"])
    function.set_outputs([*function.outputs, more])
    assert refused(made) == [("main", *expected)]
