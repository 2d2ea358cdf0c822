"""Ops that do nothing, and moves that undo each other, in detail: each refusal with its reason, and what is written."""

# The bodies of programs are lambdas of as many parameters as they have inputs, for which no one type can be written.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from milopt.mil import Program, mb, types
from milopt.passes.moves import MOVE_RULES, CancelExpandDims, CancelSqueeze, MergeTransposes
from milopt.passes.neutral import (
    NEUTRAL_RULES,
    DropIdentity,
    DropNeutralOperand,
    DropSingleConcat,
    DropStill,
    DropZeroBias,
    NormalizePerm,
)
from milopt.rules import Rule, apply

from .refusals import body, program_of, refusals

FP32 = types.fp32
F32: Any = np.float32


def program(build: Any, *shapes: tuple[Any, ...], dtype: type = FP32) -> Program:
    return program_of(build, *((shape, dtype) for shape in shapes))


def written(rule: Rule[Any], build: Any, *shapes: tuple[Any, ...]) -> list[str]:
    made = program(build, *shapes)
    assert apply(rule, made).applied == 1
    made.validate()
    return [line.partition(" = ")[2] for line in body(made)]


def stays(rule: Rule[Any], build: Any, *shapes: tuple[Any, ...]) -> list[tuple[str, str]]:
    return refusals(rule, program(build, *shapes))


def test_the_rules_in_their_order() -> None:
    assert [type(rule) for rule in MOVE_RULES] == [MergeTransposes, CancelSqueeze, CancelExpandDims]
    assert [type(rule) for rule in NEUTRAL_RULES] == [
        DropIdentity,
        DropSingleConcat,
        DropNeutralOperand,
        DropStill,
        NormalizePerm,
        DropZeroBias,
    ]


def test_transposes() -> None:
    def build(first: list[int], then: list[int]) -> Any:
        return lambda x: mb.relu(x=mb.transpose(x=mb.transpose(x=x, perm=first), perm=then))

    rule = MergeTransposes()
    assert written(rule, build([1, 2, 0], [1, 2, 0]), (2, 3, 4)) == ["transpose(x=%x, perm=[2, 0, 1])", "relu(x=%0)"]
    assert written(rule, build([-2, -1, 0], [-3, 2, 1]), (2, 3, 4))[0] == "transpose(x=%x, perm=[1, 0, 2])"
    assert written(rule, build([1, 2, 0], [2, 0, 1]), (2, 3, 4)) == ["relu(x=%x)"]


def pair(first: str, axes: list[int] | None, second: str, others: list[int] | None) -> Any:
    def build(x: Any) -> Any:
        y = getattr(mb, first)(x=x, **({} if axes is None else {"axes": axes}), name="first")
        return mb.relu(x=getattr(mb, second)(x=y, **({} if others is None else {"axes": others}), name="second"))

    return build


def test_squeezes() -> None:
    rule = CancelSqueeze()
    assert written(rule, pair("expand_dims", [0, 2], "squeeze", [-2, 0]), (3, 4)) == ["relu(x=%x)"]
    assert written(rule, pair("expand_dims", [1], "squeeze", None), (3, 4)) == ["relu(x=%x)"]
    assert stays(rule, pair("expand_dims", [0], "squeeze", [1]), (1, 4)) == [
        ("axes [0] are added, [1] removed", "second")
    ]
    assert stays(rule, pair("expand_dims", [1], "squeeze", None), (1, 4)) == [
        ("axes [1] are added, [0, 1] removed", "second")
    ]


def test_expanded_dims() -> None:
    rule = CancelExpandDims()
    assert written(rule, pair("squeeze", [0, 2], "expand_dims", [0, -2]), (1, 3, 1, 4)) == ["relu(x=%x)"]
    assert written(rule, pair("squeeze", None, "expand_dims", [0, 2]), (1, 3, 1, 4)) == ["relu(x=%x)"]
    assert stays(rule, pair("squeeze", [0], "expand_dims", [1]), (1, 3)) == [
        ("axes [0] are removed, [1] added", "second")
    ]


def test_identities_and_single_parts() -> None:
    def identity(x: Any) -> Any:
        return mb.relu(x=mb.identity(x=x))

    assert written(DropIdentity(), identity, (2, 3)) == ["relu(x=%x)"]
    assert stays(DropIdentity(), lambda x: mb.identity(x=x, name="out"), (2, 3)) == [("it names an output", "out")]

    def single(x: Any) -> Any:
        return mb.relu(x=mb.concat(values=(x,), axis=1, interleave=True))

    assert written(DropSingleConcat(), single, (2, 3)) == ["relu(x=%x)"]
    assert stays(DropSingleConcat(), lambda x, y: mb.concat(values=(x, y), axis=0), (2, 3), (2, 3)) == []


@pytest.mark.parametrize(("kind", "number"), [("mul", 1), ("real_div", 1), ("add", 0), ("sub", 0)])
def test_operands_that_change_nothing(kind: str, number: float) -> None:
    def build(c: Any) -> Any:
        return lambda x: mb.relu(x=getattr(mb, kind)(x=x, y=c, name="neutral"))

    rule = DropNeutralOperand()
    assert written(rule, build(F32(number)), (2, 3)) == ["relu(x=%x)"]
    assert written(rule, build(np.full((1, 3), number, F32)), (2, 3)) == ["relu(x=%x)"]
    near = np.full(3, number, F32)
    near[1] = np.nextafter(F32(number), F32(2))
    for other in (near, F32(1 - number), F32(2)):
        assert stays(rule, build(other), (2, 3)) == [("its constant is not neutral", "neutral")]
    made = program(build(np.full((4, 1, 1), number, F32)), (2, 3))
    assert apply(rule, made).applied == 0


def test_numbers_from_which_something_is_taken_stay() -> None:
    for build in (lambda x: mb.sub(x=F32(0), y=x), lambda x: mb.real_div(x=F32(1), y=x)):
        assert apply(DropNeutralOperand(), program(build, (2, 3))).applied == 0


def test_ops_that_leave_a_value_as_it_is() -> None:
    rule = DropStill()
    still: list[Any] = [
        lambda x: mb.relu(x=mb.transpose(x=x, perm=[0, -1])),
        lambda x: mb.relu(x=mb.reshape(x=x, shape=[2, 2])),
        lambda x: mb.relu(x=mb.tile(x=x, reps=[1, 1])),
        lambda x: mb.relu(x=mb.cast(x=x, dtype="fp32")),
    ]
    for build in still:
        assert written(rule, build, (2, 2)) == ["relu(x=%x)"]
    other = "it changes type or shape"
    assert stays(rule, lambda x: mb.transpose(x=x, perm=[1, 0], name="op"), (2, 2)) == [("it moves axes", "op")]
    assert stays(rule, lambda x: mb.transpose(x=x, perm=[1, 0], name="op"), (2, 3)) == [(other, "op")]
    assert stays(rule, lambda x: mb.reshape(x=x, shape=[4], name="op"), (2, 2)) == [(other, "op")]
    assert stays(rule, lambda x: mb.tile(x=x, reps=[1, 2], name="op"), (2, 2)) == [(other, "op")]
    assert stays(rule, lambda x: mb.cast(x=x, dtype="fp16", name="op"), (2, 2)) == [(other, "op")]


def test_perms_are_counted_from_the_front() -> None:
    rule = NormalizePerm()
    assert written(rule, lambda x: mb.transpose(x=x, perm=[0, -1, 1]), (2, 3, 4)) == ["transpose(x=%x, perm=[0, 2, 1])"]
    assert written(rule, lambda x: mb.transpose(x=x, perm=[-1, -2, -3]), (2, 3, 4)) == [
        "transpose(x=%x, perm=[2, 1, 0])"
    ]
    assert stays(rule, lambda x: mb.transpose(x=x, perm=[0, 2, 1], name="op"), (2, 3, 4)) == [
        ("no axis is negative", "op")
    ]


def test_biases_of_zeros() -> None:
    weight: Any = np.ones((4, 6, 1, 1), F32)
    given: dict[str, Any] = {"strides": [1, 2], "pad_type": "custom", "pad": [0, 0, 1, 1], "groups": 1}

    def conv(bias: Any) -> Any:
        return lambda x: mb.conv(x=x, weight=weight, bias=bias, **given, name="op")

    found = written(DropZeroBias(), conv(np.zeros(4, F32)), (1, 6, 1, 6))
    assert found == ['conv(x=%x, weight=w0, strides=[1, 2], pad_type="custom", pad=[0, 0, 1, 1])']
    one = np.zeros(4, F32)
    one[2] = 1
    assert stays(DropZeroBias(), conv(one), (1, 6, 1, 6)) == [("its bias is not zero", "op")]
