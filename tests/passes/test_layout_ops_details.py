"""What layout-bc1s reads of each op, key by key, and what it writes of it in other layouts."""

# The bodies of programs are lambdas of as many parameters as they have inputs, for which no one type can be written.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from milopt.mil import Operation, flat, get_new_symbol, mb, refine_shape, types
from milopt.passes.layout_ops import ENTRIES, Indices, Place, Spec

from .refusals import program_of
from .test_layout_disputes import declare

FP32, FP16, INT32, BOOL = types.fp32, types.fp16, types.int32, types.bool
SYMBOL = get_new_symbol()
F32: Any = np.float32


def op_of(build: Callable[..., Any], *shapes: tuple[Any, ...], dtype: type = FP32) -> Operation:
    """The op called ``op`` of a program with inputs of ``shapes``."""
    program = program_of(build, *((shape, dtype) for shape in shapes))
    return next(op for op in program.functions["main"].operations if op.name == "op")


def spec_of(build: Callable[..., Any], *shapes: tuple[Any, ...], dtype: type = FP32) -> Spec | None:
    op = op_of(build, *shapes, dtype=dtype)
    spec = ENTRIES[op.op_type].read(op)
    if spec is not None:
        given = [each for value in op.inputs.values() for each in flat(value)]
        assert all(var in given for var, _ in (*spec.operands, *spec.constants))
        assert [var for var, _ in spec.results] == list(op.outputs)
    return spec


def told(spec: Spec | None) -> str:
    """The keys of the operands, then of the results, then whatever is not as it would be for most ops."""
    if spec is None:
        return "none"
    sides = [" ".join(_keys(keys) for _, keys in each) for each in (spec.operands, spec.results)]
    more = [
        *(["constants " + " ".join(_keys(keys) for _, keys in spec.constants)] if spec.constants else []),
        *([f"whole {sorted(spec.whole)}"] if spec.whole else []),
        *([f"drops {sorted(spec.drops)}"] if spec.drops else []),
        *([f"{spec.kind} {spec.channel} {spec.product}"] if spec.kind != "along" else []),
        *([f"vectors {len(spec.vectors)}"] if spec.vectors else []),
        *(["broadcasts"] if spec.broadcasts else []),
    ]
    return "; ".join([" -> ".join(sides), *more])


def _keys(keys: Any) -> str:
    return "(" + ",".join("-" if key is None else str(key) for key in keys) + ")"


def unary(kind: str) -> Callable[[Any], Any]:
    given: dict[str, dict[str, Any]] = {
        "clip": {"alpha": F32(0), "beta": F32(1)},
        "threshold": {"alpha": F32(0)},
        "clamped_relu": {"alpha": F32(0), "beta": F32(1)},
        "elu": {"alpha": F32(1)},
        "leaky_relu": {"alpha": F32(1)},
        "linear_activation": {"alpha": F32(1), "beta": F32(1)},
        "scaled_tanh": {"alpha": F32(1), "beta": F32(1)},
        "sigmoid_hard": {"alpha": F32(1), "beta": F32(1)},
        "thresholded_relu": {"alpha": F32(1)},
        "cast": {"dtype": "fp16"},
    }
    return lambda x: getattr(mb, kind)(x=x, **given.get(kind, {}), name="op")


UNARY = [
    "abs",
    "acos",
    "asin",
    "atan",
    "atanh",
    "ceil",
    "clip",
    "cos",
    "cosh",
    "erf",
    "exp",
    "exp2",
    "floor",
    "inverse",
    "log",
    "round",
    "rsqrt",
    "sign",
    "sin",
    "sinh",
    "sqrt",
    "square",
    "tan",
    "tanh",
    "threshold",
    "cast",
    "identity",
    "clamped_relu",
    "elu",
    "gelu",
    "leaky_relu",
    "linear_activation",
    "relu",
    "relu6",
    "scaled_tanh",
    "sigmoid",
    "sigmoid_hard",
    "silu",
    "softplus",
    "softsign",
    "thresholded_relu",
]
BINARY = [
    "add",
    "sub",
    "mul",
    "real_div",
    "floor_div",
    "mod",
    "pow",
    "maximum",
    "minimum",
    "equal",
    "not_equal",
    "less",
    "less_equal",
    "greater",
    "greater_equal",
]
LOGICAL = ["logical_and", "logical_or", "logical_xor"]
REDUCTIONS = ["sum", "mean", "max", "min", "prod", "l1_norm", "l2_norm", "log_sum", "log_sum_exp", "sum_square"]
OTHERS = [
    "select",
    "reduce_argmax",
    "reduce_argmin",
    "softmax",
    "cumsum",
    "argsort",
    "reverse",
    "layer_norm",
    "linear",
    "concat",
    "split",
    "slice_by_index",
    "slice_update",
    "slice_by_size",
    "pad",
    "tile",
    "conv",
    "matmul",
    "linear",
    "logical_not",
]


def test_the_ops_that_have_entries() -> None:
    assert {*ENTRIES} == {*UNARY, *BINARY, *LOGICAL, *OTHERS, *(f"reduce_{name}" for name in REDUCTIONS)}


@pytest.mark.parametrize("kind", UNARY)
def test_ops_of_one_value(kind: str) -> None:
    assert told(spec_of(unary(kind), (2, 1, 3))) == "(0,-,2) -> (0,-,2); broadcasts"


@pytest.mark.parametrize("kind", [*BINARY, *LOGICAL])
def test_ops_of_two_values(kind: str) -> None:
    def build(x: Any, y: Any) -> Any:
        return getattr(mb, kind)(x=x, y=y, name="op")

    dtype = BOOL if kind in LOGICAL else FP32
    assert told(spec_of(build, (2, 1, 3), (4, 1), dtype=dtype)) == "(0,-,2) (1,-) -> (0,1,2); broadcasts"


ELEMENTWISE: dict[str, tuple[Callable[..., Any], list[tuple[Any, ...]], str]] = {
    "a vector": (
        lambda x: mb.add(x=x, y=np.ones(3, F32), name="op"),
        [(2, 3)],
        "(0,1) -> (0,1); constants (1); broadcasts",
    ),
    "a number": (lambda x: mb.add(x=F32(1), y=x, name="op"), [(2, 3)], "(0,1) -> (0,1); constants (); broadcasts"),
    "unit axes": (
        lambda x: mb.mul(x=x, y=np.ones((1, 3), F32), name="op"),
        [(2, 3)],
        "(0,1) -> (0,1); constants (-,1); broadcasts",
    ),
    "one symbol": (
        lambda x, y: mb.add(x=x, y=y, name="op"),
        [(SYMBOL, 3), (SYMBOL, 1)],
        "(0,1) (0,-) -> (0,1); broadcasts",
    ),
    "a symbol that may be 1": (lambda x, y: mb.add(x=x, y=y, name="op"), [(SYMBOL, 3), (4, 3)], "none"),
    "three": (
        lambda x, y: mb.select(cond=mb.less(x=x, y=y), a=x, b=y, name="op"),
        [(2, 3), (2, 3)],
        "(0,1) (0,1) (0,1) -> (0,1); broadcasts",
    ),
    "constants alone": (
        lambda x: mb.add(x=x, y=mb.identity(x=mb.const(val=np.ones((2, 3), F32)), name="op")),
        [(2, 3)],
        "none",
    ),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise(name: str) -> None:
    build, shapes, wanted = ELEMENTWISE[name]
    assert told(spec_of(build, *shapes)) == wanted


ALONG: dict[str, tuple[Callable[..., Any], list[tuple[Any, ...]], str]] = {
    "sum": (
        lambda x: mb.reduce_sum(x=x, axes=[1, -1], keep_dims=False, name="op"),
        [(2, 3, 1, 4)],
        "(0,1,-,3) -> (0,-); drops [1, 3]",
    ),
    "sum, kept": (
        lambda x: mb.reduce_sum(x=x, axes=[1], keep_dims=True, name="op"),
        [(2, 3, 4)],
        "(0,1,2) -> (0,-,2); drops [1]",
    ),
    "sum of all": (
        lambda x: mb.reduce_sum(x=x, keep_dims=True, name="op"),
        [(2, 3, 4)],
        "(0,1,2) -> (-,-,-); drops [0, 1, 2]",
    ),
    "sum of a unit axis": (lambda x: mb.reduce_sum(x=x, axes=[1], keep_dims=False, name="op"), [(2, 1, 4)], "none"),
    "sum of both": (
        lambda x: mb.reduce_sum(x=x, axes=[1, 2], keep_dims=True, name="op"),
        [(2, 1, 4)],
        "(0,-,2) -> (0,-,-); drops [2]",
    ),
    "argmax": (
        lambda x: mb.reduce_argmax(x=x, axis=-1, keep_dims=False, name="op"),
        [(2, 3, 4)],
        "(0,1,2) -> (0,1); whole [2]; drops [2]",
    ),
    "argmin, kept": (
        lambda x: mb.reduce_argmin(x=x, axis=0, keep_dims=True, name="op"),
        [(2, 3, 4)],
        "(0,1,2) -> (-,1,2); whole [0]; drops [0]",
    ),
    "argmax of a unit axis": (lambda x: mb.reduce_argmax(x=x, axis=1, name="op"), [(2, 1, 4)], "none"),
    "softmax": (lambda x: mb.softmax(x=x, axis=1, name="op"), [(1, 3, 4)], "(-,1,2) -> (-,1,2); whole [1]"),
    "softmax of a unit axis": (lambda x: mb.softmax(x=x, axis=0, name="op"), [(1, 3, 4)], "none"),
    "cumsum": (lambda x: mb.cumsum(x=x, axis=-1, name="op"), [(1, 3, 4)], "(-,1,2) -> (-,1,2); whole [2]"),
    "argsort": (lambda x: mb.argsort(x=x, axis=1, name="op"), [(2, 3)], "(0,1) -> (0,1); whole [1]"),
    "reverse": (lambda x: mb.reverse(x=x, axes=[0, 1, 2], name="op"), [(2, 1, 3)], "(0,-,2) -> (0,-,2); whole [0, 2]"),
    "reverse of all": (lambda x: mb.reverse(x=x, name="op"), [(2, 1, 3)], "(0,-,2) -> (0,-,2); whole [0, 2]"),
    "reverse of a unit axis": (lambda x: mb.reverse(x=x, axes=[1], name="op"), [(2, 1, 3)], "none"),
    "norm": (lambda x: mb.layer_norm(x=x, axes=[-1], name="op"), [(2, 3)], "(0,1) -> (0,1); whole [1]"),
    "norm with weights": (
        lambda x: mb.layer_norm(x=x, axes=[1], gamma=np.ones(3, F32), beta=np.ones(3, F32), name="op"),
        [(2, 3)],
        "(0,1) -> (0,1); whole [1]",
    ),
    "norm of two axes": (lambda x: mb.layer_norm(x=x, axes=[0, 1], name="op"), [(2, 3)], "none"),
    "norm of a unit axis": (lambda x: mb.layer_norm(x=x, axes=[1], name="op"), [(2, 1)], "none"),
    "concat": (
        lambda x, y: mb.concat(values=(x, y), axis=-2, name="op"),
        [(2, 3, 4), (2, 1, 4)],
        "(0,1,2) (0,-,2) -> (0,1,2); whole [1]",
    ),
    "concat of one": (lambda x: mb.concat(values=(x,), axis=1, name="op"), [(2, 1)], "none"),
    "concat of a length that is not known": (
        lambda x, y: mb.concat(values=(x, y), axis=1, name="op"),
        [(SYMBOL, 3), (1, 3)],
        "none",
    ),
    "concat, interleaved": (
        lambda x, y: mb.concat(values=(x, y), axis=0, interleave=True, name="op"),
        [(2, 3), (2, 3)],
        "none",
    ),
    "concat with a constant": (
        lambda x: mb.concat(values=(x, np.ones((2, 3), F32)), axis=0, name="op"),
        [(2, 3)],
        "none",
    ),
    "split": (
        lambda x: mb.split(x=x, split_sizes=[1, 3], axis=-1, name="op"),
        [(1, 3, 4)],
        "(-,1,2) -> (-,1,-) (-,1,2); whole [2]",
    ),
    "split of a unit axis": (lambda x: mb.split(x=x, num_splits=1, axis=0, name="op"), [(1, 3)], "none"),
    "cut by size": (
        lambda x: mb.slice_by_size(x=x, begin=[0, 1, 0], size=[-1, 2, 4], name="op"),
        [(2, 3, 4)],
        "(0,1,2) -> (0,1,2); whole [1]",
    ),
    "cut by size to one": (
        lambda x: mb.slice_by_size(x=x, begin=[1, 0, 0], size=[-1, 1, 3], name="op"),
        [(2, 3, 4)],
        "(0,1,2) -> (-,-,2); whole [0, 1, 2]",
    ),
    "cut by size of a unit axis": (
        lambda x: mb.slice_by_size(x=x, begin=[0, 0], size=[1, 2], name="op"),
        [(1, 3)],
        "(-,1) -> (-,1); whole [1]",
    ),
    "pad": (
        lambda x: mb.pad(x=x, pad=[1, 0, 0, 2], name="op"),
        [(2, 3, 4)],
        "(0,1,2) -> (0,1,2); whole [1, 2]",
    ),
    "pad of one side": (
        lambda x: mb.pad(x=x, pad=[0, 0, 0, 2], mode="constant", constant_val=F32(1), name="op"),
        [(2, 3, 4)],
        "(0,1,2) -> (0,1,2); whole [2]",
    ),
    "pad by nothing": (lambda x: mb.pad(x=x, pad=[0, 0], name="op"), [(2, 3)], "(0,1) -> (0,1)"),
    "pad of a unit axis": (lambda x: mb.pad(x=x, pad=[1, 0, 0, 0], name="op"), [(2, 1, 4)], "none"),
    "pad with what is there": (lambda x: mb.pad(x=x, pad=[1, 1], mode="reflect", name="op"), [(2, 3)], "none"),
    "tile": (lambda x: mb.tile(x=x, reps=[1, 2, 1], name="op"), [(2, 3, 1)], "(0,1,-) -> (0,1,-); whole [1]"),
    "tile of a unit axis": (lambda x: mb.tile(x=x, reps=[1, 2], name="op"), [(2, 1)], "none"),
}


@pytest.mark.parametrize("name", ALONG)
def test_along(name: str) -> None:
    build, shapes, wanted = ALONG[name]
    assert told(spec_of(build, *shapes)) == wanted


def known(value: Any) -> Any:
    """A value that MIL knows while it builds, though no constant holds it."""
    return mb.identity(x=mb.const(val=value))


ONE: Any = np.array([1], np.int32)
COMPUTED: dict[str, Callable[[Any], Any]] = {
    "axes of a sum": lambda x: mb.reduce_sum(x=x, axes=known(ONE), keep_dims=True, name="op"),
    "whether a sum keeps them": lambda x: mb.reduce_sum(x=x, axes=[1], keep_dims=known(True), name="op"),
    "axis of the largest": lambda x: mb.reduce_argmax(x=x, axis=known(np.int32(1)), name="op"),
    "whether the largest keeps it": lambda x: mb.reduce_argmax(x=x, axis=1, keep_dims=known(True), name="op"),
    "axis of shares": lambda x: mb.softmax(x=x, axis=known(np.int32(1)), name="op"),
    "axes that are reversed": lambda x: mb.reverse(x=x, axes=known(ONE), name="op"),
    "axes of a norm": lambda x: mb.layer_norm(x=x, axes=known(ONE), name="op"),
    "axis of parts": lambda x: mb.split(x=x, num_splits=3, axis=known(np.int32(1)), name="op")[0].op.outputs,
    "axis of what is joined": lambda x: mb.concat(values=(x, x), axis=known(np.int32(1)), name="op"),
    "places": lambda x: mb.slice_by_size(x=x, begin=known(np.array([0, 1], np.int32)), size=[2, 2], name="op"),
    "sizes": lambda x: mb.slice_by_size(x=x, begin=[0, 1], size=known(np.array([2, 2], np.int32)), name="op"),
    "margins": lambda x: mb.pad(x=x, pad=known(np.array([0, 1], np.int32)), name="op"),
    "what margins hold": lambda x: mb.pad(x=x, pad=[0, 1], mode=known("constant"), name="op"),
    "repeats": lambda x: mb.tile(x=x, reps=known(np.array([1, 2], np.int32)), name="op"),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_what_is_computed_is_not_read(name: str) -> None:
    assert told(spec_of(COMPUTED[name], (2, 3))) == "none"


def test_a_number_that_is_computed_is_not_written() -> None:
    op = op_of(lambda x: mb.layer_norm(x=x, axes=[1], epsilon=known(F32(1)), name="op"), (2, 3))
    entry = ENTRIES["layer_norm"]
    spec = entry.read(op)
    assert spec is not None
    assert set(entry.attributes(op, spec, Place(2, {1: 0}))) == {"axes"}


def test_an_update_whose_ranks_disagree_is_not_read() -> None:
    for name, shape in (("x", (4, 3, 1)), ("update", (2, 3, 1))):
        op = op_of(
            lambda x: mb.slice_update(
                x=x,
                update=mb.exp(x=mb.slice_by_size(x=x, begin=[0, 0], size=[2, 3])),
                begin=[1, 0],
                end=[3, 3],
                name="op",
            ),
            (4, 3),
        )
        assert ENTRIES["slice_update"].read(op) is not None
        declare(op.inputs[name], shape)
        assert ENTRIES["slice_update"].read(op) is None


def test_norms_with_computed_weights_are_not_read() -> None:
    """MIL takes constants alone; a compressed weight is none."""

    def build(x: Any) -> Any:
        gamma = mb.constexpr_blockwise_shift_scale(data=np.ones(3, np.int8), scale=np.ones(1, F32))
        return mb.layer_norm(x=x, axes=[1], gamma=gamma, name="op")

    assert told(spec_of(build, (2, 3))) == "none"


SLICES: dict[str, tuple[dict[str, Any], tuple[Any, ...], str]] = {
    "whole": ({"begin": [0, 0], "end": [2, 3]}, (2, 3), "(0,1) -> (0,1)"),
    "beyond": ({"begin": [0, 0], "end": [9, 3]}, (2, 3), "(0,1) -> (0,1)"),
    "end cut": ({"begin": [0, 0], "end": [2, 2]}, (2, 3), "(0,1) -> (0,1); whole [1]"),
    "begin cut": ({"begin": [1, 0], "end": [2, 3]}, (2, 3), "(0,1) -> (-,1); whole [0]"),
    "strides": ({"begin": [0, 0], "end": [4, 3], "stride": [2, 1]}, (4, 3), "(0,1) -> (0,1); whole [0]"),
    "masks": (
        {"begin": [1, 1], "end": [1, 2], "begin_mask": [True, False], "end_mask": [True, False]},
        (2, 3),
        "(0,1) -> (0,-); whole [1]",
    ),
    "squeezed": (
        {"begin": [0, 1], "end": [2, 0], "squeeze_mask": [False, True]},
        (2, 3),
        "(0,1) -> (0); whole [1]",
    ),
    "a unit axis squeezed": (
        {"begin": [0, 0], "end": [0, 3], "squeeze_mask": [True, False]},
        (1, 3),
        "(-,1) -> (1)",
    ),
    "a symbol": ({"begin": [0, 0], "end": [5, 3]}, (SYMBOL, 3), "(0,1) -> (0,1); whole [0]"),
    "a whole symbol": ({"begin": [0, 0], "end": [0, 3], "end_mask": [True, False]}, (SYMBOL, 3), "(0,1) -> (0,1)"),
    "a unit axis": ({"begin": [0, 0], "end": [1, 2]}, (1, 3), "(-,1) -> (-,1); whole [1]"),
    "a unit axis backwards": (
        {"begin": [0, 0], "end": [1, 3], "stride": [-1, 1], "end_mask": [True, False]},
        (1, 3),
        "none",
    ),
}


@pytest.mark.parametrize("name", SLICES)
def test_slices(name: str) -> None:
    given, shape, wanted = SLICES[name]
    assert told(spec_of(lambda x: mb.slice_by_index(x=x, **given, name="op"), shape)) == wanted


RESIZING: dict[str, Callable[[Any], Any]] = {
    "slice_by_index": lambda x: mb.slice_by_index(x=x, begin=[0, 0], end=[0, 2], end_mask=[True, False], name="op"),
    "slice_by_size": lambda x: mb.slice_by_size(x=x, begin=[0, 0], size=[-1, 2], name="op"),
    "pad": lambda x: mb.pad(x=x, pad=[0, 1], mode="constant", name="op"),
    "tile": lambda x: mb.tile(x=x, reps=[1, 2], name="op"),
}


@pytest.mark.parametrize("kind", RESIZING)
def test_an_axis_that_turned_out_to_have_one_entry(kind: str) -> None:
    """A batch that was open when the op was typed, and is 1 now, is still open in the type of the result."""
    op = op_of(RESIZING[kind], (SYMBOL, 3))
    assert ENTRIES[kind].read(op) is not None
    refine_shape(op.inputs["x"], (1, 3))
    assert ENTRIES[kind].read(op) is None


def test_slices_at_computed_places_are_not_read() -> None:
    def build(x: Any, at: Any) -> Any:
        begin = mb.concat(values=(at, np.array([0], np.int32)), axis=0)
        return mb.slice_by_index(x=mb.cast(x=x, dtype="fp32"), begin=begin, end=[2, 3], name="op")

    assert told(spec_of(build, (2, 3), (1,), dtype=INT32)) == "none"

    def by_size(x: Any, at: Any) -> Any:
        begin = mb.concat(values=(at, np.array([0], np.int32)), axis=0)
        return mb.slice_by_size(x=mb.cast(x=x, dtype="fp32"), begin=begin, size=[1, 3], name="op")

    assert told(spec_of(by_size, (2, 3), (1,), dtype=INT32)) == "none"

    def tiled(x: Any, reps: Any) -> Any:
        return mb.tile(x=mb.cast(x=x, dtype="fp32"), reps=reps, name="op")

    assert told(spec_of(tiled, (2, 3), (2,), dtype=INT32)) == "none"


def updated(x: Any, y: Any, at: Any = None, **given: Any) -> Any:
    state = mb.cast(x=x, dtype="fp32")
    places = {"begin": [0, 1, 0], "end": [2, 3, 4]} | given
    if at is not None:
        places["begin"] = mb.concat(values=(np.array([0], np.int32), at, np.array([0], np.int32)), axis=0)
        places["end"] = mb.concat(
            values=(np.array([2], np.int32), mb.add(x=at, y=np.array([2], np.int32)), np.array([4], np.int32)), axis=0
        )
    return mb.slice_update(x=state, update=mb.cast(x=y, dtype="fp32"), **places, name="op")


UPDATES: dict[str, tuple[dict[str, Any], tuple[Any, ...], str]] = {
    "in an axis": ({}, (2, 2, 4), "(0,1,2) (0,1,2) -> (0,1,2); whole [1]"),
    "one place": ({"end": [2, 2, 4]}, (2, 1, 4), "(0,1,2) (0,-,2) -> (0,1,2); whole [1]"),
    "everywhere": ({"begin": [0, 0, 0], "end": [2, 5, 4]}, (2, 5, 4), "(0,1,2) (0,1,2) -> (0,1,2)"),
    "strides of one": ({"stride": [1, 1, 1]}, (2, 2, 4), "(0,1,2) (0,1,2) -> (0,1,2); whole [1]"),
    "strides": ({"begin": [0, 0, 0], "end": [2, 4, 4], "stride": [1, 2, 1]}, (2, 2, 4), "none"),
    "masks": ({"begin_mask": [True, False, False]}, (2, 2, 4), "none"),
    "end masks": ({"end_mask": [True, False, False]}, (2, 2, 4), "none"),
    "masks of nothing": ({"end_mask": [False] * 3}, (2, 2, 4), "(0,1,2) (0,1,2) -> (0,1,2); whole [1]"),
    "a squeezed axis": (
        {"end": [2, 2, 4], "squeeze_mask": [False, True, False]},
        (2, 4),
        "none",
    ),
}


@pytest.mark.parametrize("name", UPDATES)
def test_updates(name: str) -> None:
    given, update, wanted = UPDATES[name]
    assert told(spec_of(lambda x, y: updated(x, y, **given), (2, 5, 4), update, dtype=INT32)) == wanted


def test_updates_at_computed_places() -> None:
    wanted = "(0,1,2) (0,1,2) -> (0,1,2); whole [1]; vectors 2"
    assert told(spec_of(updated, (2, 5, 4), (2, 2, 4), (1,), dtype=INT32)) == wanted

    def whole(x: Any, y: Any, at: Any) -> Any:
        return updated(x, y, begin=at, end=[2, 3, 4])

    assert told(spec_of(whole, (2, 5, 4), (2, 2, 4), (3,), dtype=INT32)) == "none"

    def pairs(x: Any, y: Any, at: Any) -> Any:
        return updated(x, y, begin=mb.concat(values=(at, np.array([0], np.int32)), axis=0))

    assert told(spec_of(pairs, (2, 5, 4), (2, 2, 4), (2,), dtype=INT32)) == "none"


def test_updates_of_unit_axes_and_symbols_are_not_read() -> None:
    def build(x: Any, y: Any, at: Any) -> Any:
        return updated(x, y, at)

    assert told(spec_of(build, (2, 1, 4), (2, 1, 4), (1,), dtype=INT32)) == "none"
    assert told(spec_of(build, (2, SYMBOL, 4), (2, 2, 4), (1,), dtype=INT32)) == "none"


def conv(shape: tuple[Any, ...], kernel: tuple[int, ...], **given: Any) -> str:
    return told(spec_of(lambda x: mb.conv(x=x, weight=np.ones(kernel, F32), **given, name="op"), shape))


def test_convolutions() -> None:
    assert conv((2, 6, 1, 5), (4, 6, 1, 1)) == "(0,1,-,3) -> (0,1,-,3); whole [1]; conv 1 (0, 0, 0)"
    assert conv((2, 6, 5), (4, 6, 1)) == "(0,1,2) -> (0,1,2); whole [1]; conv 1 (0, 0, 0)"
    assert conv((1, 1, 3, 5), (1, 1, 1, 1)) == "(-,1,2,3) -> (-,1,2,3); whole [1]; conv 1 (0, 0, 0)"
    plain: list[dict[str, Any]] = [
        {"strides": [1, 1]},
        {"groups": 1},
        {"pad_type": "custom", "pad": [0, 0, 0, 0]},
        {"pad_type": "valid", "pad": [1, 1, 1, 1]},
    ]
    for given in plain:
        assert conv((2, 6, 1, 5), (4, 6, 1, 1), **given).endswith("conv 1 (0, 0, 0)")
    assert conv((2, 6, 5, 5), (4, 6, 1, 2)) == "none"
    assert conv((2, 6, 5, 5), (4, 3, 1, 1), groups=2) == "none"
    assert conv((2, 6, 5, 5), (4, 6, 1, 1), strides=[1, 2]) == "none"
    assert conv((2, 6, 5, 5), (4, 6, 1, 1), pad_type="custom", pad=[0, 1, 0, 0]) == "none"


def test_convolutions_with_other_weights() -> None:
    def compressed(x: Any) -> Any:
        weight = mb.constexpr_blockwise_shift_scale(data=np.ones((4, 6, 1), np.int8), scale=np.ones((1, 1, 1), F32))
        return mb.conv(x=x, weight=weight, name="op")

    assert told(spec_of(compressed, (2, 6, 5))).endswith("conv 1 (0, 0, 0)")

    def computed(x: Any, y: Any) -> Any:
        return mb.conv(x=x, weight=mb.exp(x=y), name="op")

    assert told(spec_of(computed, (2, 6, 5), (4, 6, 1))) == "none"

    def given(x: Any, y: Any) -> Any:
        return mb.conv(x=x, weight=y, name="op")

    assert told(spec_of(given, (2, 6, 5), (4, 6, 1))) == "none"


def linear(shape: tuple[Any, ...]) -> str:
    return told(spec_of(lambda x: mb.linear(x=x, weight=np.ones((4, 6), F32), name="op"), shape))


def test_linears() -> None:
    assert linear((2, 1, 6)) == "(0,-,2) -> (0,-,2); whole [2]; linear 2 (0, 0, 0)"
    assert linear((1, 5, 6)) == "(-,1,2) -> (-,1,2); whole [2]; linear 2 (0, 0, 0)"
    assert linear((5, 6)) == "(0,1) -> (0,1); whole [1]; linear 1 (0, 0, 0)"
    assert linear((6,)) == "none"


def product(x: tuple[Any, ...], y: tuple[Any, ...], turned: tuple[bool, bool] = (False, False)) -> str:
    def build(a: Any, b: Any) -> Any:
        return mb.matmul(x=a, y=b, transpose_x=turned[0], transpose_y=turned[1], name="op")

    return told(spec_of(build, x, y))


def test_products() -> None:
    assert product((2, 3, 4), (2, 4, 5)) == "(0,1,3) (0,3,2) -> (0,1,2); product None (1, 2, 3)"
    assert product((2, 4, 3), (2, 5, 4), (True, True)) == "(0,3,1) (0,2,3) -> (0,1,2); product None (1, 2, 3)"
    assert product((3, 4), (4, 5)) == "(0,2) (2,1) -> (0,1); product None (0, 1, 2)"
    assert product((3, 4), (2, 4, 5)) == "(1,3) (0,3,2) -> (0,1,2); product None (1, 2, 3)"
    assert product((2, 7, 3, 4), (1, 4, 5)) == "(0,1,2,4) (-,4,3) -> (0,1,2,3); product None (2, 3, 4)"
    assert product((2, 1, 4), (2, 4, 1)) == "(0,-,3) (0,3,-) -> (0,-,-); product None (1, 2, 3)"
    assert product((2, 3, 1), (2, 1, 5)) == "none"
    assert product((SYMBOL, 3, 4), (SYMBOL, 4, 5)) == "(0,1,3) (0,3,2) -> (0,1,2); product None (1, 2, 3)"
    assert product((SYMBOL, 3, 4), (2, 4, 5)) == "none"
    assert product((2, 3, SYMBOL), (2, 1, 5)) == "none"
    assert product((2, 3, 1), (2, SYMBOL, 5)) == "none"


def test_products_that_are_not_read() -> None:
    weight: Any = np.ones((4, 5), F32)
    assert told(spec_of(lambda x: mb.matmul(x=x, y=weight, name="op"), (3, 4))) == "none"
    assert told(spec_of(lambda x: mb.matmul(x=weight, y=x, name="op"), (5, 4))) == "none"
    assert told(spec_of(lambda x: mb.matmul(x=x, y=x, name="op"), (4, 4))) == "none"


def written(op: Operation, at: dict[int, int], rank: int = 4, shape: tuple[Any, ...] = (), dropped: Any = ()) -> Any:
    """The attributes in a template, as plain lists."""
    entry = ENTRIES[op.op_type]
    spec = entry.read(op)
    assert spec is not None
    place = Place(rank, at, dropped, shape)
    made = entry.attributes(op, spec, place)
    return {name: each.tolist() if isinstance(each, (np.ndarray, np.generic)) else each for name, each in made.items()}


def test_axes_in_a_template() -> None:
    assert written(op_of(unary("exp"), (2, 3)), {}) == {}
    assert written(op_of(lambda x: mb.reduce_sum(x=x, axes=[1], name="op"), (2, 3)), {}, dropped=(3, 1)) == {
        "axes": [3, 1],
        "keep_dims": True,
    }
    assert written(op_of(lambda x: mb.reduce_argmax(x=x, axis=1, name="op"), (2, 3)), {1: 3}) == {
        "axis": 3,
        "keep_dims": True,
    }
    assert written(op_of(lambda x: mb.softmax(x=x, axis=1, name="op"), (2, 3)), {1: 2}) == {"axis": 2}
    assert written(op_of(lambda x: mb.reverse(x=x, axes=[0, 1], name="op"), (2, 3)), {0: 3, 1: 1}) == {"axes": [1, 3]}
    assert written(op_of(lambda x: mb.concat(values=(x, x), axis=0, name="op"), (2, 3)), {0: 1}) == {"axis": 1}
    assert written(op_of(lambda x: mb.split(x=x, num_splits=3, axis=1, name="op"), (2, 3)), {1: 0}) == {"axis": 0}
    assert written(op_of(lambda x, y: mb.matmul(x=x, y=y, name="op"), (2, 3), (3, 4)), {}) == {}
    assert written(op_of(lambda x: mb.conv(x=x, weight=np.ones((4, 6, 1), F32), name="op"), (2, 6, 5)), {}) == {}


@pytest.mark.parametrize(("dtype", "number"), [(FP16, np.float16), (FP32, np.float32)])
def test_numbers_in_the_type_of_the_operand(dtype: type, number: Any) -> None:
    """MIL's defaults are fp32 whatever the operand is, and refused where written out."""
    plain = op_of(lambda x: mb.layer_norm(x=x, axes=[1], epsilon=number(0.5), name="op"), (2, 3), dtype=dtype)
    weighted = op_of(
        lambda x: mb.layer_norm(x=x, axes=[1], gamma=np.ones(3, number), epsilon=number(0.25), name="op"),
        (2, 3),
        dtype=dtype,
    )
    for op, wanted in ((plain, 0.5), (weighted, 0.25)):
        spec = ENTRIES["layer_norm"].read(op)
        assert spec is not None
        made = ENTRIES["layer_norm"].attributes(op, spec, Place(4, {1: 2}))
        assert (made["axes"].tolist(), made["epsilon"], type(made["epsilon"])) == ([2], wanted, number)
    padded = op_of(
        lambda x: mb.pad(x=x, pad=[1, 2], mode="constant", constant_val=number(7), name="op"), (2, 3), dtype=dtype
    )
    spec = ENTRIES["pad"].read(padded)
    assert spec is not None
    made = ENTRIES["pad"].attributes(padded, spec, Place(4, {1: 2}))
    assert (made["pad"].tolist(), made["constant_val"], type(made["constant_val"])) == (
        [0, 0, 0, 0, 1, 2, 0, 0],
        7,
        number,
    )


def test_pads_and_tiles_in_a_template() -> None:
    op = op_of(lambda x: mb.pad(x=x, pad=[1, 2, 3, 4], name="op"), (2, 3, 4))
    made = written(op, {1: 3, 2: 0})
    assert made["pad"] == [3, 4, 0, 0, 0, 0, 1, 2]
    op = op_of(lambda x: mb.tile(x=x, reps=[2, 1, 3], name="op"), (2, 3, 4))
    assert written(op, {0: 2, 2: 0}) == {"reps": [3, 1, 2, 1]}
    op = op_of(lambda x: mb.slice_by_size(x=x, begin=[0, 1, 0], size=[2, 2, 3], name="op"), (2, 3, 4))
    assert written(op, {1: 3, 2: 1}) == {"begin": [0, 0, 0, 1], "size": [-1, 3, -1, 2]}


def test_slices_in_a_template() -> None:
    def op(**given: Any) -> Operation:
        return op_of(lambda x: mb.slice_by_index(x=x, **given, name="op"), (4, 6))

    cut = op(begin=[0, 1], end=[4, 5])
    assert written(cut, {0: 2, 1: 0}, 3, (6, 1, 4)) == {
        "begin": [1, 0, 0],
        "end": [5, 1, 4],
        "stride": None,
        "squeeze_mask": None,
        "begin_mask": None,
        "end_mask": None,
    }
    strided = op(begin=[3, 0], end=[0, 6], stride=[-2, 1], end_mask=[True, False])
    assert written(strided, {0: 1, 1: 0}, 3, (6, 4, 1)) == {
        "begin": [0, 3, 0],
        "end": [6, 0, 1],
        "stride": [1, -2, 1],
        "squeeze_mask": None,
        "begin_mask": None,
        "end_mask": [False, True, False],
    }
    masked = op(begin=[1, 0], end=[2, 6], begin_mask=[True, False])
    assert written(masked, {0: 0}, 2, (4, 6)) == {
        "begin": [1, 0],
        "end": [2, 6],
        "stride": None,
        "squeeze_mask": None,
        "begin_mask": [True, False],
        "end_mask": None,
    }


def test_squeezed_axes_in_a_template() -> None:
    """One place of the axis is taken, the last one where it is counted so."""

    def made(begin: int) -> Any:
        op = op_of(
            lambda x: mb.slice_by_index(
                x=x,
                begin=[0, begin],
                end=[4, 0],
                begin_mask=[False, begin == 5],
                end_mask=[False, True],
                squeeze_mask=[False, True],
                name="op",
            ),
            (4, 6),
        )
        return written(op, {0: 1, 1: 0}, 2, (6, 4))

    for begin, end, mask in ((2, 3, None), (-1, 0, [True, False]), (-2, -1, None)):
        found = made(begin)
        assert (found["begin"], found["end"], found["end_mask"]) == ([begin, 0], [end, 4], mask)
        assert (found["begin_mask"], found["squeeze_mask"]) == (None, None)


def test_symbols_in_a_template() -> None:
    op = op_of(
        lambda x: mb.slice_by_index(x=x, begin=[0, 1], end=[0, 2], end_mask=[True, False], name="op"), (SYMBOL, 6)
    )
    assert written(op, {1: 1}, 3, (SYMBOL, 6, 1)) == {
        "begin": [0, 1, 0],
        "end": [0, 2, 1],
        "stride": None,
        "squeeze_mask": None,
        "begin_mask": None,
        "end_mask": [True, False, False],
    }


def test_updates_in_a_template() -> None:
    op = op_of(updated, (2, 5, 4), (2, 2, 4), (1,), dtype=INT32)
    entry = ENTRIES["slice_update"]
    spec = entry.read(op)
    assert spec is not None
    made = entry.attributes(op, spec, Place(4, {0: 0, 1: 3, 2: 1}, (), (2, 4, 1, 5)))
    first, last = (op.inputs[name].op.inputs["values"][1] for name in ("begin", "end"))
    assert made == {
        "begin": Indices((0, 0, 0, first)),
        "end": Indices((2, 4, 1, last)),
        "stride": None,
        "begin_mask": None,
        "end_mask": None,
        "squeeze_mask": None,
    }
    assert [var.op.op_type for var in spec.vectors if var.op] == ["concat", "concat"]


def test_specs_are_values() -> None:
    assert Indices((1, 2)) == Indices((1, 2))
    assert hash(Indices((1, 2))) == hash(Indices((1, 2)))
    assert Place(2) == Place(2)
    one = spec_of(unary("exp"), (2, 3))
    assert one is not None
    assert hash(one) == hash(one)
    several: list[Any] = [Indices((1,)), Place(1), one]
    for each in several:
        with pytest.raises(AttributeError):
            each.rank = 3
