"""Pipelines: order, callbacks, reports, and what is compared when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from milopt.census import op_counts
from milopt.errors import MiloptError, PassError, VerificationError
from milopt.metrics import Lossy, Metric
from milopt.package import Model
from milopt.passes.attention import FuseAttention
from milopt.pipeline import DEFAULT, Pass, Pipeline
from milopt.registry import names, pass_class
from milopt.reports import Report
from tests.cli.support import WrongPass
from tests.verify.decoders import Decoder

PASSES = "canonicalize,fuse-sdpa,linear-to-conv"


@dataclass(frozen=True)
class WrongOnPurpose(WrongPass):
    """The wrong pass, which says that it changes numbers."""

    metric: ClassVar[Metric] = Lossy(min_snr_db=5)


@pytest.fixture
def model() -> Model:
    return Decoder().stateless((1,))


def test_what_is_no_pass() -> None:
    given: Any
    for given, says in (
        (FuseAttention(), "FuseAttention is a rule: milopt.apply applies it, a milopt.RulePass makes it a pass"),
        ("fuse-sdpa", "'fuse-sdpa' is no milopt.Pass; Pipeline.parse reads the text of passes"),
    ):
        with pytest.raises(PassError) as error:
            Pipeline((given,))
        assert str(error.value) == says


def test_text() -> None:
    assert str(Pipeline.parse(" fuse-sdpa , palettize{ bits=4 , group_size=16 }")) == "fuse-sdpa,palettize{bits=4}"
    assert str(Pipeline.default()) == DEFAULT
    assert Pipeline.parse(DEFAULT) == Pipeline.default()


def test_order_is_checked_when_it_is_built() -> None:
    with pytest.raises(PassError, match=r"^palettize must come after fuse-sdpa$"):
        Pipeline.parse("palettize,fuse-sdpa")
    Pipeline.parse("palettize")  # alone, there is nothing to come after
    Pipeline.parse("canonicalize,fuse-sdpa,canonicalize,palettize")


def test_passes_run_in_order_and_callbacks_are_told(model: Model) -> None:
    told: list[tuple[str, str, int]] = []

    def before(each: Pass) -> None:
        told.append(("before", each.name, op_counts(model.function())["softmax"]))

    def after(each: Pass, report: Report, seen: Model) -> None:
        assert seen is model
        assert report.name == each.name
        told.append(("after", each.name, op_counts(seen.function())["softmax"]))

    report = Pipeline.parse("fuse-sdpa,linear-to-conv").run(model, before=before, callbacks=[after])
    assert told == [
        ("before", "fuse-sdpa", 2),
        ("after", "fuse-sdpa", 0),
        ("before", "linear-to-conv", 0),
        ("after", "linear-to-conv", 0),
    ]
    assert report
    assert [(part.name, part.applied) for part in report.parts] == [("fuse-sdpa", 2), ("linear-to-conv", 9)]
    assert 0 < sum(part.seconds for part in report.parts) <= report.seconds
    assert report.verdicts == []


@pytest.mark.parametrize(
    ("verify", "subjects"),
    [
        ("each", ["fuse-sdpa", "linear-to-conv"]),
        ("stage", ["fuse-sdpa, linear-to-conv"]),
        ("end", ["fuse-sdpa, linear-to-conv"]),
        (None, []),
    ],
)
def test_what_is_compared(verify: str | None, subjects: list[str], model: Model) -> None:
    report = Pipeline.parse(PASSES).run(model, verify=verify)
    assert [verdict.subject for verdict in report.verdicts] == subjects
    assert all(report.verdicts)


@pytest.mark.parametrize("verify", ["each", "stage", "end"])
def test_a_wrong_pass_is_told_with_its_name(verify: str, model: Model) -> None:
    with pytest.raises(VerificationError, match="wrong") as error:
        Pipeline((WrongPass(), *Pipeline.parse("fuse-sdpa").passes)).run(model, verify=verify)
    assert not error.value.verdict
    report = error.value.report
    assert isinstance(report, Report)
    assert [part.name for part in report.parts] == ["wrong", "fuse-sdpa"][: 1 if verify == "each" else 2]
    assert report.verdicts == [error.value.verdict]
    assert report.seconds > 0
    # the fusion, judged together with it, leaves no trace of the scaled scores
    assert ("first value that differs: scaled_0" in str(error.value)) == (verify == "each")


def test_without_verification_nobody_notices(model: Model) -> None:
    assert Pipeline((WrongPass(),)).run(model).applied == 0  # the pipeline's own count; its part's is 2
    assert op_counts(model.function())["mul"] == 3


def test_a_lossy_pass_is_compared_by_its_own_metric(model: Model) -> None:
    report = Pipeline((*Pipeline.parse("linear-to-conv").passes, WrongOnPurpose())).run(model, verify="stage")
    exact, lossy = map(str, report.verdicts)
    assert "exact in float64" in exact
    assert "at least 5 dB" in lossy


def test_at_the_end_the_weakest_metric_judges_all(model: Model) -> None:
    # the exact pass comes last: what is compared is still the whole, in declared precision
    pipeline = Pipeline((WrongOnPurpose(), *Pipeline.parse("fuse-sdpa,linear-to-conv").passes))
    (verdict,) = pipeline.run(model, verify="end").verdicts
    assert verdict.subject == "wrong, fuse-sdpa, linear-to-conv"
    assert verdict.metric == WrongOnPurpose.metric
    assert verdict.snr_db is not None
    assert verdict.snr_db < 60  # the wrong factor is seen, not excused


@dataclass(frozen=True)
class First(WrongPass):
    """A pass that says what it comes ahead of."""

    name: ClassVar[str] = "first"
    before: ClassVar[tuple[str, ...]] = ("fuse-sdpa", "not-here")


def test_constraints_are_data() -> None:
    fuse, convolve = Pipeline.parse("fuse-sdpa,linear-to-conv").passes
    assert Pipeline((First(), fuse, convolve)).constraints() == (
        ("first", "fuse-sdpa", "first"),
        ("fuse-sdpa", "linear-to-conv", "linear-to-conv"),
    )
    Pipeline((First(), fuse, First()))  # there is one before it
    with pytest.raises(PassError, match=r"^first must come before fuse-sdpa$"):
        Pipeline((fuse, First()))


def test_the_constraints_of_all_passes_can_be_kept() -> None:
    passes = [pass_class(name)() for name in names()]
    placed: list[Pass] = []
    while passes:
        left = {each.name for each in passes}
        free = [
            each
            for each in passes
            if not left & set(each.after) and not any(each.name in other.before for other in passes)
        ]
        assert free, f"the order constraints of {', '.join(sorted(left))} form a circle"
        placed.append(free[0])
        passes.remove(free[0])
    assert len(Pipeline(tuple(placed)).passes) == len(names())


def test_an_unknown_mode(model: Model) -> None:
    with pytest.raises(MiloptError, match="verify is 'each', 'stage', 'end' or None, not 'last'"):
        Pipeline.parse("fuse-sdpa").run(model, verify="last")


def test_a_pipeline_of_nothing_changes_nothing(model: Model) -> None:
    empty: Any = Pipeline(())
    report = empty.run(model, verify="stage")
    assert not report
    assert report.parts == report.verdicts == []
