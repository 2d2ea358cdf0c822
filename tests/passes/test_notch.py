"""dma-notch: weights near a notch are cut in two, with the same sums; the others stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from milopt.metrics import Exact
from milopt.mil import Program, get_new_symbol, mb, operations, target, types
from milopt.package import load
from milopt.passes.notch import DmaNotch
from milopt.reports import Report
from milopt.text import text
from milopt.verify import compare

from .support import op_types

RNG = np.random.default_rng(0)
# 32 outputs of 64 inputs: 2 · 64 · 2 = 256 bytes for a core
SMALL = DmaNotch(within=8, period=256)


def weight(*shape: int, dtype: Any = np.float16) -> Any:
    return RNG.standard_normal(shape).astype(dtype)


WEIGHT, OTHER, BIAS = weight(32, 64), weight(32, 64), weight(32)


def program(
    body: Callable[[Any], Any], shape: tuple[Any, ...] = (1, 5, 64), dtype: type = types.fp16, opset: Any = target.iOS18
) -> Program:
    return mb.program(input_specs=[mb.TensorSpec(shape, dtype)], opset_version=opset)(body)


def cut(made: Program, each: DmaNotch = SMALL) -> Report:
    model = load(made)
    before = model.clone()
    report = each.run(model)
    made.validate()
    if report:
        verdict = compare(before, model, metric=Exact(safe_in=("declared",)))
        assert verdict, str(verdict)
    return report


def shapes(made: Program) -> list[tuple[int, ...]]:
    layers = [op for op in operations(made.functions["main"]) if op.op_type in ("conv", "linear")]
    return [tuple(op.inputs["weight"].shape) for op in layers]


@pytest.mark.parametrize("bias", [False, True])
def test_linear(bias: bool) -> None:
    given = {"bias": BIAS} if bias else {}
    made = program(lambda x: mb.linear(x=x, weight=WEIGHT, **given, name="out"))
    report = cut(made)
    assert (report.applied, report.notes) == (1, ["1 weights cut in two, each result is rounded once more"])
    assert shapes(made) == [(32, 32), (32, 32)]
    assert op_types(made) == ["split", "linear", "linear", "add"]


@pytest.mark.parametrize("length", [5, get_new_symbol()])
def test_conv(length: Any) -> None:
    kernel = weight(16, 64, 1, 2)
    made = program(lambda x: mb.conv(x=x, weight=kernel, bias=BIAS[:16], pad_type="same", strides=[1, 2], name="out"),
                   (1, 64, 1, length))  # fmt: skip
    assert cut(made).applied == 1
    assert shapes(made) == [(16, 32, 1, 2), (16, 32, 1, 2)]


def test_layers_of_one_value_share_its_parts() -> None:
    def body(x: Any) -> Any:
        return mb.add(x=mb.linear(x=x, weight=WEIGHT), y=mb.linear(x=x, weight=OTHER, bias=BIAS), name="out")

    made = program(body)
    assert cut(made).applied == 2
    kinds = op_types(made)
    assert (kinds.count("split"), kinds.count("linear"), kinds.count("add")) == (1, 4, 3)


def test_other_splits_stay_apart() -> None:
    def body(x: Any) -> Any:
        first, second = mb.split(x=x, num_splits=2, axis=-1, name="halves")
        parts = mb.split(x=x, split_sizes=[32, 32], axis=-1, name="parts")
        y = mb.linear(x=x, weight=WEIGHT)
        return first, second, *parts, mb.relu(x=y, name="y")

    made = program(body)
    assert cut(made).applied == 1
    assert op_types(made).count("split") == 2  # outputs keep the one that names them


def test_the_size_of_the_real_notch() -> None:
    """constraints L23: 2048 outputs of 4096 inputs are 1 MiB for each of 16 cores."""

    def reasons(outputs: int, inputs: int) -> list[str]:
        made = program(lambda x: mb.linear(x=x, weight=np.zeros((outputs, inputs), np.float16)), (1, 1, inputs))
        report = DmaNotch().run(load(made))
        return [str(shapes(made))] if report else [miss.reason for miss in report.misses]

    assert reasons(2048, 4096) == ["[(2048, 2048), (2048, 2048)]"]
    assert reasons(2033, 4096) == ["[(2033, 2048), (2033, 2048)]"]  # the last core's share counts as full
    assert reasons(2048, 4032) == ["[(2048, 2016), (2048, 2016)]"]  # 16 KiB below
    assert reasons(2048, 4160) == ["[(2048, 2080), (2048, 2080)]"]  # 16 KiB above
    assert reasons(2048, 4031) == ["1031936 bytes for a core are near no notch"]
    assert reasons(2048, 4161) == ["1065216 bytes for a core are near no notch"]
    assert reasons(2048, 2048) == ["524288 bytes for a core are near no notch"]
    assert reasons(2000, 4096) == ["1024000 bytes for a core are near no notch"]


def test_halves_that_are_near_a_notch_themselves() -> None:
    """Two notches: the middle is one, and 64 channels beside it are the nearest that are 16 KiB and more away."""
    made = program(lambda x: mb.linear(x=x, weight=np.zeros((2048, 8192), np.float16)), (1, 1, 8192))
    assert DmaNotch().run(load(made)).applied == 1
    assert shapes(made) == [(2048, 4192), (2048, 4000)]


def test_cuts_that_are_no_multiple_of_32() -> None:
    made = program(lambda x: mb.linear(x=x, weight=WEIGHT[:, :20], name="out"), (1, 5, 20))
    assert cut(made, DmaNotch(within=4, period=80)).applied == 1
    assert shapes(made) == [(32, 10), (32, 10)]


def refused(body: Callable[[Any], Any], each: DmaNotch = SMALL, **given: Any) -> list[str]:
    made = program(body, **given)
    before = text(made)
    report = cut(made, each)
    assert (report.applied, report.notes, text(made)) == (0, [], before)
    return [miss.reason for miss in report.misses]


def test_refusals() -> None:
    assert refused(lambda x: mb.linear(x=x, weight=weight(32, 64, dtype=np.float32)), dtype=types.fp32) == [
        "its weight is fp32"
    ]

    def compressed(x: Any) -> Any:
        data = np.ones((32, 64), np.int8)
        return mb.linear(x=x, weight=mb.constexpr_blockwise_shift_scale(data=data, scale=np.ones((1, 1), np.float16)))

    assert refused(compressed) == ["its weight is compressed"]
    grouped = weight(32, 64, 1)
    assert refused(lambda x: mb.conv(x=x, weight=grouped, groups=2), shape=(1, 128, 5)) == ["it has 2 groups"]
    narrow = weight(32, 3)
    assert refused(
        lambda x: mb.linear(x=x, weight=narrow), DmaNotch(within=1, period=4), shape=(1, 5, 3)
    ) == ["no cut of 3 channels leads away from a notch"]  # fmt: skip
    assert refused(lambda x: mb.linear(x=x, weight=WEIGHT[:, :1]), DmaNotch(within=4, period=9), shape=(1, 5, 1)) == [
        "4 bytes for a core are near no notch"
    ]


def test_options() -> None:
    for within, period in ((-1, 10), (5, 10)):
        with pytest.raises(ValueError, match="period over twice that"):
            DmaNotch(within=within, period=period)
    assert str(DmaNotch()) == "dma-notch"
