"""dma-notch in detail: what is near a notch, where cuts lie, what is written, and refusals with their places."""

# The methods of numpy arrays whose element type is not told have types that are not known either.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from milopt.mil import Program, get_new_symbol, mb, refine_shape, types
from milopt.package import load
from milopt.passes.notch import DmaNotch, SplitInputs
from milopt.reports import Report

from .refusals import body, program_of, refusals

FP16, FP32 = types.fp16, types.fp32
# 32 outputs of 64 inputs: 2 · 64 · 2 = 256 bytes for a core
SMALL = DmaNotch(within=8, period=256)
RULE = SplitInputs(8, 256)
BIAS: Any = np.arange(16, dtype=np.float16)


def weight(*shape: int, dtype: Any = np.float16) -> Any:
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def linear(outputs: int, inputs: int, *, dtype: Any = np.float16, lead: tuple[Any, ...] = (1, 5)) -> Program:
    def build(x: Any) -> Any:
        return mb.linear(x=x, weight=mb.const(val=weight(outputs, inputs, dtype=dtype), name="w"), name="out")

    return program_of(build, ((*lead, inputs), FP16 if dtype is np.float16 else FP32))


def run(program: Program, each: DmaNotch = SMALL) -> Report:
    report = each.run(load(program))
    program.validate()
    return report


def cuts(program: Program) -> list[int]:
    layers = [op for op in program.functions["main"].operations if op.op_type in ("conv", "linear")]
    return [int(op.inputs["weight"].shape[1]) for op in layers]


def test_what_is_written_for_a_linear() -> None:
    program = linear(32, 64)
    assert run(program).applied == 1
    assert body(program) == [
        "%0: fp16[1, 5, 32], %1: fp16[1, 5, 32] = split(x=%x, split_sizes=[32, 32], axis=2)",
        "%2: fp16[1, 5, 32] = linear(x=%0, weight=w0)",
        "%3: fp16[1, 5, 32] = linear(x=%1, weight=w1)",
        "%4: fp16[1, 5, 32] = add(x=%2, y=%3)",
    ]
    layers = [op for op in program.functions["main"].operations if op.op_type == "linear"]
    assert [op.inputs["weight"].name for op in layers] == ["w_0", "w_32"]
    for op, part in zip(layers, np.split(weight(32, 64), 2, axis=1), strict=True):
        np.testing.assert_array_equal(op.inputs["weight"].val, part)


def test_what_is_written_for_a_conv() -> None:
    length = get_new_symbol()

    def build(x: Any) -> Any:
        return mb.conv(
            x=x, weight=weight(16, 64, 1, 2), bias=BIAS, strides=[1, 2], pad_type="same", dilations=[1, 1], name="out"
        )

    program = program_of(build, ((1, 64, 1, length), FP16))
    given = program.functions["main"].outputs[0].shape
    assert run(program).applied == 1
    lines = [line.partition(" = ")[2] for line in body(program)]
    bias = str([float(each) for each in BIAS])
    assert lines == [
        "split(x=%x, split_sizes=[32, 32], axis=1)",
        f"conv(x=%0, weight=w0, bias=fp16({bias}), strides=[1, 2], pad_type='same')".replace("'", '"'),
        'conv(x=%1, weight=w1, strides=[1, 2], pad_type="same")',
        "add(x=%2, y=%3)",
    ]
    shapes = [op.outputs[0].shape for op in program.functions["main"].operations if op.op_type in ("conv", "add")]
    assert shapes == [given, given, given]


@pytest.mark.parametrize(
    ("outputs", "inputs", "within", "period", "near"),
    [
        (32, 64, 8, 256, True),
        (32, 66, 8, 256, True),  # 264 bytes: 8 above
        (32, 62, 8, 256, True),  # 248 bytes: 8 below
        (32, 67, 8, 256, False),
        (32, 61, 8, 256, False),
        (17, 64, 8, 256, True),  # the last core's share counts as full
        (16, 64, 8, 256, False),
        (33, 64, 8, 256, False),
        (32, 2, 8, 256, False),  # 8 bytes are near nothing
        (32, 128, 8, 256, True),
        (32, 64, 0, 256, True),
        (32, 65, 0, 256, False),
    ],
)
def test_what_is_near(outputs: int, inputs: int, within: int, period: int, near: bool) -> None:
    program = linear(outputs, inputs)
    report = run(program, DmaNotch(within=within, period=period))
    share = -(-outputs // 16) * inputs * 2
    if near:
        assert (report.applied, report.notes) == (1, ["1 weights cut in two, each result is rounded once more"])
        return
    assert [(miss.reason, miss.place) for miss in report.misses] == [
        (f"{share} bytes for a core are near no notch", "w")
    ]


@pytest.mark.parametrize(
    ("inputs", "within", "period", "wanted"),
    [
        (64, 8, 256, [32, 32]),
        (128, 8, 256, [96, 32]),  # the middle is a notch: the next multiples of 32, the larger part first
        (96, 8, 384, [64, 32]),
        (20, 4, 80, [10, 10]),  # no multiple of 32 is within
        (21, 4, 84, [11, 10]),
        (40, 1, 160, [32, 8]),  # a multiple of 32, far from the middle as it is
        (30, 8, 56, [19, 11]),  # 17 and 13, and 13 and 17: one of them is near, the other is not
    ],
)
def test_where_cuts_lie(inputs: int, within: int, period: int, wanted: list[int]) -> None:
    program = linear(32, inputs)
    assert run(program, DmaNotch(within=within, period=period)).applied == 1
    assert cuts(program) == wanted


def test_kernels_count_in_the_bytes() -> None:
    """16 outputs of 16 inputs and a kernel of 2 x 4: 2 · 8 · 16 = 256 bytes."""

    def build(x: Any) -> Any:
        return mb.conv(x=x, weight=weight(16, 16, 2, 4), name="out")

    program = program_of(build, ((1, 16, 4, 8), FP16))
    assert run(program).applied == 1
    assert cuts(program) == [8, 8]


def test_refusals_and_where() -> None:
    assert refusals(RULE, linear(32, 64, dtype=np.float32)) == [("its weight is fp32", "w")]

    def compressed(x: Any) -> Any:
        held = mb.constexpr_blockwise_shift_scale(
            data=np.ones((32, 64), np.int8), scale=np.ones((1, 1), np.float16), name="packed"
        )
        return mb.linear(x=x, weight=held, name="out")

    assert refusals(RULE, program_of(compressed, ((1, 5, 64), FP16))) == [("its weight is compressed", "packed")]

    def grouped(x: Any) -> Any:
        return mb.conv(x=x, weight=weight(32, 64, 1), groups=2, name="out")

    assert refusals(RULE, program_of(grouped, ((1, 128, 5), FP16))) == [("it has 2 groups", "out")]
    away = ("no cut of 3 channels leads away from a notch", "w")
    assert refusals(SplitInputs(1, 4), linear(32, 3)) == [away]
    one = ("no cut of 1 channels leads away from a notch", "w")
    assert refusals(SplitInputs(1, 4), linear(32, 1)) == [one]


def test_layers_of_one_value_share_a_split_of_equal_sizes() -> None:
    def build(x: Any, y: Any) -> Any:
        made = [mb.linear(x=each, weight=weight(32, 64) + at) for at, each in enumerate((x, x, y))]
        return tuple(mb.relu(x=each) for each in made)

    program = program_of(build, ((1, 5, 64), FP16), ((1, 5, 64), FP16))
    report = run(program)
    assert report.notes == ["3 weights cut in two, each result is rounded once more"]
    splits = [line for line in body(program) if " = split(" in line]
    assert [line.partition(" = ")[2] for line in splits] == [
        "split(x=%x, split_sizes=[32, 32], axis=2)",
        "split(x=%y, split_sizes=[32, 32], axis=2)",
    ]


@pytest.mark.parametrize(
    ("given", "splits"),
    [
        ({"split_sizes": [32, 32], "axis": -1}, 1),
        ({"split_sizes": [32, 32], "axis": 2}, 1),
        ({"split_sizes": [48, 16], "axis": 2}, 2),
        ({"split_sizes": [32, 32], "axis": 1}, 2),
        ({"num_splits": 2, "axis": 2}, 2),
    ],
)
def test_splits_that_were_there(given: dict[str, Any], splits: int) -> None:
    def build(x: Any) -> Any:
        parts = mb.split(x=x, **given)
        return (*(mb.relu(x=part) for part in parts), mb.linear(x=x, weight=weight(32, 64)))

    program = program_of(build, ((1, 64, 64), FP16))
    assert run(program).applied == 1
    assert sum(" = split(" in line for line in body(program)) == splits


def test_a_split_whose_parts_are_outputs_stays() -> None:
    """An output keeps its name and its op."""

    def build(x: Any) -> Any:
        made = mb.linear(x=x, weight=weight(32, 64))
        one, other = mb.split(x=x, split_sizes=[32, 32], axis=2)
        return mb.relu(x=made), one, mb.relu(x=other)

    program = program_of(build, ((1, 5, 64), FP16))
    assert run(program).applied == 1
    assert sum(" = split(" in line for line in body(program)) == 2


def test_a_program_without_layers_near_a_notch_is_not_looked_at() -> None:
    def build(x: Any) -> Any:
        parts = [mb.split(x=x, split_sizes=[32, 32], axis=-1) for _ in range(2)]
        return tuple(mb.relu(x=part) for both in parts for part in both)

    program = program_of(build, ((1, 5, 64), FP16))
    report = run(program)
    assert (report.applied, report.notes, report.name) == (0, [], "dma-notch")
    assert sum(" = split(" in line for line in body(program)) == 2


def test_options_at_their_limits() -> None:
    for within, period in ((-1, 10), (5, 10), (0, 0)):
        message = f"within is 0 or more, and period over twice that, not {within} and {period}"
        with pytest.raises(ValueError, match=message):
            DmaNotch(within=within, period=period)
    assert DmaNotch(within=0, period=1)
    assert DmaNotch(within=5, period=11)
    assert (DmaNotch().within, DmaNotch().period) == (16384, 1048576)


def test_lengths_that_are_not_known_keep_their_symbols() -> None:
    length = get_new_symbol()

    def build(x: Any) -> Any:
        return mb.conv(x=x, weight=weight(32, 64, 1), name="out")

    program = program_of(build, ((1, 64, length), FP16))
    # what a package declares may say more than the ops do
    given = refine_shape(program.functions["main"].outputs[0], (1, 32, get_new_symbol())).shape
    assert run(program).applied == 1
    shapes = [op.outputs[0].shape for op in program.functions["main"].operations if op.op_type in ("conv", "add")]
    assert shapes == [given, given, given]
