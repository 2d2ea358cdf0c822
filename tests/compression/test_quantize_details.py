"""quantize in detail: which axes the scales lie along, forms and sizes, every reason, and the ops that are written."""

# The methods of numpy arrays whose element type is not told have types that are not known either.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from milopt.interpreter import evaluate
from milopt.metrics import Lossy
from milopt.mil import Operation, Program, constant, mb, operations, target, types
from milopt.package import Model
from milopt.passes.compressing import CompressionReport
from milopt.passes.quantization import Quantize, encode_integers

from .layers import layers, numbers
from .support import compressed, decoded_by_coremltools, left_alone, linear_program, two_functions

F16: Any = np.float16


def quantize(**options: Any) -> Quantize:
    given: dict[str, Any] = {"min_elements": 1, **options}
    return Quantize(**given)


def run(source: Program | Model, **options: Any) -> tuple[Model, CompressionReport]:
    return compressed(quantize(**options), source)


def reason(source: Program | Model, **options: Any) -> list[tuple[str, str]]:
    """The reasons for leaving everything alone, and where."""
    return [(miss.place, miss.reason) for miss in left_alone(quantize(**options), source).misses]


def made(model: Model, kind: str = "constexpr_blockwise_shift_scale") -> list[Operation]:
    return [op for function in model.functions.values() for op in operations(function) if op.op_type == kind]


@pytest.mark.parametrize(
    ("use", "shape", "axis", "scales"),
    [
        ("linear", (4, 8), None, (4, 4)),
        ("linear", (4, 8), 0, (4, 4)),
        ("linear", (4, 8), 1, (2, 8)),
        ("linear", (4, 8), -1, (2, 8)),
        ("linear", (4, 8), -2, (4, 4)),
        ("matmul", (8, 4), None, (4, 4)),
        ("matmul", (8, 4), 0, (8, 2)),
        ("conv", (4, 8, 2), None, (4, 4, 1)),
        ("conv", (4, 8, 2), 2, (1, 4, 2)),
        ("conv", (4, 8, 2), -1, (1, 4, 2)),
        ("conv", (4, 8, 2), -2, (2, 8, 1)),
        ("conv", (4, 8, 2), -3, (4, 4, 1)),
        ("image", (4, 8, 3, 5), None, (4, 4, 1, 1)),
        ("image", (4, 8, 3, 5), 2, (1, 4, 3, 1)),
        ("image", (4, 8, 3, 5), 3, (2, 1, 1, 5)),
        ("image", (4, 8, 3, 5), -1, (2, 1, 1, 5)),
        ("rows", (4, 8), None, (4, 4)),
    ],
)
def test_which_axes_scales_lie_along(use: str, shape: tuple[int, ...], axis: int | None, scales: Any) -> None:
    model, report = run(layers((use, numbers(*shape))), block_size=2, axis=axis)
    (op,) = made(model)
    assert tuple(op.inputs["scale"].shape) == scales
    assert tuple(op.inputs["data"].shape) == shape
    assert str(report.coverage[0]).startswith(f"w fp16{list(shape)}: int4, a scale for 2 inputs of a channel, ")
    wide = numbers(*shape).astype(float)
    split = [part for count, size in zip(scales, shape, strict=True) for part in (count, size // count)]
    largest = np.abs(wide).reshape(split).max(axis=tuple(range(1, 2 * len(shape), 2)))
    np.testing.assert_array_equal(constant(op.inputs["scale"]), (largest / 7).astype(F16))


@pytest.mark.parametrize(
    ("options", "form", "bits", "after"),
    [
        # 32 numbers of 4 bits, and scales of 2 bytes
        ({"block_size": 4}, "int4, a scale for 4 inputs of a channel", 4, 16 + 8 * 2),
        ({"granularity": "channel"}, "int4, a scale for a channel", 4, 16 + 4 * 2),
        ({"granularity": "tensor"}, "int4, a scale for all", 4, 16 + 2),
        # offsets of as many bits as the numbers, in whole bytes
        ({"granularity": "channel", "symmetric": False}, "int4, a scale and an offset for a channel", 4, 16 + 8 + 2),
        ({"granularity": "tensor", "symmetric": False}, "int4, a scale and an offset for all", 4, 16 + 2 + 1),
        ({"granularity": "channel", "dtype": "uint4"}, "uint4, a scale for a channel", 4, 16 + 8 + 2),
        ({"granularity": "channel", "dtype": "int8"}, "int8, a scale for a channel", 8, 32 + 8),
        ({"granularity": "channel", "dtype": "uint8"}, "uint8, a scale for a channel", 8, 32 + 8 + 4),
        ({"granularity": "tensor", "dtype": "int8", "symmetric": False}, "int8, a scale and an offset for all", 8, 35),
    ],
)
def test_forms_and_their_sizes(options: Any, form: str, bits: int, after: int) -> None:
    model, report = run(layers(("linear", numbers(4, 8))), **options)
    (line,) = report.coverage
    assert (line.form, line.bits, line.before, line.after) == (form, bits, 64, after)
    assert report.notes[0] == f"32 numbers in 1 weights: 64 -> {after} bytes"
    (op,) = made(model)
    assert ("offset" in op.inputs) == (after - 4 * bits > 2 * op.inputs["scale"].val.size)
    decoded = decoded_by_coremltools(op).astype(float)
    lost = np.sum((numbers(4, 8).astype(float) - decoded) ** 2) / np.sum(numbers(4, 8).astype(float) ** 2)
    assert report.notes[1:] == [f"SNR of the weights {-10 * np.log10(lost):.1f} dB, the lowest {line.snr:.1f} dB (w)"]
    np.testing.assert_allclose(decoded, numbers(4, 8), atol=np.abs(numbers(4, 8)).max() / (7 if bits == 4 else 127))


@pytest.mark.parametrize("shape", [(3, 5), (1, 7)])
def test_sizes_in_whole_bytes(shape: tuple[int, ...]) -> None:
    """15 numbers of 4 bits are 8 bytes, 3 offsets are 2; 7 numbers are 4, and one offset is 1."""
    _, report = run(layers(("linear", numbers(*shape))), granularity="channel", symmetric=False)
    rows, count = shape[0], shape[0] * shape[1]
    assert report.coverage[0].after == (count + 1) // 2 + rows * 2 + (rows + 1) // 2


def test_fp32_scales_are_fp32() -> None:
    model, report = run(linear_program(numbers(4, 8, dtype=np.float32)), granularity="channel")
    assert constant(made(model)[0].inputs["scale"]).dtype == np.float32
    assert report.coverage[0].after == 16 + 4 * 4


@pytest.mark.parametrize(
    ("options", "bound"),
    [
        ({}, None),
        ({"dtype": "uint4", "granularity": "tensor"}, None),
        ({"dtype": "int8", "block_size": 4}, 20.0),
        ({"dtype": "uint8", "granularity": "channel"}, 14.0),
        ({"dtype": "int8", "granularity": "tensor"}, 6.0),
    ],
)
def test_what_outputs_may_lose(options: Any, bound: float | None) -> None:
    _, report = run(layers(("linear", numbers(4, 8))), **options)
    assert report.metric == (None if bound is None else Lossy(bound))
    assert Quantize.metric == Lossy(0.5)


def test_constants_are_named_for_the_weight() -> None:
    model, _ = run(layers(("linear", numbers(4, 8))), dtype="uint4", granularity="channel", symmetric=False)
    (op,) = made(model)
    assert [op.inputs[name].name for name in ("data", "offset")] == ["w_data", "w_offset"]
    assert op.name == "w"
    assert [tuple(op.inputs[name].shape) for name in ("data", "scale", "offset")] == [(4, 8), (4, 1), (4, 1)]


def test_ranges_are_narrowed_where_that_is_asked_for() -> None:
    outlier = np.ones((1, 64), F16)
    outlier[0, 0] = 3
    lost: list[float] = []
    for clip in ("minmax", "mse"):
        model, _ = run(layers(("linear", outlier)), granularity="channel", clip=clip)
        lost.append(float(np.sum((decoded_by_coremltools(made(model)[0]).astype(float) - outlier) ** 2)))
    assert lost[1] < lost[0]


@pytest.mark.parametrize("opset", [target.iOS16, target.iOS17])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("granularity", "use", "shape", "axis", "scales"),
    [
        ("tensor", "linear", (4, 8), 0, ()),
        ("channel", "linear", (4, 8), 0, (4,)),
        ("channel", "matmul", (8, 4), 1, (4,)),
    ],
)
def test_the_op_of_older_targets(
    granularity: str, use: str, shape: Any, axis: int, scales: Any, symmetric: bool, opset: Any
) -> None:
    model, _ = run(
        layers((use, numbers(*shape)), opset=opset), dtype="int8", granularity=granularity, symmetric=symmetric
    )
    (op,) = made(model, "constexpr_affine_dequantize")
    assert (constant(op.inputs["axis"]), tuple(constant(op.inputs["scale"]).shape)) == (axis, scales)
    zero = constant(op.inputs["zero_point"])
    assert (zero.shape, zero.dtype, bool(np.any(zero))) == (scales, np.int8, not symmetric)
    decoded = decoded_by_coremltools(op)
    np.testing.assert_allclose(decoded, numbers(*shape), atol=0.3)  # a step of 61 / 255, and its scale's rounding


def test_functions_of_two_targets_have_an_op_each() -> None:
    """The form is one that both have; of blocks and 4 bits the older one has none."""
    weight = numbers(4, 8)
    both = two_functions(*(linear_program(weight, opset=target.iOS17) for _ in range(2)))
    both.functions["decode"].opset_version = target.iOS18
    for options in ({"dtype": "int8"}, {"granularity": "channel"}):
        assert reason(both, **options) == [("w", "needs iOS18, the function is iOS17")]
    model, report = run(both, dtype="int8", granularity="channel")
    assert report.applied == 2
    new, old = made(model)[0], made(model, "constexpr_affine_dequantize")[0]
    np.testing.assert_array_equal(constant(new.inputs["data"]), constant(old.inputs["quantized_data"]))
    np.testing.assert_array_equal(decoded_by_coremltools(new), decoded_by_coremltools(old))


def test_functions_for_ios15_have_none() -> None:
    old = linear_program(numbers(4, 8), opset=target.iOS15)
    options: dict[str, Any] = {"dtype": "int8", "granularity": "tensor"}
    assert reason(old, **options) == [("w", "needs iOS16, the function is iOS15")]


def test_uses_whose_channels_lie_on_different_axes() -> None:
    weight = numbers(8, 8)
    both = layers(("linear", weight), ("matmul", weight))
    told = "its uses have their channels on different axes: linear.weight of linear, matmul.y of matmul"
    for granularity in ("block", "channel"):
        assert reason(both, granularity=granularity, block_size=4) == [("w", told)]
    model, report = run(both, granularity="tensor")
    assert [op.inputs["scale"].shape for op in made(model)] == [(1, 1), (1, 1)]
    assert report.applied == 2
    x = numbers(1, 8)
    wide = decoded_by_coremltools(made(model)[0]).astype(float)
    found = evaluate(model, {"x": x}, precision="float64")
    np.testing.assert_allclose(found["linear"], x @ wide.T, rtol=1e-9)  # float64, and the same sums
    np.testing.assert_allclose(found["matmul"], x @ wide, rtol=1e-9)


def test_uses_whose_inputs_lie_on_different_axes() -> None:
    """Blocks of a convolution's inputs, and of the numbers of a row; channels are those of the first axis for both."""
    weight = numbers(4, 8, 2)
    both = layers(("conv", weight), ("rows", weight))
    told = "its uses have their channels on different axes: gather.x of rows, conv.weight of conv"
    assert reason(both, block_size=2) == [("w", told)]
    for granularity, scales in (("channel", (4, 1, 1)), ("tensor", (1, 1, 1))):
        model, _ = run(layers(("conv", weight), ("rows", weight)), granularity=granularity)
        assert [tuple(op.inputs["scale"].shape) for op in made(model)] == [scales, scales]


def test_a_use_may_agree_in_bytes_with_another_shape() -> None:
    weight = numbers(4, 8)
    model, report = run(layers(("linear", weight), ("conv", weight.reshape(4, 8, 1))), block_size=4)
    assert [tuple(op.inputs["scale"].shape) for op in made(model)] == [(4, 2), (4, 2, 1)]
    assert report.notes[0].startswith("32 numbers in 1 weights: 64 -> ")


def test_vectors_have_no_channels() -> None:
    weight = numbers(8)
    told = [("w", "a vector has no channels")]
    assert reason(layers(("rows", weight)), granularity="tensor") == told
    mixed = layers(("linear", weight.reshape(1, 8)), ("rows", weight))
    assert reason(mixed, granularity="tensor") == told


def test_axes_that_a_weight_has_not() -> None:
    for axis in (2, -3):
        assert reason(layers(("linear", numbers(4, 8))), axis=axis) == [("w", f"has no axis {axis}")]


def test_weights_that_are_small() -> None:
    weight = numbers(4, 8)
    assert reason(layers(("linear", weight)), min_elements=33) == [("w", "too small: 32 of 33 numbers")]
    assert run(layers(("linear", weight)), min_elements=32)[1].applied == 1
    assert Quantize().min_elements == 2048
    # one number of a byte and a scale, and none at all
    assert reason(layers(("linear", numbers(1, 1))), dtype="int8") == [("w", "2 bytes would become 3")]
    assert reason(layers(("linear", numbers(1, 1))), dtype="int8", min_elements=0) == [("w", "2 bytes would become 3")]
    assert reason(layers(("rows", numbers(2, 0))), min_elements=0) == [("w", "too small: 0 of 0 numbers")]


def test_weights_that_would_not_become_smaller() -> None:
    """Of a byte a number, and a scale of two bytes for every two."""
    assert reason(layers(("linear", numbers(4, 8))), dtype="int8", block_size=2) == [("w", "64 bytes would become 64")]
    assert run(layers(("linear", numbers(4, 8))), dtype="int8", block_size=4)[1].coverage[0].after == 48


def test_blocks_that_do_not_divide_the_inputs() -> None:
    arrays = [numbers(4, 9), numbers(3, 9) + 1, numbers(4, 10), numbers(4, 8)]

    @mb.program(input_specs=[mb.TensorSpec((1, each.shape[1]), types.fp16) for each in arrays])
    def program(a: Any, b: Any, c: Any, d: Any) -> Any:
        return tuple(
            mb.linear(x=x, weight=mb.const(val=array, name=f"w{at}"))
            for at, (x, array) in enumerate(zip((a, b, c, d), arrays, strict=True))
        )

    program.functions["main"].opset_version = target.iOS18
    _, report = run(program, block_size=4)
    assert report.notes[2:] == [
        "blocks of 5 for 10 inputs instead of 4 (1 weights)",
        "blocks of 3 for 9 inputs instead of 4 (2 weights)",
    ]
    for granularity in ("channel", "tensor"):
        _, other = run(layers(("linear", numbers(4, 9))), granularity=granularity)
        assert len(other.notes) == 2


def test_lines_are_in_the_order_of_the_program() -> None:
    """The largest is compressed first, and what is left alone is known before."""
    arrays = [numbers(2, 8), numbers(8, 8), numbers(1, 8)]
    _, report = run(layers(*(("linear", each) for each in arrays)), granularity="channel", min_elements=9)
    assert [line.name for line in report.coverage] == ["w", "w1", "w2"]
    assert [bool(line.reason) for line in report.coverage] == [False, False, True]
    assert (report.tried, report.applied, report.name) == (3, 2, "quantize")


def test_compressed_weights_are_told_or_compressed_again() -> None:
    model, _ = run(layers(("linear", numbers(4, 8))), dtype="int8", granularity="channel")
    assert reason(model) == [("w", "compressed already, as constexpr_blockwise_shift_scale")]
    _, report = run(model, granularity="channel", recompress=True)
    assert (report.tried, report.applied, report.misses, report.coverage[0].bits) == (1, 1, [], 4)


def test_weights_that_are_not_finite() -> None:
    weight = numbers(4, 8)
    weight[1, 2] = np.inf
    assert reason(layers(("linear", weight))) == [("w", "holds 1 values that are not finite")]


def test_options_that_make_no_sense() -> None:
    for size in (0, -1):
        with pytest.raises(ValueError, match=f"block_size must be at least 1, not {size}"):
            Quantize(block_size=size)
    assert Quantize(block_size=1).block_size == 1


def test_integers_as_they_are_stored() -> None:
    row: Any = np.array([[7, -7, 1, 2, 0]], F16)
    found = encode_integers(row, (1, 1), "int4", True, "minmax")
    data, kind, count = found.tensors["data"]
    assert (data.tolist(), kind, count) == ([0x97, 0x21, 0x00], "int4", 5)
    assert [(name, kind, count) for name, (_, kind, count) in found.tensors.items()] == [
        ("data", "int4", 5),
        ("scale", "fp16", 1),
    ]
    assert (found.error, found.power, found.wrong) == (0.0, 103.0, 0)
    wide = encode_integers(row.astype(np.float32), (1, 5), "uint8", False, "minmax")
    assert [(name, kind, count) for name, (_, kind, count) in wide.tensors.items()] == [
        ("data", "uint8", 5),
        ("scale", "fp32", 5),
        ("offset", "uint8", 5),
    ]
