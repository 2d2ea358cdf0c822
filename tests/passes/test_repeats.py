"""Sizes and numbers that are computed from shapes: what can be told of them, and what can't."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pytest

from milopt.mil import Var, get_new_symbol, mb, shape_of, target, types
from milopt.passes.repeats import FoldTile, known_size, numbers_of, told
from milopt.rules import apply

I32: Any = np.int32
ROWS = get_new_symbol()

Build: TypeAlias = Callable[[Any], Any]
Both: TypeAlias = Callable[[Any, Any], Any]


def made(build: Build | Both, *shapes: tuple[Any, ...], dtype: Any = types.fp32) -> Var:
    """The value that ``build`` makes of inputs of these shapes."""
    specs = [mb.TensorSpec(shape, dtype) for shape in shapes]
    call: Callable[..., Any] = build
    found: list[Var] = []

    def one(x: Any) -> Any:
        found.append(call(x))
        return mb.identity(x=found[0])

    def two(x: Any, y: Any) -> Any:
        found.append(call(x, y))
        return mb.identity(x=found[0])

    mb.program(input_specs=specs, opset_version=target.iOS17)(one if len(shapes) == 1 else two)
    return found[0]


def size(x: Any, axis: int) -> Any:
    """A vector of one: how long an axis is."""
    return mb.gather(x=mb.shape(x=x), indices=I32([axis]), axis=0)


def joined(*parts: Any) -> Any:
    return mb.concat(values=[part if isinstance(part, Var) else I32([part]) for part in parts], axis=0)


def renamed(x: Any) -> Any:
    """All rows of x, as a slice: coremltools has another symbol for their number."""
    rank = x.rank
    ends = [True] + [False] * (rank - 1)
    return mb.slice_by_index(x=x, begin=[0] * rank, end=[1, *shape_of(x)[1:]], end_mask=ends)


# --- sizes of values


BEHIND: dict[str, tuple[Build, int]] = {
    "itself": (lambda x: x, 0),
    "relu of the last axis": (lambda x: mb.relu(x=mb.transpose(x=x, perm=[1, 2, 0])), 2),
    "expand_dims before and between": (
        lambda x: mb.expand_dims(x=mb.transpose(x=x, perm=[1, 0, 2]), axes=[0, 1, 4]),
        3,
    ),
    "transpose": (lambda x: mb.transpose(x=x, perm=[1, 2, 0]), 2),
    "transpose, counted from the end": (lambda x: mb.transpose(x=x, perm=[-1, -3, -2]), 1),
    "expand_dims": (lambda x: mb.expand_dims(x=x, axes=[0, 2]), 1),
    "expand_dims, counted from the end": (lambda x: mb.expand_dims(x=x, axes=[-1, -5]), 1),
    "concat": (lambda x: mb.concat(values=[x, mb.relu(x=x)], axis=1), 0),
    "concat, counted from the end": (lambda x: mb.concat(values=[x, x], axis=-1), 0),
    "linear": (lambda x: mb.linear(x=x, weight=np.ones((3, 6), np.float32)), 0),
    "softmax": (lambda x: mb.softmax(x=x, axis=-1), 0),
    "relu": (lambda x: mb.relu(x=x), 0),
    "cast": (lambda x: mb.cast(x=x, dtype="fp16"), 0),
    "silu": (lambda x: mb.silu(x=x), 0),
    "add": (lambda x: mb.add(x=x, y=np.ones((1, 1, 6), np.float32)), 0),
    "sub": (lambda x: mb.sub(x=np.ones((2, 6), np.float32), y=x), 0),
    "mul": (lambda x: mb.mul(x=x, y=np.float32(2)), 0),
    "reshape": (lambda x: mb.reshape(x=x, shape=joined(size(x, 0), -1)), 0),
}


@pytest.mark.parametrize("case", BEHIND)
def test_sizes_are_followed_to_where_they_come_from(case: str) -> None:
    build, axis = BEHIND[case]
    var = made(lambda x: build(renamed(x)), (ROWS, 2, 6))
    assert shape_of(var)[axis] != ROWS
    assert known_size(var, axis) == ROWS
    assert known_size(var, axis - var.rank) == ROWS


def test_a_concatenation_has_another_size() -> None:
    var = made(lambda x: mb.concat(values=[renamed(x), renamed(x)], axis=0), (ROWS, 6))
    assert known_size(var, 0) == shape_of(var)[0] != ROWS
    assert known_size(var, 1) == 6


def test_a_slice_without_its_first_axis() -> None:
    var = made(
        lambda x: mb.slice_by_index(
            x=x,
            begin=[0, 0, 0],
            end=[1, 1, 6],
            end_mask=[False, True, False],
            squeeze_mask=[True, False, False],
        ),
        (2, ROWS, 6),
    )
    assert known_size(var, 0) == shape_of(var)[0]
    assert known_size(var, 1) == 6


def chain(x: Any, length: int) -> Any:
    for _ in range(length):
        x = mb.relu(x=x)
    return x


def test_sizes_from_far_away_are_not_looked_for() -> None:
    near, far = (made(lambda x, n=n: chain(renamed(x), n), (ROWS, 6)) for n in (58, 59))
    assert known_size(near, 0) == ROWS
    assert known_size(far, 0) == shape_of(far)[0] != ROWS


def test_two_sizes_may_each_be_far_away() -> None:
    columns = get_new_symbol()

    def build(x: Any) -> Any:
        both = mb.slice_by_index(x=x, begin=[0, 0], end=[1, 1], end_mask=[True, True])
        return mb.reshape(x=chain(both, 45), shape=[-1])

    assert known_size(made(build, (ROWS, columns)), 0) == ROWS * columns


def test_sizes_that_are_numbers_stay() -> None:
    var = made(lambda x: mb.expand_dims(x=x, axes=[1]), (ROWS, 2, 6))
    assert [known_size(var, axis) for axis in range(4)] == [ROWS, 1, 2, 6]


@pytest.mark.parametrize(
    ("first", "second", "wide"),
    [((ROWS, 6), (4, 6), 4), ((4, 6), (ROWS, 6), 4), ((ROWS, 6), (1, 6), ROWS), ((1, 6), (ROWS, 6), ROWS)],
)
def test_what_operands_broadcast_to(first: Any, second: Any, wide: Any) -> None:
    assert known_size(made(lambda x, y: mb.add(x=x, y=y), first, second), 0) == wide


def test_two_unknown_sizes_that_broadcast_stay_unknown() -> None:
    other = get_new_symbol()
    var = made(lambda x, y: mb.add(x=mb.relu(x=x), y=mb.relu(x=y)), (ROWS, 6), (other, 6))
    assert known_size(var, 0) == shape_of(var)[0]


CUTS: dict[str, tuple[dict[str, Any], bool]] = {
    "all rows": ({"begin": [0, 0], "end": [1, 6], "end_mask": [True, False]}, True),
    "all rows, from wherever they begin": (
        {"begin": [3, 0], "end": [1, 6], "begin_mask": [True, False], "end_mask": [True, False]},
        True,
    ),
    "to an end": ({"begin": [0, 0], "end": [4, 6]}, False),
    "from a begin": ({"begin": [1, 0], "end": [1, 6], "end_mask": [True, False]}, False),
    "every second row": ({"begin": [0, 0], "end": [1, 6], "end_mask": [True, False], "stride": [2, 1]}, False),
    "another axis masked at its begin": (
        {"begin": [1, 0], "end": [1, 6], "begin_mask": [False, True], "end_mask": [True, False]},
        False,
    ),
    "another axis masked at its end": ({"begin": [0, 0], "end": [4, 6], "end_mask": [False, True]}, False),
    "every row": ({"begin": [0, 0], "end": [1, 6], "end_mask": [True, False], "stride": [1, 2]}, True),
}


@pytest.mark.parametrize("case", CUTS)
def test_slices_of_all_rows(case: str) -> None:
    inputs, whole = CUTS[case]
    var = made(lambda x: mb.slice_by_index(x=x, **inputs), (ROWS, 6))
    assert known_size(var, 0) == (ROWS if whole else shape_of(var)[0])


def test_slices_that_begin_where_an_input_says() -> None:
    def build(x: Any, y: Any) -> Any:
        return mb.slice_by_index(x=x, begin=mb.cast(x=y, dtype="int32"), end=[1, 6], end_mask=[True, False])

    var = made(build, (ROWS, 6), (2,))
    assert known_size(var, 0) == shape_of(var)[0]


def test_slices_that_begin_in_front_whatever_they_say() -> None:
    """The begin is masked; only the end counts."""

    def build(x: Any, y: Any) -> Any:
        ends = joined(size(y, 0), 6)
        cut = mb.slice_by_index(x=x, begin=[9, 0], end=ends, begin_mask=[True, False])
        return mb.floor_div(x=joined(size(cut, 0), 6), y=joined(size(y, 0), 3))

    assert numbers_of(made(build, (ROWS, 6), (get_new_symbol(), 6))) == [1, 2]


def test_reshapes_that_copy_a_size_stay_unknown() -> None:
    def build(x: Any) -> Any:
        second = mb.expand_dims(x=mb.squeeze(x=size(x, 1)), axes=[0])
        return mb.reshape(x=x, shape=mb.concat(values=[I32([0]), second, I32([-1])], axis=0))

    var = made(build, (ROWS, 2, 6))
    assert known_size(var, 2) == shape_of(var)[2]
    assert known_size(var, 0) == shape_of(var)[0]


def test_reshapes_to_a_shape_that_is_chosen_stay_unknown() -> None:
    var = made(lambda x: mb.reshape(x=x, shape=mb.concat(values=[either(x, 2, 4), I32([-1])], axis=0)), (ROWS, 2, 6))
    assert [known_size(var, axis) for axis in range(3)] == list(shape_of(var))


def test_reshapes_whose_open_size_can_be_told() -> None:
    """coremltools names both sizes anew; one is what the shape says, the other what is left."""
    squeezed = made(
        lambda x: mb.reshape(x=x, shape=joined(mb.expand_dims(x=mb.squeeze(x=size(x, 0)), axes=[0]), -1)), (ROWS, 2, 6)
    )
    assert [known_size(squeezed, axis) for axis in (0, 1)] == [ROWS, 12]
    written = made(
        lambda x: mb.reshape(x=x, shape=joined(mb.expand_dims(x=mb.squeeze(x=size(x, 0)), axes=[0]), 12)), (ROWS, 2, 6)
    )
    assert [known_size(written, axis) for axis in (0, 1)] == [ROWS, 12]


def test_reshapes_to_a_shape_that_an_input_says_stay_unknown() -> None:
    var = made(lambda x, y: mb.reshape(x=x, shape=y), (2, 6), (2,), dtype=types.int32)
    assert [known_size(var, axis) for axis in (0, 1)] == list(shape_of(var))


# --- vectors of numbers


def chosen(x: Any, cond: Any, a: Any, b: Any) -> Any:
    return mb.select(cond=cond, a=joined(*a), b=joined(*b))


def either(x: Any, one: int, other: int) -> Any:
    """A vector of two: one number or the other, and 3."""
    unknown = mb.greater(x=joined(size(x, 0), 5), y=I32([4, 4]))
    return mb.select(cond=unknown, a=joined(one, 3), b=joined(other, 3))


def at_least_one(x: Any) -> Any:
    return mb.maximum(x=joined(size(x, 1), 5), y=I32([1, 1]))


NUMBERS: dict[str, tuple[Build, list[int] | None]] = {
    "sizes": (lambda x: joined(size(x, 1), size(x, 2), 5), [2, 6, 5]),
    "a size of unknown number": (lambda x: joined(size(x, 0), 5), None),
    "sizes that cancel": (lambda x: mb.floor_div(x=joined(size(x, 0), 12), y=joined(size(x, 0), 6)), [1, 2]),
    "sizes that cancel as fractions": (
        lambda x: mb.cast(x=mb.real_div(x=joined(size(x, 0), 12), y=joined(size(x, 0), 6)), dtype="int32"),
        [1, 2],
    ),
    "an unsigned cast": (
        lambda x: mb.cast(x=mb.cast(x=joined(size(x, 1), 3), dtype="uint16"), dtype="int32"),
        [2, 3],
    ),
    "a quotient by a choice, of which one is zero": (
        lambda x: mb.floor_div(x=joined(4, 3), y=either(x, 0, 2)),
        [2, 1],
    ),
    "a choice of what is not read": (
        lambda x: mb.select(cond=np.array([True, False]), a=joined(7, 8), b=at_least_one(x)),
        None,
    ),
    "a choice that is compared": (
        lambda x: chosen(x, mb.equal(x=either(x, 2, 3), y=I32([2, 5])), (7, 8), (7, 8)),
        [7, 8],
    ),
    "a choice that is compared, and matters": (
        lambda x: chosen(x, mb.equal(x=either(x, 2, 3), y=I32([2, 3])), (7, 8), (1, 8)),
        None,
    ),
    "something compared with a choice": (
        lambda x: chosen(x, mb.equal(x=I32([2, 3]), y=either(x, 2, 3)), (7, 8), (1, 8)),
        None,
    ),
    "a quotient that is no whole number": (lambda x: mb.floor_div(x=joined(size(x, 0), 9), y=joined(1, 6)), None),
    "a quotient of one by several": (lambda x: mb.floor_div(x=joined(4, 8), y=I32([2])), None),
    "a quotient by a product": (
        lambda x: mb.floor_div(x=joined(size(x, 1), 4), y=mb.mul(x=joined(size(x, 0), 2), y=I32([1, 1]))),
        None,
    ),
    "moved": (lambda x: mb.squeeze(x=mb.expand_dims(x=mb.identity(x=size(x, 1)), axes=[0]), axes=[0]), None),
    "an element of them": (
        lambda x: mb.gather(x=joined(size(x, 1), size(x, 2)), indices=I32([1, 0, 1]), axis=0),
        [6, 2, 6],
    ),
    "some of them": (lambda x: mb.slice_by_index(x=joined(size(x, 0), size(x, 1), 5), begin=[1], end=[3]), [2, 5]),
    "some, counted from the end": (lambda x: mb.slice_by_index(x=joined(2, 3, 4, 5), begin=[-3], end=[-1]), [3, 4]),
    "some of sizes, counted from the end": (
        lambda x: mb.slice_by_index(x=joined(size(x, 1), 3, 4, size(x, 2)), begin=[-3], end=[-1]),
        [3, 4],
    ),
    "the first of them": (
        lambda x: mb.slice_by_index(x=joined(size(x, 1), 4, size(x, 0)), begin=[1], end=[2], begin_mask=[True]),
        [2, 4],
    ),
    "the last of them": (
        lambda x: mb.slice_by_index(x=joined(size(x, 0), size(x, 1), 4), begin=[1], end=[2], end_mask=[True]),
        [2, 4],
    ),
    "every other of them": (
        lambda x: mb.slice_by_index(x=joined(size(x, 1), size(x, 0), 4, 5), begin=[0], end=[4], stride=[2]),
        [2, 4],
    ),
    "them backwards": (
        lambda x: mb.slice_by_index(x=joined(size(x, 1), 4, 5), begin=[2], end=[0], stride=[-1], end_mask=[True]),
        [5, 4, 2],
    ),
    "some that depend on the number of rows": (
        lambda x: mb.slice_by_index(x=joined(size(x, 0), 5, 6), begin=[0], end=size(x, 1)),
        None,
    ),
    "some of what is not read": (lambda x: mb.slice_by_index(x=at_least_one(x), begin=[0], end=[1]), None),
    "a cast": (lambda x: mb.cast(x=mb.cast(x=joined(size(x, 1), 3), dtype="int16"), dtype="int32"), [2, 3]),
    "a cast to fractions": (lambda x: mb.cast(x=mb.cast(x=joined(size(x, 1), 3), dtype="fp32"), dtype="int32"), None),
    "an op that is not read": (lambda x: mb.maximum(x=joined(size(x, 1), 3), y=I32([4, 4])), None),
    "a known choice": (lambda x: chosen(x, np.array([True, False]), (size(x, 1), 3), (7, 8)), [2, 8]),
    "a choice for all": (lambda x: chosen(x, np.array([True]), (size(x, 1),), (7,)), [2]),
    "where a size is a number": (
        lambda x: chosen(x, mb.equal(x=joined(size(x, 1), size(x, 2)), y=I32([2, 5])), (7, 8), (1, size(x, 2))),
        [7, 6],
    ),
    "where sizes are one": (
        lambda x: chosen(x, mb.equal(x=joined(size(x, 0), 5), y=joined(size(x, 0), 6)), (7, 8), (1, 2)),
        [7, 2],
    ),
    "where sizes are one number": (
        lambda x: chosen(x, mb.equal(x=joined(size(x, 1), size(x, 2)), y=I32([2])), (7, 8), (1, 3)),
        [7, 3],
    ),
    "where one number is a size": (
        lambda x: chosen(x, mb.equal(x=I32([6]), y=joined(size(x, 1), size(x, 2))), (7, 8), (1, 3)),
        [1, 8],
    ),
    "a choice by a comparison with what is not read": (
        lambda x: chosen(x, mb.equal(x=I32([2, 5]), y=at_least_one(x)), (7, 8), (1, 2)),
        None,
    ),
    "where a size may be a number": (
        lambda x: chosen(x, mb.equal(x=joined(size(x, 0), 5), y=I32([-1, 5])), (7, 8), (1, 2)),
        None,
    ),
    "of equals": (lambda x: chosen(x, mb.equal(x=joined(size(x, 0), 5), y=I32([-1, 5])), (7, 8), (7, 2)), [7, 8]),
    "a choice by another comparison": (
        lambda x: chosen(x, mb.greater(x=joined(size(x, 1), 5), y=I32([1, 1])), (7, 8), (1, 2)),
        None,
    ),
    "a choice by what is not read": (
        lambda x: chosen(
            x, mb.equal(x=mb.maximum(x=joined(size(x, 1), 5), y=I32([1, 1])), y=I32([2, 5])), (7, 8), (1, 2)
        ),
        None,
    ),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_vectors_of_numbers(case: str) -> None:
    build, wanted = NUMBERS[case]
    assert numbers_of(made(build, (ROWS, 2, 6))) == wanted


def test_slices_are_trusted_to_reach_as_far_as_asked() -> None:
    """A cache of as many rows as were asked for, by the number of rows asked for."""

    def build(x: Any, y: Any) -> Any:
        cut = mb.slice_by_index(x=x, begin=[0, 0], end=joined(size(y, 0), 6))
        return mb.floor_div(x=joined(size(cut, 0), 6), y=joined(size(y, 0), 3))

    other = get_new_symbol()
    var = made(build, (ROWS, 6), (other, 6))
    assert numbers_of(var) == [1, 2]
    assert numbers_of(made(build, (2, 6), (other, 6))) == [1, 2]
    # of one row the quotient could be the number of repetitions itself
    assert numbers_of(made(build, (1, 6), (other, 6))) is None


def test_what_depends_on_an_input_is_no_number() -> None:
    ways: list[Build] = [
        lambda y: y,
        lambda y: joined(y, 3),
        lambda y: mb.gather(x=y, indices=I32([0]), axis=0),
        lambda y: mb.cast(x=mb.cast(x=y, dtype="fp32"), dtype="int32"),
        lambda y: mb.select(cond=np.array([True]), a=y, b=I32([1])),
        lambda y: mb.select(cond=mb.equal(x=y, y=I32([1])), a=I32([2]), b=I32([3])),
        lambda y: mb.floor_div(x=y, y=I32([2])),
        lambda y: mb.expand_dims(x=mb.squeeze(x=y, axes=[0]), axes=[0]),
    ]
    for build in ways:
        assert numbers_of(made(build, (1,), dtype=types.int32)) is None


def test_a_choice_by_an_input() -> None:
    def build(x: Any, y: Any) -> Any:
        return mb.select(cond=y, a=joined(7, 8), b=joined(1, 2))

    specs = [mb.TensorSpec((2, 6)), mb.TensorSpec((2,), types.bool)]
    found: list[Var] = []

    @mb.program(input_specs=specs, opset_version=target.iOS17)
    def program(x: Any, y: Any) -> Any:
        found.append(build(x, y))
        return mb.identity(x=found[0])

    assert program.functions["main"].outputs
    assert numbers_of(found[0]) is None


def test_a_number_of_an_input_by_itself_is_one() -> None:
    """Whatever a number is: of itself it is the single."""

    def build(y: Any) -> Any:
        number = mb.squeeze(x=y, axes=[0])
        return mb.floor_div(x=mb.expand_dims(x=number, axes=[0]), y=mb.expand_dims(x=number, axes=[0]))

    assert numbers_of(made(build, (1,), dtype=types.int32)) == [1]


def test_elements_that_an_input_picks_are_not_told() -> None:
    var = made(
        lambda x, y: mb.gather(x=joined(2, size(x, 1)), indices=mb.cast(x=y, dtype="int32"), axis=0), (ROWS, 2), (2,)
    )
    assert numbers_of(var) is None
    table = made(lambda x: mb.gather(x=joined(2, size(x, 1)), indices=I32([[0], [1]]), axis=0), (ROWS, 2))
    assert numbers_of(table) is None


# --- the rule


def reasons(build: Build) -> tuple[int, list[str]]:
    specs = [mb.TensorSpec((2, ROWS, 6))]

    @mb.program(input_specs=specs, opset_version=target.iOS17)
    def program(x: Any) -> Any:
        return build(x)

    report = apply(FoldTile(), program)
    declined = [miss.reason for miss in report.misses if miss.declined]
    return report.applied, declined


def computed(x: Any) -> Any:
    return mb.floor_div(x=joined(size(x, 0), 3, 1), y=joined(size(x, 0), 1, 1))


def test_repetitions_are_folded_where_the_shape_is_known() -> None:
    folded = reasons(lambda x: mb.reshape(x=mb.tile(x=x, reps=computed(x)), shape=[2, -1, 6]))
    assert folded == (1, ["its repetitions are constant"])  # as it writes them
    open_shape = reasons(lambda x: mb.reshape(x=mb.tile(x=x, reps=computed(x)), shape=joined(size(x, 0), -1, 6)))
    assert open_shape == (0, ["the shape it then has is computed"])
    constant = reasons(lambda x: mb.reshape(x=mb.tile(x=x, reps=[1, 3, 1]), shape=[2, -1, 6]))
    assert constant == (0, ["its repetitions are constant"])


def test_constant_repetitions_are_not_told_of() -> None:
    specs = [mb.TensorSpec((2, 4, 6))]

    @mb.program(input_specs=specs, opset_version=target.iOS17)
    def program(x: Any) -> Any:
        return mb.reshape(x=mb.tile(x=x, reps=[1, 3, 1]), shape=[2, 12, 6])

    report = apply(FoldTile(), program)
    assert [miss.reason for miss in report.misses if miss.declined] == ["its repetitions are constant"]
    assert not [miss for miss in told(report).misses if miss.declined]
