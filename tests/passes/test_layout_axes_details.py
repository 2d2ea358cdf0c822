"""Axes of values that are one, where reshapes cut them, and what moves make of layouts."""

# The bodies of programs are lambdas of as many parameters as they have inputs, for which no one type can be written.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from milopt.mil import Operation, Program, Var, get_new_symbol, mb, operations, types
from milopt.passes.layout_axes import MOVES, Axes, Numbering, moved, segments

from .refusals import program_of
from .test_layout_disputes import declare

FP32 = types.fp32


def axes_of(build: Callable[..., Any], *shapes: tuple[Any, ...]) -> tuple[Axes, dict[str, Var], dict[str, Operation]]:
    """The axes of a program's moves, settled, and its values and ops by name."""
    program: Program = program_of(build, *((shape, FP32) for shape in shapes))
    function, axes = program.functions["main"], Axes()
    ops = {op.name: op for op in operations(function)}
    for op in ops.values():
        if op.op_type in MOVES:
            axes.add_move(op)
    axes.settle()
    values = {var.name: var for op in ops.values() for var in op.outputs} | dict(function.inputs)
    return axes, values, ops


def test_the_ops_that_move() -> None:
    assert {*MOVES} == {"transpose", "reshape", "expand_dims", "squeeze"}


def test_numbers_of_dimensions() -> None:
    """A number is itself; a symbol is a large prime, a multiple of it the multiple of the prime."""
    numbering = Numbering()
    first, second = get_new_symbol(), get_new_symbol()
    assert [numbering.number(dim) for dim in (1, 2, 64)] == [1, 2, 64]
    one, other = numbering.number(first), numbering.number(second)
    assert (one, other) == (2147483629, 2147483587)  # the primes before 2**31 - 1
    assert (numbering.number(first * 2), numbering.number(3 * second)) == (2 * one, 3 * other)
    assert numbering.symbols == {one: first, other: second}
    mixed = numbering.number(first + 1)
    assert mixed not in (one, other)
    assert numbering.number(first + 1) == mixed
    assert numbering.number(first / 2) not in (one, other, mixed)
    assert numbering.number(first) == one


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        ((2, 3), (2, 3), [([0], [0]), ([1], [1])]),
        ((2, 3), (6,), [([0, 1], [0])]),
        ((6,), (2, 3), [([0], [0, 1])]),
        ((2, 12, 5), (2, 3, 4, 5), [([0], [0]), ([1], [1, 2]), ([2], [3])]),
        ((4, 6), (6, 4), [([0, 1], [0, 1])]),
        ((2, 2, 3, 3), (4, 9), [([0, 1], [0]), ([2, 3], [1])]),
        ((1, 2, 1, 3), (2, 3, 1), [([1], [0]), ([3], [1])]),
        ((1,), (1, 1), []),
        ((), (), []),
        ((2, 3), (2, 4), None),
        ((2, 3), (7,), None),
        ((7,), (2, 3), None),
        ((2, 3), (2,), None),
        ((2,), (2, 3), None),
        ((2, 3, 5), (6,), None),
    ],
)
def test_segments(before: tuple[int, ...], after: tuple[int, ...], wanted: Any) -> None:
    assert segments(before, after) == wanted


def test_axes_that_are_one() -> None:
    def build(x: Any) -> Any:
        turned = mb.transpose(x=x, perm=[2, 0, -2], name="turned")
        wide = mb.expand_dims(x=turned, axes=[1], name="wide")
        return mb.squeeze(x=wide, axes=[1], name="narrow")

    axes, values, _ = axes_of(build, (2, 3, 4))
    x, turned, wide, narrow = (values[name] for name in ("x", "turned", "wide", "narrow"))
    classes = {at: axes.root((x, at)) for at in range(3)}
    assert len(set(classes.values())) == 3
    for at, source in enumerate((2, 0, 1)):
        assert axes.root((turned, at)) == axes.root((narrow, at)) == classes[source]
        assert axes.root((wide, (0, 2, 3)[at])) == classes[source]
    assert axes.pieces(wide) == [[4], [], [2], [3]]
    assert axes.opaque == set()
    axes.unite([(x, 0), (x, 1), (wide, 1)])
    assert axes.root((x, 0)) == axes.root((x, 1)) == axes.root((wide, 1)) != axes.root((x, 2))


def test_cuts_are_carried() -> None:
    """(12) is cut into 3 and 4 by one reshape and into 6 and 2 by another: 3, 2 and 2 everywhere."""

    def build(x: Any) -> Any:
        one = mb.reshape(x=x, shape=[5, 3, 4], name="one")
        two = mb.reshape(x=x, shape=[5, 6, 2], name="two")
        return one, two, mb.transpose(x=x, perm=[1, 0], name="turned")

    axes, values, _ = axes_of(build, (5, 12))
    assert axes.pieces(values["x"]) == [[5], [3, 2, 2]]
    assert axes.pieces(values["one"]) == [[5], [3], [2, 2]]
    assert axes.pieces(values["two"]) == [[5], [3, 2], [2]]
    assert axes.pieces(values["turned"]) == [[3, 2, 2], [5]]


def test_joints_are_cuts() -> None:
    def build(x: Any) -> Any:
        return mb.transpose(x=mb.reshape(x=x, shape=[6, 4], name="joined"), perm=[1, 0], name="turned")

    axes, values, _ = axes_of(build, (2, 3, 4))
    assert axes.pieces(values["joined"]) == [[2, 3], [4]]
    assert axes.pieces(values["turned"]) == [[4], [2, 3]]
    assert axes.pieces(values["x"]) == [[2], [3], [4]]


def test_cuts_that_do_not_fit_are_opaque() -> None:
    def build(x: Any) -> Any:
        return mb.reshape(x=x, shape=[6, 4], name="moved")

    axes, values, ops = axes_of(build, (4, 6))
    assert axes.opaque == {ops["moved"]}
    assert (axes.pieces(values["x"]), axes.pieces(values["moved"])) == ([[4], [6]], [[6], [4]])

    def several(x: Any) -> Any:
        one = mb.reshape(x=x, shape=[2, 6], name="one")
        return one, mb.reshape(x=x, shape=[3, 4], name="two"), mb.reshape(x=one, shape=[2, 3, 2], name="three")

    axes, values, ops = axes_of(several, (12,))
    assert len(axes.opaque) == 1
    assert axes.pieces(values["x"]) in ([[2, 3, 2]], [[3, 4]], [[2, 6]], [[3, 2, 2]])


def test_of_two_that_do_not_fit_the_later_is_opaque() -> None:
    def build(x: Any) -> Any:
        one = mb.reshape(x=x, shape=[2, 6], name="one")
        return one, mb.reshape(x=x, shape=[3, 4], name="two")

    axes, values, ops = axes_of(build, (12,))
    assert axes.opaque == {ops["two"]}
    assert [axes.pieces(values[name]) for name in ("x", "one", "two")] == [[[2, 6]], [[2], [6]], [[3], [4]]]


def test_a_transpose_of_another_shape_is_opaque() -> None:
    program = program_of(lambda x: mb.transpose(x=x, perm=[1, 0], name="op"), ((2, 3), FP32))
    (op,) = [op for op in operations(program.functions["main"]) if op.name == "op"]
    declare(op.outputs[0], (3, 4))
    axes = Axes()
    axes.add_move(op)
    axes.settle()
    assert axes.opaque == {op}
    assert axes.root((op.outputs[0], 0)) != axes.root((op.inputs["x"], 1))


def test_sizes_that_disagree() -> None:
    first, second = get_new_symbol(), get_new_symbol()
    program = program_of(lambda x, y: mb.identity(x=x), ((2, first, 3), FP32), ((2, second, 4), FP32))
    x, y = (program.functions["main"].inputs[name] for name in ("x", "y"))
    axes = Axes()
    assert axes.disagreement([(x, 0)]) is None
    assert axes.disagreement([(x, 0), (y, 0)]) is None
    assert axes.disagreement([(x, 1), (y, 1)]) is None  # which may be one length
    assert axes.disagreement([(x, 2), (y, 2)]) == "x has 3 on axis 2 where y has 4 on axis 2"
    assert axes.disagreement([(x, 1), (y, 0)]) == f"x has {first} on axis 1 where y has 2 on axis 0"
    assert axes.disagreement([(y, 0), (x, 1)]) == f"y has 2 on axis 0 where x has {first} on axis 1"
    assert axes.disagreement([(x, 0), (y, 0), (y, 2)]) == "x has 2 on axis 0 where y has 4 on axis 2"


def test_symbols_are_cut_as_numbers_are() -> None:
    length = get_new_symbol()

    def build(x: Any) -> Any:
        return mb.reshape(x=x, shape=[-1, 8], name="joined")

    axes, values, _ = axes_of(build, (2, length, 8))
    prime = axes.numbering.number(length)
    assert axes.pieces(values["x"]) == [[2], [prime], [8]]
    joined = axes.pieces(values["joined"])
    assert joined in ([[2, prime], [8]], [[axes.numbering.shape(values["joined"])[0]], [8]])


def op_of(build: Callable[..., Any], shape: tuple[int, ...]) -> Operation:
    program = program_of(build, (shape, FP32))
    return next(op for op in operations(program.functions["main"]) if op.name == "op")


def test_layouts_of_moves() -> None:
    turned = op_of(lambda x: mb.transpose(x=x, perm=[-1, 0, 1], name="op"), (2, 3, 4))
    assert moved(turned, ((0,), (1, 2), ()), [2, 3, 4], (4, 2, 3)) == ((), (0,), (1, 2))
    shaped = op_of(lambda x: mb.reshape(x=x, shape=[6, 1, 4], name="op"), (2, 3, 4))
    assert moved(shaped, ((0,), (1,), (2,)), [2, 3, 4], (6, 1, 4)) == ((0, 1), (), (2,))
    assert moved(shaped, ((1,), (0,), (2,)), [2, 3, 4], (6, 1, 4)) == ((1, 0), (), (2,))
    assert moved(shaped, ((0,), (2,), (1,)), [2, 3, 4], (6, 1, 4)) is None  # 2 and 4 are no 6
    assert moved(shaped, ((0,), (1,)), [2, 3], (6, 1, 4)) is None
    assert moved(shaped, ((0,), (1,), (2,)), [2, 3, 4], (6, 1)) is None
    narrow = op_of(lambda x: mb.squeeze(x=x, axes=[1], name="op"), (2, 1, 4))
    assert moved(narrow, ((0,), (), (1,)), [2, 4], (2, 4)) == ((0,), (1,))
    wide = op_of(lambda x: mb.expand_dims(x=x, axes=[0], name="op"), (2, 4))
    assert moved(wide, ((0,), (1,)), [2, 4], (1, 2, 4)) == ((), (0,), (1,))
