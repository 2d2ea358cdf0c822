"""Caches of any length: which inputs are masks, what a cached tensor must be, and what its states are called."""

from __future__ import annotations

from typing import Any

import pytest

from milopt.mil import get_new_symbol, mb, types
from milopt.passes.cache import KvToState
from milopt.passes.cache_drafts import open_masks

from .cache_programs import CONTEXT, GROUPS, SIZE, Layer, flexible, model
from .programs import bools, fp16, fp32, ints, program_of
from .test_contract_details import tiny

ROWS: Any = get_new_symbol()
OPEN: Any = get_new_symbol()


def masks(**inputs: Any) -> list[str]:
    def build(**given: Any) -> Any:
        return [mb.identity(x=each) for each in given.values()]

    return list(open_masks(program_of(build, **inputs).functions["main"], {"past"}))


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        (fp16(1, 1, ROWS, OPEN), True),
        (fp32(1, ROWS, OPEN), True),
        (bools(ROWS, OPEN), True),
        (bools(1, 1, 1, OPEN), True),
        (fp16(1, 1, ROWS, 8), False),
        (fp16(1, 2, ROWS, OPEN), False),
        (fp16(2, 1, ROWS, OPEN), False),
        (fp16(2, ROWS, OPEN), False),
        (fp16(OPEN), False),
        (fp16(1, 1, 1, ROWS, OPEN), False),
        (ints(1, 1, ROWS, OPEN), False),
    ],
)
def test_inputs_that_are_masks(mask: Any, found: bool) -> None:
    assert masks(past=fp16(1, 1, ROWS, OPEN), mask=mask) == (["mask"] if found else [])


def declined(made: Any, **options: Any) -> list[tuple[str, str]]:
    report = KvToState(**options).run(made)
    assert not report
    return [(miss.place, miss.reason) for miss in report.misses]


def unused(found: dict[str, Any]) -> list[Any]:
    return [mb.relu(x=found["q"], name="logits"), found["key"], found["value"]]


def test_caches_of_any_length_that_are_refused() -> None:
    assert declined(tiny(outputs=unused)) == [("present_key", "is it a key or a value?")]
    assert declined(tiny(masks=())) == [("present_key", "no mask tells how many columns there are")]
    assert declined(tiny(kind=types.fp32)) == [("present_key", "the cache is fp32, and states are fp16")]
    told = "a call takes any number of tokens, and update=mask needs to know how many"
    assert declined(tiny(), update="mask") == [("present_key", told)]
    assert declined(tiny(), position="q") == [("present_key", "there is an input named q already")]
    assert declined(tiny(), read="full") == [("present_key", "its shape is not static")]


def test_a_context_that_is_not_known() -> None:
    made = tiny()
    del made.metadata["milopt.context"]
    told = "its shape is flexible: say how many slots there are (context=N)"
    assert declined(made.clone()) == [("present_key", told)]
    for text in ("0", "many"):
        made.metadata["milopt.context"] = text
        assert declined(made.clone()) == [("present_key", told)]
    report = KvToState(context=5).run(made)
    assert report.signature is not None
    assert (report.signature.context, report.applied) == (5, 2)


def test_contexts_that_are_too_short() -> None:
    told = "a call takes 4 tokens, the context is 3"
    assert [why for _, why in declined(model((4,)), context=3)] == [told]
    report = KvToState(context=4).run(model((4,)))
    assert report.signature is not None
    assert report.signature.context == 4


def test_a_prefix_of_fixed_shapes() -> None:
    told = "its shapes are fixed, and a prefix is as long as the conversation: read all slots"
    assert declined(model((1,)), read="prefix") == [("present_key_0", told)]


STATES = {
    "pair": ["key_cache", "value_cache"],
    "unified": ["kv_cache"],
    "per-layer": ["key_cache_0", "value_cache_0", "key_cache_1", "value_cache_1"],
}


@pytest.mark.parametrize("layout", STATES)
def test_states_of_caches_of_any_length(layout: Any) -> None:
    made = flexible()
    report = KvToState(layout=layout).run(made)
    assert report.signature is not None
    slots = report.signature.slots
    assert [slot.past for slot in slots] == ["past_key_0", "past_value_0", "past_key_1", "past_value_1"]
    assert list(dict.fromkeys(slot.state for slot in slots)) == STATES[layout]
    rows = {"pair": [0, 0, 1, 1], "unified": [0, 2, 1, 3], "per-layer": [0, 0, 0, 0]}[layout]
    assert [(slot.row, slot.rows, slot.ring, slot.kept, slot.axis) for slot in slots] == [
        (row, 1, 0, 0, None) for row in rows
    ]
    assert (report.signature.prefix, report.signature.context, report.signature.axis) == (True, CONTEXT, 2)
    assert (report.signature.masks, report.signature.rings) == (("causal_mask",), ())


def rings(layers: list[Layer], queries: tuple[int, ...] = (1,), **options: Any) -> list[tuple[str, int, int, int]]:
    made = model(queries, layers=layers, window=options.pop("window", 0))
    report = KvToState(**options).run(made)
    assert report.signature is not None, str(report)
    return [(slot.state, slot.row, slot.ring, slot.kept) for slot in report.signature.slots]


def test_rings() -> None:
    keeps = Layer(kept=5, returned="kept")
    assert rings([keeps]) == [("key_cache_local", 0, 6, 5), ("value_cache_local", 0, 6, 5)]
    assert [ring for _, _, ring, _ in rings([keeps], (1, 4))] == [9, 9]
    other = Layer(kept=7, returned="kept")
    assert rings([keeps, other]) == [
        ("key_cache_local6", 0, 6, 5),
        ("value_cache_local6", 0, 6, 5),
        ("key_cache_local8", 0, 8, 7),
        ("value_cache_local8", 0, 8, 7),
    ]
    assert [name for name, *_ in rings([keeps], layout="per-layer")] == ["key_cache_0", "value_cache_0"]
    assert [name for name, *_ in rings([keeps], layout="unified")] == ["kv_cache_local", "kv_cache_local"]


def test_rings_of_sliding_windows() -> None:
    sliding = [Layer(sliding=True), Layer()]
    assert [ring for _, _, ring, _ in rings(sliding, window=4, update="ring")] == [4, 4, 0, 0]
    assert [ring for _, _, ring, _ in rings(sliding, window=4)] == [0, 0, 0, 0]
    # as many slots as the context has, or more, are no ring
    assert [ring for _, _, ring, _ in rings(sliding, window=CONTEXT - 1, update="ring")] == [CONTEXT - 1] * 2 + [0, 0]
    assert [ring for _, _, ring, _ in rings(sliding, window=CONTEXT, update="ring")] == [0, 0, 0, 0]
    assert [ring for _, _, ring, _ in rings(sliding, (1, 4), window=CONTEXT - 3, update="ring")] == [0, 0, 0, 0]


def test_large_rings_are_multiples_of_32() -> None:
    def size(window: int) -> int:
        made = model((1,), layers=[Layer(sliding=True)], window=window, context=100)
        report = KvToState(update="ring").run(made)
        assert report.signature is not None
        return report.signature.slots[0].ring

    assert [size(window) for window in (31, 32, 33, 64, 65)] == [31, 32, 64, 64, 96]


def test_tensors_of_one_state_that_differ() -> None:
    told = f"is (1, {GROUPS}, {CONTEXT}, {SIZE}), but another cached tensor is (1, {GROUPS}, {SIZE}, {CONTEXT})"
    layers = [Layer(transposed=True), Layer()]
    assert declined(model((1,), layers=layers)) == [("present_key_1", told)]
