"""Options of palettize: axes, scales per channel, vectors; each decodes as coremltools does, to the error reported."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milopt.calibration.statistics import Moments, Statistics, key_of
from milopt.clustering import palettize
from milopt.errors import PassError
from milopt.mil import Program, constant, mb, operations, target, types
from milopt.package import load
from milopt.passes.budget import Budget
from milopt.passes.compressing import CompressionReport
from milopt.passes.compression import Palettize
from milopt.passes.decompression import decoded
from milopt.passes.quantization import Quantize
from milopt.passes.uses import Layout
from milopt.pipeline import Pass, Pipeline
from milopt.text import text

from .support import (
    conv_program,
    decoded_by_coremltools,
    linear_program,
    loaded_by_coremltools,
    palettized,
    two_functions,
    weights,
)


def weight_op(model: Any) -> Any:
    (op,) = [op for op in operations(model.function()) if op.name == "w"]
    return op


def snr(original: Any, changed: Any) -> float:
    error = np.sum((original.astype(np.float64) - changed) ** 2)
    return float(10 * np.log10(np.sum(original.astype(np.float64) ** 2) / error)) if error else float("inf")


def checked(program: Program, made: Pass, weight: Any) -> Any:
    """Run the pass: the error told is that of coremltools' numbers, which milopt decodes too; they are returned."""
    model = load(program)
    report = made.run(model)
    model.program.validate()
    assert isinstance(report, CompressionReport)
    (line,) = report.coverage
    assert line.snr is not None, line
    theirs = decoded_by_coremltools(weight_op(model))
    # 1e-9 dB: both sum squares in float64, in another order
    assert line.snr == pytest.approx(snr(weight, theirs), rel=1e-9, abs=1e-9)
    np.testing.assert_array_equal(decoded(weight_op(model).outputs[0]), theirs)
    assert theirs.dtype == weight.dtype
    return theirs


PALETTIZE: Any = Palettize
QUANTIZE: Any = Quantize
PASSES: list[Pass] = [
    *(PALETTIZE(bits=bits, granularity=how) for bits in (1, 3, 4, 8) for how in ("tensor", "grouped-channel")),
    *(PALETTIZE(bits=bits, per_channel_scale=True, granularity="tensor") for bits in (2, 4)),
    Palettize(bits=4, per_channel_scale=True),
    *(PALETTIZE(bits=bits, cluster_dim=size) for bits, size in ((4, 2), (6, 4), (1, 8))),
    Palettize(bits=6, cluster_dim=2, granularity="tensor"),
    *(
        PALETTIZE(bits=bits, lut_dtype="int8", granularity=how)
        for bits in (1, 4, 8)
        for how in ("tensor", "grouped-channel")
    ),
    Palettize(bits=3, lut_dtype="int8", per_channel_scale=True),
    Palettize(bits=4, axis=1),
    Palettize(bits=4, axis=-1, group_size=8, per_channel_scale=True),
    *(
        QUANTIZE(dtype=kind, granularity=how, symmetric=even, clip=clip)
        for kind, how, even, clip in product(
            ("int4", "uint4", "int8", "uint8"), ("tensor", "channel", "block"), (True, False), ("minmax", "mse")
        )
    ),
    Quantize(axis=1),
]


@pytest.mark.parametrize("made", PASSES, ids=map(str, PASSES))
def test_the_error_told_is_that_of_the_numbers_decoded(made: Pass) -> None:
    weight = weights((48, 64))
    checked(linear_program(weight), made, weight)


@pytest.mark.parametrize(
    "made",
    [
        Palettize(bits=4, per_channel_scale=True),
        Palettize(bits=4, lut_dtype="int8"),
        Palettize(cluster_dim=2),
        Quantize(dtype="uint4", symmetric=False),
    ],
)
def test_fp32_and_conv(made: Pass, tmp_path: Path) -> None:
    weight = weights((48, 64), dtype=np.float32)
    linear = checked(linear_program(weight), made, weight)
    conv = checked(conv_program(weight.reshape(48, 64, 1, 1)), made, weight.reshape(48, 64, 1, 1))
    np.testing.assert_array_equal(conv.reshape(48, 64), linear)
    model = load(conv_program(weight.reshape(48, 64, 1, 1)))
    made.run(model)
    function = loaded_by_coremltools(model.save(tmp_path / "m.mlpackage"))
    np.testing.assert_array_equal(
        decoded_by_coremltools(next(op for op in operations(function) if op.name == "w")), conv
    )


@pytest.mark.parametrize("opset", [target.iOS16, target.iOS17])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_integers_before_ios18(opset: Any, granularity: Any, dtype: Any, symmetric: bool) -> None:
    weight = weights((48, 64))
    made = Quantize(dtype=dtype, granularity=granularity, symmetric=symmetric)
    old = checked(linear_program(weight, opset=opset), made, weight)
    model = load(linear_program(weight, opset=opset))
    made.run(model)
    assert weight_op(model).op_type == "constexpr_affine_dequantize"
    # the same integers, which iOS16's op multiplies in fp32 and iOS18's in fp16: one rounding on both sides
    np.testing.assert_array_equal(old, checked(linear_program(weight), made, weight))


@pytest.mark.parametrize("made", [Quantize(), Quantize(dtype="int8"), Quantize(dtype="uint4", granularity="channel")])
def test_four_bits_and_blocks_are_of_ios18(made: Quantize) -> None:
    report = made.run(load(linear_program(weights((48, 64)), opset=target.iOS17)))
    assert [miss.reason for miss in report.misses] == ["needs iOS18, the function is iOS17"]


def test_numbers_before_ios16_stay() -> None:
    report = Quantize(dtype="int8", granularity="tensor").run(
        load(linear_program(weights((48, 64)), opset=target.iOS15))
    )
    assert [miss.reason for miss in report.misses] == ["needs iOS16, the function is iOS15"]


# --- tables of integers


@pytest.mark.parametrize("scaled", [False, True])
def test_tables_of_integers(scaled: bool) -> None:
    """The entries are the exact ones, rounded to 255 steps; each weight has the nearest of them."""
    weight = weights((48, 64))
    model, report = palettized(linear_program(weight), bits=4, lut_dtype="int8", per_channel_scale=scaled)
    plain, other = palettized(linear_program(weight), bits=4, per_channel_scale=scaled)
    made, was = weight_op(model), weight_op(plain)
    if scaled:
        made, was = made.data.op, was.data.op
    assert made.lut.op.op_type == "constexpr_blockwise_shift_scale"
    entries, exact = decoded(made.lut), np.asarray(constant(was.lut), np.float64)
    steps = np.abs(exact).max(axis=(-2, -1), keepdims=True) / 127
    assert np.max(np.abs(entries - exact) / steps) < 0.6  # half a step, and the rounding of fp16
    assert isinstance(report, CompressionReport)
    assert isinstance(other, CompressionReport)
    # 3 tables of 16 entries: a byte for each, and 2 for the scale, in place of 2 for each
    assert other.coverage[0].after - report.coverage[0].after == 3 * (16 - 2)
    assert report.coverage[0].form.startswith("4 bits, a table per 16 channels in int8")
    if not scaled:
        rows, table = np.reshape(weight, (3, -1)).astype(np.float64), np.reshape(entries, (3, 16)).astype(np.float64)
        best = np.abs(rows[:, :, None] - table[:, None]).min(-1)
        np.testing.assert_array_equal(np.abs(rows - np.reshape(decoded(made.outputs[0]), rows.shape)), best)


def test_tables_of_integers_with_feedback(tmp_path: Path) -> None:
    weight, path = weights((48, 64)), str(tmp_path / "s")
    mixed = np.random.default_rng(3).standard_normal((64, 64))
    inputs = (np.random.default_rng(4).standard_normal((200, 64)) @ mixed).astype(np.float64)
    products = np.transpose(inputs) @ inputs
    moments = Moments(np.diagonal(products), 200, products)
    Statistics({key_of(weight, Layout(48, 64, 1)): moments}).save(path)
    known: dict[str, Any] = {"bits": 4, "weighting": "activation", "calibration": path, "lut_dtype": "int8"}

    def lost(**options: Any) -> float:
        numbers = checked(linear_program(weight), Palettize(**known, **options), weight)
        return float(np.sum(((weight.astype(np.float64) - numbers) @ np.transpose(inputs)) ** 2))

    # measured: 0.5
    assert lost(feedback=True) < 0.7 * lost()


def test_tables_of_integers_are_of_ios18_and_of_numbers() -> None:
    report = Palettize(lut_dtype="int8").run(load(linear_program(weights((48, 64)), opset=target.iOS17)))
    assert [miss.reason for miss in report.misses] == ["needs iOS18, the function is iOS17"]
    with pytest.raises(PassError, match="lut_dtype=int8 is for tables of numbers"):
        Pipeline.parse("palettize{lut_dtype=int8,cluster_dim=2}")


# --- scales per channel


def test_scales_per_channel_let_channels_of_all_sizes_share_a_table() -> None:
    weight = weights((48, 64))  # spread over a factor of 30
    plain = checked(linear_program(weight), Palettize(bits=4, granularity="tensor"), weight)
    scaled = checked(linear_program(weight), Palettize(bits=4, granularity="tensor", per_channel_scale=True), weight)
    quiet = slice(0, 16)
    assert snr(weight[quiet], scaled[quiet]) > snr(weight[quiet], plain[quiet]) + 6
    model, _ = palettized(linear_program(weight), bits=4, per_channel_scale=True)
    op = weight_op(model)
    largest = np.abs(weight).max(axis=1, keepdims=True)
    np.testing.assert_array_equal(constant(op.scale), largest)


def test_a_large_channel_counts_by_the_square_of_its_scale() -> None:
    """One table, one entry: the mean of both channels' shares, weighed as their errors weigh in the end."""
    weight = np.zeros((2, 2048), np.float32)
    weight[0], weight[1] = 8 * np.linspace(0.5, 1, 2048), np.linspace(-1, -0.5, 2048)
    rows = np.reshape(weight, (1, 1, 2, -1))
    from milopt.passes.palettes import encode_palette

    made = encode_palette(rows, 1, True)
    alone = palettize(np.stack([weight[0] / 8]), 1)
    # two entries for numbers of both signs: one for each channel
    assert made.tensors["lut"][0][0].tolist() == pytest.approx([-0.75, 0.75], rel=1e-3)
    assert made.error > 64 * alone.error


def test_channels_of_zeros_stay_so() -> None:
    weight = weights((48, 64))
    weight[5] = 0
    made = checked(linear_program(weight), Palettize(bits=4, per_channel_scale=True), weight)
    assert not made[5].any()


# --- vectors


def test_vectors_are_along_the_channels() -> None:
    pairs = np.random.default_rng(0).choice(np.array([[1, -2], [3, 4], [0.5, 0], [7, 8]], np.float16), (24, 100))
    weight: Any = np.reshape(np.transpose(pairs, (0, 2, 1)), (48, 100))
    made = checked(linear_program(weight), Palettize(bits=2, cluster_dim=2), weight)
    np.testing.assert_array_equal(made, weight)
    model, _ = palettized(linear_program(weight), bits=2, cluster_dim=2)
    op = weight_op(model)
    assert (op.indices.shape, op.lut.shape, int(constant(op.vector_axis))) == ((24, 100), (3, 1, 4, 2), 0)


def test_vectors_do_better_than_numbers() -> None:
    """4 bits for two normal numbers do better than 2 bits for each, which is 9.3 dB (Max, 1960)."""
    weight = np.random.default_rng(1).standard_normal((256, 256)).astype(np.float16)
    made = checked(linear_program(weight), Palettize(bits=4, cluster_dim=2, granularity="tensor"), weight)
    assert 9.4 < snr(weight, made) < 9.9


def test_vectors_that_do_not_divide_the_channels() -> None:
    _, report = palettized(linear_program(weights((45, 64))), bits=4, cluster_dim=2)
    assert [miss.reason for miss in report.misses] == ["45 channels are no multiple of cluster_dim, 2"]


def test_options_that_exclude_each_other() -> None:
    with pytest.raises(PassError, match="palettize: per_channel_scale is for tables of numbers, cluster_dim=1"):
        Pipeline.parse("palettize{cluster_dim=2,per_channel_scale=true}")
    with pytest.raises(PassError, match="palettize: cluster_dim must be at least 1, not 0"):
        Pipeline.parse("palettize{cluster_dim=0}")


# --- axes


def test_an_axis_on_request() -> None:
    weight = np.ascontiguousarray(weights((64, 48)).T)  # scales differ along axis 1
    along, across = (checked(linear_program(weight), Palettize(bits=4, axis=axis), weight) for axis in (1, 0))
    assert snr(weight[:, :8], along[:, :8]) > snr(weight[:, :8], across[:, :8]) + 6
    np.testing.assert_array_equal(along, checked(linear_program(weight), Palettize(bits=4, axis=-1), weight))


@pytest.mark.parametrize("made", [Palettize(axis=2), Palettize(axis=-3), Quantize(axis=2)], ids=str)
def test_an_axis_that_is_not_there(made: Any) -> None:
    report = made.run(load(linear_program(weights((48, 64)))))
    assert [miss.reason for miss in report.misses] == [f"has no axis {made.axis}"]


# --- every shape is compressed, or has a reason


@pytest.mark.parametrize("shape", [(1, 1), (7, 13), (16, 16), (48, 40), (50, 64)])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_every_shape_axis_and_group_is_compressed_or_has_a_reason(shape: tuple[int, int], axis: int | None) -> None:
    weight = weights(shape)
    made: list[Pass] = [
        Palettize(bits=2, axis=axis, group_size=size, cluster_dim=dims, per_channel_scale=scaled, min_elements=1)
        for size in (1, 5, 16, 99)
        for dims, scaled in ((1, False), (1, True), (2, False))
    ]
    made += [
        QUANTIZE(axis=axis, block_size=size, granularity=how, dtype=kind, min_elements=1)
        for size in (1, 5, 32)
        for how in ("tensor", "channel", "block")
        for kind in ("int4", "uint8")
    ]
    for each in made:
        model = load(linear_program(weight))
        before = text(model, weights="hash")
        report = each.run(model)
        assert isinstance(report, CompressionReport)
        (line,) = report.coverage
        if line.reason:
            assert text(model, weights="hash") == before, each
            assert (report.applied, line.before, line.after, line.snr) == (0, weight.nbytes, weight.nbytes, None)
        else:
            assert line.after < line.before
            assert line.snr == pytest.approx(snr(weight, decoded_by_coremltools(weight_op(model))), rel=1e-9)


# --- the report


def test_a_line_for_every_weight_in_program_order() -> None:
    first, second = weights((48, 64)), weights((64, 48), seed=1)
    second[0, 0] = np.nan

    @mb.program(
        input_specs=[mb.TensorSpec((1, 64), types.fp16), mb.TensorSpec((8, 8), types.fp16)], opset_version=target.iOS18
    )
    def program(x: Any, y: Any) -> Any:
        x = mb.linear(x=x, weight=mb.const(val=first, name="a"))
        x = mb.linear(x=x, weight=mb.const(val=second, name="b"))
        return mb.linear(x=x, weight=mb.const(val=weights((60, 64)), name="c")), mb.linear(
            x=y, weight=mb.const(val=weights((8, 8)), name="d")
        )

    _, report = palettized(program, bits=4)
    assert isinstance(report, CompressionReport)
    assert [each.name for each in report.coverage] == ["a", "b", "c", "d"]
    lines = report.table().splitlines()
    assert lines[0].startswith("a fp16[48, 64]: 4 bits, a table per 16 channels, ")
    assert lines[0].endswith(" dB, 6,144 -> 1,632 bytes")
    assert lines[1] == "b fp16[64, 48]: left alone, 6,144 bytes: holds 1 values that are not finite"
    assert lines[2].startswith("c fp16[60, 64]: 4 bits, a table per 15 channels, ")
    assert lines[3] == "d fp16[8, 8]: left alone, 128 bytes: too small: 64 of 2048 numbers"
    assert [each.reason for each in report.coverage] == [
        "",
        *[miss.reason for miss in report.misses[::-1]][0:1],
        "",
        lines[3].split(": ", 2)[2],
    ]


@pytest.mark.parametrize("made", [Palettize(), Quantize(), Budget(size=0.4)], ids=lambda made: made.name)
def test_what_is_compressed_already_has_its_line_too(made: Pass) -> None:
    """In its place, with what it takes as it is stored; once, whatever functions hold it."""
    layers = [weights(shape, seed) for seed, shape in enumerate([(48, 48), (96, 48), (40, 96)])]

    def program(length: int) -> Program:
        @mb.program(input_specs=[mb.TensorSpec((1, length, 48), types.fp16)], opset_version=target.iOS18)
        def layered(x: Any) -> Any:
            for name, weight in zip("abc", layers, strict=True):
                x = mb.linear(x=x, weight=mb.const(val=weight, name=name))
            shift = mb.constexpr_blockwise_shift_scale(data=np.ones(40, np.int8), scale=np.ones(1, np.float16))
            return mb.add(x=x, y=shift)  # no weight of a layer

        return layered

    model = two_functions(program(1), program(4))
    Palettize(bits=8, granularity="tensor", min_elements=4000).run(model)  # the second
    report = made.run(model)
    assert isinstance(report, CompressionReport)
    assert [each.name for each in report.coverage] == ["a", "b", "c"]
    assert [bool(each.reason) for each in report.coverage] == [False, True, False]
    line = report.coverage[1]
    assert str(line) == "b fp16[96, 48]: left alone, 5,120 bytes: compressed already, as constexpr_lut_to_dense"
    assert (line.functions, line.before, line.after) == (("decode", "prefill"), 5120, 5120)
