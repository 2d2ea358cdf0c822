"""Ops that do nothing: why each that looks like one stays, and what a rule keeps of an op that it rewrites."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from milopt.mil import Program, get_new_symbol, mb, target, types
from milopt.passes.canonical import MergeCasts, MergeReshapes
from milopt.passes.neutral import (
    DropIdentity,
    DropNeutralOperand,
    DropSingleConcat,
    DropStill,
    DropZeroBias,
    NormalizePerm,
)
from milopt.rules import Rule, apply
from milopt.text import text

from .support import assert_same, op_types, twice

Body = Callable[[Any], Any]


def program(body: Body, shape: tuple[Any, ...] = (2, 3, 4), dtype: type = types.fp32) -> Program:
    @mb.program(input_specs=[mb.TensorSpec(shape, dtype)], opset_version=target.iOS18)
    def built(x: Any) -> Any:
        return mb.abs(x=body(mb.abs(x=x, name="x1")), name="out")

    return built


def once(values: Any) -> Any:
    """The same numbers, but no constant of the program."""
    return mb.concat(values=(np.array(values[:1], np.int32), np.array(values[1:], np.int32)), axis=0)


REFUSALS: dict[str, tuple[Rule[Any], Body, str, str]] = {
    "a constant that is not neutral": (
        DropNeutralOperand(),
        lambda x: mb.mul(x=x, y=2.0, name="y"),
        "y",
        "its constant is not neutral",
    ),
    "one that is neutral for another op": (
        DropNeutralOperand(),
        lambda x: mb.real_div(x=x, y=np.array([1, 1, 1, 0.5], np.float32), name="y"),
        "y",
        "its constant is not neutral",
    ),
    "1 added": (DropNeutralOperand(), lambda x: mb.add(x=x, y=1.0, name="y"), "y", "its constant is not neutral"),
    "1 taken away": (DropNeutralOperand(), lambda x: mb.sub(x=x, y=1.0, name="y"), "y", "its constant is not neutral"),
    "a transpose": (
        DropStill(),
        lambda x: mb.transpose(x=x, perm=[0, 2, 1], name="y"),
        "y",
        "it changes type or shape",
    ),
    "a transpose of equal dimensions": (
        DropStill(),
        lambda x: mb.transpose(x=mb.slice_by_size(x=x, begin=[0, 0, 0], size=[2, 3, 3]), perm=[0, -1, 1], name="y"),
        "y",
        "it moves axes",
    ),
    "a cast": (DropStill(), lambda x: mb.cast(x=x, dtype="fp16", name="y"), "y", "it changes type or shape"),
    "a reshape": (DropStill(), lambda x: mb.reshape(x=x, shape=[6, 4], name="y"), "y", "it changes type or shape"),
    "a tile": (DropStill(), lambda x: mb.tile(x=x, reps=[1, 2, 1], name="y"), "y", "it changes type or shape"),
    "computed repetitions": (
        DropStill(),
        lambda x: mb.tile(x=x, reps=once([1, 1, 1]), name="y"),
        "y",
        "its repetitions are computed",
    ),
    "a perm from the front": (
        NormalizePerm(),
        lambda x: mb.transpose(x=x, perm=[0, 2, 1], name="y"),
        "y",
        "no axis is negative",
    ),
    "a bias": (
        DropZeroBias(),
        lambda x: mb.conv(x=x, weight=np.ones((2, 3, 1), np.float32), bias=np.array([0, 1], np.float32), name="y"),
        "y",
        "its bias is not zero",
    ),
    "a cast that loses": (
        MergeCasts(),
        lambda x: mb.cast(x=mb.cast(x=x, dtype="fp16", name="narrow"), dtype="fp32", name="y"),
        "narrow",
        "fp16 does not hold every fp32",
    ),
    "a squeeze that does not cancel": (
        MergeReshapes(),
        lambda x: mb.squeeze(x=mb.reshape(x=x, shape=[1, 6, 4]), axes=[0], name="y"),
        "y",
        "they don't cancel",
    ),
    "a reshape that others need": (
        MergeReshapes(),
        lambda x: _both(mb.reshape(x=x, shape=[6, 4])),
        "y",
        "the first one is needed elsewhere",
    ),
}


def _both(inner: Any) -> Any:
    return mb.mul(x=mb.reshape(x=inner, shape=[4, 6], name="y"), y=mb.reduce_sum(x=inner))


@pytest.mark.parametrize("shapes", [([2, -1], [4, -1]), ([-1, 2], [8, -1])])
def test_flexible_reshapes_are_not_merged(shapes: tuple[list[int], list[int]]) -> None:
    first, second = shapes
    built = program(lambda x: mb.reshape(x=mb.reshape(x=x, shape=first), shape=second, name="y"), (get_new_symbol(), 8))
    report = apply(MergeReshapes(), built)
    declined = [(miss.place, miss.reason) for miss in report.misses if miss.declined]
    assert declined == [("y", "a dimension is symbolic")]


@pytest.mark.parametrize("case", REFUSALS)
def test_reasons(case: str) -> None:
    rule, body, place, reason = REFUSALS[case]
    built = program(body)
    before = text(built)
    report = apply(rule, built)
    assert not report
    assert (place, reason) in [(miss.place, miss.reason) for miss in report.misses if miss.declined]
    assert text(built) == before


def test_an_identity_that_names_an_output_stays() -> None:
    @mb.program(input_specs=[mb.TensorSpec((3,))])
    def built(x: Any) -> Any:
        return mb.identity(x=mb.abs(x=x), name="out")

    report = apply(DropIdentity(), built)
    assert [(miss.place, miss.reason) for miss in report.misses] == [("out", "it names an output")]


KEPT: dict[str, tuple[Rule[Any], Body, tuple[int, ...], list[str]]] = {
    "an interleaved concat of one": (
        DropSingleConcat(),
        lambda x: mb.concat(values=[x], axis=1, interleave=True),
        (2, 3, 4),
        [],
    ),
    "a transpose from the front": (
        NormalizePerm(),
        lambda x: mb.transpose(x=x, perm=[-2, -1, 0]),
        (2, 3, 4),
        ["transpose"],
    ),
    "a conv with everything said": (
        DropZeroBias(),
        lambda x: mb.conv(
            x=x,
            weight=np.reshape(np.arange(24, dtype=np.float32), (4, 2, 3)),
            bias=np.zeros(4, np.float32),
            strides=[2],
            pad_type="custom",
            pad=[2, 1],
            dilations=[2],
            groups=2,
        ),
        (2, 4, 9),
        ["conv"],
    ),
    "a conv of computed weights": (
        DropZeroBias(),
        lambda x: mb.conv(x=x, weight=mb.sub(x=x, y=np.float32(1)), bias=np.zeros(3, np.float32)),
        (3, 3, 3),
        ["sub", "conv"],
    ),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_is_left_does_the_same(case: str) -> None:
    rule, body, shape, left = KEPT[case]
    before, after = twice(lambda: program(body, shape))
    assert apply(rule, after).applied == 1
    after.validate()
    assert op_types(after) == ["abs", *left, "abs"]
    assert_same(before, after, rtol=0)


def test_a_conv_keeps_what_was_said() -> None:
    built = program(KEPT["a conv with everything said"][1], (2, 4, 9))
    apply(DropZeroBias(), built)
    (conv,) = [op for op in built.functions["main"].operations if op.op_type == "conv"]
    options = {name: conv.inputs[name].val for name in ("strides", "pad_type", "pad", "dilations", "groups")}
    assert {name: np.ravel(value).tolist() for name, value in options.items()} == {
        "strides": [2],
        "pad_type": ["custom"],
        "pad": [2, 1],
        "dilations": [2],
        "groups": [2],
    }
    assert "bias" not in conv.inputs
