"""What counts as a cached tensor, how it leaves, and whether it holds keys or values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from milopt.mil import Function, get_new_symbol, mb, shape_of
from milopt.passes.cache_pairs import Pair, find_pairs, is_tail, kind_of, users_of, with_casts

from .programs import Build, One, Two, bools, fp16, ints, program_of

P, Q, D = 5, 2, 4
LAST, END = [0, 0, Q, 0], [1, 2, P + Q, D]


def function(build: Build, **inputs: Any) -> Function:
    given = {"past": fp16(1, 2, P, D), "new": fp16(1, 2, Q, D), **inputs}
    return program_of(build, **given).functions["main"]


def pairs(build: Build, **inputs: Any) -> list[Pair]:
    return list(find_pairs(function(build, **inputs)))


def told(each: Pair) -> tuple[Any, ...]:
    return each.past, each.present, each.new.name, each.axis, each.returned, [op.name for op in each.tails]


def joined(*values: Any, axis: int = 2, **options: Any) -> Any:
    return mb.concat(values=list(values), axis=axis, **{"name": "present", **options})


def test_all_columns_go_out() -> None:
    (each,) = pairs(lambda past, new: joined(past, new))
    assert told(each) == ("past", "present", "new", 2, "all", [])
    assert (each.columns, each.query, each.kept, each.var.name) == (P + Q, Q, 0, "present")
    (each,) = pairs(lambda past, new: joined(past, new, axis=-2))
    assert each.axis == 2


def test_casts_are_seen_through() -> None:
    def build(past: Any, new: Any) -> Any:
        wide = mb.cast(x=mb.cast(x=past, dtype="fp32"), dtype="fp16")
        whole = joined(wide, new, name="whole")
        return mb.cast(x=whole, dtype="fp32", name="present")

    assert told(pairs(build)[0]) == ("past", "present", "new", 2, "all", [])


NO_CACHES: list[Two] = [
    lambda past, new: joined(new, past),
    lambda past, new: joined(mb.relu(x=past), new),
    lambda past, new: joined(past, new, new),
    lambda past, new: joined(past),
    lambda past, new: joined(past, past, interleave=True),
    lambda past, new: mb.relu(x=joined(past, new)),
    lambda past, new: mb.add(x=past, y=past),
]


@pytest.mark.parametrize("build", NO_CACHES)
def test_what_is_no_cache(build: Build) -> None:
    assert [each.past for each in pairs(build)] in ([], ["new"])


def sliced(x: Any, begin: Any, end: list[int], **options: Any) -> Any:
    return mb.slice_by_index(x=x, begin=begin, end=end, name="present", **options)


def kept(begin: list[int], end: list[int], **options: Any) -> Build:
    def build(past: Any, new: Any) -> Any:
        return sliced(joined(past, new, name="whole"), begin, end, **options)

    return build


def test_the_last_columns_go_out() -> None:
    (each,) = pairs(kept([0, 0, Q, 0], [1, 2, P + Q, D]))
    assert told(each) == ("past", "present", "new", 2, "kept", ["present"])
    assert each.kept == P
    (each,) = pairs(kept([0, 0, -P, 0], [1, 2, P + Q, D], stride=[1, 1, 1, 1]))
    assert told(each)[4] == "kept"


@pytest.mark.parametrize(
    ("begin", "end", "options"),
    [
        ([0, 0, 0, 0], [1, 2, P, D], {}),
        ([0, 0, Q - 1, 0], [1, 2, P + Q - 1, D], {}),
        ([0, 0, Q + 1, 0], [1, 2, P + Q, D], {}),
        ([0, 1, Q, 0], [1, 2, P + Q, D], {}),
        ([0, 0, Q, 1], [1, 2, P + Q, D], {}),
        ([0, 0, Q, 0], [1, 2, P + Q, D], {"squeeze_mask": [True, False, False, False]}),
    ],
)
def test_other_columns_are_no_cache(begin: list[int], end: list[int], options: dict[str, Any]) -> None:
    assert pairs(kept(begin, end, **options)) == []


def test_last_columns_that_are_also_used() -> None:
    def build(past: Any, new: Any) -> Any:
        last = sliced(joined(past, new, name="whole"), LAST, END)
        return [last, mb.relu(x=last, name="used")]

    assert pairs(build) == []


def tail(build: One, axis: int, columns: Any, *shape: Any) -> bool:
    made = program_of(build, x=fp16(*shape)).functions["main"].outputs[0]
    assert made.op is not None
    return is_tail(made.op, axis, columns)


def test_tails() -> None:
    def last(x: Any) -> Any:
        return sliced(x, [0, 3], [2, 7])

    def open_end(x: Any) -> Any:
        return sliced(x, [0, -4], [2, 0], end_mask=[False, True])

    assert tail(last, 1, 4, 2, 7)
    assert not tail(last, 1, 3, 2, 7)
    assert not tail(last, 0, 2, 2, 7)
    assert not tail(lambda x: sliced(x, [0, 6], [2, 0], stride=[1, -2]), 1, 3, 2, 7)
    assert not tail(lambda x: sliced(x, [0, 1], [2, 7], stride=[1, 2]), 1, 3, 2, 7)
    assert not tail(lambda x: sliced(x, [1, 3], [2, 7]), 1, 4, 2, 7)
    columns = get_new_symbol()
    assert not tail(lambda x: sliced(x, [0, 0], [2, 0], end_mask=[False, True]), 1, columns, 2, columns)
    assert not tail(open_end, 1, 4, 2, columns)


def test_slices_as_long_as_a_tail() -> None:
    """From where a tail begins, backwards; or with another axis backwards, or without one; or from the front."""
    assert tail(lambda x: sliced(x, [0, 4], [2, 7], begin_mask=[True, False]), 1, 3, 2, 7)
    assert not tail(lambda x: sliced(x, [0, 3], [2, 4], begin_mask=[False, True]), 1, 4, 2, 7)
    assert tail(lambda x: sliced(x, [0, 4], [2, 7]), 1, 3, 2, 7)
    assert not tail(lambda x: sliced(x, [0, 3], [2, 6]), 1, 4, 2, 7)
    assert not tail(lambda x: sliced(x, [0, 4], [2, 1], stride=[1, -1]), 1, 3, 2, 7)
    assert not tail(lambda x: sliced(x, [1, 4], [0, 7], stride=[-1, 1], end_mask=[True, False]), 1, 3, 2, 7)
    assert not tail(lambda x: sliced(x, [0, 4, 0], [2, 7, 1], squeeze_mask=[False, False, True]), 1, 3, 2, 7, 3)
    assert not tail(lambda x: sliced(x, [0, 3], [2, 4]), 1, 1, 2, get_new_symbol())


def test_a_tail_from_a_computed_place() -> None:
    def build(x: Any, at: Any) -> Any:
        return mb.slice_by_index(x=x, begin=at, end=[2, 7])

    def ends(x: Any, at: Any) -> Any:
        return mb.slice_by_index(x=x, begin=[0, 3], end=at, end_mask=[True, False])

    def folded(x: Any) -> Any:
        """A place that is known, though no op says it as a constant."""
        return sliced(x, mb.add(x=np.array([0, 1], np.int32), y=np.array([0, 2], np.int32)), [2, 7])

    for each in (build, ends):
        made = program_of(each, x=fp16(2, 7), at=ints(2)).functions["main"].outputs[0]
        assert made.op is not None
        assert not is_tail(made.op, 1, 4)
        assert not is_tail(made.op, 1, shape_of(made)[1])
    assert not tail(folded, 1, 4, 2, 7)


def test_the_new_columns_go_out() -> None:
    def build(past: Any, new: Any) -> Any:
        fresh = mb.relu(x=new, name="present")
        return [fresh, mb.reduce_sum(x=joined(past, fresh, name="whole"), axes=[2], name="sums")]

    (each,) = pairs(build)
    assert told(each) == ("past", "present", "present", 2, "new", [])
    assert each.kept == 0


def test_columns_that_leave_a_block() -> None:
    """What a branch gives is no output of the function, whatever else is one."""

    def branch(x: Any, flag: Any, made: One) -> Any:
        pred = mb.squeeze(x=flag, axes=[0])
        return mb.cond(pred=pred, _true_fn=lambda: made(x), _false_fn=lambda: mb.relu(x=made(x)), name="out")

    def whole(past: Any, new: Any, flag: Any) -> Any:
        fresh = mb.relu(x=new, name="present")
        return [fresh, branch(joined(past, fresh, name="whole"), flag, lambda x: x)]

    def last(past: Any, new: Any, flag: Any) -> Any:
        return branch(joined(past, new, name="whole"), flag, lambda x: mb.slice_by_index(x=x, begin=LAST, end=END))

    for build in (whole, last):
        assert pairs(build, flag=bools(1)) == []


def test_all_columns_go_out_beside_the_new_ones() -> None:
    def build(past: Any, new: Any) -> Any:
        fresh = mb.relu(x=new, name="fresh")
        return [fresh, joined(past, fresh)]

    assert told(pairs(build)[0]) == ("past", "present", "fresh", 2, "all", [])


def test_uses_behind_casts() -> None:
    def build(x: Any) -> Any:
        one = mb.relu(x=x, name="one")
        wide = mb.cast(x=x, dtype="fp32", name="wide")
        return [one, mb.abs(x=wide, name="two"), mb.mul(x=x, y=x, name="twice")]

    made = program_of(build, x=fp16(2, 3)).functions["main"]
    assert [op.name for op in users_of(made.inputs["x"])] == ["one", "two", "twice"]
    assert [var.name for var in with_casts(made.inputs["x"])] == ["x", "wide"]


def test_names_of_what_is_made() -> None:
    (each,) = pairs(lambda past, new: joined(past, new))
    assert each.label == "present"
    part = replace(each, past="past[1]", present="present[12]")
    assert (part.input, part.output, part.label) == ("past", "present", "present_12")


# --- keys and values


def kind(build: Build, **inputs: Any) -> str:
    made = function(build, **inputs)
    return kind_of(made.inputs["past"])


def softmax(x: Any) -> Any:
    return mb.softmax(x=x, axis=-1)


WEIGHT: Any = np.ones((3, D), np.float16)


KINDS: list[tuple[Two, str]] = [
    (lambda past, new: mb.relu(x=past), ""),
    (lambda past, new: mb.cast(x=mb.shape(x=past), dtype="fp16"), ""),
    (lambda past, new: mb.linear(x=mb.cast(x=mb.shape(x=past), dtype="fp16"), weight=WEIGHT), ""),
    (lambda past, new: softmax(mb.matmul(x=new, y=past, transpose_y=True)), "key"),
    (lambda past, new: softmax(mb.relu(x=mb.matmul(x=new, y=past, transpose_y=True))), "key"),
    (lambda past, new: mb.matmul(x=softmax(mb.matmul(x=new, y=new, transpose_y=True)), y=new), ""),
    (lambda past, new: mb.relu(x=mb.matmul(x=new, y=past, transpose_y=True)), "value"),
    (
        lambda past, new: mb.einsum(values=(past, mb.transpose(x=past, perm=[0, 3, 2, 1])), equation="nchw,nwhu->nchu"),
        "value",
    ),
    (lambda past, new: softmax(mb.linear(x=past, weight=WEIGHT)), "key"),
    (lambda past, new: mb.linear(x=past, weight=WEIGHT), "value"),
    (lambda past, new: mb.conv(x=past, weight=np.ones((3, 2, 1, 1), np.float16)), "value"),
    (
        lambda past, new: softmax(mb.linear(x=mb.linear(x=past, weight=WEIGHT), weight=np.ones((2, 3), np.float16))),
        "value",
    ),
    (
        lambda past, new: mb.matmul(x=softmax(mb.matmul(x=new, y=past, transpose_y=True)), y=past),
        "kv",
    ),
    (lambda past, new: mb.scaled_dot_product_attention(query=new, key=past, value=past), "kv"),
    (lambda past, new: mb.scaled_dot_product_attention(query=new, key=past, value=mb.abs(x=past)), "kv"),
]


@pytest.mark.parametrize(("build", "expected"), KINDS)
def test_keys_and_values(build: Build, expected: str) -> None:
    assert kind(build) == expected


def test_the_operands_of_attention() -> None:
    def keys(past: Any, new: Any, other: Any) -> Any:
        return mb.scaled_dot_product_attention(query=new, key=mb.relu(x=past), value=other)

    def values(past: Any, new: Any, other: Any) -> Any:
        return mb.scaled_dot_product_attention(query=new, key=other, value=past)

    def scores(past: Any, new: Any, other: Any) -> Any:
        """A product whose result is a query is no key: what follows is another attention."""
        query = mb.matmul(x=new, y=past, transpose_y=True)
        return softmax(mb.scaled_dot_product_attention(query=query, key=other, value=other))

    assert kind(keys, other=fp16(1, 2, P, D)) == "key"
    assert kind(values, other=fp16(1, 2, P, D)) == "value"
    assert kind(scores, other=fp16(1, 2, P, P)) == "value"


def test_a_value_that_is_used_twice_is_looked_at_once() -> None:
    def doubled(x: Any) -> Any:
        for _ in range(24):
            x = mb.add(x=x, y=x)
        return x

    assert kind(lambda past, new: softmax(mb.matmul(x=new, y=doubled(past), transpose_y=True))) == "key"
    assert kind(lambda past, new: doubled(mb.matmul(x=new, y=past, transpose_y=True))) == "value"
