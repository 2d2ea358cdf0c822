"""What a run of coremltools' tests showed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.peers.known import Known

__all__ = ["Result", "Summary"]


@dataclass(frozen=True)
class Result:
    """``asked``: how many predictions the test wanted of milopt, those included that milopt refused."""

    test: str
    outcome: str
    asked: int
    message: str = ""


@dataclass
class Summary:
    """``broken``: files whose tests could not be collected, and why."""

    known: tuple[Known, ...]
    results: dict[str, Result] = field(default_factory=dict[str, Result])
    broken: dict[str, str] = field(default_factory=dict[str, str])

    def add(self, result: Result) -> None:
        """A test that passes and then fails in its teardown has failed."""
        self.results[result.test] = result

    @property
    def predicted(self) -> list[Result]:
        """The tests that passed or failed after milopt was asked for a prediction."""
        return [each for each in self.results.values() if each.asked and each.outcome in ("passed", "failed")]

    @property
    def share(self) -> float:
        """How many of them passed; 0 of none, because that proves nothing."""
        return sum(each.outcome == "passed" for each in self.predicted) / max(1, len(self.predicted))

    @property
    def failed(self) -> list[Result]:
        return [each for each in self.results.values() if each.outcome == "failed"]

    @property
    def unknown(self) -> list[Result]:
        return [each for each in self.failed if not self._reason(each)]

    def is_good(self, goal: float) -> bool:
        """Whether everything ran, and what failed is known and little."""
        return not self.unknown and not self.broken and self.share >= goal

    @property
    def repaired(self) -> list[str]:
        """Known failures that passed."""
        passed = [each.test for each in self.results.values() if each.outcome == "passed"]
        return [test for test in passed if any(each.matches(test) for each in self.known)]

    def _reason(self, result: Result) -> str:
        return next((each.reason for each in self.known if each.matches(result.test)), "")

    def counts(self) -> dict[str, int]:
        outcomes = Counter(each.outcome for each in self.results.values())
        right = sum(each.outcome == "passed" for each in self.predicted)
        return {"tests": len(self.results), **dict(sorted(outcomes.items())), "predicted": len(self.predicted)} | {
            "predicted_and_passed": right,
            "predictions": sum(each.asked for each in self.results.values()),
            "known_failures": len(self.failed) - len(self.unknown),
            "unknown_failures": len(self.unknown),
        }

    def lines(self, goal: float) -> Iterator[str]:
        yield ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in self.counts().items())
        yield f"{self.share:.2%} of the tests in which milopt predicted passed (goal {goal:.0%})"
        for name, message in self.broken.items():
            yield f"NOT COLLECTED {name}: {message}"
        for each in self.unknown:
            yield f"UNKNOWN FAILURE {each.test}: {each.message}"
        for test in self.repaired:
            yield f"listed as a known failure, but passes: {test}"

    def to_json(self) -> dict[str, Any]:
        tests = [asdict(each) for each in sorted(self.results.values(), key=lambda each: each.test)]
        found = {"share": self.share, "broken": self.broken, "repaired": self.repaired}
        return {**self.counts(), **found, "results": tests}
