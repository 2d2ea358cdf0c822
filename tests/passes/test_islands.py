"""fp32-islands: norms and angles of a fp16 program in fp32, with the same algebra."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from milopt.interpreter import evaluate
from milopt.metrics import Lossy
from milopt.mil import Program, dtype_name, mb, operations, target, types
from milopt.package import load
from milopt.passes.islands import Fp32Islands
from milopt.passes.rope import RopeTable
from milopt.reports import Report
from milopt.text import text
from milopt.verify import compare

F16 = np.float16
EXACT = 1e5 ** (-np.arange(8) / 8)
POSITIONS = np.array([[0, 1, 511, 2049, 4095]], np.int32)  # fp16 has no 2049


def run(built: Program) -> Report:
    report = Fp32Islands().run(load(built))
    built.validate()
    return report


def _root(x: Any, *, kind: str, eps: float) -> Any:
    mean = mb.reduce_mean(x=mb.mul(x=x, y=x), axes=[-1], keep_dims=True)
    if kind == "floor":  # the op's own epsilon
        return mb.mul(x=x, y=mb.rsqrt(x=mean, epsilon=F16(eps)))
    total = mb.add(x=mean, y=F16(eps))
    if kind == "inverse":  # one more, outside of the root
        return mb.mul(x=x, y=mb.inverse(x=mb.sqrt(x=total), epsilon=F16(0.25)))
    if kind == "division":
        return mb.real_div(x=x, y=mb.sqrt(x=total))
    return mb.mul(x=x, y=mb.rsqrt(x=total, epsilon=F16(2.0**-10)))


def norm(kind: str, eps: float = 1e-5) -> Program:
    @mb.program(input_specs=[mb.TensorSpec((1, 3, 16), types.fp16)], opset_version=target.iOS17)
    def built(x: Any) -> Any:
        return mb.identity(x=_root(x, kind=kind, eps=eps), name="out")

    return built


@pytest.mark.parametrize("kind", ["floor", "inverse", "division", "rsqrt"])
def test_norms(kind: str) -> None:
    """Rows of 1e-3, where every epsilon counts, of ordinary numbers, and beyond what fp16 squares hold."""
    built = norm(kind)
    before = load(built).clone()
    model = load(built)
    report = Fp32Islands().run(model)
    assert (report.applied, report.misses, report.metric) == (1, [], None)
    assert compare(before, model, metric=Fp32Islands.metric)
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((1, 3, 16)) * np.array([1e-3, 1, 2e4])[:, None]).astype(F16)
    exact = evaluate(before.program, {"x": x}, precision="float64")["out"]
    # a rounding to fp16, and one of the epsilons
    np.testing.assert_allclose(evaluate(built, {"x": x})["out"].astype(float), exact, rtol=1e-3)
    assert not Fp32Islands().run(model)
    inner = [op for op in operations(built.functions["main"]) if op.op_type in ("mul", "reduce_mean", "rsqrt", "sqrt")]
    assert {dtype_name(op.outputs[0]) for op in inner} == {"fp32"}


def rotation(frequencies: Any, phase: float = 0.0, perm: list[int] | None = None) -> Program:
    @mb.program(input_specs=[mb.TensorSpec((1, 5), types.int32)], opset_version=target.iOS17)
    def built(position_ids: Any) -> Any:
        column = mb.cast(x=mb.expand_dims(x=position_ids, axes=[2]), dtype="fp16")
        angles = mb.mul(x=column, y=frequencies.reshape(1, 1, -1))
        angles = mb.add(x=angles, y=F16(phase)) if phase else angles
        angles = mb.transpose(x=angles, perm=perm) if perm else angles
        return mb.identity(x=mb.cos(x=angles), name="c"), mb.identity(x=mb.sin(x=angles), name="s")

    return built


@pytest.mark.parametrize("phase", [0.0, 0.5])
@pytest.mark.parametrize("perm", [None, [0, 2, 1], [2, 1, 0]])
def test_angles(phase: float, perm: list[int] | None) -> None:
    built = rotation(EXACT.astype(F16), phase, perm)
    report = run(built)
    assert (report.applied, report.misses) == (2, [])
    assert isinstance(report.metric, Lossy)
    assert report.notes == ["inverse frequencies that fp16 had rounded were restored: theta 100000"]
    found = evaluate(built, {"position_ids": POSITIONS})
    angles = np.transpose(POSITIONS[..., None] * EXACT + phase, perm or [0, 1, 2])
    # fp32 rounds an angle of 4095 by 2.4e-4, and fp16 the result by as much
    np.testing.assert_allclose(found["c"].astype(float), np.cos(angles), rtol=0, atol=6e-4)
    np.testing.assert_allclose(found["s"].astype(float), np.sin(angles), rtol=0, atol=6e-4)
    assert not run(built)


def test_frequencies_that_fp16_holds_are_compared_exactly() -> None:
    built = rotation((2.0 ** -np.arange(8)).astype(F16))
    before = load(built).clone()
    model = load(built)
    report = Fp32Islands().run(model)
    assert report.metric is None
    assert compare(before, model, metric=Fp32Islands.metric)


def test_a_table_comes_of_it_too() -> None:
    built = rotation(EXACT.astype(F16))
    run(built)
    report = RopeTable(64).run(load(built))
    assert report.applied == 2


def _squared() -> Program:
    @mb.program(input_specs=[mb.TensorSpec((1, 5), types.int32)], opset_version=target.iOS17)
    def built(position_ids: Any) -> Any:
        column = mb.cast(x=position_ids, dtype="fp16")
        return mb.identity(x=mb.cos(x=mb.mul(x=column, y=column, name="angles")), name="c")

    return built


def _of_constants() -> Program:
    @mb.program(input_specs=[mb.TensorSpec((3,), types.fp16)], opset_version=target.iOS17)
    def built(x: Any) -> Any:
        angles = mb.const(val=np.arange(3).astype(F16), name="angles")
        return mb.mul(x=x, y=mb.cos(x=angles), name="c")

    return built


def _almost_multiples() -> Program:
    """Squares of the positions that are a ten-millionth of the angles."""

    @mb.program(input_specs=[mb.TensorSpec((1, 5), types.int32)], opset_version=target.iOS17)
    def built(position_ids: Any) -> Any:
        column = mb.cast(x=position_ids, dtype="fp16")
        squares = mb.mul(x=mb.mul(x=column, y=column), y=F16(6e-8))
        return mb.identity(x=mb.cos(x=mb.add(x=column, y=squares, name="angles")), name="c")

    return built


def _of_numbers() -> Program:
    @mb.program(input_specs=[mb.TensorSpec((1, 5), types.fp16)], opset_version=target.iOS17)
    def built(x: Any) -> Any:
        return mb.identity(x=mb.cos(x=x), name="c")

    return built


@pytest.mark.parametrize(
    ("built", "reason"),
    [
        (_squared(), "its angles are no multiples of the positions"),
        (_of_numbers(), "it depends on a fp16 input, not on integer positions alone"),
        (_of_constants(), "its angles are constant"),
        (_almost_multiples(), "its angles are no multiples of the positions"),
    ],
    ids=["squares", "numbers", "constants", "almost multiples"],
)
def test_refusals(built: Program, reason: str) -> None:
    before = text(built)
    report = run(built)
    assert not report
    assert [(miss.place, miss.reason) for miss in report.misses] == [
        ("x" if "fp16 input" in reason else "angles", reason)
    ]
    assert text(built) == before


def test_what_is_fp32_already_is_not_told_of() -> None:
    @mb.program(input_specs=[mb.TensorSpec((1, 5), types.int32)], opset_version=target.iOS17)
    def built(position_ids: Any) -> Any:
        return mb.cos(x=mb.mul(x=mb.cast(x=position_ids, dtype="fp32"), y=np.float32(0.5)), name="c")

    assert run(built).misses == []


def test_the_metric_is_what_the_original_leaves_and_a_margin() -> None:
    """The worst row of the original cosines, or sines, at 4096 positions, less 10 dB; at most 35 dB."""
    exact, stored = (np.arange(4096)[:, None] * row.astype(np.float64) for row in (EXACT, EXACT.astype(F16)))
    ratios: list[float] = []
    for wave in (np.cos, np.sin):
        noise = ((wave(exact) - wave(stored)) ** 2).sum(1)
        ratios.append(float(((wave(exact) ** 2).sum(1)[noise > 0] / noise[noise > 0]).min()))
    metric = run(rotation(EXACT.astype(F16))).metric
    assert isinstance(metric, Lossy)
    assert metric.min_snr_db == pytest.approx(min(35.0, 10 * np.log10(min(ratios)) - 10))


def test_text() -> None:
    built = norm("rsqrt")
    run(built)
    assert (
        text(built)
        == """\
main[CoreML7](%x: fp16[1, 3, 16]) {
  %0: fp32[1, 3, 16] = cast(x=%x, dtype="fp32")
  %1: fp32[1, 3, 16] = mul(x=%0, y=%0)
  %2: fp32[1, 3, 1] = reduce_mean(x=%1, axes=[-1], keep_dims=true)
  %3: fp32[1, 3, 1] = add(x=%2, y=1.001358e-05)
  %4: fp32[1, 3, 1] = rsqrt(x=%3, epsilon=0.0009765625)
  %5: fp32[1, 3, 16] = mul(x=%0, y=%4)
  %6: fp16[1, 3, 16] = cast(x=%5, dtype="fp16")
  %7: fp16[1, 3, 16] = identity(x=%6)
} -> (out=%7)
"""
    )
