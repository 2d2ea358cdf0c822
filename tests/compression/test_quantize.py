"""quantize: integers and scales against a reference of its own, what it stays away from, and what is shared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from milopt.errors import PassError
from milopt.interpreter import evaluate
from milopt.mil import Function, Operation, Program, constant, mb, operations, target, types, weight_key
from milopt.package import Model, load
from milopt.passes.quantization import Quantize
from milopt.pipeline import Pipeline
from milopt.quantizing import quantize
from milopt.reports import Report
from milopt.text import text

from .support import (
    conv_program,
    decoded_by_coremltools,
    linear_program,
    loaded_by_coremltools,
    two_functions,
    weights,
)


def quantized(source: Program | Model, **options: Any) -> tuple[Model, Report]:
    model = source if isinstance(source, Model) else load(source)
    report = Quantize(**options).run(model)
    model.program.validate()
    return model, report


def blocks(function: Function) -> list[Operation]:
    return [op for op in operations(function) if op.op_type == "constexpr_blockwise_shift_scale"]


def reference(weight: Any, block: int, most: int) -> tuple[Any, Any]:
    """Rows (O, I), number by number in Python: the integers, and what they decode to in the weight's dtype."""
    integers, decoded = np.zeros(weight.shape, np.int8), np.zeros_like(weight)
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], block):
            numbers = [float(each) for each in weight[row, start : start + block]]
            scale = weight.dtype.type(max(map(abs, numbers)) / most)
            for at, number in enumerate(numbers, start):
                integers[row, at] = round(number / float(scale))
                decoded[row, at] = weight.dtype.type(integers[row, at]) * scale
    return integers, decoded


@pytest.mark.parametrize(("kind", "most"), [("int4", 7), ("int8", 127)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_numbers_are_those_of_the_reference_also_in_coremltools(
    kind: str, most: int, dtype: Any, tmp_path: Path
) -> None:
    weight = weights((24, 96), dtype=dtype)
    model, report = quantized(linear_program(weight), dtype=kind)
    assert report.applied == 1
    (op,) = blocks(model.function())
    integers, decoded = reference(weight, 32, most)
    np.testing.assert_array_equal(constant(op.data), integers)
    assert np.abs(integers).max() == most
    assert constant(op.scale).shape == (24, 3)
    np.testing.assert_array_equal(decoded_by_coremltools(op), decoded)

    path = model.save(tmp_path / "m.mlpackage")
    (loaded,) = blocks(loaded_by_coremltools(path))
    np.testing.assert_array_equal(decoded_by_coremltools(loaded), decoded)
    assert types.builtin_to_string(loaded.data.dtype) == kind
    (file,) = path.rglob("weight.bin")
    bits = {"int4": 4, "int8": 8}[kind]
    # besides: the file's header, an entry of 64 bytes per array, each padded to 64, and the bias of the linear
    assert 0 <= file.stat().st_size - weight.size * bits / 8 - 72 * weight.itemsize < 64 * 16


def test_evaluation_is_that_of_the_decoded_weights() -> None:
    weight = weights((32, 128))
    model, _ = quantized(linear_program(weight))
    decoded = linear_program(reference(weight, 32, 7)[1])
    x = np.random.default_rng(1).standard_normal((1, 3, 128)).astype(np.float16)
    for precision in ("float64", "declared"):
        first = evaluate(model, {"x": x}, precision=precision)["out"]
        np.testing.assert_array_equal(first, evaluate(decoded, {"x": x}, precision=precision)["out"])
    assert not np.array_equal(first, evaluate(linear_program(weight), {"x": x})["out"])


def test_golden_text() -> None:
    model, _ = quantized(linear_program(weights((32, 128))))
    assert text(model) == GOLDEN


GOLDEN = """\
main[CoreML8](%x: fp16[1, 3, 128]) {
  %0: fp16[32, 128] = constexpr_blockwise_shift_scale(data=w0, scale=w1)
  %1: fp16[1, 3, 32] = linear(x=%x, weight=%0)
} -> (out=%1)
w0: int4[32, 128]
w1: fp16[32, 4]
"""


def test_names_survive_and_the_report_tells_what_was_lost() -> None:
    weight = weights((32, 128))
    model, report = quantized(linear_program(weight))
    (op,) = blocks(model.function())
    assert (op.name, op.outputs[0].name) == ("w", "w")
    changed = weight.astype(float) - decoded_by_coremltools(op)
    lost = 10 * np.log10(np.sum(weight.astype(float) ** 2) / np.sum(changed**2))
    assert report.notes == [
        "4,096 numbers in 1 weights: 8,192 -> 2,304 bytes",  # 4096/2 + 128 scales
        f"SNR of the weights {lost:.1f} dB, the lowest {lost:.1f} dB (w)",
    ]


# --- which axis


@pytest.mark.parametrize(
    ("op", "shape", "options", "scales"),
    [
        ("matmul_y", (96, 64), {}, (3, 64)),
        ("matmul_y", (64, 96), {"transpose_y": True}, (64, 3)),
        ("matmul_x", (64, 96), {}, (64, 3)),
        ("matmul_x", (96, 64), {"transpose_x": True}, (3, 64)),
        ("conv", (64, 96, 1, 3), {}, (64, 3, 1, 1)),
        ("conv_transpose", (96, 64, 1, 3), {}, (3, 64, 1, 1)),
        ("gather", (64, 96), {"axis": 0}, (64, 3)),
        ("gather", (96, 64), {"axis": 1}, (3, 64)),
    ],
)
def test_blocks_lie_along_the_inputs(op: str, shape: tuple[int, ...], options: Any, scales: tuple[int, ...]) -> None:
    weight = weights(shape)
    image, line, ids = mb.TensorSpec((1, 96, 1, 5), types.fp16), (5, 96), mb.TensorSpec((2,), types.int32)
    specs = {
        "matmul_y": mb.TensorSpec(line, types.fp16),
        "matmul_x": mb.TensorSpec(line[::-1], types.fp16),
        "gather": ids,
    }

    @mb.program(input_specs=[specs.get(op, image)], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        held = mb.const(val=weight, name="w")
        if op == "matmul_y":
            return mb.matmul(x=x, y=held, **options)
        if op == "matmul_x":
            return mb.matmul(x=held, y=x, **options)
        if op == "gather":
            return mb.gather(x=held, indices=x, validate_indices=False, **options)
        return getattr(mb, op)(x=x, weight=held)

    model, report = quantized(program)
    assert report.applied == 1, report
    (made,) = blocks(model.function())
    assert constant(made.scale).shape == scales
    parts = np.split(weight.astype(np.float32), 3, axis=scales.index(3))
    axes = (scales.index(3), *range(2, len(shape)))
    largest = np.concatenate([np.abs(part).max(axis=axes, keepdims=True) for part in parts], scales.index(3))
    np.testing.assert_array_equal(constant(made.scale), (largest / 7).astype(np.float16))


# --- one weight, many places


def test_functions_and_shapes_share_the_integers_and_the_scales(tmp_path: Path) -> None:
    weight = weights((64, 96))
    model = two_functions(linear_program(weight), conv_program(weight.reshape(64, 96, 1, 1)))
    _, report = quantized(model)
    assert report.applied == 2
    assert report.notes[0].startswith("6,144 numbers in 1 weights")
    first, second = (blocks(function)[0] for function in model.functions.values())
    assert second.data.shape == (64, 96, 1, 1)
    assert second.scale.shape == (64, 3, 1, 1)
    for name in ("data", "scale"):
        assert weight_key(constant(getattr(first, name))) == weight_key(constant(getattr(second, name)))
    (file,) = model.save(tmp_path / "m.mlpackage").rglob("weight.bin")
    assert file.stat().st_size < 6144 / 2 + 64 * 3 * 2 + 64 * 16  # one copy and its entries, not two


@pytest.mark.parametrize("passes", ["quantize,linear-to-conv", "linear-to-conv,quantize"])
def test_before_or_after_linear_to_conv_gives_the_same_numbers(passes: str) -> None:
    weight = weights((48, 64))
    model = load(linear_program(weight))
    Pipeline.parse(passes).run(model)
    (op,) = blocks(model.function())
    assert op.outputs[0].child_ops[0].op_type == "conv"
    np.testing.assert_array_equal(decoded_by_coremltools(op)[:, :, 0, 0], reference(weight, 32, 7)[1])


def test_a_pipeline_compares_it() -> None:
    for spec, bound in (("quantize", "at least 0.5 dB"), ("quantize{dtype=int8}", "at least 20 dB")):
        report = Pipeline.parse(spec).run(load(linear_program(weights((48, 64)))), verify="each")
        (verdict,) = report.verdicts
        assert bound in str(verdict)


def test_no_block_has_less_than_its_steps_allow() -> None:
    """One number of 7 steps, 31 half-way between two: the worst there is, 10·log10(49 / (31/4)) = 8.0 dB."""
    row = np.full((1, 32), 0.5, np.float16)
    row[0, 0] = 7
    found = quantize(row, (1, 1), "int4")
    changed = row.astype(float) - found.data * found.scale.astype(float)
    assert 10 * np.log10(49 / np.sum(changed**2)) == pytest.approx(8.01, abs=0.01)  # two decimals were written above


# --- what is left alone


def reasons(source: Any, **options: Any) -> list[str]:
    """The reasons for leaving everything alone; the program must then be as it was, to the letter."""
    model = load(source)
    before = text(model, weights="hash")
    report = Quantize(**options).run(model)
    assert not report
    assert text(model, weights="hash") == before
    return [str(miss) for miss in report.misses]


def test_small_weights() -> None:
    assert reasons(linear_program(weights((32, 63)))) == ["w: too small: 2016 of 2048 numbers"]
    assert reasons(linear_program(weights((4096, 1)))) == ["w: 8192 bytes would become 10240"]


def test_weights_that_are_not_finite() -> None:
    weight = weights((48, 64))
    weight[3, 5], weight[4, :2] = np.nan, np.inf
    assert reasons(linear_program(weight)) == ["w: holds 3 values that are not finite"]


def test_old_opsets() -> None:
    old = linear_program(weights((48, 64)), opset=target.iOS17)
    assert reasons(old) == ["w: needs iOS18, the function is iOS17"]


def test_operands_outputs_and_vectors() -> None:
    weight = weights((48, 64))
    line = weights((2048,))

    @mb.program(input_specs=[mb.TensorSpec((48, 64), types.fp16)], opset_version=target.iOS18)
    def operand(x: Any) -> Any:
        held = mb.const(val=weight, name="w")
        return mb.linear(x=mb.add(x=x, y=held, name="sum"), weight=held)

    @mb.program(input_specs=[mb.TensorSpec((1, 64), types.fp16)], opset_version=target.iOS18)
    def output(x: Any) -> Any:
        held = mb.const(val=weight, name="w")
        return mb.linear(x=x, weight=held), held

    @mb.program(input_specs=[mb.TensorSpec((3,), types.int32)], opset_version=target.iOS18)
    def vector(x: Any) -> Any:
        return mb.gather(x=mb.const(val=line, name="w"), indices=x, validate_indices=False)

    assert reasons(operand) == ["w: add.y of sum holds it too, which is no weight of a layer"]
    assert reasons(output) == ["w: it is an output"]
    assert reasons(vector) == ["w: a vector has no channels"]


def test_channels_on_different_axes() -> None:
    weight = weights((64, 64))

    @mb.program(input_specs=[mb.TensorSpec((3, 64), types.fp16)], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        held = mb.const(val=weight, name="w")
        return mb.matmul(x=mb.linear(x=x, weight=held, name="first"), y=held, name="second")

    (reason,) = reasons(program)
    assert reason == "w: its uses have their channels on different axes: linear.weight of first, matmul.y of second"


def test_compressed_already() -> None:
    model, _ = quantized(linear_program(weights((48, 64))))
    assert reasons(model) == ["w: compressed already, as constexpr_blockwise_shift_scale"]


# --- blocks that don't divide, options, properties


def test_another_block_is_used_and_told() -> None:
    model, report = quantized(linear_program(weights((64, 172))))
    assert constant(blocks(model.function())[0].scale).shape == (64, 4)
    assert report.notes[-1] == "blocks of 43 for 172 inputs instead of 32 (1 weights)"


def test_options() -> None:
    assert str(Quantize()) == "quantize"
    (parsed,) = Pipeline.parse("quantize{dtype=int4,block_size=32}").passes
    assert parsed == Quantize()
    with pytest.raises(PassError, match="quantize: dtype is one of int4, uint4, int8, uint8, not 'int3'"):
        Pipeline.parse("quantize{dtype=int3}")
    with pytest.raises(PassError, match="quantize: block_size must be at least 1, not 0"):
        Pipeline.parse("quantize{block_size=0}")


@settings(max_examples=200, deadline=None)
@given(
    arrays.arrays(
        st.sampled_from([np.float16, np.float32]),
        (2, 6),
        # up to what fp16 holds, and down to its smallest: there the scale itself has few digits
        elements=st.floats(-65504, 65504, width=16),
    ),
    st.sampled_from([1, 2, 3, 6]),
    st.sampled_from(["int4", "int8"]),
)
def test_nothing_is_off_by_more_than_half_a_scale(weight: Any, count: int, kind: Any) -> None:
    found = quantize(weight, (2, count), kind)
    data, scale = found.data, found.scale
    most = {"int4": 7, "int8": 127}[kind]
    assert np.abs(data).max() <= most
    steps = np.repeat(scale.astype(np.float64), 6 // count, axis=1)
    assert np.all(steps > 0)
    # 1e-3: the scale is rounded to 11 bits, half a unit of which the largest number can be past the last step's middle
    assert np.all(np.abs(weight - data * steps) <= steps * (0.5 + 1e-3 * most))
    zero = weight == 0
    assert not np.any(data[zero])


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(["int4", "int8"]),
    st.integers(1, 40),
    st.sampled_from([target.iOS15, target.iOS17, target.iOS18]),
)
def test_every_weight_is_quantized_or_has_a_reason(outputs: int, inputs: int, kind: str, size: int, opset: Any) -> None:
    program = linear_program(weights((outputs, inputs)), opset=opset)
    model, report = quantized(program, dtype=kind, block_size=size, min_elements=1)
    assert [op.name for op in operations(model.function()) if op.name == "w"] == ["w"]
    assert (report.applied, len(report.misses)) in ((1, 0), (0, 1))
    assert len(blocks(model.function())) == report.applied


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_largest_numbers_of_fp16_stay_finite(symmetric: bool) -> None:
    weight = np.tile(np.array([65504, -65504], np.float16), (2, 16))
    found = quantize(weight, (2, 1), "int4", symmetric=symmetric)
    zero = 0 if found.offset is None else found.offset.astype(np.float16)
    assert np.isfinite(found.scale * (found.data.astype(np.float16) - zero)).all()
