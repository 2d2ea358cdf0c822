"""conv1x1-to-linear: the same numbers, there and back the same text, and what it stays away from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.layout import decoder
from milopt.mil import Program, get_new_symbol, mb, target
from milopt.package import load
from milopt.passes.convolution import LinearToConv
from milopt.passes.convolution_inverse import Conv1x1ToLinear, ConvAsLinear, LiftExpandDims, MergeUnitAxes
from milopt.pipeline import Pipeline
from milopt.reports import Report
from milopt.rules import apply
from milopt.text import text
from milopt.verify import compare

from .support import assert_same, op_types, twice
from .test_convolution import tied
from .test_kernels import FORMS, forms_in, program_of

RNG = np.random.default_rng(0)
WEIGHT: Any = RNG.standard_normal((4, 6)).astype(np.float32)
SQUARE: Any = RNG.standard_normal((6, 6)).astype(np.float32)
BIAS: Any = RNG.standard_normal(4).astype(np.float32)


def conv(shape: tuple[Any, ...], *, bias: bool = True, side: int = 1, **given: Any) -> Program:
    @mb.program(input_specs=[mb.TensorSpec(shape)], opset_version=target.iOS17)
    def program(x: Any) -> Any:
        kernel: Any = RNG.standard_normal((4, 6 // given.get("groups", 1), *(side,) * (len(shape) - 2)))
        return mb.conv(x=x, weight=kernel.astype(np.float32), **({"bias": BIAS} if bias else {}), **given, name="out")

    return program


def converted(program: Program, **options: Any) -> Report:
    report = Conv1x1ToLinear(**options).run(load(program))
    program.validate()
    return report


@pytest.mark.parametrize("shape", [(2, 6, 1, 5), (2, 6, 5, 1), (2, 6, 5), (1, 6, 1, 1)])
@pytest.mark.parametrize("bias", [False, True])
def test_every_place(shape: tuple[int, ...], bias: bool) -> None:
    before = conv(shape, bias=bias)
    after = load(before).clone()
    report = Conv1x1ToLinear().run(after)
    assert report.applied == 1
    assert_same(before, after.program)
    kinds = op_types(after.program)
    # of one position only unit axes move
    transposes = 0 if shape == (1, 6, 1, 1) else 2
    assert (kinds.count("linear"), kinds.count("conv"), kinds.count("transpose")) == (1, 0, transposes)


def test_padding_that_is_none() -> None:
    several: list[dict[str, Any]] = [
        {"pad_type": "same"},
        {"pad_type": "custom", "pad": [0, 0, 0, 0]},
        {"strides": [1, 1]},
    ]
    for given in several:
        assert converted(conv((2, 6, 1, 5), **given)).applied == 1


def test_lengths_that_are_not_known() -> None:
    program = conv((1, 6, 1, get_new_symbol()))
    assert converted(program).applied == 1
    assert op_types(program).count("linear") == 1


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "kernel": ({"shape": (2, 6, 5, 5), "side": 3}, "its kernel is 3x3"),
    "strides": ({"shape": (2, 6, 1, 5), "strides": [1, 2]}, "its strides are [1 2]"),
    "groups": ({"shape": (2, 6, 1, 5), "groups": 2}, "it has 2 groups"),
    "padding": ({"shape": (2, 6, 1, 5), "pad_type": "custom", "pad": [0, 0, 1, 1]}, "it pads by [0 0 1 1]"),
    "volume": ({"shape": (2, 6, 1, 1, 5)}, "its operand has rank 5"),
    "image": (
        {"shape": (2, 6, 3, 5)},
        "it is a convolution of images, where linear is not worth its transposes",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    given, reason = REFUSED[name]
    program = conv(**given)
    before = text(program)
    report = converted(program)
    assert [miss.reason for miss in report.misses] == [reason]
    assert (bool(report), text(program)) == (False, before)


def test_images_where_asked() -> None:
    before = conv((2, 6, 3, 5))
    after = load(before).clone()
    assert Conv1x1ToLinear(images=True).run(after).applied == 1
    assert_same(before, after.program)
    assert op_types(after.program).count("linear") == 1
    assert converted(conv((1, 6, 3, get_new_symbol())), images=True).applied == 1
    report = converted(conv((1, 6, get_new_symbol(), get_new_symbol())), images=True)
    assert [miss.reason for miss in report.misses] == ["2 sizes of its image are not known"]


def excited(pool: str, *, reduced: int = 6) -> Program:
    """Squeeze-and-excitation: two layers on what is pooled, which then scales the channels of the image."""

    @mb.program(input_specs=[mb.TensorSpec((1, 6, 4, 4))], opset_version=target.iOS17)
    def program(x: Any) -> Any:
        if pool == "reduce":
            y = mb.reduce_mean(x=x, axes=[2, 3], keep_dims=True)
        else:
            y = mb.avg_pool(x=x, kernel_sizes=[4, 4], pad_type="valid")
        kernel: Any = SQUARE[:reduced].reshape(reduced, 6, 1, 1)
        y = mb.relu(x=mb.conv(x=y, weight=kernel))
        back: Any = SQUARE[:, :reduced].reshape(6, reduced, 1, 1)
        return mb.mul(x=x, y=mb.sigmoid(x=mb.conv(x=y, weight=np.ascontiguousarray(back))), name="out")

    return program


@pytest.mark.parametrize("pool", ["reduce", "pool"])
@pytest.mark.parametrize("reduced", [6, 1])
def test_what_was_pooled_from_an_image_stays(pool: str, reduced: int) -> None:
    program = excited(pool, reduced=reduced)
    before = text(program)
    report = converted(program)
    assert [miss.reason for miss in report.misses] == ["it sees what was pooled from an image"] * 2
    assert (bool(report), text(program)) == (False, before)
    after = load(program).clone()
    assert Conv1x1ToLinear(images=True).run(after).applied == 2
    assert_same(program, after.program)


def test_what_was_pooled_from_rows_does_not() -> None:
    """The head of a classifier over tokens, (B, C, 1, S), and one token of a decoder."""

    @mb.program(input_specs=[mb.TensorSpec((1, 6, 1, 5)), mb.TensorSpec((1, 6, 1, 1))], opset_version=target.iOS17)
    def program(x: Any, token: Any) -> Any:
        kernel: Any = WEIGHT.reshape(4, 6, 1, 1)
        pooled = mb.conv(x=mb.reduce_mean(x=x, axes=[3], keep_dims=True), weight=kernel)
        return mb.add(x=pooled, y=mb.conv(x=mb.relu(x=token), weight=kernel), name="out")

    after = load(program).clone()
    assert Conv1x1ToLinear().run(after).applied == 2
    assert_same(program, after.program)


@pytest.mark.parametrize("fused", [False, True])
def test_what_was_laid_out_comes_back(fused: bool) -> None:
    """A decoder for the Neural Engine as one for a GPU: no more moves than it had before."""
    before = load(decoder(2, fused=fused))
    laid = before.clone()
    Pipeline.parse("linear-to-conv,layout-bc1s").run(laid)
    assert op_types(laid.program).count("conv") == 15
    after = laid.clone()
    report = Pipeline.parse("conv1x1-to-linear").run(after, verify="each")
    assert report
    kinds, were = op_types(after.program), op_types(before.program)
    assert (kinds.count("linear"), kinds.count("conv")) == (15, 0)
    for kind in ("transpose", "reshape", "expand_dims", "squeeze"):
        assert kinds.count(kind) <= were.count(kind)
    assert compare(before, after)


def linears(shape: tuple[Any, ...]) -> Program:
    """Layers in a row, side by side and after an op between."""

    @mb.program(input_specs=[mb.TensorSpec(shape)], opset_version=target.iOS17)
    def program(x: Any) -> Any:
        first = mb.linear(x=x, weight=SQUARE, name="first")
        second = mb.relu(x=mb.linear(x=first, weight=SQUARE))
        other = mb.linear(x=second, weight=WEIGHT, bias=BIAS)
        return mb.add(x=other, y=mb.linear(x=second, weight=WEIGHT), name="out")

    return program


@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 5, 6), (1, get_new_symbol(), 6)])
def test_there_and_back(shape: tuple[Any, ...]) -> None:
    program = linears(shape)
    before = text(program)
    assert LinearToConv().run(load(program)).applied == 4
    assert "linear" not in op_types(program)
    assert converted(program).applied == 4
    assert text(program) == before


def test_there_and_back_of_rank_4() -> None:
    """A linear has no rank 4: its leading axes become one."""
    before, after = twice(lambda: linears((2, 3, 5, 6)))
    LinearToConv().run(load(after))
    assert converted(after).applied == 4
    assert_same(before, after)
    kinds = op_types(after)
    assert (kinds.count("linear"), kinds.count("conv"), kinds.count("transpose")) == (4, 0, 0)


def test_tied_weights_come_back() -> None:
    program = tied()
    before = text(program)
    LinearToConv().run(load(program))
    assert text(program) != before
    converted(program)
    assert text(program) == before


@pytest.mark.parametrize("form", FORMS)
def test_compressed_weights_come_back(form: str) -> None:
    program = program_of(form, "linear")
    before, forms = text(program).replace("vector_axis=-1", "vector_axis=1"), forms_in(program)
    LinearToConv().run(load(program))
    assert converted(program).applied == 1
    assert (text(program), forms_in(program)) == (before, forms)


def test_scales_along_an_axis_that_goes() -> None:
    @mb.program(input_specs=[mb.TensorSpec((1, 6, 1, 5))], opset_version=target.iOS17)
    def program(x: Any) -> Any:
        kernel = mb.constexpr_affine_dequantize(
            quantized_data=np.ones((4, 6, 1, 1), np.int8),
            scale=np.ones(1, np.float32),
            zero_point=np.int8(0),
            axis=np.int32(2),
        )
        return mb.conv(x=x, weight=kernel)

    report = converted(program)
    assert [miss.reason for miss in report.misses] == ["its numbers are grouped along axis 2, which goes"]


def merged(build: Any, shape: tuple[int, ...]) -> list[str]:
    before, after = twice(lambda: mb.program(input_specs=[mb.TensorSpec(shape)])(build))
    apply(MergeUnitAxes(), after)
    assert_same(before, after)
    return op_types(after)


def test_unit_axes() -> None:
    def widened(x: Any) -> Any:
        return mb.squeeze(x=mb.expand_dims(x=x, axes=[0, 1]), axes=[1], name="out")

    def narrowed(x: Any) -> Any:
        return mb.expand_dims(x=mb.squeeze(x=x, axes=[0, 2]), axes=[0], name="out")

    def twice_narrowed(x: Any) -> Any:
        return mb.squeeze(x=mb.squeeze(x=x, axes=[0]), axes=[-2], name="out")

    def swapped(x: Any) -> Any:
        return mb.relu(x=mb.squeeze(x=mb.expand_dims(x=x, axes=[0]), axes=[1]), name="out")

    def moved(x: Any) -> Any:
        return mb.expand_dims(x=mb.squeeze(x=x, axes=[0]), axes=[-1], name="out")

    assert merged(widened, (3, 4)) == ["expand_dims"]
    assert merged(narrowed, (1, 3, 1, 4)) == ["squeeze"]
    assert merged(twice_narrowed, (1, 3, 1, 4)) == ["squeeze"]
    assert merged(swapped, (1, 4)) == ["relu"]
    assert merged(moved, (1, 3, 4)) == ["squeeze", "expand_dims"]


def test_what_expand_dims_makes_of_a_layer() -> None:
    def before_it(x: Any) -> Any:
        return mb.linear(x=mb.expand_dims(x=x, axes=[0, -2]), weight=SQUARE, name="out")

    def of_its_channels(x: Any) -> Any:
        return mb.linear(x=mb.expand_dims(x=x, axes=[-1]), weight=np.ones((4, 1), np.float32), name="out")

    cases: list[tuple[Any, list[str]]] = [
        (before_it, ["linear", "expand_dims"]),
        (of_its_channels, ["expand_dims", "linear"]),
    ]
    for build, kinds in cases:
        before, after = (mb.program(input_specs=[mb.TensorSpec((6,))])(build) for _ in range(2))
        apply(LiftExpandDims(), after)
        assert_same(before, after)
        assert op_types(after) == kinds


def test_golden() -> None:
    program = conv((1, 6, 1, 5), bias=False)
    apply(ConvAsLinear(images=False), program)
    assert text(program) == GOLDEN


GOLDEN = """\
main[CoreML7](%x: fp32[1, 6, 1, 5]) {
  %0: fp32[1, 5, 6, 1] = transpose(x=%x, perm=[0, 3, 1, 2])
  %1: fp32[1, 5, 6] = squeeze(x=%0, axes=[3])
  %2: fp32[1, 5, 4] = linear(x=%1, weight=w0)
  %3: fp32[1, 5, 4, 1] = expand_dims(x=%2, axes=[3])
  %4: fp32[1, 4, 1, 5] = transpose(x=%3, perm=[0, 2, 3, 1])
} -> (out=%4)
w0: fp32[4, 6]
"""
