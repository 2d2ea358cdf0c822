"""Caches of which one input holds the tensors of all layers, and one output what they become."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from milopt.mil import Program, get_new_symbol, mb, shape_of, target, types
from milopt.package import load
from milopt.passes.cache import KvToState
from milopt.passes.cache_inverse import StateToKv
from milopt.signature import METADATA_KEY, CacheSignature, Combined
from milopt.text import text

from .cache_programs import COMBINED, CONTEXT, GROUPS, SIZE, Layer, flexible, model
from .test_cache_forms import LAYOUTS, agree, states_of
from .test_cache_inverse import there_and_back

WHOLES: dict[str, tuple[int, ...]] = {
    "layers first": (2, 2, 1, GROUPS, 0, SIZE),
    "kinds first": (2, 2, 1, GROUPS, 0, SIZE),
    "heads together": (2, 1, 2 * GROUPS, 0, SIZE),
    "batch first": (1, 4, GROUPS, 0, SIZE),
}


@pytest.mark.parametrize("form", COMBINED)
def test_states_of_combined_tensors(form: str) -> None:
    made, report = agree(model(combined=form))
    assert report.applied == 8
    assert states_of(made) == LAYOUTS["pair"]
    assert not {"past_all", "present_all"} & {*made.function().inputs, *(each.name for each in made.function().outputs)}
    signature = CacheSignature.from_metadata(made.metadata)
    assert signature == report.signature
    assert signature is not None
    whole = WHOLES.get(form, (4, GROUPS, 0, SIZE))
    assert signature.combined == (Combined("past_all", "present_all", whole, (1, GROUPS, 0, SIZE)),)


@pytest.mark.parametrize("form", COMBINED)
@pytest.mark.parametrize("layout", ["unified", "per-layer"])
def test_layouts(form: str, layout: str) -> None:
    made, _ = agree(model(combined=form), layout=layout, update="mask")
    assert states_of(made) == LAYOUTS[layout]


@pytest.mark.parametrize("form", COMBINED)
def test_flexible_programs(form: str) -> None:
    made, report = agree(flexible(combined=form))
    assert states_of(made) == LAYOUTS["pair"]
    assert report.signature is not None
    assert report.signature.prefix


RETURNED: dict[str, tuple[Layer, ...]] = {
    "the new columns": (Layer(returned="new"), Layer(returned="new")),
    "the last columns": (Layer(kept=5, returned="kept"), Layer(kept=5, returned="kept")),
}


@pytest.mark.parametrize("form", COMBINED)
@pytest.mark.parametrize("returned", RETURNED)
def test_presents_of_other_kinds(form: str, returned: str) -> None:
    made, report = agree(model(layers=RETURNED[returned], combined=form), trials=6)
    assert report.signature is not None
    assert {slot.returned for slot in report.signature.slots} == {"new" if "new" in returned else "kept"}
    assert len(states_of(made)) == 2


@pytest.mark.parametrize("form", COMBINED)
def test_there_and_back(form: str) -> None:
    there_and_back(model(combined=form), layout="unified")


@pytest.mark.parametrize("form", ["rows", "kinds first", "in fp32"])
@pytest.mark.parametrize("returned", RETURNED)
def test_there_and_back_with_presents_of_other_kinds(form: str, returned: str) -> None:
    there_and_back(model(layers=RETURNED[returned], combined=form))


@pytest.mark.parametrize("form", COMBINED)
def test_flexible_programs_there_and_back(form: str) -> None:
    there_and_back(flexible(combined=form))


def test_states_that_are_of_other_shapes_are_no_parts() -> None:
    made = model(combined="rows")
    assert KvToState().run(made)
    signature = CacheSignature.from_metadata(made.metadata)
    assert signature is not None
    other = replace(signature.combined[0], shape=(4, SIZE, 0, GROUPS), part=(1, SIZE, 0, GROUPS))
    made.metadata[METADATA_KEY] = replace(signature, combined=(other,)).to_json()
    before = text(made)
    report = StateToKv().run(made)
    assert [miss.reason for miss in report.misses] == ["is not written as the package's metadata say"]
    assert text(made) == before


# --- what can't be told


Build = Callable[[Any, Any, Any], Any]
PARTS = 4


def decoder(
    apart: Build,
    together: Callable[[list[Any], list[Any], Any], Any],
    past: tuple[Any, ...],
    heads: int = 2,
    kind: Any = types.fp16,
) -> Program:
    """Two layers; ``apart(past, at, x)`` is a past, ``together(wholes, news, x)`` what goes out."""
    specs = [mb.TensorSpec((1, heads, 1, SIZE), types.fp16), mb.TensorSpec(past, kind)]

    @mb.program(input_specs=[*specs, mb.TensorSpec((1, 1, 1, 6), types.fp16)], opset_version=target.iOS18)
    def program(x: Any, past: Any, mask: Any) -> Any:
        wholes: list[Any] = []
        news: list[Any] = []
        for layer in range(2):
            for at in (2 * layer, 2 * layer + 1):
                news.append(mb.relu(x=x))
                wholes.append(mb.concat(values=[apart(past, at, x), news[-1]], axis=2, name=f"whole_{at}"))
            x = mb.scaled_dot_product_attention(query=x, key=wholes[-2], value=wholes[-1], attn_mask=mask)
        out = together(wholes, news, x)
        return (mb.identity(x=x, name="hidden"), *(out if isinstance(out, tuple) else (out,)))

    return program


def row(past: Any, at: int, x: Any) -> Any:
    return mb.slice_by_index(x=past, begin=[at, 0, 0, 0], end=[at + 1, 2, 5, SIZE], name=f"part_{at}")


def joined(wholes: list[Any], news: list[Any], x: Any) -> Any:
    return mb.concat(values=wholes, axis=0, name="present")


def swapped(wholes: list[Any], news: list[Any], x: Any) -> Any:
    return mb.concat(values=[wholes[1], wholes[0], *wholes[2:]], axis=0, name="present")


def column(past: Any, at: int, x: Any) -> Any:
    """Of (1, 2, 5, 4·SIZE): the features of all are side by side."""
    return mb.slice_by_index(x=past, begin=[0, 0, 0, at * SIZE], end=[1, 2, 5, (at + 1) * SIZE], name=f"part_{at}")


def turned(past: Any, at: int, x: Any) -> Any:
    part = mb.slice_by_index(x=past, begin=[at, 0, 0, 0], end=[at + 1, 5, 2, SIZE])
    return mb.transpose(x=part, perm=[0, 2, 1, 3], name=f"part_{at}")


def chosen(past: Any, at: int, x: Any) -> Any:
    number = mb.reduce_argmax(x=mb.reshape(x=x, shape=[-1]), axis=0)
    return mb.gather(x=past, indices=mb.expand_dims(x=number, axes=[0]), axis=0, name=f"part_{at}")


def stepped(past: Any, at: int, x: Any) -> Any:
    return mb.slice_by_index(
        x=past, begin=[at, 0, 0, 0], end=[at + 5, 2, 5, SIZE], stride=[5, 1, 1, 1], name=f"part_{at}"
    )


ROWS = (PARTS, 2, 5, SIZE)
REFUSALS: dict[str, tuple[Callable[[], Program], str, str]] = {
    "another order": (
        lambda: decoder(row, swapped, ROWS),
        "its presents are put together in another order, or not all",
        "present",
    ),
    "not all go out": (
        lambda: decoder(row, lambda wholes, news, x: mb.concat(values=wholes[:3], axis=0), ROWS),
        "its parts overlap, differ in size, or are not all of it",
        "past",
    ),
    "one after another along an axis behind": (
        lambda: decoder(row, lambda wholes, news, x: mb.concat(values=wholes, axis=3), ROWS),
        "no output holds what its parts become, one behind another",
        "whole_0",
    ),
    "presents that are computed": (
        lambda: decoder(row, lambda wholes, news, x: mb.concat(values=[*wholes, mb.relu(x=wholes[3])], axis=0), ROWS),
        "no output holds what its parts become, one behind another",
        "whole_0",
    ),
    "of other shapes": (
        lambda: decoder(row, lambda wholes, news, x: mb.concat(values=wholes, axis=1), ROWS),
        "it can't be told which of its axes holds the slots",
        "past",
    ),
    "presents that are used": (
        lambda: decoder(
            row,
            lambda wholes, news, x: (both := joined(wholes, news, x), mb.reduce_sum(x=both, name="sum")),
            ROWS,
        ),
        "its presents, put together, are also used elsewhere",
        "present",
    ),
    "presents that go out twice": (
        lambda: decoder(
            row,
            lambda wholes, news, x: (
                both := mb.concat(values=wholes, axis=0, name="first"),
                mb.expand_dims(x=both, axes=[0], name="second"),
            ),
            ROWS,
        ),
        "its presents, put together, are also used elsewhere",
        "first",
    ),
    "of another rank": (
        lambda: decoder(row, lambda wholes, news, x: mb.stack(values=wholes, axis=0, name="present"), ROWS),
        "what goes out has another rank than what comes in",
        "present",
    ),
    "parts that are left out": (
        lambda: decoder(row, joined, (PARTS + 1, 2, 5, SIZE)),
        "its parts overlap, differ in size, or are not all of it",
        "past",
    ),
    "a part that two layers have": (
        lambda: decoder(lambda past, at, x: row(past, at % 2, x), joined, ROWS),
        "its parts overlap, differ in size, or are not all of it",
        "past",
    ),
    "features side by side": (
        lambda: decoder(column, joined, (1, 2, 5, PARTS * SIZE)),
        "a part of it is no run of its elements",
        "part_0",
    ),
    "transposed": (
        lambda: decoder(turned, joined, (PARTS, 5, 2, SIZE)),
        "a part of it is transposed before it grows",
        "part_0",
    ),
    "a part that is chosen": (lambda: decoder(chosen, joined, ROWS), "a part of it is chosen", "part_0"),
    "steps": (lambda: decoder(stepped, joined, ROWS), "a part of it is cut with steps", "part_0"),
    "cut slots": (
        lambda: decoder(
            lambda past, at, x: mb.slice_by_index(
                x=past, begin=[at, 0, 1, 0], end=[at + 1, 2, 6, SIZE], name=f"part_{at}"
            ),
            joined,
            (PARTS, 2, 6, SIZE),
        ),
        "a part of it is no run of its elements",
        "part_0",
    ),
    "a computed place": (
        lambda: decoder(
            lambda past, at, x: mb.slice_by_size(x=past, begin=_place(at, x), size=[1, 2, 5, SIZE], name=f"part_{at}"),
            joined,
            ROWS,
        ),
        "a part of it is cut at a computed place",
        "part_0",
    ),
    "some presents that are cut": (
        lambda: decoder(
            lambda past, at, x: mb.slice_by_index(x=past, begin=[at, 0, 0, 0], end=[at + 1, 1, 5, SIZE]),
            lambda wholes, news, x: mb.concat(values=[_last(wholes[0]), *wholes[1:]], axis=2, name="present"),
            (PARTS, 1, 5, SIZE),
            heads=1,
        ),
        "some of its presents are cut",
        "present",
    ),
    "other axes": (
        lambda: growing_apart(),
        "its parts grow along different axes, or differ in shape",
        "past",
    ),
    "a part of other slots": (
        lambda: decoder(row, joined, (PARTS, 2, get_new_symbol(), SIZE)),
        "its slots are cut",
        "part_0",
    ),
    "used elsewhere": (
        lambda: decoder(row, lambda wholes, news, x: (joined(wholes, news, x), _sum_of_past(wholes[0])), ROWS),
        "the past is also used elsewhere",
        "sum",
    ),
}


def _last(whole: Any) -> Any:
    return mb.slice_by_index(x=whole, begin=[0, 0, 1, 0], end=[1, 1, 6, SIZE])


def growing_apart() -> Program:
    """Keys grow along one axis, and values along another."""
    specs = [mb.TensorSpec((2, 1, 5, 5), types.fp16), mb.TensorSpec((1, 1, 5), types.fp16)]

    @mb.program(input_specs=specs, opset_version=target.iOS18)
    def program(past: Any, x: Any) -> Any:
        key, value = mb.split(x=past, num_splits=2, axis=0)
        key = mb.concat(values=[key, mb.expand_dims(x=x, axes=[2])], axis=2)
        value = mb.concat(values=[value, mb.expand_dims(x=x, axes=[3])], axis=3)
        flat = [mb.reshape(x=each, shape=[1, 30]) for each in (key, value)]
        return mb.concat(values=flat, axis=0, name="present")

    return program


def _place(at: int, x: Any) -> Any:
    number = mb.reduce_argmax(x=mb.reshape(x=x, shape=[-1]), axis=0, keep_dims=True)
    return mb.concat(values=[number, np.zeros(3, np.int32)], axis=0)


def _sum_of_past(whole: Any) -> Any:
    return mb.reduce_sum(x=whole.op.values[0], name="sum")


@pytest.mark.parametrize("how", ["split", "slice_by_index", "slice_by_size"])
def test_a_part_that_is_cut_along_open_slots(how: str) -> None:
    """Every second token belongs to another layer, or so it seems."""
    slots: Any = get_new_symbol()
    specs = [mb.TensorSpec((1, 2, slots, SIZE), types.fp16), mb.TensorSpec((1, 2, 1, SIZE), types.fp16)]

    @mb.program(input_specs=specs, opset_version=target.iOS18)
    def program(past: Any, x: Any) -> Any:
        if how == "split":
            part = mb.split(x=past, num_splits=2, axis=2)[0]
        elif how == "slice_by_index":
            part = mb.slice_by_index(x=past, begin=[0, 0, 1, 0], end=[1, 2, 9, SIZE], end_mask=[True] * 4)
        else:
            part = mb.slice_by_size(x=past, begin=[0, 0, 0, 0], size=[-1, -1, 4, -1])
        return mb.concat(values=[part, mb.relu(x=x)], axis=2, name="present")

    report = KvToState().run(load(program))
    assert [miss.reason for miss in report.misses] == [
        "input past holds the pasts of several tensors, and its slots are cut"
    ]


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str) -> None:
    build, reason, place = REFUSALS[case]
    made = load(build())
    before = text(made)
    report = KvToState().run(made)
    assert not report
    reason = f"input past holds the pasts of several tensors, and {reason}"
    assert [(miss.place, miss.reason) for miss in report.misses] == [(place, reason)]
    assert text(made) == before


def test_what_is_refused_here_is_taken_in_order() -> None:
    made = load(decoder(row, joined, ROWS))
    assert KvToState().run(made).applied == PARTS
    assert states_of(made) == {"key_cache": (2, 2, 6, SIZE), "value_cache": (2, 2, 6, SIZE)}
    assert [shape_of(var) for var in made.function().inputs.values()][-1] == (2, 2, 6, SIZE)


def test_numbers_of_parts() -> None:
    whole = Combined("past", "present", (3, 2, 1, 5, 0, 7), (1, 5, 0, 7))
    assert (whole.count, whole.axis) == (6, 4)
    assert whole.part_of((3, 2, 1, 5, 11, 7)) == (1, 5, 11, 7)


def test_contexts_of_other_sizes() -> None:
    made, _ = agree(model(combined="rows", context=CONTEXT), context=CONTEXT + 4)
    assert {shape[2] for shape in states_of(made).values()} == {CONTEXT + 4}
    assert np.prod([shape[0] for shape in states_of(made).values()]) == 4
