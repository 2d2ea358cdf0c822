"""One process's share of the programs: drawn, rewritten and compared; and the smallest on which a subject is wrong."""

from __future__ import annotations

import logging
import warnings
from collections import Counter

from hypothesis import Phase, given, seed
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from milopt.errors import EvaluationError
from milopt.mil import Program
from milopt.testing import holds
from milopt.testing import strategies as mil
from tests.shrinking import drawing, smallest
from tests.testing.subjects import SUBJECTS, Subject

__all__ = ["run_chunk", "shrink", "strategies_of"]

_PLAIN = mil.programs(
    ops=mil.ELEMENTWISE | mil.MOVEMENT | mil.REDUCTION | mil.LINEAR, max_ops=10, dtypes=["fp32", "fp16"], nested=True
)


def strategies_of(subject: Subject) -> dict[str, tuple[st.SearchStrategy[Program], float]]:
    return {"matching": (subject.matching, 0.5), "near": (subject.near, 0.4), "random": (_PLAIN, 0.1)}


def _quiet() -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("coremltools").setLevel(logging.ERROR)


def run_chunk(name: str, kind: str, count: int, start: int) -> Counter[str]:
    """``count`` programs of one kind for one subject: how often what came of it."""
    _quiet()
    subject = _subject(name)
    seen: Counter[str] = Counter()

    @seed(start)
    @drawing(count, Phase.generate)
    @given(strategies_of(subject)[kind][0])
    def look(program: Program) -> None:
        try:
            fired = holds(subject.of, program, metric=subject.metric)
        except EvaluationError:
            seen["not run"] += 1
            return
        except AssertionError:
            seen["wrong"] += 1
        else:
            seen["fired" if fired else "refused"] += 1
        seen["programs"] += 1

    try:
        look()
    except Unsatisfiable:
        seen["nothing drawn"] += 1
    return seen


def _subject(name: str) -> Subject:
    return next(each for each in SUBJECTS if each.name == name)


def shrink(name: str, kind: str, count: int, start: int, seconds: float) -> str:
    """The message of the smallest program on which the subject is wrong, as far as ``seconds`` of shrinking go."""
    _quiet()
    subject = _subject(name)

    def failure(program: Program) -> str | None:
        try:
            holds(subject.of, program, metric=subject.metric)
        except EvaluationError:
            return None
        except AssertionError as error:
            return str(error)
        return None

    found = smallest(strategies_of(subject)[kind][0], failure, count=count, start=start, seconds=seconds)
    return found or f"{name}, {kind}, seed {start}: not met again"
