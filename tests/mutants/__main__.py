"""``python -m tests.mutants``: which small changes of the passes no test notices."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from .covering import Coverage, coverage_of
from .equivalent import EQUIVALENT
from .mutating import Mutant, mutants_of
from .processes import prepare
from .running import CAUGHT, SURVIVED, TIMEOUT, Outcome, Task, outcomes
from .storing import Store

ROOT = Path(__file__).resolve().parents[2]
TESTS = (Path("tests/passes"), Path("tests/compression"))
STORE = Path("build/mutants")
# of the mutants that are not equivalent, of all files together
_LEAST_SHARE = 0.95
# What a mutant survives in so long it nearly always survives in all its tests, which may take minutes.
_SECONDS = 2.0
_SAVED = 60.0


@dataclass
class Result:
    """The mutants of one file, by what became of them."""

    count: Counter[str] = field(default_factory=Counter[str])
    survivors: list[Mutant] = field(default_factory=list[Mutant])

    @property
    def share(self) -> float:
        found = self.count[CAUGHT] + self.count[TIMEOUT]
        return found / (found + self.count[SURVIVED]) if found + self.count[SURVIVED] else 1.0


def main() -> int:
    options = _options()
    os.chdir(ROOT)
    console = Console(highlight=False)
    files = [Path(each) for each in options.files] or sorted(Path("passes").glob("*.py"))
    mutants = [mutant for file in files for mutant in mutants_of(file, file.as_posix())]
    mutants = mutants[options.start :: options.every]
    store = Store(STORE, ROOT)
    started = time.perf_counter()
    tests = options.tests or sorted(file for folder in TESTS for file in folder.rglob("test_*.py"))
    prepare(tests)
    console.print("which test runs which line...", style="dim")
    coverage = store.coverage(tests, coverage_of)
    if coverage.failed:
        console.print("fail without any change: " + ", ".join(coverage.failed), markup=False)
        return 2
    try:
        found = _run(mutants, coverage, store, console, options)
    finally:
        store.save()
    results = _results(mutants, found)
    stale = _stale(mutants, found) if options.every == 1 else []
    _tell(results, found, stale, console, time.perf_counter() - started, options.seconds)
    return 1 if _whole(results).share < _LEAST_SHARE or stale else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("files", nargs="*", help="files of passes/; all of them by default")
    parser.add_argument("--tests", nargs="+", type=Path, metavar="FILE", help="tests to try; all of them by default")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="how many mutants at a time")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take every Nth mutant only")
    parser.add_argument("--start", type=int, default=0, metavar="K", help="the first mutant to take, from 0")
    parser.add_argument(
        "--seconds",
        type=float,
        default=_SECONDS,
        metavar="S",
        help=f"tests that take S seconds together are tried on each mutant, {_SECONDS} by default; what none of these "
        "notices has survived",
    )
    parser.add_argument("--again", action="store_true", help="forget what earlier runs found")
    return parser.parse_args()


def _run(
    mutants: list[Mutant], coverage: Coverage, store: Store, console: Console, options: argparse.Namespace
) -> dict[Mutant, Outcome]:
    whole = {file: coverage.tests(file) for file in {mutant.file for mutant in mutants if mutant.at_import}}
    tests = {
        mutant: whole[mutant.file] if mutant.at_import else coverage.tests(mutant.file, mutant.lines)
        for mutant in mutants
    }
    todo = {each: tests[each] if options.again else store.todo(each, tests[each], options.seconds) for each in mutants}
    before = {mutant: store.get(mutant) for mutant in mutants}
    own = {file: frozenset(coverage.asking(file)) for file in {mutant.file for mutant in mutants}}
    found = {mutant: known for mutant in mutants if (known := before[mutant]) is not None and not todo[mutant]}
    work = [
        Task(
            number=number,
            file=mutant.file,
            function=mutant.function,
            at_import=mutant.at_import,
            source=mutant.source,
            tests=todo[mutant],
            most=options.seconds,
            own=own[mutant.file],
            hint=store.hint(mutant),
        )
        for number, mutant in enumerate(mutants)
        if mutant not in found
    ]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("mutants", total=len(mutants), completed=len(found))
        saved = time.monotonic()
        for number, outcome in outcomes(work, coverage.seconds, options.workers):
            mutant, known = mutants[number], before[mutants[number]]
            if outcome.status == SURVIVED and known is not None and len(todo[mutant]) < len(tests[mutant]):
                outcome = replace(outcome, left=known.left + outcome.left)
            found[mutant] = outcome
            store.put(mutant, tests[mutant], options.seconds, outcome)
            progress.advance(task)
            if time.monotonic() > saved + _SAVED:
                store.save()
                saved = time.monotonic()
                if not console.is_terminal:
                    console.print(f"{len(found)} of {len(mutants)}")
    return found


def _why_equivalent(mutant: Mutant) -> str | None:
    return EQUIVALENT.get((mutant.file, mutant.function), {}).get((mutant.before, mutant.after))


def _results(mutants: list[Mutant], found: dict[Mutant, Outcome]) -> dict[str, Result]:
    results: dict[str, Result] = {}
    for mutant in mutants:
        result, status = results.setdefault(mutant.file, Result()), found[mutant].status
        if status == SURVIVED and _why_equivalent(mutant) is not None:
            result.count["equivalent"] += 1
            continue
        result.count[status] += 1
        if status == SURVIVED:
            result.survivors.append(mutant)
            result.count["bounded"] += found[mutant].left > 0
    return results


def _stale(mutants: list[Mutant], found: dict[Mutant, Outcome]) -> list[str]:
    """Entries of the list of equivalents that name no mutant, or one that a test does catch."""
    files = {mutant.file for mutant in mutants}
    survived = {
        (mutant.file, mutant.function, mutant.before, mutant.after)
        for mutant in mutants
        if found[mutant].status == SURVIVED
    }
    return [
        f"{file}, {function}: {before} -> {after}"
        for (file, function), each in EQUIVALENT.items()
        for before, after in each
        if file in files and (file, function, before, after) not in survived
    ]


def _tell(
    results: dict[str, Result],
    found: dict[Mutant, Outcome],
    stale: list[str],
    console: Console,
    seconds: float,
    most: float,
) -> None:
    titles = ("mutants", "caught", "timeout", "survived", "bounded", "equivalent", "share")
    table = Table(Column("file", no_wrap=True), box=None, padding=(0, 1), pad_edge=False)
    for title in titles:
        table.add_column(title, justify="right")
    for file, result in results.items():
        table.add_row(Path(file).name, *_row(result), style="" if result.share >= _LEAST_SHARE else "yellow")
    whole = _whole(results)
    table.add_row("all", *_row(whole), style="bold")
    survivors = whole.survivors
    STORE.joinpath("survivors.diff").write_text("\n".join(map(_told, survivors)))
    data = {
        "seconds": seconds,
        "files": {file: {**result.count, "share": result.share} for file, result in results.items()},
        "survivors": [
            {"file": each.file, "function": each.function, "before": each.before, "after": each.after}
            for each in survivors
        ],
        "caught": {f"{each.file}, {each.function}: {each.before} -> {each.after}": found[each].test for each in found},
    }
    STORE.joinpath("mutants.json").write_text(json.dumps(data, indent=1))
    console.print(table)
    if whole.count["bounded"]:
        console.print(f"bounded: survivors not given all of their tests, only some that take {most:g} s together")
    console.print(f"{seconds:.0f} s; the survivors are in {STORE / 'survivors.diff'}")
    for each in stale:
        console.print(f"no equivalent mutant: {each}", markup=False)


def _whole(results: dict[str, Result]) -> Result:
    whole = Result()
    for result in results.values():
        whole.count.update(result.count)
        whole.survivors += result.survivors
    return whole


def _row(result: Result) -> list[str]:
    count = result.count
    kinds = (CAUGHT, TIMEOUT, SURVIVED, "equivalent")
    counts = [sum(count[kind] for kind in kinds), count[CAUGHT], count[TIMEOUT], count[SURVIVED], count["bounded"]]
    return [*map(str, counts), str(count["equivalent"]), f"{result.share:.1%}"]


def _told(mutant: Mutant) -> str:
    return f"# {mutant.file}, {mutant.function}: {mutant.before!r} -> {mutant.after!r}\n{mutant.diff()}\n"


if __name__ == "__main__":
    sys.exit(main())
