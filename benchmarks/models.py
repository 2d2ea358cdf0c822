"""Time and memory of every package in ../shared/models: each runs in a process of its own.

    python -m benchmarks.models [PACKAGE ...] [--precision P] [--threads N] [--clock C] [--output FILE]

One row for each function of each package, on random inputs of its default shapes. `first run` prepares the weights and
is the price of running a model once; `warm run` is the fastest of the next ones; `peak` is the memory of anonymous
pages above what the imports hold, of all functions together (weights are mapped, and count when they are copied).
Without PACKAGE all of ../shared/models are run, those without weights with made-up ones; results are printed and
written.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.memory import AnonymousPeak, anonymous_bytes
from milopt.precisions import PRECISIONS, Precision

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared"
HEADS = ("package", "function", "ops", "first run s", "warm run s", "peak MB")
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
# Warm runs: at least this many, and more until this many seconds are spent.
RUNS, SECONDS = 3, 1.0


@dataclass(frozen=True)
class Row:
    """A function of a package: how many ops it has (constants apart), seconds, and the package's peak in bytes."""

    package: str
    function: str
    ops: int
    first: float
    warm: float
    peak: int

    def cells(self) -> tuple[str, ...]:
        times = (f"{self.first:.3f}", f"{self.warm:.4f}")
        return (self.package, self.function, str(self.ops), *times, f"{self.peak / 1e6:.0f}")


def main() -> None:
    """Run the packages, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", type=Path, metavar="PACKAGE")
    parser.add_argument("--precision", choices=PRECISIONS, default="declared")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: for a machine that others use as well")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "models.md")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker is not None:
        print(json.dumps([asdict(row) for row in measure(given.worker, given.precision, CLOCKS[given.clock])]))
        return
    rows: list[Row] = []
    with TemporaryDirectory() as temporary:
        packages = given.packages or all_packages()
        for path in track(packages, description="packages", console=Console(stderr=True)):
            rows += in_process(with_weights(path, Path(temporary)), given)
    table = Table(title=conditions(given))
    for head in HEADS:
        table.add_column(head, justify="left" if head in ("package", "function") else "right")
    for row in rows:
        table.add_row(*row.cells())
    Console().print(table)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(report(rows, conditions(given)), encoding="utf-8")


def all_packages() -> list[Path]:
    """Those in ../shared/models; SystemExit where there is no such folder."""
    found = [path for kind in ("real", "stories260K", "graphs") for path in SHARED.glob(f"models/{kind}/*.mlpackage")]
    if not found:
        raise SystemExit("../shared, the folder of reference models, is absent: name packages")
    return sorted(found, key=lambda path: path.name.lower())


def with_weights(path: Path, folder: Path) -> Path:
    """The package, or a copy of it in ``folder`` with made-up weights where it is one of those without."""
    if path.parent != SHARED / "models" / "graphs":
        return path
    tool = SHARED / "tools" / "refill.py"
    subprocess.run([sys.executable, str(tool), str(path), str(folder / path.name)], check=True, capture_output=True)
    return folder / path.name


def conditions(given: argparse.Namespace) -> str:
    return f"{given.precision} precision, {given.threads} thread(s), {given.clock} time"


def in_process(path: Path, given: argparse.Namespace) -> list[Row]:
    options = ["--worker", str(path), "--precision", given.precision, "--clock", given.clock]
    command = [sys.executable, "-m", "benchmarks.models", *options]
    environment = os.environ | {"OMP_NUM_THREADS": str(given.threads)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE.parent, check=False)
    if result.returncode:
        raise SystemExit(f"{path.name}: {result.stderr.strip().splitlines()[-1]}")
    return [Row(**row) for row in json.loads(result.stdout.splitlines()[-1])]


def measure(path: Path, precision: Precision, clock: Callable[[], float]) -> Iterator[Row]:
    """The rows of one package, in this process."""
    import milopt
    from milopt.interpreter import compile_all, make_state
    from milopt.mil import operations
    from milopt.verify.freezing import freeze
    from tests.models.packages import inputs_of, shapes_of

    begun = anonymous_bytes()
    found: list[Row] = []
    with AnonymousPeak() as memory:
        model = milopt.load(path)
        frozen = freeze(model)
        for name, plan in compile_all(model, precision=precision).items():
            inputs = inputs_of(frozen, plan, next(shapes_of(frozen, plan)))
            times: list[float] = []
            while len(times) <= RUNS or sum(times) < SECONDS:
                state = make_state(model) if plan.states else None
                start = clock()
                plan.run(inputs, state)
                times.append(clock() - start)
            ops = sum(op.op_type != "const" for op in operations(model.function(name)))
            found.append(Row(path.stem, name, ops, times[0], min(times[1:]), 0))
    for row in found:
        yield replace(row, peak=memory.peak - begun)


def report(rows: list[Row], how: str) -> str:
    lines = [
        "# Every package of ../shared/models",
        "",
        f"Random inputs of the default shapes, {how}, each package in a process of its own.",
        "Made by `benchmarks/models.py`, which says what the columns mean.",
        "",
        f"| {' | '.join(HEADS)} |",
        "|---|---|---|---|---|---|",
        *(f"| {' | '.join(row.cells())} |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
