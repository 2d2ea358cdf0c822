"""kv-to-state: what it reports of each function, and every reason for which it leaves a cache as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from milopt.mil import get_new_symbol, mb, target, types
from milopt.package import Model, load
from milopt.passes.cache import KvToState
from milopt.signature import METADATA_KEY
from milopt.text import text

from .cache_programs import Layer, model
from .cache_small import HEADS, SIZE, small
from .programs import fp16, fp32, ints, program_of
from .test_cache_inverse_details import functions

SOME = "the pass runs on some functions only, and the cache is of all"
SAME = "not every function of the program has the same cache"
NONE = "no output is a concat of an input and something new"
ELSEWHERE = "the past is also used elsewhere"
FIXED = "its shapes are fixed, and a prefix is as long as the conversation: read all slots"
OPEN = "a call takes any number of tokens, and update=mask needs to know how many"


def test_what_it_is() -> None:
    assert (KvToState.name, KvToState.after, KvToState.opset) == ("kv-to-state", ("canonicalize", "fuse-sdpa"), 9)
    assert KvToState() == KvToState("pair", "slice", 0, "auto", "current_pos")


def refused(made: Model, **options: Any) -> list[tuple[str, str, str]]:
    """Where and why, by function; the model stays as it is."""
    before = text(made), dict(made.metadata)
    report = KvToState(**options).run(made)
    assert (report.applied, report.signature) == (0, None)
    assert (text(made), dict(made.metadata)) == before
    return [(miss.function, miss.place, miss.reason) for miss in report.misses]


# --- several functions


def test_functions_of_one_cache() -> None:
    made = functions(small(1, layers=2), small(3, past=3, layers=2))
    report = KvToState().run(made)
    assert (report.applied, report.tried, report.misses) == (8, 8, [])
    assert report.signature is not None
    assert made.metadata == {METADATA_KEY: report.signature.to_json()}
    assert report.notes == ["S6: 6 slots are no multiple of 32, and the Neural Engine may not load the model"]
    assert [made.text_of(name, "current_pos") != "" for name in made.functions] == [True, True]


def test_rings_hold_the_tokens_of_the_longest_call() -> None:
    report = KvToState().run(functions(small(1, returned="kept"), small(3, returned="kept")))
    assert report.signature is not None
    assert {slot.ring for slot in report.signature.slots} == {8}


def test_functions_that_differ() -> None:
    assert refused(functions(small(), small(past=6))) == [("main", "", SAME)]
    assert refused(functions(small(), small(), small(past=6))) == [("main", "", SAME)]
    other = small(extra=lambda args, found: [mb.relu(x=args["past_k0"], name="peek")])
    assert refused(functions(small(), other)) == [("other0", "past_k0", ELSEWHERE), ("main", "", SAME)]
    assert refused(functions(other)) == [("main", "past_k0", ELSEWHERE)]
    with (made := functions(small(), small())).only(["main"]):
        assert refused(made) == [("main", "", SOME)]


def test_functions_without_a_cache() -> None:
    def plain() -> Model:
        return load(program_of(lambda x: mb.relu(x=x), x=fp16(2)))

    for made, tried, misses in (
        (functions(small(), plain()), 2, [("main", "", SAME)]),
        (functions(plain(), small()), 2, [("other0", "", SAME)]),
        (functions(plain(), plain()), 0, []),
    ):
        report = KvToState().run(made)
        assert [(miss.function, miss.place, miss.reason) for miss in report.misses] == misses
        plains = [name for name, each in made.functions.items() if "past_k0" not in each.inputs]
        assert (report.tried, report.notes) == (tried, [f"{name}: {NONE}" for name in plains])
    with (made := functions(plain(), plain())).only(["main"]):
        assert refused(made) == []


# --- what the cache must be


def joined(past: Any, new: Any, name: str, axis: int = 2) -> Any:
    return mb.concat(values=[past, mb.relu(x=new)], axis=axis, name=name)


def two(past: Any, new: Any, other: Any, x: Any) -> Any:
    return joined(past, new, "first"), joined(other, x, "second")


def cached(*shapes: Any, **options: Any) -> Model:
    """Two concats of a past and something new, and nothing that uses them."""
    given = dict(zip(("past", "new", "other", "x"), shapes, strict=True))
    return load(program_of(two, **given, **options))


def old(slots: Any = 5, heads: Any = 2) -> Any:
    return fp16(1, heads, slots, SIZE)


SLOTS: Any = get_new_symbol()
MORE: Any = get_new_symbol()
CACHES: dict[str, tuple[Callable[[], Model], dict[str, Any], tuple[str, str]]] = {
    "an old opset": (
        lambda: cached(old(), old(1), old(), old(1), opset=target.iOS17),
        {},
        ("first", "needs iOS18, the function is iOS17"),
    ),
    "open heads": (lambda: cached(old(), old(1), old(5, SLOTS), old(1)), {}, ("second", "its shape is not static")),
    "open slots of one": (
        lambda: cached(old(), old(1), old(SLOTS), old(1)),
        {},
        ("second", "its shape is not static"),
    ),
    "open heads of a prefix": (
        lambda: cached(old(SLOTS), old(1), old(SLOTS, MORE), old(1)),
        {},
        ("second", "its shape is not static"),
    ),
    "fp32": (
        lambda: cached(old(), old(1), fp32(1, 2, 5, SIZE), fp32(1, 2, 1, SIZE)),
        {},
        ("second", "the cache is fp32, and states are fp16"),
    ),
    "more tokens than another": (
        lambda: cached(old(), old(1), old(), old(2)),
        {},
        ("second", "has 2 new columns, but another cached tensor 1"),
    ),
    "more tokens than are kept": (
        lambda: small(6, (7, 5), layers=2, masks=("one", "other"), returned="kept"),
        {},
        ("whole_k1", "a call takes 6 tokens, and the past keeps 5"),
    ),
    "slots first": (lambda: small(perm=(2, 0, 1, 3)), {}, ("k0", "the slots are the first axis")),
    "a past that is used": (
        lambda: small(extra=lambda args, found: [mb.relu(x=args["past_v0"])]),
        {},
        ("past_v0", ELSEWHERE),
    ),
    "a past that is used, cast": (
        lambda: small(kind=types.fp32, extra=lambda args, found: [mb.relu(x=found["k0"].op.values[0])]),
        {},
        ("past_k0", ELSEWHERE),
    ),
    "a past that goes out": (
        lambda: small(extra=lambda args, found: [mb.cast(x=args["past_v0"], dtype="fp32")]),
        {},
        ("past_v0", ELSEWHERE),
    ),
    "a prefix of fixed slots": (
        lambda: cached(old(SLOTS), old(1), old(), old(1)),
        {"read": "prefix"},
        ("second", FIXED),
    ),
    "a prefix of which no slots are open": (small, {"read": "prefix"}, ("k0", FIXED)),
    "all slots of a prefix": (
        lambda: small(None, None),
        {"read": "full"},
        ("k0", "its shape is not static"),
    ),
    "any number of tokens by masks": (lambda: small(None, None), {"update": "mask"}, ("k0", OPEN)),
    "a name that is taken": (small, {"position": "x"}, ("k0", "there is an input named x already")),
    "the name of a mask of fixed shape": (
        small,
        {"position": "mask"},
        ("k0", "there is an input named mask already"),
    ),
    "the name of no mask": (
        lambda: small(None, None),
        {"position": "x"},
        ("k0", "there is an input named x already"),
    ),
    "the name of what would be a mask": (
        lambda: one(5, 6),
        {"position": "open"},
        ("present", "there is an input named open already"),
    ),
    "rows of a counter that are open": (
        lambda: small(None, None, counter=("q", 1)),
        {"position": "counter"},
        ("k0", "there is an input named counter already"),
    ),
    "a context that is too short": (
        lambda: small(2, layers=2),
        {"context": 1},
        ("k0", "a call takes 2 tokens, the context is 1"),
    ),
    "a context below zero": (
        lambda: small(None, None),
        {"context": -1},
        ("k0", "a call takes 1 tokens, the context is -1"),
    ),
    "a context of the new token alone": (
        lambda: small(None, None),
        {"context": 1},
        ("k0", "a context of 1 leaves no slot for a past"),
    ),
}


@pytest.mark.parametrize("case", CACHES)
def test_what_is_refused(case: str) -> None:
    build, options, told = CACHES[case]
    assert refused(build(), **options) == [("main", *told)]


TAKEN: list[tuple[Callable[[], Model], dict[str, Any]]] = [
    (lambda: small(5, 5, returned="kept"), {}),
    (lambda: small(None, None), {"context": 2}),
    (lambda: small(None, None), {"read": "prefix"}),
    (lambda: small(None, None, counter=(1, "q")), {"position": "counter"}),
    (lambda: small(None, None, counter=("q",)), {"position": "counter"}),
    (lambda: small(None, None), {"position": "mask"}),
    (lambda: small(None, None), {"update": "ring"}),
    (small, {"read": "full"}),
    (small, {"context": 1}),
    (lambda: small(2), {"context": 2}),
]


@pytest.mark.parametrize(("build", "options"), TAKEN)
def test_what_is_no_obstacle(build: Callable[[], Model], options: dict[str, Any]) -> None:
    assert KvToState(**options).run(build()).applied == 2


def prefix(used: int) -> Model:
    """Two tensors of any number of slots, of which the first so many are keys and values."""

    def build(x: Any, mask: Any, past: Any, other: Any) -> Any:
        wholes = joined(past, x, "first"), joined(other, mb.concat(values=[x, x], axis=2), "second")
        mixed = [mb.scaled_dot_product_attention(query=x, key=each, value=each) for each in wholes[:used]]
        return *wholes, *mixed, mb.identity(x=mask)

    given = {"x": old(1), "mask": fp16(1, 1, 1, MORE), "past": old(SLOTS), "other": old(SLOTS)}
    return load(program_of(build, **given))


def static(*masked: bool) -> Model:
    """Two tensors of five slots and as many attentions, each with a mask or without one."""

    def build(x: Any, past: Any, other: Any, mask: Any) -> Any:
        wholes = joined(past, x, "first"), joined(other, x, "second")
        mixed = [
            mb.scaled_dot_product_attention(query=x, key=each, value=each, attn_mask=mask if there else None)
            for each, there in zip(wholes, masked, strict=False)
        ]
        return *wholes, *mixed

    given = {"x": old(1), "past": old(), "other": old(), "mask": fp16(1, 1, 1, 6)}
    return load(program_of(build, **given))


def test_what_masks_and_attentions_there_must_be() -> None:
    told = "no mask hides the slots that are not written yet"
    assert KvToState().run(static(True, True)).applied == 2
    for made in (static(), static(True, False)):
        assert refused(made) == [("main", "first", told)]
    assert refused(static(True)) == [("main", "second", "is it a key or a value?")]


def test_a_window_beside_a_mask_that_shows_more() -> None:
    def build(x: Any, past: Any, mask: Any, sliding_mask: Any) -> Any:
        whole = joined(past, x, "present")
        both = mb.add(x=mask, y=sliding_mask)
        return whole, mb.scaled_dot_product_attention(query=x, key=whole, value=whole, attn_mask=both, name="mixed")

    masks = {name: fp16(1, 1, 3, 8) for name in ("mask", "sliding_mask")}
    made = load(program_of(build, x=old(3), past=old(), **masks))
    made.metadata["milopt.sliding_window"] = "3"
    report = KvToState(update="ring").run(made)
    assert report.signature is not None
    assert [slot.ring for slot in report.signature.slots] == [0]


def test_calls_of_two_lengths_of_a_prefix() -> None:
    """Where the slots are open, each tensor may take its own number of new tokens."""
    assert KvToState(context=9).run(prefix(2)).applied == 2
    assert refused(prefix(1), context=9) == [("main", "second", "is it a key or a value?")]


# --- one tensor


def test_one_tensor_of_keys_and_values() -> None:
    for made, context in ((model((1,), [Layer(together=True)]), 0), (one(5, 6), 0), (one(SLOTS, MORE), 8)):
        report = KvToState(context=context).run(made)
        assert report.signature is not None
        assert [slot.state for slot in report.signature.slots] == ["kv_cache"] * report.applied
    made = one(5, 6)
    made.metadata["milopt.sliding_window"] = "3"
    report = KvToState(update="ring").run(made)
    assert report.signature is not None
    assert [slot.ring for slot in report.signature.slots] == [3]


def one(past: Any, columns: Any) -> Model:
    """Whose masks have ``columns``; what is ``open`` is used for something else."""

    def build(x: Any, mask: Any, past: Any, **others: Any) -> Any:
        whole = joined(past, x, "present")
        mixed = mb.scaled_dot_product_attention(query=x, key=whole, value=whole, attn_mask=mask, name="mixed")
        return whole, mixed, *(mb.identity(x=each) for each in others.values())

    open_ = {"open": fp16(1, 1, 1, get_new_symbol())} if past == 5 else {}
    return load(program_of(build, x=old(1, HEADS), mask=fp16(1, 1, 1, columns), past=old(past), **open_))


def test_a_counter_of_more_than_is_needed() -> None:
    assert KvToState(position="counter").run(small(counter=(2, 1))).applied == 2
    given = {"x": old(1), "mask": fp16(1, 1, 1, 6), "past": old(), "counter": ints(1)}

    def build(x: Any, mask: Any, past: Any, counter: Any) -> Any:
        whole = joined(past, x, "present")
        mixed = mb.scaled_dot_product_attention(query=x, key=whole, value=whole, attn_mask=mask)
        return whole, mb.add(x=mixed, y=mb.cast(x=counter, dtype="fp16"))

    report = KvToState(position="counter").run(load(program_of(build, **given)))
    assert report.signature is not None
    assert (report.signature.position, report.signature.counts) == ("", "counter")
