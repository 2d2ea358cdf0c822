"""Every rule and pass of milopt on thousands of programs: it refuses, or what it makes computes the same.

    python -m tests.rules_fuzz [--count 10000] [--seed 0] [--only NAME] [--shrink-seconds 60]

Half of the programs are drawn from a rule's own pattern, two in five miss it by one detail, the others are random. The
table says, per rule, how many there were, on how many it fired and refused, and on how many it was wrong; those are
shrunk, for a minute each, and shown, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from collections import Counter
from typing import Any

import joblib
from hypothesis import Phase, given, seed
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from milopt.errors import EvaluationError
from milopt.mil import Program
from milopt.testing import holds
from milopt.testing import strategies as mil
from tests.shrinking import drawing, smallest
from tests.testing.subjects import SUBJECTS, Subject

__all__ = ["fuzz", "main"]

_PLAIN = mil.programs(
    ops=mil.ELEMENTWISE | mil.MOVEMENT | mil.REDUCTION | mil.LINEAR, max_ops=10, dtypes=["fp32", "fp16"], nested=True
)
_CHUNK = 100  # programs that one process draws at a time
_SECONDS = 60.0  # for shrinking one failure


def _strategies(subject: Subject) -> dict[str, tuple[st.SearchStrategy[Program], float]]:
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
    @given(_strategies(subject)[kind][0])
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

    found = smallest(_strategies(subject)[kind][0], failure, count=count, start=start, seconds=seconds)
    return found or f"{name}, {kind}, seed {start}: not met again"


def fuzz(count: int, start: int, subjects: tuple[Subject, ...], seconds: float = _SECONDS) -> int:
    """Run all, print the table, shrink what is wrong; how many were wrong."""
    begun = time.perf_counter()
    jobs: list[tuple[str, str, int, int]] = []
    for subject in subjects:
        for kind, (_, share) in _strategies(subject).items():
            left = max(round(count * share / len(subjects)), 1)
            for at, size in enumerate(range(left, 0, -_CHUNK)):
                jobs.append((subject.name, kind, min(size, _CHUNK), start + at))
    seen: dict[str, Counter[str]] = {subject.name: Counter() for subject in subjects}
    wrong: dict[tuple[str, str], tuple[int, int]] = {}
    parallel = joblib.Parallel(n_jobs=-1, return_as="generator")
    results: Any = parallel(joblib.delayed(run_chunk)(*job) for job in jobs)
    for done, ((name, kind, size, begin), found) in enumerate(zip(jobs, results, strict=True), 1):
        seen[name] += found
        seen[name][kind] += found["fired"]
        if found["wrong"]:
            wrong.setdefault((name, kind), (size, begin))
        if done % 20 == 0 or done == len(jobs):
            total = sum(each["programs"] for each in seen.values())
            print(f"{total} programs, {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    print(_table(seen))
    print(f"{time.perf_counter() - begun:.0f} s, seed {start}")
    for (name, kind), (size, begin) in wrong.items():
        print(f"\n--- {name}, {kind}\n{shrink(name, kind, size, begin, seconds)}", flush=True)
    return sum(each["wrong"] for each in seen.values())


_COLUMNS = ("programs", "fired", "refused", "wrong", "not run")


def _table(seen: dict[str, Counter[str]]) -> str:
    width = max(map(len, seen))
    heads = {"wrong": "disagreements"}
    lines = [f"{'rule or pass':{width}}" + "".join(f"{heads.get(each, each):>14}" for each in _COLUMNS)]
    total: Counter[str] = Counter()
    for name, found in seen.items():
        total += found
        lines.append(f"{name:{width}}" + "".join(f"{found[each]:>14}" for each in _COLUMNS))
    lines.append(f"{'all':{width}}" + "".join(f"{total[each]:>14}" for each in _COLUMNS))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.rules_fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000, help="programs, over all rules and passes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="rules and passes whose name has this in it")
    parser.add_argument("--shrink-seconds", type=float, default=_SECONDS, help="for shrinking one failure")
    chosen = parser.parse_args(arguments)
    subjects = tuple(each for each in SUBJECTS if chosen.only is None or chosen.only in each.name)
    if not subjects:
        parser.error(f"no rule or pass has {chosen.only!r} in its name")
    return 1 if fuzz(chosen.count, chosen.seed, subjects, chosen.shrink_seconds) else 0


if __name__ == "__main__":
    sys.exit(main())
