"""Runs the passes of coremltools' default pipeline over random programs, and reports what disagrees in float64.

    python -m tests.found [--count 2000] [--seed 0] [--only PASS]

Half of the programs are random, half near the shapes that the passes look for. A pass that fails on one is given the
smallest program that Hypothesis finds for it in a minute. The exit status is 0 where docs/found.md has an entry for
every failure, one of the same pass that also differs, or that crashes with the same words; else 1, with what is new.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import joblib
from hypothesis import Phase, given, seed
from hypothesis import strategies as st

from milopt.errors import EvaluationError, UnsupportedOps
from milopt.mil import Program
from milopt.testing import strategies as mil
from milopt.text import text
from tests.found.document import entries
from tests.found.near import NEAR, near
from tests.found.running import Outcome, passes, run_pass
from tests.shrinking import drawing, smallest

__all__ = ["main", "search"]

_SECONDS = 60.0  # for shrinking one failure

# fp32 only: in fp16 a folded constant is rounded at 5e-4, which is no bug
_RANDOM = {
    "few": mil.programs(ops=mil.ELEMENTWISE | mil.MOVEMENT | mil.REDUCTION | mil.LINEAR, max_ops=12, max_side=3),
    "all": mil.programs(ops=mil.ALL, max_ops=10, dtypes=["fp32", "fp32", "int32", "bool"], nested=True),
    "symbolic": mil.programs(
        ops=mil.ELEMENTWISE | mil.MOVEMENT | mil.REDUCTION, max_ops=10, symbolic=True, nested=True
    ),
}
SOURCES: dict[str, st.SearchStrategy[Program]] = {**_RANDOM, **{name: near(name) for name in NEAR}}


def _quiet() -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("coremltools").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Failure:
    """One way in which a pass fails. Those that read alike but for names and numbers are one."""

    name: str
    kind: str
    said: str

    def is_known(self, message: str) -> bool:
        """Whether docs/found.md has it."""
        known = [each for each in entries() if each.pass_name == self.name]
        if self.kind == "differs":
            return any(not each.crash for each in known)
        return any(each.crash and each.crash in message for each in known)


def search(
    source: str, count: int, start: int, names: tuple[str, ...]
) -> tuple[Counter[tuple[str, str]], dict[Failure, str]]:
    """Run every pass over ``count`` programs of one source: how often what came of it, and what each failure said."""
    _quiet()
    seen: Counter[tuple[str, str]] = Counter()
    failed: dict[Failure, str] = {}

    @seed(start)
    @drawing(count, Phase.generate)
    @given(SOURCES[source])
    def look(program: Program) -> None:
        seen["", "programs"] += 1
        for name in names:
            outcome = _outcome(name, program)
            seen[name, outcome.kind] += 1
            if outcome.wrong:
                failed.setdefault(_failure(name, outcome), outcome.message)

    look()
    return seen, failed


def _outcome(name: str, program: Program) -> Outcome:
    try:
        return run_pass(name, program)
    except (EvaluationError, UnsupportedOps) as error:
        return Outcome("not run", str(error))


def _failure(name: str, outcome: Outcome) -> Failure:
    said = re.sub(r"[\d.]+|\"[^\"]*\"|'[^']*'|\b\w+_\w+\b", "#", outcome.message)[:60]
    return Failure(name, outcome.kind, "" if outcome.kind == "differs" else said)


def shrink(source: str, count: int, start: int, wanted: Failure) -> str:
    """The smallest program of ``source`` on which the pass fails in that way, and what it says."""
    _quiet()
    title = f"{wanted.name} {wanted.kind} ({source})"

    def failure(program: Program) -> str | None:
        outcome = _outcome(wanted.name, program)
        if not outcome.wrong or _failure(wanted.name, outcome) != wanted:
            return None
        return f"{title}: {outcome.message}\n{text(program)}" + (f"became\n{outcome.after}" if outcome.after else "")

    found = smallest(SOURCES[source], failure, count=count, start=start, seconds=_SECONDS)
    return found or f"{title}: not met again"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.found", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--count", type=int, default=2000, help="programs, over all sources")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one pass")
    parser.add_argument("--source", help="one source")
    chosen = parser.parse_args(arguments)
    names = (chosen.only,) if chosen.only else passes()
    shares = {name: -(-chosen.count // (2 * len(each))) for each in (_RANDOM, NEAR) for name in each}
    if chosen.source:
        shares = {chosen.source: chosen.count}
    begun = time.perf_counter()
    seen: Counter[tuple[str, str]] = Counter()
    where: dict[Failure, tuple[str, str]] = {}
    parallel = joblib.Parallel(n_jobs=-1, return_as="generator")
    results: Any = parallel(
        joblib.delayed(search)(source, count, chosen.seed, names) for source, count in shares.items()
    )
    for (source, _), (found, failed) in zip(shares.items(), results, strict=True):
        seen += found
        for each, message in failed.items():
            where.setdefault(each, (source, message))
        print(
            f"{source}: {found['', 'programs']} programs, {len(failed)} kinds of failures", file=sys.stderr, flush=True
        )
    print(_table(names, seen))
    print(f"{seen['', 'programs']} programs in {time.perf_counter() - begun:.0f} s\n")
    return _report(where, shares, chosen.seed)


def _table(names: tuple[str, ...], seen: Counter[tuple[str, str]]) -> str:
    kinds = ("same", "rewritten", "differs", "crashes", "invalid", "not run")
    width = max(map(len, names))
    lines = [f"{'pass':{width}}" + "".join(f"{kind:>11}" for kind in kinds)]
    lines += [f"{name:{width}}" + "".join(f"{seen[name, kind]:>11}" for kind in kinds) for name in names]
    return "\n".join(lines)


def _report(where: dict[Failure, tuple[str, str]], shares: dict[str, int], start: int) -> int:
    """Print the shrunk programs; 1 where a pass failed in a way that the document does not have."""
    new = [each for each, (_, message) in where.items() if not each.is_known(message)]
    parallel = joblib.Parallel(n_jobs=-1, return_as="generator")
    jobs: list[Any] = [
        joblib.delayed(shrink)(source, shares[source], start, each) for each, (source, _) in where.items()
    ]
    for each, shrunk in zip(where, parallel(jobs), strict=True):
        print(f"--- {'new' if each in new else 'in docs/found.md'}: {shrunk}\n", flush=True)
    print(f"{len(where)} kinds of failures, of which {len(new)} are not in docs/found.md")
    for each in new:
        print(f"  {each.name} {each.kind}: {where[each][1][:200]}")
    return 1 if new else 0


if __name__ == "__main__":
    sys.exit(main())
