"""Weights and their uses in detail: which axis of each op holds what, and which axes there are."""

# The bodies of programs are lambdas of as many parameters as they have inputs, for which no one type can be written.
# The methods of numpy arrays whose element type is not told have types that are not known either.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from milopt.mil import Program, mb, target, types
from milopt.package import load
from milopt.passes.uses import (
    CHANNEL_AXES,
    INPUT_AXES,
    Layout,
    Weight,
    axes_at,
    find_weights,
    layout_at,
    layouts_of,
    require_axis,
)
from milopt.reports import NoMatch, place_of

from .layers import numbers


def held(shape: tuple[int, ...], given: tuple[int, ...], use: Callable[[Any, Any], Any]) -> Weight:
    """A weight of ``shape``, called w, as ``use`` has it of an input of the shape ``given``."""

    @mb.program(input_specs=[mb.TensorSpec(given, types.fp16)], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        return use(x, mb.const(val=numbers(*shape), name="w"))

    made: Program = program
    (weight,) = find_weights(load(made))
    return weight


ROWS: Any = [0, 1]
# the op, the weight, the input, and the axes of output and input channels
AXES: dict[str, tuple[Callable[[Any, Any], Any], tuple[int, ...], tuple[int, ...], int, int]] = {
    "linear": (lambda x, w: mb.linear(x=x, weight=w), (3, 5), (1, 5), 0, 1),
    "conv": (lambda x, w: mb.conv(x=x, weight=w), (3, 5, 2), (1, 5, 4), 0, 1),
    "conv_transpose": (lambda x, w: mb.conv_transpose(x=x, weight=w), (5, 3, 2), (1, 5, 4), 1, 0),
    "matmul.y": (lambda x, w: mb.matmul(x=x, y=w), (5, 3), (1, 5), -1, -2),
    "matmul.y transposed": (lambda x, w: mb.matmul(x=x, y=w, transpose_y=True), (3, 5), (1, 5), -2, -1),
    "matmul.x": (lambda x, w: mb.matmul(x=w, y=x), (3, 5), (5, 2), -2, -1),
    "matmul.x transposed": (lambda x, w: mb.matmul(x=w, y=x, transpose_x=True), (5, 3), (5, 2), -1, -2),
    "matmul.x, a vector": (lambda x, w: mb.matmul(x=w, y=x), (5,), (5, 2), -2, -1),
    "gather of rows": (lambda x, w: mb.add(x=x, y=mb.gather(x=w, indices=ROWS, axis=0)), (3, 5), (2, 5), 0, -1),
    "gather of columns": (lambda x, w: mb.add(x=x, y=mb.gather(x=w, indices=ROWS, axis=1)), (3, 5), (3, 2), 1, -2),
    "gather, from the end": (lambda x, w: mb.add(x=x, y=mb.gather(x=w, indices=ROWS, axis=-1)), (3, 5), (3, 2), -1, -2),
    "gather between": (
        lambda x, w: mb.add(x=x, y=mb.gather(x=w, indices=ROWS, axis=-2)),
        (3, 4, 5),
        (3, 2, 5),
        -2,
        -1,
    ),
}


@pytest.mark.parametrize("case", AXES)
def test_which_axis_holds_what(case: str) -> None:
    use, shape, given, channels, inputs = AXES[case]
    weight = held(shape, given, use)
    ((place, name, op),) = weight.users()
    assert (place.var.name, place.function) == ("w", "main")
    assert CHANNEL_AXES[op.op_type, name](op) == channels
    assert INPUT_AXES[op.op_type, name](op) == inputs
    for axes, axis in ((CHANNEL_AXES, channels), (INPUT_AXES, inputs)):
        assert layouts_of(weight, axes) == {layout_at(shape, axis): f"{op.op_type}.{name} of {op.outputs[0].name}"}
        assert axes.keys() == CHANNEL_AXES.keys()
    assert {axis(op) for axis in axes_at(7).values()} == {7}
    assert axes_at(7).keys() == CHANNEL_AXES.keys()


def test_where_an_axis_lies() -> None:
    assert layout_at((2, 3, 5), 0) == layout_at((2, 3, 5), -3) == Layout(1, 2, 15)
    assert layout_at((2, 3, 5), 1) == Layout(2, 3, 5)
    assert layout_at((2, 3, 5), -1) == Layout(6, 5, 1)
    assert layout_at((6,), -2) == layout_at((6,), 1) == Layout(1, 1, 6)


def test_axes_that_are_there() -> None:
    weight = held((3, 5), (1, 5), AXES["linear"][0])
    for axis in (None, 0, 1, -1, -2):
        require_axis(weight, axis)
    for axis in (2, -3):
        with pytest.raises(NoMatch) as raised:
            require_axis(weight, axis)
        assert (str(raised.value), place_of(raised.value.at)) == (f"has no axis {axis}", "w")


def test_tables_of_factors_are_no_weights() -> None:
    """Unless what is looked up is an output, or one part of it."""

    def scaled(x: Any, w: Any) -> Any:
        return mb.mul(x=x, y=mb.gather(x=w, indices=ROWS, axis=0, name="rows"))

    def halves(x: Any, w: Any) -> Any:
        first, second = mb.split(x=mb.gather(x=w, indices=ROWS, axis=0, name="rows"), num_splits=2, axis=1)
        return mb.mul(x=x, y=first), second

    def both(x: Any, w: Any) -> Any:
        first, second = mb.split(x=mb.gather(x=w, indices=ROWS, axis=0, name="rows"), num_splits=2, axis=1)
        return mb.mul(x=x, y=first), mb.mul(x=x, y=second)

    for use, given in ((scaled, (2, 4)), (both, (2, 2))):
        with pytest.raises(NoMatch) as raised:
            layouts_of(held((3, 4), given, use))
        assert str(raised.value) == "gather.x of rows looks up factors, not weights"
        assert place_of(raised.value.at) == "w"
    assert layouts_of(held((3, 4), (2, 2), halves)) == {Layout(1, 3, 4): "gather.x of rows"}
