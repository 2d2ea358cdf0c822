"""``milopt calibrate`` and ``optimize --calibration``: the file fits the package; bad input is told in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milopt.building import Builder
from milopt.calibration.calibrating import calibrate, calibrate_text
from milopt.calibration.running import text_runs
from milopt.calibration.sensitivity import measure
from milopt.calibration.statistics import Statistics
from milopt.cli import main
from milopt.clustering import palettize
from milopt.huggingface.tokenizer import Tokenizer
from milopt.mil import value_names
from milopt.package import load
from milopt.passes.compressing import CompressionReport, put_in_place
from milopt.passes.compression import Palettize
from milopt.passes.palettes import importance_of
from milopt.passes.uses import Layout, find_weights, layout_at
from milopt.session import Session
from tests.cli.support import WORDS
from tests.compression.support import linear_program, weights

Capture = pytest.CaptureFixture[str]
TOKENS = 20


def run(*arguments: object, status: int = 0) -> None:
    assert main(list(map(str, arguments))) == status


def refused(capsys: Capture, *arguments: object) -> str:
    run(*arguments, status=2)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    return said.err


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text(" ".join(WORDS[4:] * 3))
    return path


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    return load(linear_program(weights((48, 64)))).save(tmp_path / "linear.mlpackage")


def test_text(package: Path, text: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "stats.safetensors"
    run("calibrate", package, "--text", text, "--tokens", TOKENS, "--hessian", "-o", out)
    made, model = Statistics.load(out), load(package)
    tokens = Tokenizer.of(model).encode(text.read_text())[:TOKENS]
    wanted = calibrate_text(model, tokens, hessian=True)
    assert (
        capsys.readouterr().out == f"{out}: the inputs of {len(wanted.moments)} weights, up to {TOKENS} vectors each\n"
    )
    assert made.moments.keys() == wanted.moments.keys()
    for key, each in wanted.moments.items():
        np.testing.assert_array_equal(each.squares, made.moments[key].squares)
        np.testing.assert_array_equal(each.products, made.moments[key].products)
    assert not made.sensitivities


def test_sensitivities(linear: Path, tmp_path: Path, capsys: Capture) -> None:
    out, small = tmp_path / "stats.safetensors", tmp_path / "small.mlpackage"
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", allow_pickle=False, x=rng.standard_normal((1, 3, 64)).astype(np.float16))
    run("calibrate", linear, "--arrays", tmp_path / "x.npz", "--sensitivities", "-o", out)
    (found,) = Statistics.load(out).sensitivities.values()
    assert ", 1 sensitivities" in capsys.readouterr().out
    # what a linear loses is what its weight does, but for how few inputs there are
    assert found == pytest.approx(1, rel=0.5)
    run("optimize", linear, "-o", small, "--passes", "budget{size=0.3}", "--calibration", out, "--json")
    report = json.loads(capsys.readouterr().out)["report"]["passes"][0]
    assert [each["bits"] for each in report["coverage"]] == [4]
    assert any(note.endswith("the best choice of all") for note in report["notes"])
    assert not any("were measured" in note or "no inputs" in note for note in report["notes"])
    run("calibrate", linear, "--arrays", tmp_path / "x.npz", "-o", out, "--force")
    assert not Statistics.load(out).sensitivities


def test_the_sensitivities_of_a_language_model_are_nats(package: Path) -> None:
    model, tokens = load(package), [5, 9, 4, 20, 11, 7]
    statistics = calibrate_text(model, tokens)
    measure(model, text_runs(model, tokens, precision="float64"), statistics, min_elements=1)
    linears = [each for each in find_weights(model) if all(op.op_type == "linear" for _, _, op in each.users())]
    weight = next(each for each in linears if len({place.function for place in each.places}) == 2)
    found = statistics.sensitivity(weight.array)
    assert found is not None
    # the same by hand: one table of 16 for this weight, on a copy
    changed, before = model.clone(), np.array(weight.array, np.float64)
    (same,) = [each for each in find_weights(changed) if each.name == weight.name]
    plan = Palettize(bits=4, granularity="tensor", min_elements=1).plan(same, None, CompressionReport(""))
    moments = statistics.of(weight.array, inputs := layout_at(before.shape, 1))
    assert moments is not None
    importance = importance_of(moments.mean, plan, inputs)
    made = palettize(plan.rows(), 4, importance).decoded().transpose(1, 0, 2, 3).reshape(before.shape)
    mean = np.broadcast_to(importance.transpose(1, 0, 2, 3), plan.rows().transpose(1, 0, 2, 3).shape)
    mean = np.reshape(mean, before.shape)
    taken = {name: value_names(function) for name, function in changed.functions.items()}
    for each in same.places:
        put_in_place(each, Builder(each.op, taken[each.function]).const(val=np.float16(made)))
    p, q = (Session(each, precision="float64").feed(tokens).astype(np.float64) for each in (model, changed))
    p, q = (each - np.log(np.exp(each).sum(-1, keepdims=True)) for each in (p, q))
    nats = float(np.sum(np.exp(p) * (p - q))) / len(tokens)
    error = float(np.sum(mean * (before - made) ** 2) / np.sum(mean * before**2))
    # 1e-3: logits come in float32, and nats are differences of their logarithms
    assert found == pytest.approx(nats / error, rel=1e-3)


def test_arrays(linear: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    given: list[Any] = [{"x": rng.standard_normal((1, 3, 64)).astype(np.float16)} for _ in range(2)]
    for at, each in enumerate(given):
        np.savez(tmp_path / f"{at}.npz", allow_pickle=False, **each)
    arrays = ("--arrays", tmp_path / "0.npz", "--arrays", tmp_path / "1.npz")
    run("calibrate", linear, *arrays, "--function", "main", "-o", tmp_path / "s")
    wanted = calibrate(load(linear), given).of(weights((48, 64)), Layout(48, 64, 1))
    made = Statistics.load(tmp_path / "s").of(weights((48, 64)), Layout(48, 64, 1))
    assert wanted is not None
    assert made is not None
    assert made.count == 6
    np.testing.assert_array_equal(made.squares, wanted.squares)


def test_palettize_goes_by_it(linear: Path, tmp_path: Path, capsys: Capture) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", allow_pickle=False, x=rng.standard_normal((1, 3, 64)).astype(np.float16))
    run("calibrate", linear, "--arrays", tmp_path / "x.npz", "--hessian", "-o", tmp_path / "s")
    capsys.readouterr()
    command = ("optimize", linear, "--passes", "palettize{bits=4,feedback=true}", "--calibration", tmp_path / "s")
    run(*command, "-o", tmp_path / "out.mlpackage", "--json")
    report = json.loads(capsys.readouterr().out)
    said = {"weighting=activation", "feedback=True", f"calibration='{tmp_path}/s'"}
    assert said <= set(report["passes"].removesuffix("}").split(","))
    assert not any("no inputs" in note or "no feedback" in note for note in report["report"]["passes"][0]["notes"])


def test_bad_input_is_refused_in_one_line(
    package: Path, linear: Path, text: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "s"
    assert "give one of them" in refused(capsys, "calibrate", package, "-o", out)
    arrays = tmp_path / "x.npz"
    np.savez(arrays, allow_pickle=False, y=np.ones(3))
    assert "give one of them" in refused(capsys, "calibrate", package, "--text", text, "--arrays", arrays, "-o", out)
    assert "lacks 'x'" in refused(capsys, "calibrate", linear, "--arrays", arrays, "-o", out)
    assert "--function goes with" in refused(capsys, "calibrate", package, "--text", text, "--function", "a", "-o", out)
    assert "carries no tokenizer" in refused(capsys, "calibrate", linear, "--text", text, "-o", out)
    none = tmp_path / "none"
    assert "can't be read as text" in refused(capsys, "calibrate", package, "--text", none, "-o", out)
    none.write_text("")
    assert "at least two tokens" in refused(capsys, "calibrate", package, "--text", none, "-o", out)
    assert "does not exist" in refused(capsys, "calibrate", package, "--text", text, "-o", tmp_path / "no" / "s")
    assert "give --force" in refused(capsys, "calibrate", package, "--text", text, "-o", none)
    assert not out.exists()


def test_a_calibration_that_is_none_is_refused_before_the_work(package: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out.mlpackage"
    bad = tmp_path / "bad"
    bad.write_bytes(b"\xff" * 40)
    said = refused(capsys, "optimize", package, "-o", out, "--calibration", bad)
    assert "can't be read as statistics of a calibration" in said
    Statistics().save(bad)
    said = refused(capsys, "optimize", package, "-o", out, "--calibration", bad, "--passes", "fuse-sdpa")
    assert "no pass of 'fuse-sdpa' goes by a calibration: palettize and budget do" in said
    assert "budget needs a target" in refused(capsys, "optimize", package, "-o", out, "--passes", "budget")
    small = "budget{size=0.01,min_elements=1}"
    assert "can't be met" in refused(capsys, "optimize", package, "-o", out, "--passes", small)
    assert not out.exists()
