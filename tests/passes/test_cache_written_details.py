"""What counts as a write to a state, and as the way back from it: every form, and every step beside one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from milopt.mil import Function, Program, flat, mb, target, types
from milopt.passes.cache_written import find_written
from milopt.reports import NoMatch, place_of

from .programs import One, Two, fp16, ints

SLOTS, SIZE = 6, 4
I32: Any = np.int32
Body = Callable[[Any, Any], Any]


def whole(*dims: int) -> Any:
    return np.array(dims, np.int32)


def vector(*entries: Any, **options: Any) -> Any:
    """A vector of numbers and of values of one entry."""
    return mb.concat(values=[each if not isinstance(each, int) else whole(each) for each in entries], axis=0, **options)


def function(
    body: Body, rows: int = 1, *, heads: int = 2, names: tuple[str, ...] = ("keys",), **inputs: Any
) -> Function:
    """``body`` gets what the states hold, and the inputs x (one token), place and end, by name."""
    states = {name: mb.state_tensor_placeholder((rows, heads, SLOTS, SIZE), types.fp16) for name in names}
    given = {"x": fp16(1, heads, 1, SIZE), "place": ints(1), "mask": fp16(SLOTS), **inputs, **states}
    with Function(given, opset_version=target.iOS18) as made:
        args = made.inputs
        out = body(args, {name: args[name] for name in names})
        made.set_outputs(list(flat(out)))
    program = Program()
    program.add_function("main", made)
    return made


def held(state: Any) -> Any:
    return mb.read_state(input=state, name="held")


def placed(
    old: Any,
    args: Any,
    *,
    row: Any = 0,
    rows: int = 1,
    begin: tuple[Any, ...] | None = None,
    end: tuple[Any, ...] | None = None,
    new: Any = None,
    **options: Any,
) -> Any:
    """``old`` with the token x at its place in the slots."""
    after = mb.add(x=args["place"], y=whole(1), name="after")
    first = (row, 0, args["place"], 0) if begin is None else begin
    last = (row + rows, 2, after, SIZE) if end is None else end
    return mb.slice_update(
        x=old,
        update=args["x"] if new is None else new,
        begin=vector(*first),
        end=vector(*last),
        name="written",
        **options,
    )


def stored(state: Any, value: Any, name: str = "stored") -> Any:
    return mb.coreml_update_state(state=state, value=value, name=name)


def found(made: Function) -> list[tuple[Any, ...]]:
    return [
        (each.state, each.row, each.rows, each.axis, each.new.name, each.read.name, each.position, each.prefix)
        for each in find_written(made)
    ]


def writers(made: Function) -> list[list[str]]:
    return [[op.op_type for op in each.writers] for each in find_written(made)]


def refused(made: Function) -> tuple[str, str]:
    with pytest.raises(NoMatch) as why:
        find_written(made)
    return place_of(why.value.at), str(why.value)


# --- slices


def sliced(args: Any, states: Any) -> Any:
    return mb.relu(x=stored(states["keys"], placed(held(states["keys"]), args)))


def test_a_slice_of_which_all_is_read() -> None:
    assert found(function(sliced)) == [("keys", 0, 1, 2, "x", "stored", "place", False)]
    assert writers(function(sliced)) == [["slice_update"]]


def test_an_axis_of_slots_that_is_not_the_third() -> None:
    def body(args: Any, states: Any) -> Any:
        after = mb.add(x=args["place"], y=whole(1))
        made = placed(
            held(states["keys"]),
            args,
            begin=(0, args["place"], 0, 0),
            end=(1, after, SLOTS, SIZE),
            new=mb.abs(x=args["y"], name="column"),
        )
        return mb.relu(x=stored(states["keys"], made))

    made = function(body, y=fp16(1, 1, SLOTS, SIZE))
    assert found(made) == [("keys", 0, 1, 1, "column", "stored", "place", False)]


def two_layers(args: Any, states: Any, *, second: str = "stored", ends: Any = (1, 2, SLOTS, SIZE)) -> Any:
    first = stored(states["keys"], placed(held(states["keys"]), args))
    one = mb.slice_by_index(x=first, begin=[0, 0, 0, 0], end=list(ends), name="first_read")
    next_ = stored(states["keys"], placed(first, args, row=1, new=mb.relu(x=one_token(one), name="token")), "next")
    two = mb.slice_by_index(x=next_, begin=[1, 0, 0, 0], end=[2, 2, SLOTS, SIZE], name="second_read")
    return [mb.relu(x=one), mb.relu(x=two)]


def one_token(x: Any) -> Any:
    return mb.slice_by_index(x=x, begin=[0, 0, 0, 0], end=[1, 2, 1, SIZE])


def test_layers_behind_one_another() -> None:
    assert found(function(two_layers, rows=2)) == [
        ("keys", 0, 1, 2, "x", "first_read", "place", False),
        ("keys", 1, 1, 2, "token", "second_read", "place", False),
    ]


def prefix(args: Any, states: Any, *, columns: Two | None = None) -> Any:
    after = mb.add(x=args["place"], y=whole(1))
    made = placed(held(states["keys"]), args, end=(1, 2, after, SIZE))
    last = vector(1, 2, after if columns is None else columns(args, after), SIZE)
    read = mb.slice_by_index(x=stored(states["keys"], made), begin=[0, 0, 0, 0], end=last, name="read")
    return mb.relu(x=read)


def test_slots_up_to_the_new_token() -> None:
    assert found(function(prefix)) == [("keys", 0, 1, 2, "x", "read", "place", True)]


def test_slots_up_to_another_place_are_all_that_is_read() -> None:
    """What is read is then all the state holds; what is made of it is another's business."""
    made = function(lambda args, states: prefix(args, states, columns=lambda args, after: args["place"]))
    assert found(made) == [("keys", 0, 1, 2, "x", "stored", "place", False)]


def test_states_in_the_order_of_their_updates() -> None:
    def body(args: Any, states: Any) -> Any:
        later, sooner = states["later"], states["sooner"]
        one = stored(sooner, placed(held(sooner), args), "one")
        two = stored(later, placed(held(later), args), "two")
        return [mb.relu(x=one), mb.relu(x=two)]

    made = function(body, names=("later", "sooner"))
    assert [each[0] for each in found(made)] == ["sooner", "later"]


# --- selections


def fresh(args: Any, *dims: int) -> Any:
    flags = mb.greater(x=args["mask"], y=np.float16(0))
    return mb.reshape(x=flags, shape=list(dims), name="fresh")


def chosen(
    args: Any, states: Any, *, kept: Two | None = None, dims: tuple[int, ...] = (1, 1, SLOTS, 1), new: One | None = None
) -> Any:
    old = held(states["keys"])
    value = args["x"] if new is None else new(args)
    picked = mb.select(cond=fresh(args, *dims), a=value, b=old if kept is None else kept(args, old), name="chosen")
    return mb.relu(x=stored(states["keys"], picked))


def test_a_selection_in_every_slot() -> None:
    assert found(function(chosen)) == [("keys", 0, 1, 2, "x", "stored", None, False)]
    assert writers(function(chosen)) == [["select"]]


def spread(kind: str, args: Any) -> Any:
    if kind == "gather":
        return mb.gather(x=args["y"], indices=np.zeros(SLOTS, np.int32), axis=2, name="keys_placed")
    if kind == "turned":
        return mb.matmul(x=args["y"], y=np.ones((1, 1, SIZE, SIZE), np.float16), transpose_y=True, name="keys_placed")
    return mb.matmul(x=np.ones((1, 1, SLOTS, 3), np.float16), y=args["y"], name="keys_placed")


@pytest.mark.parametrize("kind", ["gather", "matmul", "turned"])
def test_several_tokens_that_were_placed(kind: str) -> None:
    def body(args: Any, states: Any) -> Any:
        return chosen(args, states, new=lambda args: spread(kind, args))

    token = fp16(1, 2, SLOTS if kind == "turned" else 3, SIZE)
    made = function(body, y=token)
    assert found(made) == [("keys", 0, 1, 2, "y", "stored", None, False)]
    token = fp16(1, 2, SLOTS if kind == "turned" else 3, SIZE)
    assert writers(function(body, y=token)) == [["select", "gather" if kind == "gather" else "matmul"]]


def test_other_ops_that_are_called_so() -> None:
    def body(args: Any, states: Any) -> Any:
        return chosen(args, states, new=lambda args: mb.relu(x=args["y"], name="keys_placed"))

    made = function(body, y=fp16(1, 2, SLOTS, SIZE))
    assert found(made) == [("keys", 0, 1, 2, "keys_placed", "stored", None, False)]


@pytest.mark.parametrize("kind", ["gather", "matmul"])
def test_tokens_that_are_computed_so_by_others(kind: str) -> None:
    """What is named otherwise is the new columns themselves."""

    def body(args: Any, states: Any) -> Any:
        def new(args: Any) -> Any:
            if kind == "gather":
                return mb.gather(x=args["y"], indices=np.zeros(SLOTS, np.int32), axis=2, name="other")
            return mb.matmul(x=args["y"], y=np.ones((1, 1, SIZE, SIZE), np.float16), name="other")

        return chosen(args, states, new=new)

    made = function(body, y=fp16(1, 2, SLOTS, SIZE))
    assert found(made) == [("keys", 0, 1, 2, "other", "stored", None, False)]


def test_a_selection_along_another_axis() -> None:
    made = function(
        lambda args, states: chosen(args, states, dims=(1, SLOTS, 1, 1), new=lambda args: args["y"]),
        heads=SLOTS,
        y=fp16(1, 1, SLOTS, SIZE),
    )
    assert found(made) == [("keys", 0, 1, 1, "y", "stored", None, False)]


def test_a_selection_of_one_slot() -> None:
    def body(args: Any, states: Any) -> Any:
        flag = mb.reshape(x=mb.greater(x=args["place"], y=whole(0)), shape=[1, 1, 1, 1])
        picked = mb.select(cond=flag, a=args["y"], b=held(states["keys"]))
        return mb.relu(x=stored(states["keys"], picked))

    assert found(function(body, y=fp16(1, 2, SLOTS, SIZE))) == [("keys", 0, 1, 2, "y", "stored", None, False)]


def rows_chosen(args: Any, states: Any, *, row: int = 1, begin: Any = None) -> Any:
    """The second row of a state of two, where it is selected from what it held."""
    old = held(states["keys"])
    first = [row, 0, 0, 0] if begin is None else begin
    part = mb.slice_by_index(x=old, begin=first, end=[2, 2, SLOTS, SIZE], name="part")
    picked = mb.select(cond=fresh(args, 1, 1, SLOTS, 1), a=args["x"], b=part, name="chosen")
    value = mb.slice_update(x=old, update=picked, begin=[1, 0, 0, 0], end=[2, 2, SLOTS, SIZE], name="written")
    after = stored(states["keys"], value)
    return mb.relu(x=mb.slice_by_index(x=after, begin=[1, 0, 0, 0], end=[2, 2, SLOTS, SIZE], name="read"))


def test_rows_that_are_selected_from() -> None:
    made = function(rows_chosen, rows=2)
    assert found(made) == [("keys", 1, 1, 2, "x", "read", None, False)]
    assert writers(function(rows_chosen, rows=2)) == [["slice_update", "select"]]


# --- what is refused


def others_rows(args: Any, states: Any) -> Any:
    return other_rows(args, states, args["y"], 1)


def other_rows(args: Any, states: Any, source: Any = None, row: int = 0) -> Any:
    old = held(states["keys"])
    source = old if source is None else source
    part = mb.slice_by_index(x=source, begin=[row, 0, 0, 0], end=[row + 1, 2, SLOTS, SIZE])
    picked = mb.select(cond=fresh(args, 1, 1, SLOTS, 1), a=args["x"], b=part, name="chosen")
    value = mb.slice_update(x=old, update=picked, begin=[1, 0, 0, 0], end=[2, 2, SLOTS, SIZE])
    after = stored(states["keys"], value)
    return mb.relu(x=mb.slice_by_index(x=after, begin=[1, 0, 0, 0], end=[2, 2, SLOTS, SIZE]))


def slice_with(**options: Any) -> Body:
    def body(args: Any, states: Any) -> Any:
        return mb.relu(x=stored(states["keys"], placed(held(states["keys"]), args, **options)))

    return body


def with_place(make: One, end: Two) -> Body:
    def body(args: Any, states: Any) -> Any:
        after = mb.add(x=args["place"], y=whole(1))
        made = placed(
            held(states["keys"]), args, begin=make(args["place"]), end=end(args["place"], after), new=args["y"]
        )
        return mb.relu(x=stored(states["keys"], made))

    return body


def read_twice(args: Any, states: Any) -> Any:
    return [sliced(args, states), mb.relu(x=mb.read_state(input=states["keys"]))]


def never_written(args: Any, states: Any) -> Any:
    return mb.relu(x=held(states["keys"]))


def never_read(args: Any, states: Any) -> Any:
    return mb.relu(x=stored(states["keys"], mb.mul(x=args["y"], y=np.float16(2))))


def old_is_used(args: Any, states: Any) -> Any:
    old = held(states["keys"])
    return [mb.relu(x=stored(states["keys"], placed(old, args))), mb.relu(x=old)]


def old_is_returned(args: Any, states: Any) -> Any:
    old = held(states["keys"])
    return [mb.relu(x=stored(states["keys"], placed(old, args))), old]


def another_is_written(args: Any, states: Any) -> Any:
    held(states["keys"])
    return mb.relu(x=stored(states["keys"], placed(mb.relu(x=args["y"]), args)))


def the_input_itself(args: Any, states: Any) -> Any:
    held(states["keys"])
    return mb.relu(x=stored(states["keys"], args["y"]))


def an_input_at_one_place(args: Any, states: Any) -> Any:
    made = mb.slice_update(x=held(states["keys"]), update=args["x"], begin=[0, 0, 0, 0], end=[1, 2, 1, SIZE])
    return mb.relu(x=stored(states["keys"], made))


def computed_otherwise(args: Any, states: Any) -> Any:
    return mb.relu(x=stored(states["keys"], mb.mul(x=held(states["keys"]), y=np.float16(2))))


def nobody_reads(args: Any, states: Any) -> Any:
    stored(states["keys"], placed(held(states["keys"]), args))
    return mb.relu(x=args["x"])


def part_is_read(args: Any, states: Any) -> Any:
    after = stored(states["keys"], placed(held(states["keys"]), args))
    return mb.relu(x=after)


def read_and_used(args: Any, states: Any) -> Any:
    after = stored(states["keys"], placed(held(states["keys"]), args))
    read = mb.slice_by_index(x=after, begin=[0, 0, 0, 0], end=[1, 2, SLOTS, SIZE])
    return [mb.relu(x=read), mb.abs(x=after)]


def read_and_returned(args: Any, states: Any) -> Any:
    after = stored(states["keys"], placed(held(states["keys"]), args))
    return [mb.relu(x=mb.slice_by_index(x=after, begin=[0, 0, 0, 0], end=[1, 2, SLOTS, SIZE])), after]


def place_of_two(args: Any, states: Any) -> Any:
    begin = mb.concat(values=[whole(0, 0), args["two"]], axis=0, name="begin")
    end = vector(1, 2, SLOTS, SIZE)
    made = mb.slice_update(x=held(states["keys"]), update=args["x"], begin=begin, end=end)
    return mb.relu(x=stored(states["keys"], made))


def place_times(args: Any, states: Any) -> Any:
    begin = mb.mul(x=whole(0, 0, 1, 0), y=args["place"], name="begin")
    made = mb.slice_update(x=held(states["keys"]), update=args["x"], begin=begin, end=vector(1, 2, SLOTS, SIZE))
    return mb.relu(x=stored(states["keys"], made))


def given_begin(args: Any, states: Any) -> Any:
    made = mb.slice_update(x=held(states["keys"]), update=args["x"], begin=args["four"], end=vector(1, 2, SLOTS, SIZE))
    return mb.relu(x=stored(states["keys"], made))


KEPT = "what it keeps is not what the state held"
ENTIRE = ("written", "it is written to part of an axis")
REFUSED: dict[str, tuple[Body, dict[str, Any], tuple[str, str]]] = {
    "read twice": (read_twice, {}, ("keys", "state keys is read 2 times")),
    "never read": (never_read, {"y": (1, 2, SLOTS, SIZE)}, ("keys", "state keys is read 0 times")),
    "never written": (never_written, {}, ("keys", "nothing is written to state keys")),
    "old is used": (old_is_used, {}, ("held", "state keys is read and used in another way")),
    "old is returned": (old_is_returned, {}, ("held", "state keys is read and used in another way")),
    "another is written": (
        another_is_written,
        {"y": (1, 2, SLOTS, SIZE)},
        ("written", "it is not written to what the state holds"),
    ),
    "masked begin": (
        slice_with(begin_mask=[False, True, False, False]),
        {},
        ("written", "its begin_mask says more than where it is written"),
    ),
    "masked end": (
        slice_with(end_mask=[False, False, False, True]),
        {},
        ("written", "its end_mask says more than where it is written"),
    ),
    "with steps": (slice_with(stride=[1, 2, 1, 1]), {}, ("written", "its stride says more than where it is written")),
    "computed rows": (
        with_place(lambda at: (at, 0, 0, 0), lambda at, after: (after, 2, SLOTS, SIZE)),
        {"y": (1, 2, SLOTS, SIZE)},
        ("written", "its rows are computed"),
    ),
    "computed first row": (
        with_place(lambda at: (at, 0, 0, 0), lambda at, after: (1, 2, SLOTS, SIZE)),
        {"y": (1, 2, SLOTS, SIZE)},
        ("written", "its rows are computed"),
    ),
    "computed last row": (
        with_place(lambda at: (0, 0, at, 0), lambda at, after: (after, 2, after, SIZE)),
        {"y": (1, 2, 1, SIZE)},
        ("written", "its rows are computed"),
    ),
    "two computed axes": (
        with_place(lambda at: (0, at, at, 0), lambda at, after: (1, after, after, SIZE)),
        {"y": (1, 1, 1, SIZE)},
        ("written", "several of its axes are computed"),
    ),
    "from the second head": (
        with_place(lambda at: (0, 1, at, 0), lambda at, after: (1, 2, after, SIZE)),
        {"y": (1, 1, 1, SIZE)},
        ENTIRE,
    ),
    "to the first head": (
        with_place(lambda at: (0, 0, at, 0), lambda at, after: (1, 1, after, SIZE)),
        {"y": (1, 1, 1, SIZE)},
        ENTIRE,
    ),
    "from the second feature": (
        with_place(lambda at: (0, 0, at, 1), lambda at, after: (1, 2, after, SIZE)),
        {"y": (1, 2, 1, SIZE - 1)},
        ENTIRE,
    ),
    "an input": (the_input_itself, {"y": (1, 2, SLOTS, SIZE)}, ("stored", "it is not known how it is written")),
    "an input at one place": (an_input_at_one_place, {}, ("stored", "it is not known how it is written")),
    "computed otherwise": (computed_otherwise, {}, ("stored", "it is not known how it is written")),
    "kept from elsewhere": (
        lambda args, states: chosen(args, states, kept=lambda args, old: args["y"]),
        {"y": (1, 2, SLOTS, SIZE)},
        ("chosen", KEPT),
    ),
    "what is kept is bent": (
        lambda args, states: chosen(args, states, kept=lambda args, old: mb.relu(x=old)),
        {},
        ("chosen", KEPT),
    ),
    "other rows are kept": (other_rows, {"rows": 2}, ("chosen", KEPT)),
    "rows of another are kept": (others_rows, {"rows": 2, "y": (2, 2, SLOTS, SIZE)}, ("chosen", KEPT)),
    "chosen along two axes": (
        lambda args, states: chosen(args, states, dims=(1, 2, SLOTS, 1)),
        {"mask": (2 * SLOTS,)},
        ("chosen", "several of its axes are chosen from"),
    ),
    "nobody reads": (nobody_reads, {}, ("stored", "what it holds is not read back")),
    "part is read": (part_is_read, {"rows": 2}, ("stored", "what it holds is not read back")),
    "read and used": (read_and_used, {}, ("stored", "what it holds is also used otherwise")),
    "read and returned": (read_and_returned, {}, ("stored", "what it holds is also used otherwise")),
    "a place of two": (place_of_two, {"two": ints(2)}, ("begin", "its place is not put together from numbers")),
    "a place that is multiplied": (place_times, {}, ("begin", "its place is not put together from numbers")),
    "a place that is given": (given_begin, {"four": ints(4)}, ("four", "its place is not put together from numbers")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_with_its_reason(case: str) -> None:
    body, options, expected = REFUSED[case]
    given = {name: fp16(*each) if isinstance(each, tuple) else each for name, each in options.items()}
    assert refused(function(body, **given)) == expected


def reading(**options: Any) -> Body:
    def body(args: Any, states: Any) -> Any:
        after = stored(states["keys"], placed(held(states["keys"]), args))
        return mb.relu(
            x=mb.slice_by_index(x=after, begin=[0, 0, 0, 0], end=[1, 2, SLOTS, SIZE], **options, name="read")
        )

    return body


@pytest.mark.parametrize(
    ("options", "read"),
    [
        ({}, "read"),
        ({"stride": [1, 1, 1, 1], "end_mask": [False] * 4}, "read"),
        ({"stride": [1, 1, 2, 1]}, "stored"),
        ({"begin_mask": [True, False, False, False]}, "stored"),
        ({"end_mask": [True, False, False, False]}, "stored"),
        ({"squeeze_mask": [True, False, False, False]}, "stored"),
    ],
)
def test_slices_that_say_more_than_where_they_are(options: dict[str, Any], read: str) -> None:
    """They are no part of the cache's form: what they are made of is, which is all that the state holds."""
    assert found(function(reading(**options)))[0][5] == read


@pytest.mark.parametrize("end", ["multiplied", "given"])
def test_slices_to_where_nobody_knows(end: str) -> None:
    def body(args: Any, states: Any) -> Any:
        after = stored(states["keys"], placed(held(states["keys"]), args))
        last = args["four"] if end == "given" else mb.mul(x=whole(1, 2, SLOTS, SIZE), y=args["place"])
        return mb.relu(x=mb.slice_by_index(x=after, begin=[0, 0, 0, 0], end=last, name="read"))

    assert found(function(body, four=ints(4)))[0][5] == "stored"


def test_slices_from_another_slot() -> None:
    def body(args: Any, states: Any) -> Any:
        after = stored(states["keys"], placed(held(states["keys"]), args))
        return mb.relu(x=mb.slice_by_index(x=after, begin=[0, 0, 2, 0], end=[1, 2, SLOTS, SIZE], name="read"))

    assert found(function(body))[0][5] == "stored"


def test_the_slice_that_is_read_is_found_among_others() -> None:
    def body(args: Any, states: Any) -> Any:
        after = stored(states["keys"], placed(held(states["keys"]), args))
        read = mb.slice_by_index(x=after, begin=[0, 0, 0, 0], end=[1, 2, SLOTS, SIZE], name="read")
        other = mb.slice_by_index(x=after, begin=[0, 0, 0, 0], end=[1, 1, SLOTS, SIZE], name="other")
        return [mb.relu(x=other), mb.relu(x=read)]

    assert refused(function(body)) == ("stored", "what it holds is also used otherwise")


# --- where the first slot comes from


def moved(change: One) -> Body:
    def body(args: Any, states: Any) -> Any:
        at = change(args["at"])
        after = mb.add(x=at, y=whole(1))
        made = placed(held(states["keys"]), args, begin=(0, 0, at, 0), end=(1, 2, after, SIZE))
        return mb.relu(x=stored(states["keys"], made))

    return body


MOVED: list[tuple[One, str | None]] = [
    (lambda at: at, "at"),
    (lambda at: mb.reshape(x=mb.expand_dims(x=at, axes=[0]), shape=[1]), "at"),
    (lambda at: mb.squeeze(x=mb.identity(x=mb.expand_dims(x=at, axes=[1])), axes=[1]), "at"),
    (lambda at: mb.mul(x=at, y=whole(1)), None),
]


@pytest.mark.parametrize(("change", "position"), MOVED)
def test_the_input_that_is_the_first_slot(change: Any, position: str | None) -> None:
    assert found(function(moved(change), at=ints(1)))[0][6] == position


def test_positions_of_another_shape_or_type() -> None:
    assert found(function(moved(lambda at: mb.reshape(x=at, shape=[1])), at=ints(1, 1)))[0][6] is None
    assert found(function(moved(lambda at: mb.cast(x=at, dtype="int32")), at=fp16(1)))[0][6] is None
