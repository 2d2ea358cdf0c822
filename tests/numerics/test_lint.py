"""lint: what is found, how much too small fp16 is, and that the passes it names repair it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milopt.cli import main
from milopt.interpreter import evaluate
from milopt.mil import Program, mb, target, types
from milopt.numerics import Finding, LintReport, lint, value_ranges
from milopt.package import Model, load
from milopt.pipeline import Pipeline

F16 = np.float16
WIDTH = 16
IDS = np.array([[0, 1, 2, 3]], np.int32)
CAUSAL = np.where(np.tri(4, dtype=bool), 0, -np.inf).astype(F16)


def rms(x: Any, name: str) -> Any:
    mean = mb.reduce_mean(
        x=mb.pow(x=x, y=F16(2), name=f"{name}_square"), axes=[-1], keep_dims=True, name=f"{name}_mean"
    )
    root = mb.rsqrt(x=mb.add(x=mean, y=F16(1e-5), name=f"{name}_total"), epsilon=F16(0))
    return mb.mul(x=x, y=root, name=name)


def program(*, peak: float = 5e4, sound: bool = False) -> Program:
    """A layer with everything that can be wrong; or with nothing, for ``sound``."""
    table = np.eye(4, WIDTH).astype(F16) * F16(0.5 if sound else peak)
    row = (2.0 ** -np.arange(8)).astype(F16) if sound else (1e4 ** (-np.arange(8) / 8)).astype(F16)

    @mb.program(
        input_specs=[mb.TensorSpec((1, 4), types.int32), mb.TensorSpec((1, 4), types.int32)], opset_version=target.iOS17
    )
    def built(ids: Any, position_ids: Any) -> Any:
        x = mb.gather(x=table, indices=ids, axis=0, name="embedding")
        x = mb.add(x=x, y=mb.gather(x=table, indices=ids, axis=0), name="sum")
        norm = mb.layer_norm(x=x, axes=[-1], epsilon=F16(2.0**-10)) if sound else rms(x, "norm")
        column = mb.expand_dims(x=position_ids, axes=[2])
        kind = "fp32" if sound else "fp16"
        angles = mb.mul(x=mb.cast(x=column, dtype=kind), y=row.astype(np.float32) if sound else row)
        scores = mb.matmul(x=norm, y=norm, transpose_y=True)
        scores = mb.add(x=scores, y=np.maximum(CAUSAL, F16(-1e4)) if sound else CAUSAL, name="masked")
        shares = mb.softmax(x=scores, axis=-1, name="shares")
        return shares, mb.identity(x=mb.cos(x=angles, name="wave"), name="cosines")

    return built


def model_of(**options: Any) -> Model:
    model = load(program(**options))
    model.metadata["milopt.context"] = "64"
    return model


def test_ranges() -> None:
    """Beyond what fp16 holds, in float64; random token ids meet at least one row of the table."""
    ranges = value_ranges(model_of())
    found = ranges["main", "sum"]
    assert (found.op_type, found.dtype) == ("add", "fp16")
    assert found.largest == pytest.approx(1e5, rel=1e-3)
    assert ranges["main", "norm_square"].largest == pytest.approx(1e10, rel=1e-2)
    assert ranges["main", "masked"].largest < 100  # -inf is no size
    assert "fp32" in {each.dtype for each in value_ranges(model_of(sound=True)).values()}


def test_ranges_of_given_inputs() -> None:
    given = {"ids": IDS, "position_ids": IDS}
    assert value_ranges(model_of(peak=2.0), inputs=[given], trials=0)["main", "sum"].largest == 4
    assert value_ranges(model_of(peak=2.0), inputs=[given], trials=0)["main", "norm"].largest == pytest.approx(
        4, rel=1e-3
    )


def of(report: LintReport, kind: str) -> list[Finding]:
    return [each for each in report.findings if each.kind == kind]


def test_findings() -> None:
    report = lint(model_of())
    overflows = {each.place: each for each in of(report, "overflow")}
    assert overflows["sum"].times == pytest.approx(1e5 / 65504, rel=1e-3)
    assert overflows["sum"].repair == "scale-residual"
    assert overflows["norm_square"].repair == overflows["norm_mean"].repair == "fp16-safe-norm"
    assert str(overflows["sum"]) == (
        "main: add 'sum': reaches 9.997e+04, 1.53 times what fp16 holds: it is infinite in fp16; scale-residual"
    )
    assert "embedding" in [each.place for each in of(report, "near")]
    assert [each.place for each in of(report, "square")] == ["norm_square"]
    (angles,) = of(report, "angles")
    assert (angles.place, angles.repair) == ("wave", "rope-table")
    (frequencies,) = of(report, "frequencies")
    off = np.abs(1e4 ** (-np.arange(8) / 8) - (1e4 ** (-np.arange(8) / 8)).astype(F16).astype(float)).max() * 63
    assert frequencies.text == (
        "inverse frequencies that fp16 had rounded are known: theta 10000; at position 63 an angle is "
        f"{off:.2g} rad off"
    )
    (mask,) = of(report, "mask")
    assert (mask.text, mask.repair) == ("holds -inf", "finite-mask")
    (epsilon,) = of(report, "epsilon")
    assert (epsilon.place, epsilon.repair) == ("norm_total", "fp16-safe-norm")
    assert report.repairs == ("finite-mask", "fp16-safe-norm", "scale-residual", "rope-table")
    assert 'repaired by: milopt optimize --passes "finite-mask,fp16-safe-norm,scale-residual,rope-table"' in str(report)


def test_what_it_names_repairs_it() -> None:
    model = model_of()
    exact = evaluate(model.program, {"ids": IDS, "position_ids": IDS}, precision="float64")
    broken = evaluate(model.program, {"ids": IDS, "position_ids": IDS})
    assert not np.allclose(broken["shares"].astype(float), exact["shares"], atol=1e-2)
    Pipeline.parse(",".join(lint(model).repairs)).run(model)
    found = evaluate(model.program, {"ids": IDS, "position_ids": IDS})
    # scores of 16, which fp16 rounds by 2**-7
    np.testing.assert_allclose(found["shares"].astype(float), exact["shares"], atol=8e-3)
    left = {each.kind for each in lint(model).findings}
    assert left <= {"near", "epsilon"}  # the embedding itself, and a subnormal factor


def gated(*, normed: bool) -> Program:
    """A layer that takes the stream as it is and norms what it gives to it, as EXAONE-4's: its product leaves fp16.

    ``normed`` is one that norms what it takes, and whose last weight is large.
    """
    rng = np.random.default_rng(0)
    table = (rng.standard_normal((4, WIDTH)) * 4).astype(F16)
    table[:, 3] = 2e4
    weights = [(rng.standard_normal((WIDTH, WIDTH)) / 4).astype(F16) for _ in range(3)]

    @mb.program(input_specs=[mb.TensorSpec((1, 4), types.int32)], opset_version=target.iOS17)
    def built(ids: Any) -> Any:
        x = mb.gather(x=table, indices=ids, axis=0, name="embedding")
        taken = rms(x, "before") if normed else x
        gate, up = (mb.linear(x=taken, weight=each) for each in weights[:2])
        product = mb.mul(x=mb.silu(x=gate), y=up, name="product")
        down = mb.linear(x=product, weight=weights[2] * F16(6e4) if normed else weights[2], name="down")
        x = mb.add(x=x, y=down if normed else rms(down, "after"), name="sum")
        return mb.identity(x=rms(x, "norm"), name="out")

    return built


def test_what_no_pass_repairs() -> None:
    """A product beyond fp16 in a branch that begins without a norm; and what is computed from it."""
    model = load(gated(normed=False))
    report = lint(model)
    found = {each.place: each for each in of(report, "overflow")}
    assert (found["product"].repair, found["product"].why) == (
        "",
        "this mul makes it of values that fp16 holds, and scale-residual scales only sums that end in norms",
    )
    assert found["down"].why == "it is computed from 'product'"
    assert {each.place for each in report.findings if each.why} == {"product", "down"}
    lines = str(report).splitlines()
    assert lines[1].startswith("  main: mul 'product': ")
    assert lines[1].endswith("; no pass repairs it: " + found["product"].why)
    assert lines[-1] == "repaired by no pass: 2"
    assert found["product"].to_json()["why"] == found["product"].why
    # it is as it says
    Pipeline.parse("fp16-safe-norm,scale-residual").run(model)
    assert not np.isfinite(evaluate(model.program, {"ids": IDS})["out"]).all()


def test_a_layer_of_the_stream_is_repaired_with_it() -> None:
    model = load(gated(normed=True))
    found = {each.place: each for each in of(lint(model), "overflow") if each.repair != "fp16-safe-norm"}
    assert {name: each.repair for name, each in found.items()} == dict.fromkeys(("down", "sum"), "scale-residual")
    Pipeline.parse("fp16-safe-norm,scale-residual").run(model)
    assert not of(lint(model), "overflow")


def test_a_stream_that_can_not_be_scaled() -> None:
    @mb.program(input_specs=[mb.TensorSpec((1, 4), types.int32)], opset_version=target.iOS17)
    def built(ids: Any) -> Any:
        x = mb.gather(x=np.eye(4, WIDTH).astype(F16) * F16(4e4), indices=ids, axis=0)
        return mb.tanh(x=mb.add(x=x, y=x, name="sum"), name="out")

    report = lint(load(built))
    (found,) = of(report, "overflow")
    assert found.why == "scale-residual stays away, the stream flows into tanh, which is no norm"
    assert report.repairs == ()


def test_a_sound_program() -> None:
    report = lint(model_of(sound=True))
    assert not report
    assert str(report) == "no place found where fp16 is too small, in a run on random inputs"
    assert report.repairs == ()


def test_static_findings_alone() -> None:
    report = lint(model_of(), run=False)
    assert {each.kind for each in report.findings} == {"square", "angles", "frequencies", "mask", "epsilon"}
    assert not report.ran
    assert str(lint(model_of(sound=True), run=False)).endswith("without running it")


def test_frequencies_without_a_form() -> None:
    row = (1e4 ** (-np.arange(8) / 8)).astype(F16)
    row[3] *= F16(1.1)

    @mb.program(input_specs=[mb.TensorSpec((1, 4), types.int32)], opset_version=target.iOS17)
    def built(position_ids: Any) -> Any:
        column = mb.cast(x=mb.expand_dims(x=position_ids, axes=[2]), dtype="fp16")
        return mb.identity(x=mb.cos(x=mb.mul(x=column, y=row)), name="out")

    (found,) = of(lint(load(built)), "frequencies")
    assert found.repair == "rope-table{approximate=true}"
    assert "at position 2047 an angle may be 1 rad off" in found.text


def test_epsilons() -> None:
    @mb.program(input_specs=[mb.TensorSpec((1, 16), types.fp16)], opset_version=target.iOS17)
    def built(x: Any) -> Any:
        small = mb.layer_norm(x=x, axes=[-1], epsilon=F16(2.0**-24), name="small")
        none = mb.layer_norm(x=x, axes=[-1], epsilon=F16(0), name="none")
        return mb.add(x=small, y=none), mb.layer_norm(x=x, axes=[-1], epsilon=F16(1e-3))

    found = {each.place: each.text for each in of(lint(load(built)), "epsilon")}
    assert found == {
        "small": "its epsilon is 5.96e-08, up to 0.5 of it lost",
        "none": "its epsilon is 0: a row of zeros has no norm",
    }


def test_many_findings_are_cut() -> None:
    many = LintReport(tuple(Finding("mask", "main", f"c{each}", "const", "holds -inf") for each in range(12)))
    lines = str(many).splitlines()
    assert (lines[0], lines[-1], len(lines)) == ("mask fills: 12", "  ... 2 more", 12)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad, good = (model_of(sound=each).save(tmp_path / f"{each}.mlpackage") for each in (False, True))
    assert main(["lint-numerics", str(bad)]) == 1
    assert "repaired by: milopt optimize" in capsys.readouterr().out
    assert main(["lint-numerics", str(bad), "--static", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["ran"] is False
    assert told["repairs"] == ["finite-mask", "fp16-safe-norm", "rope-table"]
    assert main(["lint-numerics", str(good)]) == 0
    assert "no place found" in capsys.readouterr().out
    np.savez(tmp_path / "inputs.npz", ids=IDS, position_ids=IDS)
    assert main(["lint-numerics", str(bad), "--inputs", str(tmp_path / "inputs.npz"), "--trials", "0", "--json"]) == 1
    largest = {each["place"]: each.get("largest") for each in json.loads(capsys.readouterr().out)["findings"]}
    assert largest["sum"] == pytest.approx(1e5, rel=1e-3)


@pytest.mark.parametrize("arguments", [["--inputs", "none.npz"], ["--prompt", "one two"]])
def test_bad_input(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = model_of(sound=True).save(tmp_path / "in.mlpackage")
    assert main(["lint-numerics", str(package), *arguments]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
