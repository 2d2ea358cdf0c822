"""How products are read, and values moved: by their axes, with what made them, with their symbols."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from milopt.building import Builder
from milopt.mil import Operation, Program, Var, get_new_symbol, mb, shape_of
from milopt.passes.attention_products import (
    operand,
    permuted,
    read_operand,
    read_result,
    reshaped,
    with_symbols,
)
from milopt.reports import NoMatch, place_of

from .programs import One, Two, fp32, lines, program_of


def moved(build: One, move: Callable[[Builder, Var], Var], *shape: Any) -> tuple[str, list[str]]:
    """The name of what ``move`` makes of a value ``at``, and the ops that it builds."""
    program = program_of(lambda x: mb.relu(x=build(x), name="out"), x=fp32(*shape))
    function = program.functions["main"]
    before = len(lines(program))
    anchor = function.outputs[0].op
    assert anchor is not None
    made = move(Builder(anchor, set()), anchor.inputs["x"])
    return made.name, [line.partition("= ")[2] for line in lines(program)[before - 1 : -1]]


def turned(*perms: list[int]) -> One:
    def build(x: Any) -> Any:
        for at, perm in enumerate(perms):
            x = mb.transpose(x=x, perm=perm, name=f"turned_{at}")
        return x

    return build


def plain(x: Any) -> Any:
    return mb.abs(x=x, name="plain")


def to_order(perm: tuple[int, ...]) -> Callable[[Builder, Var], Var]:
    return lambda op, var: permuted(op, var, perm)


def test_axes_that_stay_in_order_are_not_moved() -> None:
    for perm in ((0, 1, 2), (-3, -2, -1), (0, -2, 2)):
        assert moved(plain, to_order(perm), 2, 3, 4) == ("plain", [])
        assert moved(turned([1, 2, 0]), to_order(perm), 2, 3, 4) == ("turned_0", [])


def test_axes_that_are_moved() -> None:
    made = moved(plain, lambda op, var: permuted(op, var, (-1, 0, 1)), 2, 3, 4)
    assert made == ("out_transpose", ["transpose(x=%0, perm=[2, 0, 1])"])


def test_two_transposes_are_one() -> None:
    made = moved(turned([1, 2, 0]), lambda op, var: permuted(op, var, (0, 2, 1)), 2, 3, 4)
    assert made == ("out_transpose", ["transpose(x=%x, perm=[1, 0, 2])"])
    made = moved(turned([-2, -1, 0]), lambda op, var: permuted(op, var, (0, 2, 1)), 2, 3, 4)
    assert made == ("out_transpose", ["transpose(x=%x, perm=[1, 0, 2])"])


def test_two_transposes_are_none() -> None:
    assert moved(turned([1, 2, 0]), lambda op, var: permuted(op, var, (2, 0, 1)), 2, 3, 4) == ("x", [])


def test_only_the_last_transpose_is_merged() -> None:
    made = moved(turned([1, 2, 0], [1, 2, 0]), lambda op, var: permuted(op, var, (1, 2, 0)), 2, 3, 4)
    assert made == ("out_transpose", ["transpose(x=%0, perm=[2, 0, 1])"])


def to(*shape: Any) -> Callable[[Builder, Var], Var]:
    return lambda op, var: reshaped(op, var, shape)


def chain(x: Any) -> Any:
    wide = mb.expand_dims(x=mb.reshape(x=plain(x), shape=[6, 4], name="flat"), axes=[0], name="wide")
    return mb.reshape(x=mb.squeeze(x=wide, axes=[0], name="narrow"), shape=[4, 6], name="last")


def test_a_shape_that_is_there_already() -> None:
    assert moved(chain, to(4, 6), 2, 3, 4) == ("last", [])
    assert moved(chain, to(6, 4), 2, 3, 4) == ("narrow", [])
    assert moved(chain, to(1, 6, 4), 2, 3, 4) == ("wide", [])
    assert moved(chain, to(2, 3, 4), 2, 3, 4) == ("plain", [])
    assert moved(plain, to(2, 3, 4), 2, 3, 4) == ("plain", [])


def test_a_shape_that_is_not_there() -> None:
    assert moved(chain, to(24), 2, 3, 4) == ("out_reshape", ["reshape(x=%4, shape=[24])"])
    assert moved(lambda x: mb.transpose(x=x, perm=[0, 2, 1]), to(2, 3, 4), 2, 3, 4) == (
        "out_reshape",
        ["reshape(x=%0, shape=[2, 3, 4])"],
    )
    assert moved(lambda x: x, to(24), 2, 3, 4) == ("out_reshape", ["reshape(x=%x, shape=[24])"])


def test_one_symbol_is_written_and_kept() -> None:
    rows = get_new_symbol()
    shapes: list[Any] = []

    def move(op: Builder, var: Var) -> Var:
        made = reshaped(op, var, (rows, 3, 4))
        shapes.append(shape_of(made))
        return made

    assert moved(plain, move, 1, rows, 12)[1] == ["reshape(x=%0, shape=[-1, 3, 4])"]
    assert shapes == [(rows, 3, 4)]


def test_two_symbols_are_not_written() -> None:
    rows, columns = get_new_symbol(), get_new_symbol()
    with pytest.raises(NoMatch) as why:
        moved(plain, to(rows, columns, 2, 2), rows, columns, 4)
    assert str(why.value) == f"its shape ({rows}, {columns}, 2, 2) can't be written: two dimensions are symbolic"
    assert place_of(why.value.at) == "plain"
    assert moved(plain, to(rows, columns, 4), rows, columns, 4) == ("plain", [])


def test_symbols_that_are_put_back() -> None:
    rows, other = get_new_symbol(), get_new_symbol()
    program = program_of(lambda x: mb.relu(x=x, name="out"), x=fp32(rows, 3))
    (var,) = program.functions["main"].outputs
    assert with_symbols(var, (other, 3)) is var
    assert shape_of(var) == (other, 3)
    assert shape_of(with_symbols(var, (5, other))) == (5, 3)
    with pytest.raises(NoMatch) as why:
        with_symbols(var, (other, 4))
    assert str(why.value) == f"the replacement is of shape (5, 3), not ({other}, 4)"
    assert place_of(why.value.at) == "out"
    for wrong in ((5,), (5, 3, 1), (4, 3)):
        with pytest.raises(NoMatch):
            with_symbols(var, wrong)


def products(build: Two, x: tuple[int, ...], y: tuple[int, ...]) -> Operation:
    program: Program = program_of(lambda x, y: mb.relu(x=build(x, y)), x=fp32(*x), y=fp32(*y))
    (op,) = [op for op in program.functions["main"].operations if op.op_type in ("matmul", "einsum")]
    return op


@pytest.mark.parametrize("x_first", [False, True])
@pytest.mark.parametrize("y_first", [False, True])
def test_the_axes_of_matmul(x_first: bool, y_first: bool) -> None:
    x, y = (3, 4) if not x_first else (4, 3), (4, 5) if not y_first else (5, 4)
    op = products(
        lambda x, y: mb.matmul(x=x, y=y, transpose_x=x_first, transpose_y=y_first, name="product"),
        (1, 2, *x),
        (1, 2, *y),
    )
    assert [operand(op, side).name for side in "xy"] == ["x", "y"]
    first, second = (read_operand(op, side) for side in "xy")
    assert first.order == ((-4, -3, -1, -2) if x_first else (-4, -3, -2, -1))
    assert second.order == ((-4, -3, -2, -1) if y_first else (-4, -3, -1, -2))
    assert tuple(read_result(op)) == ((-4, -3), -2, -1)


def test_the_axes_of_einsum() -> None:
    op = products(lambda x, y: mb.einsum(values=(x, y), equation="nchw,nwhu->nchu"), (1, 2, 3, 4), (1, 4, 3, 5))
    assert [operand(op, side).name for side in "xy"] == ["x", "y"]
    assert read_operand(op, "x").order == (-4, -2, -3, -1)
    assert read_operand(op, "y").order == (-4, -2, -1, -3)
    assert tuple(read_result(op)) == ((-4, -2), -3, -1)
    op = products(lambda x, y: mb.einsum(values=(x, y), equation="chw,whu->chu"), (2, 3, 4), (4, 3, 5))
    assert read_operand(op, "x").order == (-2, -3, -1)
    assert read_operand(op, "y").order == (-2, -1, -3)
    assert tuple(read_result(op)) == ((-2,), -3, -1)


@pytest.mark.parametrize(("x", "y", "ranks"), [((2, 3, 4), (1, 2, 4, 5), "[3, 4]"), ((4,), (4, 5), "[1, 2]")])
def test_operands_of_other_ranks(x: tuple[int, ...], y: tuple[int, ...], ranks: str) -> None:
    op = products(lambda x, y: mb.matmul(x=x, y=y, name="product"), x, y)
    with pytest.raises(NoMatch) as why:
        read_operand(op, "x")
    assert str(why.value) == f"its operands are of ranks {ranks}"
    assert place_of(why.value.at) == "product"
