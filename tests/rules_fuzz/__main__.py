"""Every rule and pass of milopt on thousands of programs: it refuses, or what it makes computes the same.

    python -m tests.rules_fuzz [--count 10000] [--seed 0] [--only NAME] [--shrink-seconds 60]

Half of the programs are drawn from a rule's own pattern, two in five miss it by one detail, the others are random. The
table says, per rule, how many there were, on how many it fired and refused, and on how many it was wrong; those are
shrunk, for a minute each, and shown, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from typing import Any

import joblib

from tests.testing.subjects import SUBJECTS, Subject

from .drawing import run_chunk, shrink, strategies_of

__all__ = ["fuzz", "main"]

_CHUNK = 100  # programs that one process draws at a time
_SECONDS = 60.0  # for shrinking one failure


def fuzz(count: int, start: int, subjects: tuple[Subject, ...], seconds: float = _SECONDS) -> int:
    """Run all, print the table, shrink what is wrong; how many were wrong."""
    begun = time.perf_counter()
    jobs: list[tuple[str, str, int, int]] = []
    for subject in subjects:
        for kind, (_, share) in strategies_of(subject).items():
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
