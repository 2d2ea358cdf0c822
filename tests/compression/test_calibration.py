"""Moments of inputs: the numbers are those of numpy, weights are known by their bytes, and tables follow them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milopt.calibration.calibrating import calibrate
from milopt.calibration.statistics import Moments, Statistics
from milopt.clustering import palettize
from milopt.errors import MiloptError, PassError
from milopt.feedback import with_feedback
from milopt.interpreter import evaluate
from milopt.kmeans import exact
from milopt.mil import mb, target, types
from milopt.package import load
from milopt.passes.compression import Palettize
from milopt.passes.uses import Layout
from milopt.pipeline import Pipeline

from .support import conv_program, linear_program, palettized, weights

ALONG = Layout(48, 64, 1)  # the inputs of a linear's weight (48, 64)


def samples(count: int, *, correlated: bool = False, width: int = 64) -> list[dict[str, Any]]:
    """Inputs whose channels have powers from 1e-4 to 10."""
    rng = np.random.default_rng(5)
    scale = np.geomspace(0.01, 3, width)
    places: Any = np.arange(width, dtype=float)
    near = np.exp(-np.abs(places[:, None] - places) / 10) if correlated else np.eye(width)
    mixed: Any = np.transpose(np.linalg.cholesky(near))
    return [{"x": np.float16((rng.standard_normal((1, 3, width)) @ mixed) * scale)} for _ in range(count)]


def sums(inputs: list[dict[str, Any]]) -> Any:
    return np.concatenate([each["x"].reshape(-1, each["x"].shape[-1]) for each in inputs]).astype(np.float64)


def test_moments_of_a_linear() -> None:
    weight, inputs = weights((48, 64)), samples(5)
    found = calibrate(load(linear_program(weight)), inputs, hessian=True).of(weight, ALONG)
    assert found is not None
    rows = sums(inputs)
    assert found.count == 15
    # 1e-12, 1e-6: the same sums in float64, the products of pairs in float32
    np.testing.assert_allclose(found.mean, np.mean(rows**2, axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.products, rows.T @ rows, rtol=1e-6, atol=1e-6)


def test_weights_are_known_by_their_bytes() -> None:
    weight, inputs = weights((48, 64)), samples(2)
    model = load(linear_program(weight))
    Pipeline.parse("linear-to-conv").run(model)
    first = calibrate(load(linear_program(weight)), inputs).of(weight, ALONG)
    second = calibrate(model, inputs).of(weight.reshape(48, 64, 1, 1), ALONG)
    assert first is not None
    assert second is not None
    np.testing.assert_allclose(first.mean, second.mean, rtol=1e-12)
    assert calibrate(model, inputs).of(weights((48, 64), seed=1), ALONG) is None
    assert calibrate(model, inputs).of(weight, Layout(1, 48, 64)) is None


@pytest.mark.parametrize("case", ["y", "y transposed", "x", "x transposed", "conv", "conv_transpose"])
def test_where_the_inputs_of_each_op_lie(case: str) -> None:
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((6, 6)).astype(np.float16)
    value = (rng.standard_normal((4, 6)) * np.arange(1, 7)).astype(np.float16)
    shape = {"x": (6, 4), "conv": (1, 6, 1, 4), "conv_transpose": (1, 6, 1, 4)}.get(case, (4, 6))

    @mb.program(input_specs=[mb.TensorSpec(shape, types.fp16)], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        if case.startswith("conv"):
            return getattr(mb, case)(x=x, weight=mb.const(val=np.reshape(weight, (6, 6, 1, 1)), name="w"))
        held = mb.const(val=weight, name="w")
        if case.startswith("y"):
            return mb.matmul(x=x, y=held, transpose_y=case != "y")
        return mb.matmul(x=held, y=x, transpose_y=case != "x")

    given: Any = value if shape == (4, 6) else np.reshape(np.transpose(value), shape)
    across = case in ("y", "conv_transpose")
    found = calibrate(load(program), [{"x": given}]).of(weight, Layout(1, 6, 6) if across else Layout(6, 6, 1))
    assert found is not None
    np.testing.assert_allclose(found.squares, np.sum(value.astype(np.float64) ** 2, axis=0), rtol=1e-12)


def test_statistics_are_saved_and_read(tmp_path: Path) -> None:
    weight = weights((48, 64))
    made = calibrate(load(linear_program(weight)), samples(3), hessian=True)
    made.save(tmp_path / "s.safetensors")
    made.sensitivities = {"ab": 0.25}
    made.save(tmp_path / "s.safetensors")
    read = Statistics.load(tmp_path / "s.safetensors")
    assert read.sensitivities == {"ab": 0.25}
    first, second = made.of(weight, ALONG), read.of(weight, ALONG)
    assert first is not None
    assert second is not None
    assert first.count == second.count
    np.testing.assert_array_equal(first.squares, second.squares)
    np.testing.assert_array_equal(first.products, second.products)


# --- what becomes of them


def test_importance_weighs_errors() -> None:
    rows = np.random.default_rng(0).standard_normal((1, 1, 3, 50)).astype(np.float16)
    weight = np.random.default_rng(1).exponential(size=(1, 1, 1, 50))
    found = palettize(rows, 2, weight)
    values, each = np.unique(rows.astype(np.float64), return_inverse=True)
    heavy = np.bincount(each.ravel(), weights=np.broadcast_to(weight, rows.shape).ravel())
    # 1e-3: entries are rounded to fp16
    np.testing.assert_allclose(found.lut[0], exact(values, heavy, 4), rtol=1e-3, atol=1e-3)
    fp32 = palettize(rows.astype(np.float32), 2, weight)
    np.testing.assert_allclose(fp32.lut[0], exact(values, heavy, 4), rtol=1e-6, atol=1e-6)


def test_values_that_no_input_meets_do_not_move_the_table() -> None:
    rows = np.array([[[[1.0, 2.0, 100.0, 200.0]]]], np.float16)
    found = palettize(rows, 1, np.array([1.0, 1.0, 0.0, 0.0]))
    assert found.lut.tolist() == [[1.0, 2.0]]
    assert found.indices.ravel().tolist() == [0, 1, 1, 1]


def output_error(weight: Any, inputs: list[dict[str, Any]], **options: Any) -> float:
    program, model = linear_program(weight), load(linear_program(weight))
    report = Palettize(bits=4, **options).run(model)
    assert report.applied == 1
    total = 0.0
    for each in inputs:
        before = evaluate(program, each, precision="float64")["out"]
        total += float(np.sum((evaluate(model, each, precision="float64")["out"] - before) ** 2))
    return total


@pytest.mark.parametrize("scaled", [False, True])
def test_activations_and_feedback_lessen_the_error_of_outputs(scaled: bool, tmp_path: Path) -> None:
    weight, inputs = weights((48, 64)), samples(80, correlated=True)
    calibrate(load(linear_program(weight)), inputs[:40], hessian=True).save(tmp_path / "s.safetensors")
    known = {"weighting": "activation", "calibration": str(tmp_path / "s.safetensors"), "per_channel_scale": scaled}
    plain = output_error(weight, inputs[40:], per_channel_scale=scaled)
    weighed = output_error(weight, inputs[40:], **known)
    fed = output_error(weight, inputs[40:], **known, feedback=True)
    # measured on inputs that the statistics have not seen: about 0.8 and 0.5
    assert weighed < 0.92 * plain
    assert fed < 0.75 * plain


def test_conv_and_linear_take_the_same(tmp_path: Path) -> None:
    weight = weights((48, 64))
    calibrate(load(linear_program(weight)), samples(10), hessian=True).save(tmp_path / "s.safetensors")
    made = Palettize(bits=4, weighting="activation", feedback=True, calibration=str(tmp_path / "s.safetensors"))
    linear, conv = load(linear_program(weight)), load(conv_program(weight.reshape(48, 64, 1, 1)))
    reports: list[Any] = [made.run(linear), made.run(conv)]
    assert reports[0].notes == reports[1].notes
    assert reports[0].coverage[0].snr == reports[1].coverage[0].snr


def test_what_is_not_known_is_told(tmp_path: Path) -> None:
    weight = weights((48, 64))
    path = str(tmp_path / "s.safetensors")
    calibrate(load(linear_program(weights((48, 64), seed=1))), samples(2)).save(path)
    report = Palettize(bits=4, weighting="activation", calibration=path).run(load(linear_program(weight)))
    assert "no inputs of w were seen: every number of it counts alike" in report.notes
    calibrate(load(linear_program(weight)), samples(2)).save(path)
    report = Palettize(bits=4, weighting="activation", feedback=True, calibration=path).run(
        load(linear_program(weight))
    )
    assert "no feedback among the indices of w: no hessian was collected" in report.notes


def test_without_correlation_feedback_changes_nothing() -> None:
    rows = np.random.default_rng(0).standard_normal((8, 40)).astype(np.float32)
    found = palettize(np.reshape(rows, (2, 1, 4, 40)), 3)
    indices = with_feedback(rows, found.lut, np.eye(40) * np.linspace(1, 2, 40))
    np.testing.assert_array_equal(np.reshape(indices, found.indices.shape), found.indices)


def test_feedback_goes_from_block_to_block() -> None:
    """More columns than are handed on at once: all the same as one after another."""
    rng = np.random.default_rng(3)
    inputs: Any = rng.standard_normal((2000, 200)) @ (np.eye(200) + 0.5 * np.eye(200, k=1))
    across: Any = np.transpose(inputs)
    rows = rng.standard_normal((4, 200)).astype(np.float32)
    found = palettize(np.reshape(rows, (1, 1, 4, 200)), 2)
    chosen = with_feedback(rows, found.lut, across @ inputs)

    def lost(indices: Any) -> float:
        return float(np.sum(((found.lut[0][np.reshape(indices, (4, 200))] - rows) @ across) ** 2))

    assert lost(chosen) < 0.9 * lost(found.indices)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -1e9])
def test_products_that_are_none_are_told(wrong: float, tmp_path: Path) -> None:
    weight = weights((48, 64))
    made = calibrate(load(linear_program(weight)), samples(3), hessian=True)
    (moments,) = made.moments.values()
    moments.products = np.array(moments.products)
    moments.products[5, 5] = wrong
    made.save(tmp_path / "s.safetensors")
    known = {"bits": 4, "weighting": "activation", "calibration": str(tmp_path / "s.safetensors")}
    with pytest.raises(MiloptError, match="the products in the calibration are no sums"):
        palettized(linear_program(weight), feedback=True, **known)


def test_options_need_their_statistics() -> None:
    with pytest.raises(PassError, match="weighting=activation goes with calibration"):
        Pipeline.parse("palettize{weighting=activation}")
    with pytest.raises(PassError, match="feedback needs weighting=activation"):
        Pipeline.parse("palettize{feedback=true}")
    assert Moments(np.ones(2)).mean.tolist() == [1.0, 1.0]
