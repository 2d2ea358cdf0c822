"""scale-residual: what nears the end of fp16 is scaled, nothing else changes, and every reason to stay away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milopt.errors import PassError
from milopt.interpreter import evaluate
from milopt.mil import Program, constant, mb, operations, target, types
from milopt.multifunction import merge
from milopt.numerics import value_ranges
from milopt.package import Model, load
from milopt.passes.norms import Fp16SafeNorm
from milopt.passes.residual import ScaleResidual
from milopt.reports import Report
from milopt.text import text
from milopt.verify import compare

F16 = np.float16
WIDTH = 16
IDS = np.array([[0, 1, 2, 3]], np.int32)


def _weight(rng: Any, *shape: int) -> Any:
    # multiples of 2**-8, a quarter of which fp16 holds as well
    return ((rng.standard_normal(shape) * 64).round() / 256).astype(F16)


def rms(x: Any) -> Any:
    mean = mb.reduce_mean(x=mb.pow(x=x, y=F16(2)), axes=[-1], keep_dims=True)
    return mb.mul(x=x, y=mb.rsqrt(x=mb.add(x=mean, y=F16(1e-5)), epsilon=F16(0)))


def layer_norm(x: Any) -> Any:
    return mb.layer_norm(x=x, axes=[-1], epsilon=F16(2.0**-12))


def centred(x: Any) -> Any:
    return rms(mb.sub(x=x, y=mb.reduce_mean(x=x, axes=[-1], keep_dims=True)))


def program(norm: Any = rms, peak: float = 5e4, *, end: str = "norm", layers: int = 2) -> Program:
    rng = np.random.default_rng(0)
    table = _weight(rng, 4, WIDTH)
    table[:, 3] = peak

    @mb.program(input_specs=[mb.TensorSpec((1, 4), types.int32)], opset_version=target.iOS17)
    def built(ids: Any) -> Any:
        x = mb.gather(x=table, indices=ids, axis=0, name="embedding")
        for layer in range(layers):
            hidden = mb.relu(x=mb.linear(x=norm(x), weight=_weight(rng, WIDTH, WIDTH)))
            bias = np.full(WIDTH, 0.5, F16)
            made = mb.linear(x=hidden, weight=_weight(rng, WIDTH, WIDTH), bias=bias, name=f"down{layer}")
            x = mb.add(x=x, y=made, name=f"sum{layer}")
        if end == "cube":
            return mb.tanh(x=x, name="out")
        if end == "output":
            return x
        return mb.linear(x=norm(x), weight=_weight(rng, 6, WIDTH), name="out")

    return built


def model_of(norm: Any = rms, **options: Any) -> Model:
    model = load(program(norm, **options))
    Fp16SafeNorm().run(model)
    return model


def run(model: Model, limit: float = 16384.0) -> Report:
    report = ScaleResidual(limit).run(model)
    model.program.validate()
    return report


@pytest.mark.parametrize("norm", [rms, layer_norm, centred])
@pytest.mark.parametrize("peak", [5e4, -6.5e4, 2e4])
def test_norms(norm: Any, peak: float) -> None:
    model = model_of(norm, peak=peak)
    before = model.clone()
    report = run(model)
    # x - mean(x) of the embedding, which the first norm makes, is a stream of its own
    assert (report.applied, report.misses) == (2 if norm is centred else 1, [])
    assert compare(before, model, metric=ScaleResidual.metric)
    sums = [each.largest for (_, name), each in value_ranges(model).items() if name.startswith("sum")]
    assert 8192 <= max(sums) <= 16384 * 1.01
    assert not run(model)


def test_an_overflow_is_gone() -> None:
    """Two layers that add 40,000 to 40,000: infinite before, and what float64 gives afterwards."""

    @mb.program(input_specs=[mb.TensorSpec((1, 4), types.int32)], opset_version=target.iOS17)
    def built(ids: Any) -> Any:
        rows = np.eye(4, WIDTH).astype(F16) * F16(4e4)
        x = mb.gather(x=rows, indices=ids, axis=0)
        x = mb.add(x=x, y=mb.gather(x=rows, indices=ids, axis=0), name="sum")
        return mb.identity(x=layer_norm(x), name="out")

    model = load(built)
    exact = evaluate(built, {"ids": IDS}, precision="float64")["out"]
    assert not np.isfinite(evaluate(built, {"ids": IDS})["out"]).all()
    assert run(model).notes == ["main: the stream of 1 values around 'sum' reaches 8e+04, scaled by 2**-3"]
    # one rounding of the result
    np.testing.assert_allclose(evaluate(built, {"ids": IDS})["out"].astype(float), exact, rtol=2e-3, atol=1e-3)


def test_it_goes_into_weights_and_biases() -> None:
    model = model_of()
    before = {op.name: [constant(op.inputs[each]) for each in ("weight", "bias")] for op in _layers(model)}
    run(model)
    for op in _layers(model):
        for each, old in zip(("weight", "bias"), before[op.name], strict=True):
            np.testing.assert_array_equal(constant(op.inputs[each]), old / 4)
    kinds = [op.op_type for op in operations(model.function())]
    # before the first sum alone: the embedding
    assert [op.name for op in operations(model.function()) if op.name.endswith("_scaled") and op.op_type == "mul"] == [
        "embedding_scaled"
    ]
    assert kinds.count("linear") == 5


def _layers(model: Model) -> list[Any]:
    return [op for op in operations(model.function()) if op.op_type == "linear" and op.name.startswith("down")]


def test_a_weight_that_would_lose_bits_stays() -> None:
    def build(tiny: float) -> Program:
        weight = np.full((WIDTH, WIDTH), tiny, F16)

        @mb.program(input_specs=[mb.TensorSpec((1, 4), types.int32)], opset_version=target.iOS17)
        def built(ids: Any) -> Any:
            rows = np.full((4, WIDTH), 6e4, F16)
            x = mb.gather(x=rows, indices=ids, axis=0)
            made = mb.linear(x=layer_norm(x), weight=weight, name="down")
            return mb.identity(x=layer_norm(mb.add(x=x, y=made)), name="out")

        return built

    for tiny, kept in ((1.5 * 2.0**-14, False), ((1 + 2.0**-10) * 2.0**-14, True)):
        model = load(build(tiny))
        before = model.clone()
        assert run(model)
        (layer,) = _layers(model)
        assert (float(constant(layer.inputs["weight"]).flat[0]) == float(F16(tiny))) is kept
        assert (layer.inputs["x"].op.op_type == "mul") is kept
        assert compare(before, model, metric=ScaleResidual.metric)


REFUSALS: dict[str, tuple[Model, str, str]] = {
    "something else": (model_of(end="cube"), "out", "the stream flows into tanh, which is no norm"),
    "an output": (model_of(end="output"), "sum1", "the stream is an output"),
    "a plain norm": (
        load(program()),
        "",
        "its epsilon 1.001e-05 times 0.0625 is no fp16 number: run fp16-safe-norm first",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str) -> None:
    model, place, reason = REFUSALS[case]
    before = text(model, weights="hash")
    report = run(model)
    assert not report
    assert [miss.reason for miss in report.misses] == [reason]
    assert place in ("", report.misses[0].place)
    assert text(model, weights="hash") == before


def test_no_need() -> None:
    model = model_of(peak=2.0)
    before = text(model, weights="hash")
    report = run(model)
    assert (report.applied, report.tried, report.misses) == (0, 0, [])
    assert len(report.notes) == 1
    assert report.notes[0].startswith("no need: no fp16 sum is beyond ")
    assert text(model, weights="hash") == before


def test_inputs_may_show_what_random_ones_do_not(tmp_path: Path) -> None:
    """Large only for one input of a million: given in a file, or not seen."""

    @mb.program(input_specs=[mb.TensorSpec((1, WIDTH), types.fp16)], opset_version=target.iOS17)
    def built(x: Any) -> Any:
        return mb.identity(x=layer_norm(mb.add(x=x, y=x, name="sum")), name="out")

    path = tmp_path / "inputs.npz"
    np.savez(path, x=np.full((1, WIDTH), 3e4, F16))
    assert not ScaleResidual().run(load(built))
    assert ScaleResidual(inputs=str(path)).run(load(built)).applied == 1
    with pytest.raises(PassError, match=r"scale-residual: can't read .*none\.npz"):
        ScaleResidual(inputs=str(tmp_path / "none.npz")).run(load(built))


def test_functions_share_scaled_weights() -> None:
    model = merge({name: model_of() for name in ("a", "b")}, default="a")
    assert run(model).applied == 2
    weights = [
        constant(op.inputs["weight"])
        for function in model.functions.values()
        for op in operations(function)
        if op.name == "down0"
    ]
    assert weights[0] is weights[1]


def test_limits() -> None:
    with pytest.raises(PassError, match="scale-residual: limit is above 0, not 0"):
        ScaleResidual(0)


def test_text() -> None:
    model = load(program(layer_norm, layers=1))
    run(model)
    bias = ", ".join(["0.125"] * WIDTH)
    assert (
        text(model).partition("} ->")[0].replace(f"fp16([{bias}])", "eighths")
        == """\
main[CoreML7](%ids: int32[1, 4]) {
  %0: fp16[1, 4, 16] = gather(x=w0, indices=%ids)
  %1: fp16[1, 4, 16] = layer_norm(x=%0, axes=[-1], epsilon=fp16(0.0002441))
  %2: fp16[1, 4, 16] = linear(x=%1, weight=w1)
  %3: fp16[1, 4, 16] = relu(x=%2)
  %4: fp16[1, 4, 16] = linear(x=%3, weight=w2, bias=eighths)
  %5: fp16[1, 4, 16] = mul(x=%0, y=fp16(0.25))
  %6: fp16[1, 4, 16] = add(x=%5, y=%4)
  %7: fp16[1, 4, 16] = layer_norm(x=%6, axes=[-1], epsilon=fp16(1.526e-05))
  %8: fp16[1, 4, 6] = linear(x=%7, weight=w3)
"""
    )
