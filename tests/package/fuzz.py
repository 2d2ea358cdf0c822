"""Mutated packages, thousands of them: each is loaded, told of and saved, or refused in one line.

    python -m tests.package.fuzz [--count 2000] [--seed N]

Every mutant may take a few seconds and half a gigabyte, nothing may be written beside the output, and what was saved
must load again and say the same. A mutant that does otherwise is shrunk by Hypothesis and shown.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, seed, settings

from milopt.errors import PackageError
from milopt.inspection import inspect
from milopt.package import load
from milopt.text import text

from . import support, test_writing
from .mutating import Mutant, mutants

__all__ = ["check", "fuzz", "samples"]

_SECONDS = 60  # on a busy machine; a thousandth of it is usual
_ROOM = 1 << 29  # bytes that one mutant may take, beyond what the process has
_BUILDS = (support.linear, support.counter, support.two_functions, support.loop, *test_writing.PROGRAMS[3:])
_REAL = ("real/silero_v6_encoder", "real/silero_unified_palette_4bit", "real/dtln128_part1",
         "stories260K/stories260K_ios18_stateful_int4blk")  # fmt: skip


# a mutant is large, and slow beside what Hypothesis expects
_UNHEALTHY = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example)


class TookTooLong(Exception):
    """A mutant took more than its time."""


def samples(folder: Path, shared: Path | None) -> dict[str, dict[str, bytes]]:
    """The packages that are mutated: generated ones, and real ones where they are at hand."""
    found: dict[str, dict[str, bytes]] = {}
    for build in _BUILDS:
        package = load(build()).save(folder / f"{build.__name__}.mlpackage")
        found[build.__name__] = support.tree(package)
    for name in _REAL if shared is not None else ():
        found[name] = support.tree(Path(str(shared)) / "models" / f"{name}.mlpackage")
    return found


def write(mutant: Mutant, package: Path) -> None:
    for path, content in mutant.files.items():
        (package / path).parent.mkdir(parents=True, exist_ok=True)
        (package / path).write_bytes(content)
    for path, target in mutant.links.items():
        (package / path).parent.mkdir(parents=True, exist_ok=True)
        (package / path).symlink_to(target)


def check(mutant: Mutant, folder: Path) -> str:
    """Load the mutant and save it; what became of it. AssertionError, or any other, where it does harm."""
    shutil.rmtree(folder, ignore_errors=True)
    package, output = folder / "in/a.mlpackage", folder / "out"
    write(mutant, package)
    output.mkdir()
    (folder / "outside").write_text("nobody's")
    before = {**support.tree(folder / "in"), "outside": b"nobody's"}
    with limited():
        outcome = attempt(package, output / "b.mlpackage")
    after = {**support.tree(folder / "in"), "outside": (folder / "outside").read_bytes()}
    assert after == before, "something was written beside the output"
    assert {each.name for each in folder.iterdir()} == {"in", "out", "outside"}
    assert {each.name for each in output.iterdir()} <= {"b.mlpackage"}
    return outcome


def attempt(package: Path, output: Path) -> str:
    try:
        model = load(package)
    except PackageError as error:
        return refusal("load", error)
    said = text(model, weights="hash")
    json.dumps(inspect(model).as_dict())  # whatever can be loaded can be told
    try:
        model.save(output)
    except PackageError as error:
        assert not output.exists()
        return refusal("save", error)
    assert text(load(output), weights="hash") == said, "what was saved says something else"
    return "saved"


def refusal(what: str, error: PackageError) -> str:
    message = str(error)
    assert message, "a refusal without a reason"
    assert "\n" not in message, "a refusal of several lines"
    assert len(message) < 2000, f"a refusal of {len(message)} characters"
    return f"{what} refused"


@contextmanager
def limited() -> Generator[None]:
    """A limit of time, and of memory beyond what the process has now."""

    def stop(*_: Any) -> None:
        raise TookTooLong(f"more than {_SECONDS} seconds")

    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    limits = resource.getrlimit(resource.RLIMIT_AS)
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _ROOM, limits[1]))
    earlier = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, earlier)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def fuzz(packages: dict[str, dict[str, bytes]], folder: Path, count: int, start: int = 0) -> Counter[str]:
    """How many of ``count`` mutants came to which end."""
    ends: Counter[str] = Counter()

    @seed(start)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=_UNHEALTHY)
    @given(mutants(packages))
    def run(mutant: Mutant) -> None:
        ends[check(mutant, folder)] += 1

    run()
    return ends


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    shared = Path(__file__).resolve().parents[3] / "shared"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        packages = samples(place, shared if shared.is_dir() else None)
        ends = fuzz(packages, place / "run", options.count, options.seed)
    print(f"{sum(ends.values())} mutants of {len(packages)} packages: {dict(ends.most_common())}")


if __name__ == "__main__":
    main()
