"""Attention head by head, joined again: what becomes attention of all heads, and what does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest

from milopt.mil import Program, get_new_symbol, mb, target
from milopt.passes.attention_heads import MergeHeads
from milopt.rules import apply
from milopt.text import text

from .support import assert_same, op_types

HEADS, L, S, E = 3, 4, 5, 8
SDPA = "scaled_dot_product_attention"
F32 = np.float32

Build = Callable[..., Any]


def program_of(build: Build, *shapes: tuple[int, ...]) -> Program:
    specs = [mb.TensorSpec(shape) for shape in shapes]

    def two(q: Any, k: Any) -> Any:
        return build(q, k)

    def three(q: Any, k: Any, m: Any) -> Any:
        return build(q, k, m)

    return mb.program(input_specs=specs, opset_version=target.iOS18)(two if len(shapes) == 2 else three)


def head(q: Any, k: Any, v: Any = None, mask: Any = None) -> Any:
    masks = {} if mask is None else {"attn_mask": mask}
    return mb.scaled_dot_product_attention(query=q, key=k, value=k if v is None else v, **masks)


def merged(build: Build, *shapes: tuple[int, ...]) -> Program:
    """The program with one attention, which computes the same."""
    before, after = program_of(build, *shapes), program_of(build, *shapes)
    report = apply(MergeHeads(), after)
    assert report.applied == 1, str(report)
    after.validate()
    assert op_types(after).count(SDPA) == 1
    assert_same(before, after)
    return after


def reasons(build: Build, *shapes: tuple[int, ...]) -> list[tuple[str, str]]:
    program = program_of(build, *shapes)
    before = text(program)
    report = apply(MergeHeads(), program)
    assert not report
    assert text(program) == before
    return [(miss.place, miss.reason) for miss in report.misses if miss.declined]


def parts(x: Any, count: int = HEADS, axis: int = 1) -> list[Any]:
    return list(mb.split(x=x, num_splits=count, axis=axis, name=f"{x.name}_parts"))


def joined(heads: list[Any], axis: int = 1) -> Any:
    return mb.concat(values=heads, axis=axis, name="out")


Q, K = (1, HEADS, L, E), (1, HEADS, S, E)


@pytest.mark.parametrize("axis", [1, -3])
def test_heads_of_their_own_axis(axis: int) -> None:
    def build(q: Any, k: Any, m: Any) -> Any:
        values = parts(mb.relu(x=k))
        return joined([head(*each, m) for each in zip(parts(q, axis=axis), parts(k), values, strict=True)], axis)

    for mask in ((1, 1, L, S), (1, L, S), (L, S), (S,)):
        assert op_types(merged(build, Q, K, mask)) == ["relu", SDPA]


@pytest.mark.parametrize("out", [[0, 2, 1, 3], [0, 1, 3, 2], [0, 3, 1, 2], [-4, -2, -3, -1]])
def test_results_that_are_transposed(out: list[int]) -> None:
    perm = [axis % 4 for axis in out]

    def build(q: Any, k: Any) -> Any:
        heads = [mb.transpose(x=head(*each), perm=out) for each in zip(parts(q), parts(k), strict=True)]
        return joined(heads, perm.index(1))

    merged(build, Q, K)


@pytest.mark.parametrize("out", [[0, 2, 1, 3], [0, 1, 2, 3], [0, 1, 3, 2], [0, 3, 1, 2]])
def test_heads_that_are_joined_as_features(out: list[int]) -> None:
    """H before D: as channels of the whole."""

    def build(q: Any, k: Any) -> Any:
        heads = [mb.transpose(x=head(*each), perm=out) for each in zip(parts(q), parts(k), strict=True)]
        return joined(heads, out.index(3))

    merged(build, Q, K)


def test_pieces_of_features() -> None:
    """(1, 1, L, H·E) cut along the last axis, and (1, H·E, 1, S), which are transposed."""

    def build(q: Any, k: Any) -> Any:
        queries = parts(q, axis=-1)
        keys, values = ([mb.transpose(x=x, perm=[0, 2, 3, 1]) for x in parts(each)] for each in (k, mb.relu(x=k)))
        return joined([head(*each) for each in zip(queries, keys, values, strict=True)])

    merged(build, (1, 1, L, HEADS * E), (1, HEADS * E, 1, S))


@pytest.mark.parametrize("groups", [2, 3])
@pytest.mark.parametrize("mask", [None, (L, S), (1, 1, L, S), (1, 1, 1, S)])
def test_heads_that_share_keys(groups: int, mask: tuple[int, ...] | None) -> None:
    def build(q: Any, k: Any, m: Any = None) -> Any:
        keys = parts(k, 2) if groups == 2 else [k]
        queries = parts(q, groups * len(keys))
        return joined([head(each, keys[at // groups], None, m) for at, each in enumerate(queries)])

    keys = 2 if groups == 2 else 1
    shapes = [(1, groups * keys, L, E), (1, keys, S, E), *([] if mask is None else [mask])]
    after = merged(build, *shapes)
    (op,) = (op for op in after.functions["main"].operations if op.op_type == SDPA)
    assert tuple(op.query.shape) == (1, keys, groups * L, E)


def test_heads_that_share_keys_which_are_features() -> None:
    def build(q: Any, k: Any) -> Any:
        keys, values = (parts(each, 2, 3) for each in (k, mb.relu(x=k)))
        return joined([head(each, keys[at // 2], values[at // 2]) for at, each in enumerate(parts(q, 4))])

    merged(build, (1, 4, L, E), (1, 1, S, 2 * E))


@pytest.mark.parametrize("factor", [(L, 1), (1, 1, L, 1), (1, 1, 1, E), (1,)])
@pytest.mark.parametrize("number", [np.float32(0.5), np.full((1, 1, 1, 1), 0.5, np.float32)])
def test_pieces_that_are_scaled_by_values(factor: tuple[int, ...], number: Any) -> None:
    def build(q: Any, k: Any, m: Any) -> Any:
        queries = [mb.mul(x=mb.mul(x=mb.mul(x=mb.mul(x=x, y=m), y=number), y=m), y=number) for x in parts(q)]
        return joined([head(*each) for each in zip(queries, parts(k), strict=True)])

    after = merged(build, Q, K, factor)
    assert op_types(after).count("mul") == 4


def test_pieces_that_are_scaled_alike() -> None:
    def build(q: Any, k: Any, m: Any) -> Any:
        queries = [mb.mul(x=mb.mul(x=each, y=F32(0.5)), y=m) for each in parts(q)]
        return joined([head(*each) for each in zip(queries, parts(k), strict=True)])

    after = merged(build, Q, K, (1, 1, L, 1))
    assert op_types(after).count("mul") == 2


def test_slices() -> None:
    def build(q: Any, k: Any) -> Any:
        fronts: list[dict[str, Any]] = [
            {"begin": [0, 9, 0, 0], "begin_mask": [False, True, False, False]},
            {"begin": [0, 1, 0, 0], "stride": [1, 1, 1, 1]},
            {"begin": [0, -1, 0, 0]},
        ]
        queries = [mb.slice_by_index(x=q, end=[1, at + 1, L, E], **front) for at, front in enumerate(fronts)]
        masks = {"begin_mask": [True, False, True, True], "end_mask": [True, False, True, True]}
        keys = [mb.slice_by_index(x=k, begin=[9, at, 9, 9], end=[0, at + 1, 0, 0], **masks) for at in range(HEADS)]
        return joined([head(*each) for each in zip(queries, keys, strict=True)])

    assert op_types(merged(build, Q, K)) == [SDPA]


def simple(change: Build) -> Build:
    """Every head of its own piece of q and k; ``change`` makes the heads' list another one."""

    def build(q: Any, k: Any, m: Any = None) -> Any:
        queries, keys = parts(q), parts(k)
        heads = change(queries, keys, m)
        return heads if isinstance(cast("object", heads), tuple) else joined(heads)

    return build


def all_heads(queries: list[Any], keys: list[Any]) -> list[Any]:
    return [head(*each) for each in zip(queries, keys, strict=True)]


def one_needed_elsewhere(queries: list[Any], keys: list[Any], _: Any) -> Any:
    heads = all_heads(queries, keys)
    return joined(heads), mb.relu(x=heads[1], name="seen")


def one_turned_and_needed_elsewhere(queries: list[Any], keys: list[Any], _: Any) -> Any:
    heads = all_heads(queries, keys)
    return joined([mb.transpose(x=each, perm=[0, 2, 1, 3]) for each in heads], 2), mb.relu(x=heads[1], name="seen")


def one_returned(queries: list[Any], keys: list[Any], _: Any) -> Any:
    heads = all_heads(queries, keys)
    return joined(heads), heads[1]


def one_turned_alone(queries: list[Any], keys: list[Any], _: Any) -> Any:
    heads = all_heads(queries, keys)
    return [mb.transpose(x=each, perm=[0, 1, 3, 2]) if at == 1 else each for at, each in enumerate(heads)]


def one_turned_and_returned(queries: list[Any], keys: list[Any], _: Any) -> Any:
    heads = all_heads(queries, keys)
    return joined([mb.transpose(x=each, perm=[0, 2, 1, 3]) for each in heads], 2), heads[1]


def a_query_that_is_an_input(queries: list[Any], keys: list[Any], m: Any) -> Any:
    return all_heads([m, *queries[1:]], keys)


def scaled_by_a_value_and_a_number(queries: list[Any], keys: list[Any], m: Any) -> Any:
    return all_heads([mb.mul(x=queries[0], y=m), *(mb.mul(x=each, y=F32(0.5)) for each in queries[1:])], keys)


def scaled_by_a_number_and_a_value(queries: list[Any], keys: list[Any], m: Any) -> Any:
    return all_heads([*(mb.mul(x=each, y=F32(0.5)) for each in queries[:2]), mb.mul(x=queries[2], y=m)], keys)


def scaled_by_an_array(queries: list[Any], keys: list[Any], _: Any) -> Any:
    return all_heads([mb.mul(x=each, y=np.arange(E).astype(F32), name="many") for each in queries], keys)


def masked(*which: int) -> Build:
    """Only some of the heads are masked."""

    def change(queries: list[Any], keys: list[Any], m: Any) -> Any:
        triples = enumerate(zip(queries, keys, strict=True))
        return [head(q, k, None, m if at in which else None) for at, (q, k) in triples]

    return change


def masks_of_their_own(queries: list[Any], keys: list[Any], m: Any) -> Any:
    masks = [m, mb.relu(x=m), m]
    return [head(q, k, None, mask) for q, k, mask in zip(queries, keys, masks, strict=True)]


def scaled(*numbers: float) -> Build:
    def change(queries: list[Any], keys: list[Any], _: Any) -> Any:
        pieces = [
            each if number == 1 else mb.mul(x=each, y=F32(number))
            for each, number in zip(queries, numbers, strict=True)
        ]
        return all_heads(pieces, keys)

    return change


def twice(queries: list[Any], keys: list[Any], _: Any) -> Any:
    return all_heads([queries[0], queries[1], queries[1]], keys)


def last_left_out(queries: list[Any], keys: list[Any], _: Any) -> Any:
    return all_heads(queries[:2], keys[:2])


def first_left_out(queries: list[Any], keys: list[Any], _: Any) -> Any:
    return all_heads(queries[1:], keys[1:])


def two_share_keys(queries: list[Any], keys: list[Any], _: Any) -> Any:
    return all_heads(queries, [keys[0], keys[0], keys[1]])


def not_attention(queries: list[Any], keys: list[Any], _: Any) -> Any:
    heads = all_heads(queries, keys)
    return [heads[0], mb.relu(x=heads[1], name="bent"), heads[2]]


def an_input(queries: list[Any], keys: list[Any], m: Any) -> Any:
    return [*all_heads(queries, keys), m]


def other_values(queries: list[Any], keys: list[Any], _: Any) -> Any:
    """The heads share keys, and have values of their own."""
    return [head(q, keys[0], v) for q, v in zip(queries, keys, strict=True)]


def no_pieces(queries: list[Any], keys: list[Any], _: Any) -> Any:
    return all_heads([mb.tanh(x=each, name=f"tanh_{at}") for at, each in enumerate(queries)], keys)


MASK = (1, 1, L, S)
REFUSALS: dict[str, tuple[Build, tuple[tuple[int, ...], ...], str, str]] = {
    "needed elsewhere": (one_needed_elsewhere, (), "scaled_dot_product_attention_1", "a head is needed elsewhere"),
    "turned and needed": (
        one_turned_and_needed_elsewhere,
        (),
        "scaled_dot_product_attention_1",
        "a head is needed elsewhere",
    ),
    "returned": (one_returned, (), "scaled_dot_product_attention_1", "a head is needed elsewhere"),
    "turned and returned": (
        one_turned_and_returned,
        (),
        "scaled_dot_product_attention_1",
        "a head is needed elsewhere",
    ),
    "a query that is an input": (
        a_query_that_is_an_input,
        ((1, 1, L, E),),
        "m",
        "it is no piece of anything",
    ),
    "a value, then numbers": (
        scaled_by_a_value_and_a_number,
        ((1, 1, L, 1),),
        "mul_0",
        "pieces are scaled differently",
    ),
    "numbers, then a value": (
        scaled_by_a_number_and_a_value,
        ((1, 1, L, 1),),
        "mul_0",
        "pieces are scaled differently",
    ),
    "scaled by an array": (scaled_by_an_array, (), "many", "it is no piece of anything"),
    "a mask of heads, of rank 3": (masked(0, 1, 2), ((HEADS, L, S),), "m", "the mask is one per head"),
    "one mask": (masked(0), (MASK,), "out", "its heads have masks of their own"),
    "two masks": (masked(1, 2), (MASK,), "out", "its heads have masks of their own"),
    "other masks": (masks_of_their_own, (MASK,), "out", "its heads have masks of their own"),
    "a mask of heads": (masked(0, 1, 2), ((1, HEADS, L, S),), "m", "the mask is one per head"),
    "scaled differently": (scaled(1, 0.5, 0.5), (), "q_parts_0", "pieces are scaled differently"),
    "scaled by other numbers": (scaled(2, 0.5, 0.5), (), "mul_0", "pieces are scaled differently"),
    "a piece twice": (twice, (), "q", "the pieces are not the whole, in order"),
    "without the last": (last_left_out, (), "q", "the pieces are not the whole, in order"),
    "without the first": (first_left_out, (), "q", "the pieces are not the whole, in order"),
    "two share keys": (two_share_keys, (), "out", "some heads share keys, and not as many each"),
    "no attention": (not_attention, (), "bent", "it joins no heads"),
    "an input": (an_input, ((1, 1, L, E),), "m", "it joins no heads"),
    "values of their own": (other_values, (), "k_parts_0", "heads that share keys do not share values"),
    "no pieces": (no_pieces, (), "tanh_0", "it is no piece of anything"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str) -> None:
    change, more, place, reason = REFUSALS[case]
    (found,) = reasons(simple(change), Q, K, *more)
    assert found[1] == reason
    if not place.startswith(("scaled", "mul")):  # these get a number from coremltools
        assert found[0] == place
    else:
        assert found[0].startswith(place.rpartition("_")[0])


def test_one_head_is_joined_to_nothing() -> None:
    def build(q: Any, k: Any) -> Any:
        return joined([head(q, k)])

    found = reasons(build, (1, 1, L, E), (1, 1, S, E))
    assert found == [("out", "it joins nothing")]


@pytest.mark.parametrize("axis", [0, 2, -2])
def test_heads_that_are_joined_as_queries_or_sequences(axis: int) -> None:
    def build(q: Any, k: Any) -> Any:
        return joined([head(*each) for each in zip(parts(q), parts(k), strict=True)], axis)

    assert reasons(build, Q, K) == [("out", "the heads are joined along queries or sequences")]


def test_heads_of_different_layouts() -> None:
    def build(q: Any, k: Any) -> Any:
        heads = all_heads(parts(q), parts(k))
        return joined([heads[0], mb.transpose(x=heads[1], perm=[0, 1, 3, 2]), heads[2]])

    assert reasons(build, (1, HEADS, E, E), K) == [("out", "its heads are of different layouts")]


def test_pieces_with_several_heads() -> None:
    def build(q: Any, k: Any) -> Any:
        return joined([head(*each) for each in zip(parts(q, 2), parts(k, 2), strict=True)])

    assert reasons(build, (1, 4, L, E), (1, 4, S, E)) == [("q", "a piece holds several heads")]

    def beside(q: Any, k: Any) -> Any:
        return joined([head(*each) for each in zip(parts(q, 2, 3), parts(k, 2, 3), strict=True)])

    assert reasons(beside, (1, 2, L, 2 * E), (1, 2, S, 2 * E)) == [("q", "it has heads already")]

    def shared(q: Any, k: Any) -> Any:
        return joined([head(each, k) for each in parts(q, 2, 3)])

    assert [why for _, why in reasons(shared, (1, 2, L, 2 * E), (1, 2, S, E))] == ["it has heads already"]


def test_pieces_of_rows_or_sequences() -> None:
    for axis in (0, 2):

        def build(q: Any, k: Any, axis: int = axis) -> Any:
            return joined([head(*each) for each in zip(parts(q, 2, axis), parts(k, 2, axis), strict=True)])

        assert reasons(build, (2, 1, L, E), (2, 1, 2 * S, E)) == [("q", "it is cut along rows or batch")]


def test_keys_that_come_back_are_not_shared_evenly() -> None:
    def build(q: Any, k: Any) -> Any:
        first, second = parts(k, 2)
        keys = [first, first, second, first]
        return joined([head(*each) for each in zip(parts(q, 4), keys, strict=True)])

    found = reasons(build, (1, 4, L, E), (1, 2, S, E))
    assert found == [("out", "some heads share keys, and not as many each")]


def test_pieces_that_are_transposed_differently() -> None:
    def build(q: Any, k: Any) -> Any:
        first, *rest = parts(q)
        queries = [mb.transpose(x=first, perm=[0, 1, 3, 2], name="turned"), *rest]
        return joined([head(*each) for each in zip(queries, parts(k), strict=True)])

    assert reasons(build, (1, HEADS, E, E), K) == [("turned", "pieces are transposed differently")]


def test_pieces_of_different_sizes() -> None:
    def build(q: Any, k: Any) -> Any:
        queries, keys = (mb.split(x=each, split_sizes=[1, 2], axis=1) for each in (q, k))
        return joined([head(*each) for each in zip(queries, keys, strict=True)])

    assert reasons(build, Q, K) == [("q", "the pieces are not the whole, in order")]


def test_rows_without_heads() -> None:
    def build(q: Any, k: Any) -> Any:
        return joined([head(*each) for each in zip(parts(q, 2), parts(k, 2), strict=True)])

    assert reasons(build, (1, L, E), (1, 2 * S, E)) == [("q", "it is cut along rows or batch")]


def test_pieces_of_different_values() -> None:
    def build(q: Any, k: Any) -> Any:
        queries = [parts(q)[0], *parts(mb.relu(x=q, name="bent"))[1:]]
        return joined([head(*each) for each in zip(queries, parts(k), strict=True)])

    assert reasons(build, Q, K) == [("q_parts_0", "pieces are of different values")]


def test_pieces_with_values_of_their_own() -> None:
    """One factor for all pieces, which is another for each feature of a piece."""

    def build(q: Any, k: Any, m: Any) -> Any:
        queries = [mb.mul(x=each, y=m) for each in parts(q, axis=3)]
        return joined([head(*each) for each in zip(queries, parts(k), strict=True)])

    found = reasons(build, (1, 1, L, HEADS * E), K, (1, 1, 1, E))
    assert found == [("m", "pieces are multiplied by values of their own")]


def sliced(**changes: Any) -> Build:
    def build(q: Any, k: Any, m: Any = None) -> Any:
        given = dict(changes)
        if "computed" in given:
            given = {"begin": mb.cast(x=m, dtype="int32"), "end": [1, 1, L, E]}
        first = mb.slice_by_index(x=q, **{"begin": [0, 0, 0, 0], "end": [1, 1, L, E], **given}, name="first")
        first = first if first.rank == 4 else mb.expand_dims(x=first, axes=[0], name="again")
        rest = mb.slice_by_index(x=q, begin=[0, 1, 0, 0], end=[1, 2, L, E])
        keys = parts(k, 2)
        return joined([head(first, keys[0]), head(rest, keys[1])])

    return build


def test_slices_that_are_no_pieces() -> None:
    shapes = ((1, 2, L, E), (1, 2, S, E))
    steps = reasons(sliced(stride=[1, 2, 1, 1], end=[1, 2, L, E]), *shapes)
    assert steps == [("first", "it is sliced with steps")]
    gone = reasons(sliced(squeeze_mask=[True, False, False, False]), *shapes)
    assert [why for _, why in gone] == ["it is no piece of anything"]
    backwards = sliced(begin=[0, 1, 0, 0], end=[1, 2, L, E])
    assert [why for _, why in reasons(backwards, *shapes)] == ["the pieces are not the whole, in order"]


def test_slices_without_their_axis() -> None:
    def build(q: Any, k: Any) -> Any:
        queries, keys = (
            [
                mb.slice_by_index(
                    x=each, begin=[0, at, 0, 0], end=[1, at + 1, rows, E], squeeze_mask=[False, True, False, False]
                )
                for at in range(2)
            ]
            for each, rows in ((q, L), (k, S))
        )
        return joined([head(*each) for each in zip(queries, keys, strict=True)], 0)

    assert [why for _, why in reasons(build, (1, 2, L, E), (1, 2, S, E))] == ["its axis is gone"]


def test_slices_along_two_axes() -> None:
    def build(q: Any, k: Any) -> Any:
        queries = [mb.slice_by_index(x=q, begin=[0, at, 0, 0], end=[1, at + 1, L - 1, E]) for at in range(2)]
        return joined([head(*each) for each in zip(queries, parts(k, 2), strict=True)])

    assert [why for _, why in reasons(build, (1, 2, L, E), (1, 2, S, E))] == ["it is not cut along one axis"]


def test_slices_of_an_unknown_number_of_heads() -> None:
    def build(q: Any, k: Any) -> Any:
        queries = [mb.slice_by_index(x=q, begin=[0, at, 0, 0], end=[1, at + 1, L, E]) for at in range(2)]
        return joined([head(*each) for each in zip(queries, parts(k, 2), strict=True)])

    heads: Any = get_new_symbol()
    found = [why for _, why in reasons(build, (1, heads, L, E), (1, 2, S, E))]
    assert found == ["it is cut along an axis of unknown size"]


def test_slices_at_computed_places() -> None:
    found = reasons(sliced(computed=True), (1, 2, L, E), (1, 2, S, E), (4,))
    assert found == [("first", "it is sliced at computed places")]
