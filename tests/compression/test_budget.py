"""Bits and tables by what they cost and what they lose, against every choice there is."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milopt.calibration.calibrating import collect
from milopt.calibration.running import sample_runs
from milopt.calibration.sensitivity import measure
from milopt.calibration.statistics import Statistics
from milopt.clustering import palettize
from milopt.errors import MiloptError, PassError
from milopt.interpreter import evaluate
from milopt.mil import Program, constant, digest, mb, operations, target, types
from milopt.package import Model, load
from milopt.passes.budget import Budget
from milopt.passes.compressing import CompressionReport
from milopt.passes.compression import Palettize
from milopt.passes.decompression import decoded
from milopt.passes.uses import Layout
from milopt.pipeline import Pipeline
from milopt.refining import output_error

from .support import linear_program, weights

NAMES = ("first", "second", "third")


def layers(*, wide: bool = False, opset: Any = target.iOS18) -> Program:
    """Three layers; what the second one makes is small beside what goes round it, so that its errors hardly show."""
    first, second, third = (weights((size, 64), seed) for seed, size in enumerate((64, 64, 48)))
    infinite = np.full((40, 64), np.inf, np.float16)

    @mb.program(input_specs=[mb.TensorSpec((1, 8, 64), types.fp16)], opset_version=opset)
    def program(x: Any) -> Any:
        x = mb.linear(x=x, weight=mb.const(val=first, name="first"))
        inner = mb.linear(x=x, weight=mb.const(val=second, name="second"))
        x = mb.add(x=x, y=mb.mul(x=inner, y=np.float16(0.02)))
        out = mb.linear(x=x, weight=mb.const(val=third, name="third"), name="out")
        return (out, mb.linear(x=x, weight=mb.const(val=infinite, name="wrong"))) if wide else out

    return program


def samples(count: int = 3) -> list[dict[str, Any]]:
    rng = np.random.default_rng(9)
    scale = np.geomspace(0.05, 2, 64)
    return [{"x": (rng.standard_normal((1, 8, 64)) * scale).astype(np.float16)} for _ in range(count)]


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("calibration") / "stats.safetensors"
    model, given = load(layers()), samples()
    found = collect(model, sample_runs(model, given), hessian=True)
    measure(model, sample_runs(model, given), found)
    found.save(path)
    return str(path)


def budgeted(model: Model, **options: Any) -> CompressionReport:
    report = Budget(**options).run(model)
    assert isinstance(report, CompressionReport)
    model.program.validate()
    return report


def chosen(report: CompressionReport) -> tuple[float, float]:
    """The bytes and the loss that the report tells of the choice."""
    found = next(filter(None, (re.match(r"([\d,]+) bytes, (\S+) lost by estimate", each) for each in report.notes)))
    return float(found[1].replace(",", "")), float(found[2])


def every_choice(
    calibration: str, bits: tuple[Any, ...], groups: tuple[int, ...], *, feedback: bool = False
) -> list[tuple[float, float]]:
    """Bytes and loss of each choice of forms, by what ``palettize`` makes of the weights, decoded."""
    options: dict[str, list[tuple[float, float]]] = {name: [(original(name).nbytes, 0.0)] for name in NAMES}
    for width, group in itertools.product(bits, groups):
        model = load(layers())
        known: dict[str, Any] = {"weighting": "activation", "calibration": calibration} if calibration else {}
        grouped: dict[str, Any] = {"group_size": group} if group else {"granularity": "tensor"}
        report = Palettize(bits=width, **grouped, **known, feedback=feedback).run(model)
        assert isinstance(report, CompressionReport)
        for each in report.coverage:
            (op,) = [op for op in operations(model.function()) if op.outputs[0].name == each.name]
            losing = lost_with_feedback if feedback else lost
            options[each.name].append((each.after, losing(each.name, decoded(op.outputs[0]), calibration)))
    return [
        (sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs))
        for pairs in itertools.product(*options.values())
    ]


def original(name: str) -> Any:
    seed = NAMES.index(name)
    return weights(((64, 64, 48)[seed], 64), seed)


def lost(name: str, numbers: Any, calibration: str) -> float:
    weight, mean, sensitivity = original(name).astype(np.float64), np.ones(64), 1.0
    if calibration:
        statistics = Statistics.load(calibration)
        moments = statistics.of(original(name), Layout(len(weight), 64, 1))
        assert moments is not None
        mean, sensitivity = moments.mean, statistics.sensitivities[digest(original(name)).hex()]
    return sensitivity * float(np.sum(mean * (weight - numbers) ** 2) / np.sum(mean * weight**2))


def lost_with_feedback(name: str, numbers: Any, calibration: str) -> float:
    """What the layer's outputs lose, in the unit that its sensitivity was measured in: a table of 16 entries."""
    statistics, weight = Statistics.load(calibration), original(name)
    moments = statistics.of(weight, Layout(len(weight), 64, 1))
    assert moments is not None
    rows = weight.reshape(1, 1, *weight.shape)
    plain = palettize(rows, 4, moments.mean[None, None, None]).decoded().reshape(weight.shape)
    error, _ = output_error(weight, numbers, moments.products)
    measured, _ = output_error(weight, plain, moments.products)
    mean: Any = np.asarray(moments.mean)
    apart = np.sum(mean * (weight.astype(np.float64) - plain) ** 2) / np.sum(mean * weight.astype(np.float64) ** 2)
    return statistics.sensitivities[digest(weight).hex()] * float(apart) * error / measured


@pytest.mark.parametrize("share", [0.2, 0.31, 0.45])
@pytest.mark.parametrize("known", ["plain", "calibrated", "feedback"])
def test_no_choice_of_the_size_loses_less(share: float, known: str, calibration: str) -> None:
    stats, whole = "" if known == "plain" else calibration, sum(original(name).nbytes for name in NAMES)
    fed = known == "feedback"
    report = budgeted(load(layers()), size=share, bits=(2, 4, 6), calibration=stats, feedback=fed)
    cost, loss = chosen(report)
    choices = every_choice(stats, (2, 4, 6), (0, 16), feedback=fed)
    best = min(each for cost, each in choices if cost <= share * whole)
    assert cost <= share * whole
    # 1e-3: the report has 4 digits
    assert loss == pytest.approx(best, rel=1e-3)
    assert sum(each.after for each in report.coverage) == cost
    assert any(note.endswith("the best choice of all") for note in report.notes)


@pytest.mark.parametrize("most", [1e-3, 0.02, 0.3])
def test_no_choice_of_the_loss_is_smaller(most: float, calibration: str) -> None:
    report = budgeted(load(layers()), loss=most, bits=(3, 4, 8), calibration=calibration)
    cost, loss = chosen(report)
    assert loss <= most * 1.001
    assert cost == min(each for each, lost in every_choice(calibration, (3, 4, 8), (0, 16)) if lost <= most)


def test_a_loss_of_nothing_leaves_the_weights_as_they_are(calibration: str) -> None:
    report = budgeted(load(layers()), loss=0.0, calibration=calibration)
    assert not report
    assert {each.reason.partition(":")[0] for each in report.coverage} == {"worth its bytes"}
    assert "as they are: 3 weights" in report.notes


def test_sensitivities_are_what_outputs_lose(calibration: str) -> None:
    found = Statistics.load(calibration).sensitivities
    first, second, third = (found[digest(original(name)).hex()] for name in NAMES)
    assert second < 0.01 * min(first, third)
    for name in NAMES:
        model = load(layers())
        (op,) = [op for op in operations(model.function()) if op.outputs[0].name == name]
        report = Palettize(bits=4, granularity="tensor", weighting="activation", calibration=calibration).run(model)
        assert report.applied == 3
        (op,) = [op for op in operations(model.function()) if op.outputs[0].name == name]
        alone, changed = load(layers()), decoded(op.outputs[0])
        (old,) = [op for op in operations(alone.function()) if op.outputs[0].name == name]
        constant(old.outputs[0])[...] = changed
        shares = list[float]()
        for each in samples():
            before = evaluate(load(layers()), each, precision="float64")["out"]
            after = evaluate(alone, each, precision="float64")["out"]
            shares.append(float(np.sum((after - before) ** 2) / np.sum(before**2)))
        # 3%: the calibration ran in fp16
        assert lost(name, changed, calibration) == pytest.approx(np.mean(shares), rel=0.03)


def test_what_matters_less_gets_fewer_bits(calibration: str) -> None:
    report = budgeted(load(layers()), size=0.3, calibration=calibration)
    bits = {each.name: each.bits for each in report.coverage}
    assert bits["second"] == 2
    assert min(bits["first"] or 0, bits["third"] or 0) > 4


def test_weights_that_can_not_be_compressed_are_no_part_of_it() -> None:
    report = budgeted(load(layers(wide=True)), size=0.3)
    reasons = {each.name: each.reason for each in report.coverage}
    assert reasons.pop("wrong") == "holds values that are not finite"
    assert not any(reasons.values())
    report = budgeted(load(layers()), size=0.3, min_elements=4000)
    assert {each.name: each.reason for each in report.coverage}["third"] == "too small: 3072 of 4000 numbers"


def test_tables_per_group_are_for_functions_that_have_them() -> None:
    report = budgeted(load(layers(opset=target.iOS16)), size=0.3)
    assert {each.form.partition(", ")[2] for each in report.coverage} == {"a table"}
    assert 3 not in {each.bits for each in report.coverage}


def test_feedback_lessens_what_the_outputs_lose(calibration: str) -> None:
    def error(**options: Any) -> float:
        model, total = load(layers()), 0.0
        assert budgeted(model, size=0.2, bits=(2, 3, 4), calibration=calibration, **options)
        for each in samples():
            before = evaluate(load(layers()), each, precision="float64")["out"]
            total += float(np.sum((evaluate(model, each, precision="float64")["out"] - before) ** 2))
        return total

    # measured: 0.5
    assert error(feedback=True) < 0.8 * error()


def test_compressed_weights_stay_unless_they_are_asked_for() -> None:
    model = load(linear_program(original("first")))
    Palettize(bits=8).run(model)
    assert not budgeted(model, size=0.3)
    report = budgeted(model, size=0.3, recompress=True)
    assert [each.bits for each in report.coverage] == [4]


@pytest.mark.parametrize("share", [0.3, 0.45, 0.7])
def test_a_budget_that_is_met_stays_as_it_is(share: float) -> None:
    model = load(layers())
    assert budgeted(model, size=share)
    assert not budgeted(model, size=share)


def partly_compressed() -> tuple[Model, int, int]:
    """Two of three layers in tables of 256 numbers; the bytes that they take, and those of their numbers."""
    model = load(layers())
    Palettize(bits=8, granularity="tensor", min_elements=original("first").size).run(model)
    held = original("first").nbytes + original("second").nbytes
    return model, held // 2 + 2 * 256 * 2, held


@pytest.mark.parametrize("share", [0.5, 0.6, 0.65])
def test_what_is_compressed_counts(share: float) -> None:
    model, taken, held = partly_compressed()
    report = budgeted(model, size=share)
    assert f"{taken:,} bytes of other weights are compressed already, of {held:,} as numbers" in report.notes
    most = share * (held + original("third").nbytes) - taken
    alone = load(linear_program(original("third")))
    assert chosen(report) == chosen(budgeted(alone, size=most / original("third").nbytes))


def test_a_size_that_compressed_weights_exceed() -> None:
    says = r"with 2 bits and more and what is compressed as it is, the weights keep 0\.4\d\d of their bytes"
    with pytest.raises(MiloptError, match=says):
        budgeted(partly_compressed()[0], size=0.4)


def test_a_loss_is_not_known_of_what_is_compressed() -> None:
    model = partly_compressed()[0]
    report = budgeted(model, loss=0.1)
    assert not report
    reasons = {each.name: each.reason for each in report.coverage}
    assert reasons["third"] == "what others lost that are compressed is not known: recompress=true"
    assert budgeted(model, loss=0.1, recompress=True)


def test_targets() -> None:
    with pytest.raises(MiloptError, match=r"size=0.1 can't be met: with 2 bits and more the weights keep 0\.1\d\d of"):
        budgeted(load(layers()), size=0.1)
    with pytest.raises(MiloptError, match="budget needs a target"):
        budgeted(load(layers()))
    for text, says in {
        "size=0": "above 0 and at most 1",
        "size=1.5": "above 0 and at most 1",
        "loss=-1": "loss must be at least 0",
        "loss=nan": "loss must be at least 0",
        "size=0.5,loss=1": "give size or loss",
        "size=0.5,bits=(5,)": "bits are some of 1, 2, 3, 4, 6, 8",
        "size=0.5,bits=()": "bits are some of",
        "size=0.5,groups=(-1,)": "groups are numbers of channels",
        "size=0.5,groups=()": "groups are numbers of channels",
        "size=0.5,feedback=true": "feedback needs calibration",
    }.items():
        with pytest.raises(PassError, match=says):
            Pipeline.parse(f"budget{{{text}}}")
    text = "budget{size=0.25,bits=(3,4),groups=(0,8)}"
    assert str(Pipeline.parse(text)) == text


def test_a_weight_that_was_not_measured_is_told(calibration: str, tmp_path: Path) -> None:
    statistics = Statistics.load(calibration)
    del statistics.sensitivities[digest(original("second")).hex()]
    statistics.save(tmp_path / "s.safetensors")
    report = budgeted(load(layers()), size=0.3, calibration=str(tmp_path / "s.safetensors"))
    assert "the sensitivity of second was not measured: it has the middle one" in report.notes
    report = budgeted(load(layers()), size=0.3)
    assert "no sensitivities were measured: the relative errors of all weights count alike" in report.notes
