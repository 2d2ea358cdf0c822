"""A fixed sample of coremltools' op tests passes, and fails where predictions are wrong; `make peer-tests` runs all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.peers.known import Known
from tests.peers.running import OPS, arguments, run
from tests.peers.summary import Result, Summary
from tests.peers.wrong import WRONG


def report(path: Path, *options: str) -> tuple[int, Any]:
    status = run(arguments([OPS, f"--peers-report={path}", *options]), quiet=True)
    assert path.exists(), "pytest stopped before its end"
    return status, json.loads(path.read_text())


def test_a_sample_passes(tmp_path: Path) -> None:
    status, found = report(tmp_path / "report.json", "--peers-sample=350")
    unexpected = [each for each in found["results"] if each["outcome"] == "failed"]
    assert (status, found["unknown_failures"]) == (0, 0), unexpected
    assert found["tests"] == 350
    # the rest are refusals of the converter, and tests that Core ML fails
    assert found["predicted"] >= 250
    assert found["share"] >= 0.99


@pytest.mark.parametrize("wrong", sorted(WRONG))
def test_wrong_predictions_fail(wrong: str, tmp_path: Path) -> None:
    status, found = report(tmp_path / "report.json", "--peers-sample=60", f"--peers-wrong={wrong}")
    assert status != 0
    assert found["predicted"] >= 40
    # some tests look at shapes alone, and zeros negated are zeros
    assert found["share"] <= 0.15


def summary(*results: Result) -> Summary:
    made = Summary((Known(f"{OPS}/*::test_known[*]", "a reason"),))
    for each in results:
        made.add(each)
    return made


def test_the_summary_counts_what_was_predicted() -> None:
    results = [Result("a", "passed", 2), Result("b", "passed", 0), Result("c", "skipped", 0), Result("d", "failed", 1)]
    made = summary(*results)
    assert made.counts()["predicted"] == 2
    assert made.share == 0.5
    assert [each.test for each in made.unknown] == ["d"]


def test_known_failures_are_told_from_others_and_reported_when_they_pass() -> None:
    known, other = f"{OPS}/iOS14/test_x.py::test_known[a=1]", f"{OPS}/iOS14/test_x.py::test_known"
    made = summary(Result(known, "failed", 1), Result(other, "failed", 1))
    assert [each.test for each in made.unknown] == [other]
    made = summary(Result(known, "passed", 1))
    assert made.repaired == [known]
    assert any("but passes" in line for line in made.lines(0.99))


def test_a_file_that_is_not_collected_is_a_failure() -> None:
    made = summary(Result("a", "passed", 1))
    assert made.is_good(0.99)
    made.broken["test_reduction.py"] = "ModuleNotFoundError: No module named 'scipy'"
    assert not made.is_good(0.99)
    assert any(line.startswith("NOT COLLECTED test_reduction.py: ModuleNotFoundError") for line in made.lines(0.99))


def test_nothing_predicted_is_no_success() -> None:
    assert summary(Result("a", "passed", 0)).share == 0
