"""Which arrays are weights, which of their bytes belong to one channel, and which are none."""

# The bodies of programs are lambdas of as many parameters as they have inputs, for which no one type can be written.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from milopt.mil import Program, mb, target, types
from milopt.package import load
from milopt.passes.uses import Layout, Weight, consumers, find_weights, layouts_of
from milopt.reports import NoMatch, place_of

from .support import two_functions, weights

F16 = np.float16
Body = Callable[..., Any]


def program(body: Body, opset: Any = target.iOS18, **shapes: tuple[int, ...]) -> Program:
    """``body`` of inputs; those called ids hold integers."""
    specs = [mb.TensorSpec(shape, types.int32 if name == "ids" else types.fp16) for name, shape in shapes.items()]
    names = ", ".join(shapes)
    scope: dict[str, Any] = {"body": body}
    exec(f"def call({names}): return body({names})", scope)
    built: Program = mb.program(input_specs=specs, opset_version=opset)(scope["call"])
    return built


def weight_of(built: Program, name: str = "w") -> Weight:
    (found,) = [each for each in find_weights(load(built)) if each.name == name]
    return found


def held(shape: tuple[int, ...]) -> Any:
    return mb.const(val=weights(shape), name="w")


# the layout of a weight's channels, from its use
LAYOUTS: dict[str, tuple[Body, dict[str, tuple[int, ...]], Layout]] = {
    "linear": (lambda x: mb.linear(x=x, weight=held((6, 4))), {"x": (2, 4)}, Layout(1, 6, 4)),
    "conv": (lambda x: mb.conv(x=x, weight=held((6, 4, 1, 3))), {"x": (1, 4, 1, 5)}, Layout(1, 6, 12)),
    "conv_transpose": (
        lambda x: mb.conv_transpose(x=x, weight=held((4, 6, 1, 3))),
        {"x": (1, 4, 1, 5)},
        Layout(4, 6, 3),
    ),
    "matmul from the right": (lambda x: mb.matmul(x=x, y=held((4, 6))), {"x": (2, 4)}, Layout(4, 6, 1)),
    "matmul from the right, transposed": (
        lambda x: mb.matmul(x=x, y=held((6, 4)), transpose_y=True),
        {"x": (2, 4)},
        Layout(1, 6, 4),
    ),
    "matmul from the left": (lambda x: mb.matmul(x=held((6, 4)), y=x), {"x": (4, 2)}, Layout(1, 6, 4)),
    "matmul from the left, transposed": (
        lambda x: mb.matmul(x=held((4, 6)), y=x, transpose_x=True),
        {"x": (4, 2)},
        Layout(4, 6, 1),
    ),
    "matmul in batches": (lambda x: mb.matmul(x=x, y=held((3, 4, 6))), {"x": (3, 2, 4)}, Layout(12, 6, 1)),
    "gather of rows": (lambda ids: mb.gather(x=held((6, 4)), indices=ids, axis=0), {"ids": (2,)}, Layout(1, 6, 4)),
    "gather of columns": (lambda ids: mb.gather(x=held((4, 6)), indices=ids, axis=-1), {"ids": (2,)}, Layout(4, 6, 1)),
    "gather inside": (lambda ids: mb.gather(x=held((2, 6, 5)), indices=ids, axis=1), {"ids": (2,)}, Layout(2, 6, 5)),
    "vector": (lambda x: mb.matmul(x=held((4,)), y=x), {"x": (4, 2)}, Layout(1, 1, 4)),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_layouts(case: str) -> None:
    body, shapes, layout = LAYOUTS[case]
    built = program(body, **shapes)
    (found,) = layouts_of(weight_of(built)).items()
    assert found[0] == layout
    (op,) = [op for op in built.functions["main"].operations if op.op_type != "const"]
    (name,) = [name for name, var in op.inputs.items() if getattr(var, "name", "") == "w"]
    assert found[1] == f"{op.op_type}.{name} of {op.outputs[0].name}"


def test_what_is_a_weight() -> None:
    """Arrays of fp16 and fp32 that a layer has as its weight: no biases, no numbers, no integers, no words."""

    def body(x: Any, ids: Any) -> Any:
        first = mb.linear(x=x, weight=mb.const(val=weights((6, 4)), name="first"), bias=weights((6,)))
        second = mb.linear(x=first, weight=mb.const(val=weights((6, 6), seed=1), name="second"))
        table = mb.gather(x=mb.const(val=np.ones((6, 6), np.int32), name="whole"), indices=ids, axis=0)
        wide = mb.cast(x=mb.mul(x=second, y=F16(3)), dtype="fp32")
        third = mb.linear(x=wide, weight=mb.const(val=weights((6, 6), 2, np.float32), name="third"))
        return third, table

    found = find_weights(load(program(body, x=(2, 4), ids=(2,))))
    assert [each.name for each in found] == ["first", "second", "third"]
    assert [each.array.dtype for each in found] == [np.float16, np.float16, np.float32]


def test_the_same_bytes_are_one_weight() -> None:
    array = weights((6, 4))

    def linear(x: Any) -> Any:
        return mb.linear(x=x, weight=mb.const(val=array, name="w"))

    def conv(x: Any) -> Any:
        return mb.conv(x=x, weight=mb.const(val=array.reshape(6, 4, 1), name="kernel"))

    model = two_functions(program(linear, x=(2, 4)), program(conv, x=(1, 4, 3)))
    (found,) = find_weights(model)
    assert [(place.function, place.var.name) for place in found.places] == [("decode", "w"), ("prefill", "kernel")]
    assert [(name, op.op_type) for _, name, op in found.users()] == [("weight", "linear"), ("weight", "conv")]
    assert list(layouts_of(found)) == [Layout(1, 6, 4)]


def test_every_input_of_a_user_counts() -> None:
    def squared(x: Any) -> Any:
        both = held((4, 4))
        return mb.add(x=x, y=mb.matmul(x=both, y=both, name="square"))

    weight = weight_of(program(squared, x=(4, 4)))
    assert [(name, op.name) for name, op in consumers(weight.places[0].var)] == [("x", "square"), ("y", "square")]


def refusal(body: Body, **shapes: tuple[int, ...]) -> tuple[str, str]:
    with pytest.raises(NoMatch) as why:
        layouts_of(weight_of(program(body, **shapes)))
    return place_of(why.value.at), str(why.value)


def test_other_uses_are_refused() -> None:
    def added(x: Any) -> Any:
        both = held((4, 4))
        return mb.add(x=mb.linear(x=x, weight=both), y=both, name="sum")

    reason = "add.y of sum holds it too, which is no weight of a layer"
    assert refusal(added, x=(4, 4)) == ("w", reason)


def test_outputs_are_refused() -> None:
    def returned(x: Any) -> Any:
        both = held((4, 4))
        return mb.linear(x=x, weight=both), both

    assert refusal(returned, x=(4, 4)) == ("w", "it is an output")


# --- tables of factors


def table(ids: Any) -> Any:
    return mb.gather(x=held((9, 4)), indices=ids, axis=0, name="rows")


MOVES: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda rows: rows,
    "cast": lambda rows: mb.cast(x=mb.cast(x=rows, dtype="fp32"), dtype="fp16"),
    "concat": lambda rows: mb.concat(values=(rows, rows), axis=1),
    "expand_dims": lambda rows: mb.expand_dims(x=rows, axes=[0]),
    "reshape": lambda rows: mb.reshape(x=rows, shape=[4, 2]),
    "slice_by_index": lambda rows: mb.slice_by_index(x=rows, begin=[0, 0], end=[2, 1]),
    "split": lambda rows: mb.split(x=rows, num_splits=2, axis=1)[0],
    "squeeze": lambda rows: mb.squeeze(x=mb.slice_by_index(x=rows, begin=[0, 0], end=[2, 1]), axes=[1]),
    "tile": lambda rows: mb.tile(x=rows, reps=[1, 2]),
    "transpose": lambda rows: mb.transpose(x=rows, perm=[1, 0]),
    "a constant factor": lambda rows: mb.mul(x=rows, y=F16(2)),
    "a constant factor from the left": lambda rows: mb.mul(x=F16(2), y=rows),
}


def scaled(moved: Any, y: Any) -> Any:
    return mb.mul(x=mb.reduce_mean(x=y, axes=[0, 1]), y=moved, name="scaled")


@pytest.mark.parametrize("case", MOVES)
def test_factors(case: str) -> None:
    """Rows that only scale other values are cosines and sines, not weights."""
    found = refusal(lambda ids, y: scaled(MOVES[case](table(ids)), y), ids=(2,), y=(2, 2))
    assert found == ("w", "gather.x of rows looks up factors, not weights")


WEIGHTS: dict[str, Callable[[Any, Any], Any]] = {
    "added": lambda rows, y: mb.add(x=scaled(rows, y), y=rows),
    "returned": lambda rows, y: (scaled(rows, y), rows),
    "moved and returned": lambda rows, y: (scaled(rows, y), mb.transpose(x=rows, perm=[1, 0])),
    "squared": lambda rows, y: mb.mul(x=rows, y=rows),
    "changed": lambda rows, y: scaled(mb.exp(x=rows), y),
    "shifted": lambda rows, y: scaled(mb.add(x=rows, y=F16(1)), y),
    "divided": lambda rows, y: mb.real_div(x=rows, y=mb.reduce_mean(x=y, axes=[0, 1])),
    "moved and added": lambda rows, y: mb.add(x=scaled(rows, y), y=mb.reshape(x=rows, shape=[2, 4])),
    "multiplied by constants alone": lambda rows, y: (mb.mul(x=rows, y=F16(3)), mb.abs(x=y)),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_rows_that_do_more_than_scale_are_weights(case: str) -> None:
    built = program(lambda ids, y: WEIGHTS[case](table(ids), y), ids=(2,), y=(2, 2))
    assert list(layouts_of(weight_of(built))) == [Layout(1, 9, 4)]


def test_rows_that_nothing_uses_are_weights() -> None:
    built = program(lambda ids: (table(ids), mb.identity(x=ids))[1], ids=(2,))
    assert list(layouts_of(weight_of(built))) == [Layout(1, 9, 4)]


def test_other_axes() -> None:
    body, shapes, _ = LAYOUTS["linear"]
    weight = weight_of(program(body, **shapes))
    assert list(layouts_of(weight, {("linear", "weight"): lambda op: 1})) == [Layout(6, 4, 1)]
    assert list(layouts_of(weight, {("linear", "weight"): lambda op: -2})) == [Layout(1, 6, 4)]
    assert list(layouts_of(weight, {("linear", "weight"): lambda op: 2})) == [Layout(1, 1, 24)]
    assert list(layouts_of(weight, {("linear", "weight"): lambda op: -3})) == [Layout(1, 1, 24)]
    with pytest.raises(NoMatch, match="which is no weight of a layer"):
        layouts_of(weight, {})
