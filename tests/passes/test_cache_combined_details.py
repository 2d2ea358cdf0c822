"""How one input is seen to hold several cached tensors: which part is which, and what becomes of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from milopt.mil import get_new_symbol, mb, target, types
from milopt.package import load
from milopt.passes.cache import KvToState
from milopt.passes.cache_combined import find_combined, read_combined
from milopt.signature import Combined

from .cache_small import SIZE
from .test_cache_combined import PARTS, ROWS, Build, decoder, joined, row
from .test_cache_forms import agree

Together = Callable[[list[Any], list[Any], Any], Any]


def told(
    apart: Build = row, together: Together = joined, past: tuple[Any, ...] = ROWS, **options: Any
) -> list[tuple[Any, ...]]:
    """Of each tensor what it is called, its concat, what goes out of it, and the ops on the way."""
    function = decoder(apart, together, past, **options).functions["main"]
    ((name, concats),) = find_combined(function)
    pairs = read_combined(function, name, concats)
    assert len({pair.whole for pair in pairs}) == 1
    return [
        (pair.past, pair.present, pair.concat.name, pair.axis, pair.returned, [op.name for op in pair.tails])
        for pair in pairs
    ]


def whole(
    apart: Build = row, together: Together = joined, past: tuple[Any, ...] = ROWS, **options: Any
) -> Combined | None:
    function = decoder(apart, together, past, **options).functions["main"]
    ((name, concats),) = find_combined(function)
    return read_combined(function, name, concats)[0].whole


def order(numbers: list[int], returned: str = "all", tails: tuple[str, ...] = ("present",)) -> list[tuple[Any, ...]]:
    return [
        (f"past[{at}]", f"present[{at}]", f"whole_{number}", 2, returned, [*tails]) for at, number in enumerate(numbers)
    ]


def test_rows_in_order() -> None:
    assert told() == order([0, 1, 2, 3])
    assert whole() == Combined("past", "present", (PARTS, 2, 0, SIZE), (1, 2, 0, SIZE))


def test_rows_in_the_order_of_the_input() -> None:
    """Not of the program."""

    def backwards(wholes: list[Any], news: list[Any], x: Any) -> Any:
        return mb.concat(values=wholes[::-1], axis=0, name="present")

    assert told(lambda past, at, x: row(past, 3 - at, x), backwards) == order([3, 2, 1, 0])


def sized(past: Any, at: int, x: Any) -> Any:
    return mb.slice_by_size(x=past, begin=[at, 0, 0, 0], size=[1, -1, 5, -1])


def strided(past: Any, at: int, x: Any) -> Any:
    return mb.slice_by_index(x=past, begin=[at, 0, 0, 0], end=[at + 1, 2, 5, SIZE], stride=[1, 1, 1, 1])


def from_behind(past: Any, at: int, x: Any) -> Any:
    ends = [at - 3, 2, 5, SIZE] if at < 3 else [4, 2, 5, SIZE]
    return mb.slice_by_index(x=past, begin=[at - 4, 0, 0, 0], end=ends)


def masked(past: Any, at: int, x: Any) -> Any:
    begins = [True] * 4 if at == 0 else [False, True, True, True]
    ends = [True] * 4 if at == 3 else [False, True, True, True]
    return mb.slice_by_index(x=past, begin=[at, 1, 1, 1], end=[at + 1, 1, 1, 1], begin_mask=begins, end_mask=ends)


def split(past: Any, at: int, x: Any) -> Any:
    return mb.split(x=past, split_sizes=[1, 1, 1, 1], axis=0)[at]


def split_twice(past: Any, at: int, x: Any) -> Any:
    half = mb.split(x=past, num_splits=2, axis=-4)[at // 2]
    return mb.split(x=half, num_splits=2, axis=0)[at % 2]


def gathered(past: Any, at: int, x: Any) -> Any:
    return mb.expand_dims(x=mb.gather(x=past, indices=at - 4 if at else 0, axis=0), axes=[0])


def gathered_row(past: Any, at: int, x: Any) -> Any:
    return mb.gather(x=past, indices=[at], axis=-4)


def reshaped(past: Any, at: int, x: Any) -> Any:
    """Of (4, 2, 5, SIZE) the third of halves."""
    rows = mb.reshape(x=past, shape=[2, 2, 1, 2, 5, SIZE])
    half = mb.squeeze(
        x=mb.slice_by_index(x=rows, begin=[at // 2] + [0] * 5, end=[at // 2 + 1, 2, 1, 2, 5, SIZE]), axes=[0]
    )
    return mb.gather(x=half, indices=at % 2, axis=0)


def at_once(past: Any, at: int, x: Any) -> Any:
    """Of (1, 2, 2, ...) the half and the row, behind an axis of size 1."""
    rows = mb.reshape(x=past, shape=[1, 2, 2, 2, 5, SIZE])
    begin, end = [0, at // 2, at % 2, 0, 0, 0], [1, at // 2 + 1, at % 2 + 1, 2, 5, SIZE]
    return mb.squeeze(x=mb.slice_by_index(x=rows, begin=begin, end=end), axes=[0, 1])


def passed_on(past: Any, at: int, x: Any) -> Any:
    return mb.identity(x=row(mb.identity(x=past), at, x))


CUTS = [sized, strided, from_behind, masked, split, split_twice, gathered, gathered_row, reshaped, at_once, passed_on]


@pytest.mark.parametrize("apart", CUTS, ids=lambda cut: cut.__name__)
def test_parts_by_every_way_to_cut(apart: Build) -> None:
    assert told(apart) == order([0, 1, 2, 3])


def test_parts_of_any_length() -> None:
    slots: Any = get_new_symbol()

    def cut(past: Any, at: int, x: Any) -> Any:
        """What masks say counts, whatever begin and end do."""
        masks = {name: [False, True, True, True] for name in ("begin_mask", "end_mask")}
        return mb.slice_by_index(x=past, begin=[at, 0, 1, 0], end=[at + 1, 0, 0, 0], **masks)

    specs = [mb.TensorSpec((PARTS, 2, slots, SIZE), types.fp16), mb.TensorSpec((1, 2, 1, SIZE), types.fp16)]

    @mb.program(input_specs=specs, opset_version=target.iOS18)
    def program(past: Any, x: Any) -> Any:
        wholes = [mb.concat(values=[cut(past, at, x), mb.relu(x=x)], axis=2) for at in range(PARTS)]
        return mb.concat(values=wholes, axis=0, name="present")

    function = program.functions["main"]
    ((name, concats),) = find_combined(function)
    assert read_combined(function, name, concats)[0].whole == Combined(
        "past", "present", (PARTS, 2, 0, SIZE), (1, 2, 0, SIZE)
    )


def news_joined(wholes: list[Any], news: list[Any], x: Any) -> Any:
    return mb.concat(values=news, axis=0, name="present")


def last(whole_: Any) -> Any:
    return mb.slice_by_index(x=whole_, begin=[0, 0, 1, 0], end=[1, int(whole_.shape[1]), 6, SIZE])


def tails_joined(wholes: list[Any], news: list[Any], x: Any) -> Any:
    return mb.concat(values=[last(each) for each in wholes], axis=0, name="present")


def tails_moved(wholes: list[Any], news: list[Any], x: Any) -> Any:
    flat = [mb.expand_dims(x=mb.squeeze(x=last(each), axes=[0]), axes=[0]) for each in wholes]
    return mb.reshape(x=mb.concat(values=flat, axis=0), shape=[PARTS, 2, 5, SIZE], name="present")


def nested(wholes: list[Any], news: list[Any], x: Any) -> Any:
    halves = [mb.stack(values=wholes[:2], axis=0), mb.stack(values=wholes[2:], axis=0)]
    return mb.reshape(x=mb.concat(values=halves, axis=0), shape=[PARTS, 2, 6, SIZE], name="present")


def behind_another_output(wholes: list[Any], news: list[Any], x: Any) -> Any:
    """Outputs that are no cache are looked at too: one that is an input moved, one of another concat."""
    moved = mb.squeeze(x=news[0].op.x, axes=[0], name="moved")
    other = mb.concat(values=[moved, moved], axis=0, name="other")
    return moved, other, mb.concat(values=wholes, axis=0, name="present")


def test_what_goes_out() -> None:
    found = told(together=news_joined)
    assert [each[4] for each in found] == ["new"] * PARTS
    for together in (tails_joined, tails_moved):
        found = told(together=together)
        assert [each[4] for each in found] == ["kept"] * PARTS
        assert all(sum(name.startswith("slice_by_index") for name in each[5]) == PARTS for each in found)
    assert [each[4] for each in told(together=nested)] == ["all"] * PARTS
    assert [each[:3] for each in told(together=behind_another_output)] == [each[:3] for each in order([0, 1, 2, 3])]
    assert len(told(together=nested)[0][5]) == 4


def test_which_axis_holds_the_slots() -> None:
    """As many heads as slots: those behind which a part has as many elements as the input."""

    def part(past: Any, at: int, x: Any) -> Any:
        return mb.slice_by_index(x=past, begin=[at, 0, 0, 0], end=[at + 1, 5, 5, SIZE])

    found = whole(part, tails_joined, (PARTS, 5, 5, SIZE), heads=5)
    assert found == Combined("past", "present", (PARTS, 5, 0, SIZE), (1, 5, 0, SIZE))


def refused(program: Any) -> list[tuple[str, str]]:
    report = KvToState().run(load(program))
    assert not report
    start = "input past holds the pasts of several tensors, and "
    return [(miss.place, miss.reason.removeprefix(start)) for miss in report.misses]


def interleaved(wholes: list[Any], news: list[Any], x: Any) -> Any:
    return mb.concat(values=wholes, axis=0, interleave=True, name="present")


def parts_behind_axes(wholes: list[Any], news: list[Any], x: Any) -> Any:
    return mb.stack(values=wholes, axis=2, name="present")


def first_columns(wholes: list[Any], news: list[Any], x: Any) -> Any:
    cut = [mb.slice_by_index(x=each, begin=[0, 0, 0, 0], end=[1, 2, 5, SIZE]) for each in wholes]
    return mb.concat(values=cut, axis=0, name="present")


def turned(wholes: list[Any], news: list[Any], x: Any) -> Any:
    return mb.concat(values=[mb.transpose(x=each, perm=[0, 1, 3, 2]) for each in wholes], axis=0, name="present")


@pytest.mark.parametrize("together", [interleaved, parts_behind_axes, first_columns, turned])
def test_what_is_put_together_otherwise(together: Together) -> None:
    told_ = "no output holds what its parts become, one behind another"
    assert refused(decoder(row, together, ROWS)) == [("whole_0", told_)]


def test_a_shape_that_is_not_static() -> None:
    heads: Any = get_new_symbol()
    specs = [mb.TensorSpec((2, heads, 5, SIZE), types.fp16), mb.TensorSpec((1, heads, 1, SIZE), types.fp16)]

    @mb.program(input_specs=specs, opset_version=target.iOS18)
    def program(past: Any, x: Any) -> Any:
        parts = mb.split(x=past, num_splits=2, axis=0)
        wholes = [mb.concat(values=[part, mb.relu(x=x)], axis=2) for part in parts]
        return mb.concat(values=wholes, axis=0, name="present")

    assert refused(program) == [("past", "its shape is not static")]


def test_parts_that_are_the_new_columns_of_others() -> None:
    @mb.program(input_specs=[mb.TensorSpec((2, 2, 5, SIZE), types.fp16)], opset_version=target.iOS18)
    def program(past: Any) -> Any:
        parts = mb.split(x=past, num_splits=2, axis=0)
        wholes = [mb.concat(values=[parts[at], parts[1 - at]], axis=2, name=f"whole_{at}") for at in (0, 1)]
        return mb.concat(values=wholes, axis=0, name="present")

    ((place, why),) = refused(program)
    assert (place in ("whole_0", "whole_1"), why) == (True, "the past is also used elsewhere")


def test_parts_of_what_is_computed() -> None:
    made = load(decoder(lambda past, at, x: row(mb.relu(x=past), at, x), joined, ROWS))
    assert list(find_combined(made.function())) == []
    report = KvToState().run(made)
    assert (report.notes, report.misses) == (["main: no output is a concat of an input and something new"], [])


def of_three(past: Any, x: Any) -> Any:
    return mb.concat(values=[past, x, x], axis=2, name="present")


def in_turn(past: Any, x: Any) -> Any:
    return mb.concat(values=[past, x], axis=2, interleave=True, name="present")


def inside(past: Any, x: Any) -> Any:
    """What is made of all columns goes out, they don't."""
    return mb.relu(x=mb.concat(values=[past, x], axis=2), name="present")


def untouched(past: Any, x: Any) -> Any:
    return mb.concat(values=[x, past], axis=2, name="present")


@pytest.mark.parametrize("made", [of_three, in_turn, inside, untouched])
def test_concats_that_are_none_of_a_cache(made: Callable[[Any, Any], Any]) -> None:
    specs = [mb.TensorSpec((2, 2, 5, SIZE), types.fp16), mb.TensorSpec((1, 2, 5, SIZE), types.fp16)]

    @mb.program(input_specs=specs, opset_version=target.iOS18)
    def program(past: Any, x: Any) -> Any:
        return made(mb.split(x=past, num_splits=2, axis=0)[0], x)

    assert list(find_combined(program.functions["main"])) == []


def test_one_part_that_is_all() -> None:
    specs = [mb.TensorSpec((1, 2, 1, SIZE), types.fp16), mb.TensorSpec((2, 5, SIZE), types.fp16)]

    @mb.program(input_specs=[*specs, mb.TensorSpec((1, 1, 1, 6), types.fp16)], opset_version=target.iOS18)
    def program(x: Any, past: Any, mask: Any) -> Any:
        part = mb.slice_by_index(x=mb.expand_dims(x=past, axes=[0]), begin=[0] * 4, end=[1, 2, 5, SIZE])
        whole_ = mb.concat(values=[part, mb.relu(x=x)], axis=2)
        hidden = mb.scaled_dot_product_attention(query=x, key=whole_, value=whole_, attn_mask=mask, name="hidden")
        return hidden, mb.squeeze(x=whole_, axes=[0], name="present")

    _, report = agree(load(program))
    assert report.signature is not None
    assert report.signature.combined == (Combined("past", "present", (2, 0, SIZE), (1, 2, 0, SIZE)),)


def test_heads_of_all_in_one_axis() -> None:
    def part(past: Any, at: int, x: Any) -> Any:
        return mb.slice_by_index(x=past, begin=[0, 2 * at, 0, 0], end=[1, 2 * at + 2, 5, SIZE])

    def together(wholes: list[Any], news: list[Any], x: Any) -> Any:
        return mb.concat(values=wholes, axis=1, name="present")

    found = whole(part, together, (1, 2 * PARTS, 5, SIZE))
    assert found == Combined("past", "present", (1, 2 * PARTS, 0, SIZE), (1, 2, 0, SIZE))


def test_a_unit_axis_behind_the_slots() -> None:
    """It has as many elements behind it as the slots do; what they are tells them apart."""

    def part(past: Any, at: int, x: Any) -> Any:
        cut = mb.slice_by_index(x=past, begin=[at, 0, 0, 0, 0], end=[at + 1, 2, 5, 1, SIZE])
        return mb.squeeze(x=cut, axes=[3])

    def together(wholes: list[Any], news: list[Any], x: Any) -> Any:
        return mb.concat(values=[mb.expand_dims(x=last(each), axes=[3]) for each in wholes], axis=0, name="present")

    found = whole(part, together, (PARTS, 2, 5, 1, SIZE))
    assert found == Combined("past", "present", (PARTS, 2, 0, 1, SIZE), (1, 2, 0, SIZE))


def test_as_many_new_columns_as_old_ones() -> None:
    slots: Any = get_new_symbol()
    specs = [mb.TensorSpec((2, 2, slots, 1, SIZE), types.fp16), mb.TensorSpec((1, 2, slots, SIZE), types.fp16)]

    @mb.program(input_specs=specs, opset_version=target.iOS18)
    def program(past: Any, x: Any) -> Any:
        parts = [mb.squeeze(x=part, axes=[3]) for part in mb.split(x=past, num_splits=2, axis=0)]
        news = [mb.relu(x=x) for _ in parts]
        wholes = [mb.concat(values=both, axis=2) for both in zip(parts, news, strict=True)]
        fresh = mb.concat(values=[mb.expand_dims(x=new, axes=[3]) for new in news], axis=0, name="present")
        return fresh, *(mb.reduce_sum(x=each) for each in wholes)

    function = program.functions["main"]
    ((name, concats),) = find_combined(function)
    pairs = read_combined(function, name, concats)
    assert {pair.returned for pair in pairs} == {"new"}
    assert pairs[0].whole == Combined("past", "present", (2, 2, 0, 1, SIZE), (1, 2, 0, SIZE))


def test_an_open_axis_that_holds_no_slots() -> None:
    def part(past: Any, at: int, x: Any) -> Any:
        ends = [False, True, True, True, True]
        cut = mb.slice_by_index(x=past, begin=[at, 0, 0, 0, 0], end=[at + 1, 2, 5, 1, SIZE], end_mask=ends)
        return mb.reshape(x=cut, shape=[1, 2, 5, SIZE])

    def together(wholes: list[Any], news: list[Any], x: Any) -> Any:
        return mb.concat(values=[mb.expand_dims(x=last(each), axes=[3]) for each in wholes], axis=0, name="present")

    told_ = [("past", "it can't be told which of its axes holds the slots")]
    assert refused(decoder(part, together, (PARTS, 2, 5, get_new_symbol(), SIZE))) == told_


# --- cuts that are none of these


def cut_alone(shape: tuple[Any, ...], cut: Callable[[Any, Any], Any], new: tuple[Any, ...] = (1, 2, 1, SIZE)) -> Any:
    """A program that has but one part of its past, as ``cut(past, x)`` makes it."""
    specs = [mb.TensorSpec(shape, types.fp16), mb.TensorSpec(new, types.fp16)]

    @mb.program(input_specs=specs, opset_version=target.iOS18)
    def program(past: Any, x: Any) -> Any:
        return mb.concat(values=[cut(past, x), mb.relu(x=x)], axis=2, name="present")

    return program


def front(past: Any) -> Any:
    return mb.slice_by_index(x=past, begin=[0, 0, 0, 0], end=[1, 2, 5, SIZE])


def side_by_side(past: Any, x: Any) -> Any:
    ends = [True, True, True, False]
    return mb.slice_by_index(x=past, begin=[0, 0, 0, 0], end=[1, 1, 5, SIZE], end_mask=ends, name="part")


def behind_a_unit_axis(past: Any, x: Any) -> Any:
    cut = mb.slice_by_index(x=past, begin=[0, 0, 0, 0], end=[2, 1, 5, SIZE], name="part")
    return mb.reshape(x=cut, shape=[1, 2, 5, SIZE])


def computed_end(past: Any, x: Any) -> Any:
    number = mb.reduce_argmax(x=mb.reshape(x=x, shape=[-1]), axis=0, keep_dims=True)
    ends = mb.concat(values=[np.array([1, 2], np.int32), number, np.array([SIZE], np.int32)], axis=0)
    return mb.slice_by_index(x=past, begin=[0, 0, 0, 0], end=ends, name="part")


NOT_ALL = "its parts overlap, differ in size, or are not all of it"
SLOTS: Any = get_new_symbol()
NO_RUN, CHOSEN, CUT = "a part of it is no run of its elements", "a part of it is chosen", "its slots are cut"
NO_PARTS: dict[str, tuple[Callable[[], Any], str]] = {
    "features of any number of slots": (
        lambda: cut_alone((1, 1, SLOTS, 2 * SIZE), side_by_side, (1, 1, 1, SIZE)),
        NO_RUN,
    ),
    "heads and slots that change places": (
        lambda: cut_alone((1, 2, 5, SIZE), lambda past, x: mb.transpose(x=front(past), perm=[0, 1, 2, 3], name="part")),
        "a part of it is transposed before it grows",
    ),
    "the first of three": (
        lambda: cut_alone((3, 2, 5, SIZE), lambda past, x: front(mb.split(x=past, num_splits=3, axis=0)[0])),
        NOT_ALL,
    ),
    "slots behind heads and a unit axis": (
        lambda: cut_alone((2, 1, 10, SIZE), behind_a_unit_axis),
        NO_RUN,
    ),
    "an end that is computed": (
        lambda: cut_alone((1, 2, 5, SIZE), computed_end),
        "a part of it is cut at a computed place",
    ),
    "two rows": (
        lambda: cut_alone(
            (4, 2, 5, SIZE), lambda past, x: mb.gather(x=past, indices=[0, 1], axis=0, name="part"), (2, 2, 1, SIZE)
        ),
        CHOSEN,
    ),
    "a slot of any number": (
        lambda: cut_alone((1, 2, SLOTS, SIZE), lambda past, x: mb.gather(x=past, indices=[0], axis=2, name="part")),
        CHOSEN,
    ),
    "half of any number of slots": (
        lambda: cut_alone((1, 2, SLOTS, SIZE), lambda past, x: mb.split(x=past, num_splits=2, axis=2, name="part")[0]),
        CUT,
    ),
}


@pytest.mark.parametrize("case", NO_PARTS)
def test_what_is_no_part(case: str) -> None:
    build, told_ = NO_PARTS[case]
    ((place, why),) = refused(build())
    assert (place.removesuffix("_0"), why) == ("past" if told_ == NOT_ALL else "part", told_)


# --- what else is done with them

ELSEWHERE = "the past is also used elsewhere"


def test_a_part_that_goes_out() -> None:
    def together(wholes: list[Any], news: list[Any], x: Any) -> Any:
        return joined(wholes, news, x), wholes[0].op.values[0]

    assert refused(decoder(row, together, ROWS)) == [("past", ELSEWHERE)]


def test_a_part_that_chooses() -> None:
    """What it chooses from is another value."""

    def together(wholes: list[Any], news: list[Any], x: Any) -> Any:
        number = mb.cast(x=mb.reshape(x=wholes[0].op.values[0], shape=[-1]), dtype="int32")
        table = np.arange(7, dtype=np.float16)
        return joined(wholes, news, x), mb.gather(x=table, indices=number, validate_indices=False, name="found")

    assert refused(decoder(row, together, ROWS)) == [("found", ELSEWHERE)]


def test_presents_of_which_the_second_output_is_made() -> None:
    def together(wholes: list[Any], news: list[Any], x: Any) -> Any:
        both = mb.concat(values=wholes, axis=0, name="first")
        return mb.identity(x=both, name="second"), both

    told_ = "its presents, put together, are also used elsewhere"
    assert refused(decoder(row, together, ROWS)) == [("first", told_)]
