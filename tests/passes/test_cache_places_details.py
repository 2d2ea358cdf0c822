"""Where kv-to-state puts each cached tensor, how many slots there are, and which sizes it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from milopt.mil import mb, types
from milopt.package import Model, load
from milopt.passes.cache import KvToState
from milopt.passes.cache_drafts import Draft, Group
from milopt.passes.cache_inverse import StateToKv
from milopt.passes.cache_pairs import Pair
from milopt.passes.cache_places import Layout
from milopt.passes.cache_states import Plan
from milopt.passes.cache_written import Written
from milopt.passes.contract import ClientContract
from milopt.signature import CacheSignature, CacheSlot, Combined
from milopt.text import text

from .cache_programs import SIZE, Layer, model
from .cache_small import Extra, small
from .programs import fp16, program_of
from .test_cache_combined import ROWS, decoder, joined, row
from .test_cache_forms import agree

KEEPS = Layer(kept=5, returned="kept")


RECORDS: list[Any] = [KvToState, StateToKv, ClientContract, Draft, Group, Pair, Plan, Written]


@pytest.mark.parametrize("record", RECORDS)
def test_what_was_found_stays_as_it_is(record: Any) -> None:
    assert record.__dataclass_params__.frozen


def signature(made: Model, **options: Any) -> CacheSignature:
    report = KvToState(**options).run(made)
    assert report.signature is not None, str(report)
    return report.signature


def declined(made: Model, **options: Any) -> list[tuple[str, str]]:
    report = KvToState(**options).run(made)
    assert not report
    return [(miss.place, miss.reason) for miss in report.misses]


def test_one_layer() -> None:
    assert signature(small()) == CacheSignature(
        (CacheSlot("past_k0", "k0", "key_cache", 0, 1), CacheSlot("past_v0", "v0", "value_cache", 0, 1)),
        "current_pos",
        ("mask",),
        6,
        2,
    )


def test_inputs_of_another_type_that_forget() -> None:
    said: Any = {"ring": 6, "kept": 5, "returned": "kept", "dtype": "fp32"}
    assert signature(small(returned="kept", kind=types.fp32)) == CacheSignature(
        (
            CacheSlot("past_k0", "k0", "key_cache_local", 0, 1, **said),
            CacheSlot("past_v0", "v0", "value_cache_local", 0, 1, **said),
        ),
        "current_pos",
        ("mask",),
        24,
        2,
        rings=(("mask", 6),),
    )


def test_a_mask_that_places_tokens_comes_first() -> None:
    made = signature(small(None, None, masks=("one", "other"), layers=2), position="other")
    assert (made.masks, made.position, made.counts, made.prefix) == (("other", "one"), "", "", True)
    made = signature(small(counter=(1,)), position="counter")
    assert (made.masks, made.position, made.counts, made.prefix) == (("mask",), "", "counter", False)


def test_tensors_of_one_input() -> None:
    made = signature(load(decoder(row, joined, ROWS)))
    assert made.combined == (Combined("past", "present", (4, 2, 0, SIZE), (1, 2, 0, SIZE)),)
    assert [slot.row for slot in made.slots] == [0, 0, 1, 1]


def placed(layers: list[Layer], **options: Any) -> list[tuple[str, int, int, int]]:
    made = signature(model((1,), layers, window=options.pop("window", 0)), **options)
    return [(slot.state, slot.row, slot.rows, slot.ring) for slot in made.slots]


@pytest.mark.parametrize(
    ("layout", "names", "rows"),
    [
        ("unified", ("kv_cache", "kv_cache"), (0, 2)),
        ("pair", ("kv_cache", "kv_cache"), (0, 2)),
        ("per-layer", ("kv_cache_0", "kv_cache_1"), (0, 0)),
    ],
)
def test_keys_and_values_in_one_tensor(layout: Layout, names: tuple[str, str], rows: tuple[int, int]) -> None:
    made = placed([Layer(together=True), Layer(together=True)], layout=layout)
    assert made == [(name, row_, 2, 0) for name, row_ in zip(names, rows, strict=True)]


def test_axes_that_differ_from_the_first() -> None:
    made = signature(model((1,), [Layer(), Layer(transposed=True)]), layout="per-layer")
    assert (made.axis, [slot.axis for slot in made.slots]) == (2, [None, None, 3, None])
    made = signature(model((1,), [Layer(transposed=True)]))
    assert (made.axis, [slot.axis for slot in made.slots]) == (3, [None, 2])


def test_rings_of_one_size_and_of_two() -> None:
    assert placed([KEEPS, KEEPS], layout="unified") == [("kv_cache_local", row, 1, 6) for row in (0, 2, 1, 3)]
    names = [name for name, *_ in placed([KEEPS, Layer(kept=7, returned="kept")])]
    assert names == ["key_cache_local6", "value_cache_local6", "key_cache_local8", "value_cache_local8"]
    assert [name for name, *_ in placed([KEEPS, Layer()])] == [
        "key_cache_local",
        "value_cache_local",
        "key_cache",
        "value_cache",
    ]


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        ("pair", ["key_cache_local", "value_cache_local", "key_cache", "value_cache"]),
        ("unified", ["kv_cache_local", "kv_cache_local", "kv_cache", "kv_cache"]),
        ("per-layer", ["key_cache_0", "value_cache_0", "key_cache_1", "value_cache_1"]),
    ],
)
def test_names_of_states_that_turn(layout: Layout, names: list[str]) -> None:
    made = small(1, (5, 7), layers=2, masks=("one", "other"), returned=("kept", "all"))
    assert [slot.state for slot in signature(made, layout=layout).slots] == names


def test_keys_that_grow_along_another_axis() -> None:
    def build(x: Any, mask: Any, keys: Any, values: Any) -> Any:
        key = mb.concat(values=[keys, mb.transpose(x=x, perm=[0, 1, 3, 2])], axis=3, name="key")
        value = mb.concat(values=[values, x], axis=2, name="value")
        turned = mb.transpose(x=key, perm=[0, 1, 3, 2])
        mixed = mb.scaled_dot_product_attention(query=x, key=turned, value=value, attn_mask=mask)
        return key, value, mixed

    given = {"x": fp16(1, 2, 1, SIZE), "mask": fp16(1, 1, 1, 6)}
    program = program_of(build, **given, keys=fp16(1, 2, SIZE, 5), values=fp16(1, 2, 5, SIZE))
    made = signature(load(program))
    assert (made.axis, [slot.axis for slot in made.slots]) == (3, [None, 2])


def test_tensors_of_one_state_with_other_features() -> None:
    inputs: dict[str, Any] = {"mask": fp16(1, 1, 1, 6)}
    for at, size in enumerate((4, 3)):
        inputs |= {f"x{at}": fp16(1, 2, 1, size), f"past{at}": fp16(1, 2, 5, size)}

    def build(**given: Any) -> list[Any]:
        outs: list[Any] = []
        for at in (0, 1):
            x = given[f"x{at}"]
            whole = mb.concat(values=[given[f"past{at}"], x], axis=2, name=f"whole{at}")
            mixed = mb.scaled_dot_product_attention(query=x, key=whole, value=whole, attn_mask=given["mask"])
            outs += [whole, mixed]
        return outs

    made = load(program_of(build, **inputs))
    told = "is (1, 2, 6, 3), but another cached tensor is (1, 2, 6, 4)"
    assert declined(made.clone()) == [("whole1", told)]
    assert len(signature(made, layout="per-layer").slots) == 2


@pytest.mark.parametrize(("window", "ring"), [(1, 1), (31, 31), (32, 32), (33, 64), (64, 64), (65, 96)])
def test_large_rings_are_multiples_of_32(window: int, ring: int) -> None:
    made = small(1, 99, masks=("mask",))
    made.metadata["milopt.sliding_window"] = str(window)
    assert [slot.ring for slot in signature(made, update="ring").slots] == [ring, ring]


def test_no_ring_without_a_window() -> None:
    assert [slot.ring for slot in signature(small(3, 5), update="ring").slots] == [0, 0]


def test_a_ring_no_shorter_than_the_context_is_none() -> None:
    for window, ring in ((5, 5), (6, 0), (7, 0)):
        made = small(1, 5)
        made.metadata["milopt.sliding_window"] = str(window)
        assert [slot.ring for slot in signature(made, update="ring").slots] == [ring, ring]


# --- how many slots


def saying(made: Model, context: str) -> Model:
    made.metadata["milopt.context"] = context
    return made


@pytest.mark.parametrize(
    ("pasts", "forms", "said", "context"),
    [
        ((5,), ["kept"], "", 4 * 6),
        ((5,), ["kept"], "50", 50),
        ((5,), ["kept"], "0", 4 * 6),
        ((5,), ["kept"], "many", 4 * 6),
        ((5, 7), ["kept", "kept"], "", 4 * 8),
        ((7, 5), ["kept", "kept"], "", 4 * 8),
        ((5, 11), ["kept", "all"], "50", 12),
        ((11,), ["all"], "50", 12),
    ],
)
def test_how_many_slots_there_are(pasts: tuple[int, ...], forms: list[str], said: str, context: int) -> None:
    made = small(1, pasts, layers=len(pasts), returned=forms, masks=[f"mask{at}" for at in range(len(pasts))])
    assert signature(saying(made, said) if said else made).context == context


def two(one: int, other: int, masks: tuple[str, str] = ("sliding_mask", "mask"), **options: Any) -> Model:
    """Two attentions, each with its mask, on so many columns; of ``sliding_mask``, or of both, the window is 3."""
    made = small(1, (one - 1, other - 1), layers=2, masks=masks, **options)
    made.metadata["milopt.sliding_window"] = "3"
    return made


def test_contexts_of_two_sizes() -> None:
    """The layers that see everything say how many tokens there may be, else the largest of the others."""
    made = signature(two(9, 7), update="ring")
    assert (made.context, made.rings, [slot.ring for slot in made.slots]) == (7, (("sliding_mask", 3),), [3, 3, 0, 0])
    assert signature(two(7, 9, masks=("one", "other")), update="ring").context == 9
    assert declined(two(9, 7)) == [("k1", "has 7 slots, but another cached tensor 9")]


def test_what_keeps_all_and_what_forgets_under_one_mask() -> None:
    told = "a mask is shared by tensors that keep all tokens and such that don't"
    shared = small(1, (5, 5, 5), layers=3, masks=("one", "other", "other"), returned=("all", "kept", "all"))
    assert declined(shared) == [("whole_k1", told)]


# --- sizes that are computed with


def over(op: str, **options: Any) -> Extra:
    """What such an op gives of the keys, over all slots."""

    def extra(args: dict[str, Any], found: dict[str, Any]) -> list[Any]:
        return [getattr(mb, op)(x=found["k0"], axes=[2], name="out", **options)]

    return extra


def scored(reduce: Callable[[Any], Any]) -> Extra:
    """What ``reduce`` makes of the masked scores, (1, H, 1, S)."""

    def extra(args: dict[str, Any], found: dict[str, Any]) -> list[Any]:
        scores = mb.matmul(x=args["x"], y=found["k0"], transpose_y=True)
        return [mb.identity(x=reduce(mb.add(x=scores, y=args["mask"])), name="out")]

    return extra


def sums(op: str) -> Callable[[Any], Any]:
    return lambda x: getattr(mb, op)(x=x, axes=[3], name="reduced")


def shares(x: Any) -> Any:
    powers = mb.exp(x=mb.sub(x=x, y=mb.reduce_max(x=x, axes=[3], keep_dims=True)))
    return mb.real_div(x=mb.reduce_sum(x=mb.mul(x=powers, y=powers), axes=[3]), y=mb.reduce_sum(x=powers, axes=[3]))


def linear(args: dict[str, Any], found: dict[str, Any]) -> list[Any]:
    """Attention without a softmax: it would see what the slots of a ring hold besides."""
    scores = mb.matmul(x=args["x"], y=found["k0"], transpose_y=True)
    return [mb.matmul(x=mb.relu(x=scores), y=found["v0"], name="out")]


def hiding(args: dict[str, Any], found: dict[str, Any]) -> list[Any]:
    scores = mb.matmul(x=args["x"], y=found["k0"], transpose_y=True)
    return [mb.matmul(x=mb.relu(x=mb.add(x=scores, y=args["mask"])), y=found["v0"], name="out")]


TOLD = "{} of other slots, which a mask should hide, is something else"
SIZES: dict[str, tuple[Extra, list[tuple[str, str]]]] = {
    "a size": (
        lambda args, found: [mb.cast(x=mb.shape(x=found["k0"], name="sizes"), dtype="fp16", name="out")],
        [("sizes", "its size is computed with, and another is wanted")],
    ),
    "a mean": (over("reduce_mean"), [("out", TOLD.format("reduce_mean"))]),
    "a sum": (over("reduce_sum"), [("out", TOLD.format("reduce_sum"))]),
    "the largest": (over("reduce_max"), [("out", TOLD.format("reduce_max"))]),
    "the largest score": (scored(sums("reduce_max")), []),
    "a sum of scores": (scored(sums("reduce_sum")), [("reduced", TOLD.format("reduce_sum"))]),
    "a mean of weights": (
        scored(lambda x: sums("reduce_mean")(mb.softmax(x=x, axis=-1))),
        [("reduced", TOLD.format("reduce_mean"))],
    ),
    "a sum of weights": (scored(lambda x: sums("reduce_sum")(mb.softmax(x=x, axis=-1))), []),
    "a sum of powers": (scored(shares), []),
    "a sum of features": (
        lambda args, found: [mb.reduce_sum(x=mb.reduce_mean(x=found["k0"], axes=[3]), axes=[0, 1, 2], name="out")],
        [("out", TOLD.format("reduce_sum"))],
    ),
    "a product without a mask": (linear, [("out", "no mask hides slots from this product")]),
    "a product with a mask": (hiding, []),
}


@pytest.mark.parametrize("case", SIZES)
def test_what_is_computed_over_all_slots(case: str) -> None:
    """With as many slots as there were columns it is the same; with others only where a mask hides them."""
    extra, expected = SIZES[case]
    agree(small(extra=extra))
    if expected:
        made = small(extra=extra)
        before = text(made)
        assert declined(made, context=9) == expected
        assert text(made) == before
    else:
        agree(small(extra=extra), context=9)


def test_scores_that_are_made_of_each_other_twice() -> None:
    """Each is looked at once."""

    def doubled(x: Any) -> Any:
        for _ in range(24):
            x = mb.add(x=x, y=x)
        return mb.reduce_max(x=x, axes=[3])

    assert KvToState(context=9).run(small(extra=scored(doubled)))


# --- columns that also leave otherwise


def again(op: str) -> Extra:
    def extra(args: dict[str, Any], found: dict[str, Any]) -> list[Any]:
        columns = found["k0"] if op == "columns" else next(iter(found["k0"].child_ops)).outputs[0]
        return [mb.cast(x=columns, dtype="fp32", name="again")]

    return extra


def test_columns_that_leave_by_two_outputs() -> None:
    told = "its columns are in the order of the cache, and it is an output"
    assert declined(small(extra=again("columns"))) == [("again", told)]
    assert declined(small(returned="kept", extra=again("last"))) == [("mixed0", "only its value comes from the cache")]
    # slots up to the new tokens are the columns
    assert KvToState().run(small(None, None, extra=again("columns"))).applied == 2
