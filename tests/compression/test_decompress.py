"""decompress and recompression: the numbers are coremltools' own, shared ones stay shared, and errors are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milopt.interpreter import evaluate
from milopt.mil import Program, constant, is_constexpr, mb, operations, target, types, weight_key
from milopt.package import load
from milopt.passes.compressing import CompressionReport
from milopt.passes.compression import Palettize
from milopt.passes.decompression import Decompress, compressed_weights
from milopt.passes.quantization import Quantize
from milopt.pipeline import Pipeline
from milopt.text import text

from .support import conv_program, decoded_by_coremltools, linear_program, two_functions, weights


def kinds(model: Any, function: str | None = None) -> list[str]:
    return [op.op_type for op in operations(model.function(function)) if op.op_type != "const"]


def weight_of(model: Any, function: str | None = None) -> Any:
    (op,) = [op for op in operations(model.function(function)) if op.name == "w"]
    return op


SPECS = [
    "palettize{bits=4}",
    "palettize{bits=3,per_channel_scale=true}",
    "palettize{bits=6,cluster_dim=2}",
    "palettize{bits=8,granularity=tensor}",
    "quantize",
    "quantize{dtype=uint4,symmetric=false}",
    "quantize{dtype=int8,granularity=channel}",
]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("saved", [False, True])
def test_numbers_are_those_of_coremltools(spec: str, saved: bool, tmp_path: Path) -> None:
    model = load(linear_program(weights((48, 64))))
    Pipeline.parse(spec).run(model)
    if saved:
        model = load(model.save(tmp_path / "m.mlpackage"))
    expected = decoded_by_coremltools(weight_of(model))
    report = Decompress().run(model)
    model.program.validate()
    assert (report.tried, report.applied, report.notes) == (1, 1, ["1 weights are 6,144 bytes as numbers"])
    assert kinds(model) == ["linear"]
    np.testing.assert_array_equal(constant(weight_of(model).outputs[0]), expected)
    assert constant(weight_of(model).outputs[0]).dtype == expected.dtype
    assert not Decompress().run(model)


@pytest.mark.parametrize("spec", ["palettize{granularity=tensor}", "quantize{dtype=uint8,granularity=channel}"])
def test_ios16_forms(spec: str) -> None:
    model = load(linear_program(weights((48, 64)), opset=target.iOS16))
    Pipeline.parse(spec).run(model)
    expected = decoded_by_coremltools(weight_of(model))
    Decompress().run(model)
    np.testing.assert_array_equal(constant(weight_of(model).outputs[0]), expected)


def test_sparse_and_joint_forms() -> None:
    rng = np.random.default_rng(0)
    mask = (rng.random((16, 32)) < 0.4).astype(types.nptype_from_builtin(types.uint1))
    data = rng.integers(0, 4, int(mask.sum())).astype(types.nptype_from_builtin(types.uint2))
    lut = rng.standard_normal((1, 1, 4, 1)).astype(np.float16)

    @mb.program(input_specs=[mb.TensorSpec((1, 32), types.fp16)], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        inner, values = mb.constexpr_lut_to_sparse(indices_mask=mask, indices_nonzero_data=data, lut=lut)
        held = mb.constexpr_sparse_to_dense(nonzero_data=values, mask=inner, name="w")
        return mb.linear(x=x, weight=held, name="out")

    model = load(program)
    expected: Any = np.zeros((16, 32), np.float16)
    expected[mask != 0] = lut[0, 0, :, 0][data]
    assert Decompress().run(model)
    np.testing.assert_array_equal(constant(weight_of(model).outputs[0]), expected)
    assert kinds(model) == ["linear"]


def test_functions_share_what_they_shared(tmp_path: Path) -> None:
    weight = weights((64, 96))
    model = two_functions(linear_program(weight), conv_program(weight.reshape(64, 96, 1, 1)))
    Palettize(bits=4).run(model)
    assert Decompress().run(model).applied == 2
    first, second = (constant(weight_of(model, name).outputs[0]) for name in ("decode", "prefill"))
    assert (first.shape, second.shape) == ((64, 96), (64, 96, 1, 1))
    assert weight_key(first) == weight_key(second)
    (file,) = model.save(tmp_path / "m.mlpackage").rglob("weight.bin")
    assert file.stat().st_size < weight.nbytes + 64 * 16


def test_results_stay() -> None:
    model = load(linear_program(weights((48, 64))))
    Palettize(bits=4).run(model)
    x = np.ones((1, 3, 64), np.float16)
    before = evaluate(model, {"x": x})["out"]
    Decompress().run(model)
    np.testing.assert_array_equal(evaluate(model, {"x": x})["out"], before)


# --- again


@pytest.mark.parametrize("first", SPECS)
@pytest.mark.parametrize("again", ["palettize{bits=6,recompress=true}", "quantize{recompress=true}"])
def test_from_one_form_to_another(first: str, again: str) -> None:
    model = load(linear_program(weights((48, 64))))
    Pipeline.parse(first).run(model)
    known = decoded_by_coremltools(weight_of(model)).astype(np.float64)
    (report,) = Pipeline.parse(again).run(model).parts
    model.program.validate()
    assert isinstance(report, CompressionReport)
    (line,) = report.coverage
    assert line.snr is not None
    error = np.sum((known - decoded_by_coremltools(weight_of(model))) ** 2)
    made = 10 * np.log10(np.sum(known**2) / error) if error else np.inf
    assert line.snr == pytest.approx(made, rel=1e-9)  # what is lost beyond what the first one lost
    assert sum(map(is_constexpr, kinds(model))) == 1


def test_the_same_form_again_loses_nothing() -> None:
    model = load(linear_program(weights((48, 64))))
    Palettize(bits=4).run(model)
    before = text(model, weights="hash")
    report = Palettize(bits=4, recompress=True).run(model)
    assert isinstance(report, CompressionReport)
    assert report.coverage[0].snr == np.inf
    assert text(model, weights="hash") == before


@pytest.mark.parametrize("made", [Palettize(), Quantize()], ids=str)
def test_compressed_weights_stay_unless_asked_for(made: Any) -> None:
    first, second = weights((48, 64)), weights((48, 64), seed=1)
    model = load(two_layers(first, second))
    report = made.run(model)
    assert [miss.reason for miss in report.misses] == ["compressed already, as constexpr_lut_to_dense"]
    assert report.applied == 1
    assert kinds(model).count("constexpr_lut_to_dense") == (2 if isinstance(made, Palettize) else 1)


def test_what_can_not_be_compressed_again_stays_compressed() -> None:
    model = load(linear_program(weights((48, 64))))
    Palettize(bits=4).run(model)
    before = text(model, weights="hash")
    report = Quantize(recompress=True, min_elements=9999).run(model)
    assert [miss.reason for miss in report.misses] == ["too small: 3072 of 9999 numbers"]
    assert text(model, weights="hash") == before


def two_layers(first: Any, second: Any) -> Program:
    """The first weight in a table of 16 numbers, the second as it is."""
    numbers: Any = np.arange(first.size, dtype=np.uint8) % 16
    indices = np.reshape(numbers, first.shape).astype(types.nptype_from_builtin(types.uint4))
    lut = np.reshape(np.linspace(-1, 1, 16).astype(np.float16), (1, 1, 16, 1))

    @mb.program(input_specs=[mb.TensorSpec((1, 64), types.fp16)] * 2, opset_version=target.iOS18)
    def program(x: Any, y: Any) -> Any:
        held = mb.constexpr_lut_to_dense(indices=indices, lut=lut, name="w")
        return mb.linear(x=x, weight=held), mb.linear(x=y, weight=mb.const(val=second, name="v"))

    return program


def test_the_same_bytes_on_another_axis_are_another_weight() -> None:
    data = np.reshape(np.arange(16, dtype=np.int8), (4, 4))
    scale = np.arange(1, 5, dtype=np.float16)

    @mb.program(input_specs=[mb.TensorSpec((1, 4), types.fp16)] * 2, opset_version=target.iOS18)
    def program(x: Any, y: Any) -> Any:
        rows = mb.constexpr_blockwise_shift_scale(data=data, scale=np.reshape(scale, (4, 1)))
        columns = mb.constexpr_blockwise_shift_scale(data=data, scale=np.reshape(scale, (1, 4)))
        return mb.linear(x=x, weight=rows), mb.linear(x=y, weight=columns)

    first, second = (weight.array for weight in compressed_weights(load(program)))
    np.testing.assert_array_equal(first, data * np.reshape(scale, (4, 1)))
    np.testing.assert_array_equal(second, data * scale)
