"""Tests in forked children of a process that has imported everything but the passes.

A child imports the passes, one of them mutated, and the tests' modules anew; what takes seconds to import, torch and
coremltools above all, it has from its parent.
"""

from __future__ import annotations

import gc
import importlib
import importlib.abc
import importlib.machinery
import inspect
import json
import math
import os
import resource
import signal
import sys
import threading
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from itertools import accumulate
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any, TextIO

import pytest
from hypothesis import HealthCheck, Phase, settings

__all__ = ["CAUGHT", "SURVIVED", "TIMEOUT", "Coverage", "Outcome", "Task", "coverage_of", "outcomes", "prepare"]

CAUGHT, SURVIVED, TIMEOUT = "caught", "survived", "timeout"
PASSES = "milopt.passes"

# A mutant may make a test slower before it fails: so many times its own seconds on the processor, and at least so many.
_SLOWER, _LEAST_SECONDS = 10.0, 3.0
# beside what the parent has mapped; the programs of the tests are small
_MOST_MEMORY = 4 << 30
_EXPIRED = 97
_OVERHEAD = 0.005  # seconds that pytest adds to every test


def prepare(tests: Iterable[Path]) -> None:
    """Import what the tests import, but for the passes, the tests and what imports either."""
    # the same examples each time; a failure is enough, its smallest form is not needed, nor kept
    settings.register_profile(
        "mutants",
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    settings.load_profile("mutants")
    warnings.simplefilter("ignore", SyntaxWarning)
    for name in _modules_of(list(tests)):
        importlib.import_module(name)
        if any(map(_is_late, sys.modules)):
            raise AssertionError(f"{name} imports {next(filter(_is_late, sys.modules))}")
    gc.collect()
    gc.freeze()  # pytest collects garbage as it ends; what the parent holds is none


def _is_late(name: str) -> bool:
    return name == PASSES or name.startswith(f"{PASSES}.")


def _modules_of(tests: list[Path]) -> list[str]:
    """What a collection of the tests imports, in its order; a child does it."""

    def collect() -> list[str]:
        before = set(sys.modules)
        _pytest([*map(str, tests), "--collect-only"])
        names = [name for name in sys.modules if name not in before and importable(name)]
        late = _late_among(names)
        return [name for name in names if name not in late]

    def importable(name: str) -> bool:
        spec = getattr(sys.modules[name], "__spec__", None)
        return spec is not None and spec.name == name and name.split(".")[0] not in ("tests", "__main__")

    return list(_in_child(collect))


def _late_among(names: list[str]) -> set[str]:
    """The passes, our modules that hold something of theirs, what holds those's, and all packages' modules.

    To import a module is to import its package first.
    """
    late = set(filter(_is_late, sys.modules))
    ours = [name for name in names if name.partition(".")[0] in ("milopt", "benchmarks")]
    origins = {name: _origins(sys.modules[name]) for name in ours}
    while found := {name for name in origins if name not in late and (origins[name] | {_package(name)}) & late}:
        late |= found
    return late


def _package(name: str) -> str:
    return name.rpartition(".")[0]


def _origins(module: ModuleType) -> set[str]:
    """The modules that what a module holds comes from."""
    held = list(vars(module).values())
    return {str(getattr(each, "__module__", "") or getattr(each, "__name__", "")) for each in held}


def _pytest(arguments: list[str], plugins: Sequence[object] = ()) -> int:
    left_out = ("cacheprovider", "xdist", "unraisableexception", "threadexception", "faulthandler")
    fixed = ["-q", "--no-header", "--capture=no", "--tb=no", "-m", "not slow", *(f"-pno:{each}" for each in left_out)]
    return int(pytest.main([*fixed, *arguments], plugins=list(plugins)))


def _in_child(work: Callable[[], Any]) -> Any:
    """What ``work`` returns in a forked process, as JSON; what it prints goes nowhere."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        code = 1
        try:
            os.close(read)
            _hush()
            with os.fdopen(write, "w") as stream:
                json.dump(work(), stream)
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as stream:
        text = stream.read()
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("a child process failed")
    return json.loads(text)


def _hush() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)


@dataclass
class Coverage:
    """Which tests run which lines of the passes (file -> line -> tests), and the seconds that each test takes."""

    lines: dict[str, dict[int, list[str]]] = field(default_factory=dict[str, dict[int, list[str]]])
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    failed: list[str] = field(default_factory=list[str])

    def tests(self, file: str, lines: Iterable[int] | None = None, most: float = math.inf) -> list[str]:
        """The tests that run one of ``lines`` of a file, the fastest first, as many as take ``most`` seconds together.

        Without ``lines``, those that run any of them, and those that run none but ask what the passes declare.
        """
        known = self.lines.get(file, {})
        found = {test for line in (known if lines is None else lines) for test in known.get(line, ())}
        if lines is None:
            found.update(self.asking())
        tests = sorted(found, key=lambda test: (self.seconds[test], test))
        spent = accumulate(self.seconds[test] for test in tests)
        return [
            test for test, seconds in zip(tests, spent, strict=True) if seconds <= max(most, self.seconds[tests[0]])
        ]

    def asking(self) -> set[str]:
        """The tests whose files import the package of the passes as a whole."""
        files = {test.partition("::")[0] for test in self.seconds}
        whole = {file for file in files if f"import {PASSES}\n" in Path(file).read_text(encoding="utf-8")}
        return {test for test in self.seconds if test.partition("::")[0] in whole}


def coverage_of(tests: Iterable[Path], root: Path) -> Coverage:
    """Run the tests once, on the passes as they are."""

    def trace() -> dict[str, Any]:
        tracer = _Tracer(root)
        threading.settrace(tracer.call)
        sys.settrace(tracer.call)
        _pytest([*map(str, tests)], [tracer])
        sys.settrace(None)
        lines = {file: {line: sorted(found) for line, found in each.items()} for file, each in tracer.lines.items()}
        return {"lines": lines, "seconds": tracer.seconds, "failed": tracer.failed}

    made = _in_child(trace)
    lines = {file: {int(line): found for line, found in each.items()} for file, each in made["lines"].items()}
    return Coverage(lines, made["seconds"], made["failed"])


class _Tracer:
    """A plugin of pytest that notes lines by test."""

    def __init__(self, root: Path) -> None:
        self.prefix = str(root / "milopt" / "passes") + os.sep
        self.test = ""
        self.lines: dict[str, dict[int, set[str]]] = {}
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []

    def call(self, frame: FrameType, event: str, argument: object) -> Any:
        file = frame.f_code.co_filename
        if not self.test or not file.startswith(self.prefix):
            return None
        known = self.lines.setdefault(f"passes/{file[len(self.prefix) :]}", {})

        def line(frame: FrameType, event: str, argument: object) -> Any:
            known.setdefault(frame.f_lineno, set()).add(self.test)
            return line

        return line(frame, event, argument)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self.test, start = item.nodeid, time.process_time()
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = time.process_time() - start
            self.test = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


@dataclass(frozen=True)
class Task:
    """A mutant (the text ``source`` of ``file``, changed in ``function``), and the tests to run until one fails.

    ``hint`` is the test that caught it in an earlier run.
    """

    number: int
    file: str
    function: str
    at_import: bool
    source: str
    tests: list[str]
    hint: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant: ``status``, and the test that caught it."""

    status: str
    test: str = ""


def outcomes(work: Iterable[Task], seconds: Mapping[str, float], workers: int) -> Iterator[tuple[int, Outcome]]:
    """Run tests against mutants, ``workers`` at a time, and yield the number of each and how it ended."""
    tasks = list(work)
    untested = [task for task in tasks if not task.tests]
    inside = [task for task in tasks if task.tests and not task.at_import]
    yield from ((task.number, Outcome(SURVIVED)) for task in untested)
    if inside:
        yield from _served(inside, seconds, workers)
    jobs = ((task.number, _job(task, seconds)) for task in tasks if task.tests and task.at_import)
    yield from _forked(jobs, workers)


def _job(task: Task, seconds: Mapping[str, float]) -> Callable[[int], int]:
    """A mutant that runs on import: with the tests' modules imported anew."""

    def run(write: int) -> int:
        sys.meta_path.insert(0, _Mutated(task.file, task.source))
        tests = sorted(task.tests, key=lambda test: test != task.hint)
        files = dict.fromkeys(test.partition("::")[0] for test in tests)
        code = _pytest(["-x", *files], [_Selected(tests, seconds, write)])
        if code == pytest.ExitCode.NO_TESTS_COLLECTED:  # the mutant gave the tests other names
            code = _pytest(["-x", *files])
        return code

    return lambda write: _limited(task, seconds, lambda: run(write))


def _served(tasks: list[Task], seconds: Mapping[str, float], workers: int) -> Iterator[tuple[int, Outcome]]:
    """Mutants of functions: a child collects the tests once, and its own children each change a function's code."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        code = 1
        try:
            os.close(read)
            _hush()
            files = dict.fromkeys(test.partition("::")[0] for task in tasks for test in task.tests)
            with os.fdopen(write, "w") as stream:
                code = _pytest([*files], [_Server(tasks, seconds, workers, stream)])
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as stream:
        for line in stream:
            number, status, test = json.loads(line)
            yield number, Outcome(status, test)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("the process that holds the tests failed")


class _Server:
    """A plugin of pytest that runs collected tests against one mutant after another, in place of running them once."""

    def __init__(self, tasks: list[Task], seconds: Mapping[str, float], workers: int, stream: TextIO) -> None:
        self.tasks = tasks
        self.seconds = seconds
        self.workers = workers
        self.stream = stream
        self.write = -1
        # how many mutants of a function each test has caught: where it caught one it may well catch another
        self.caught: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        gc.collect()
        gc.freeze()
        places = {task.number: (task.file, task.function) for task in self.tasks}
        jobs = ((task.number, self.job(task, items)) for task in self.tasks)
        for number, outcome in _forked(jobs, self.workers):
            if outcome.test:
                self.caught[places[number]][outcome.test] += 1
            self.stream.write(json.dumps([number, outcome.status, outcome.test]) + "\n")
            self.stream.flush()
        return True

    def job(self, task: Task, items: Mapping[str, pytest.Item]) -> Callable[[int], int]:
        def run(write: int) -> int:
            self.write = write
            _change(task)
            selected = [items[test] for test in self.ordered(task)]
            for item, following in zip(selected, [*selected[1:], None], strict=True):
                with _timed(item.nodeid, self.seconds, write):
                    item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
            return 0

        return lambda write: _limited(task, self.seconds, lambda: run(write))

    def ordered(self, task: Task) -> list[str]:
        """The tests in an order in which one may soon fail: what caught the mutant before, then what caught others."""
        caught = self.caught[task.file, task.function]
        return sorted(
            task.tests, key=lambda test: (test != task.hint, -caught[test] / (self.seconds[test] + _OVERHEAD))
        )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            os.write(self.write, report.nodeid.encode())
            os._exit(1)


def _change(task: Task) -> None:
    """Give the function that holds the mutant its other code."""
    stem = Path(task.file).stem
    module = sys.modules[PASSES if stem == "__init__" else f"{PASSES}.{stem}"]
    code = compile(task.source, str(module.__file__), "exec")
    held: Any = module
    for name in task.function.split("."):
        held = vars(held)[name]
        code = next(each for each in code.co_consts if isinstance(each, CodeType) and each.co_name == name)
        if not isinstance(held, type):
            break
    held = getattr(held, "fget", held)
    held = getattr(held, "__func__", held)
    inspect.unwrap(held).__code__ = code


def _limited(task: Task, seconds: Mapping[str, float], run: Callable[[], int]) -> int:
    _limit(sum(seconds[test] for test in task.tests))
    return run()


def _forked(jobs: Iterable[tuple[int, Callable[[int], int]]], workers: int) -> Iterator[tuple[int, Outcome]]:
    """Run each job in a process of its own, ``workers`` at a time; a job gets a pipe to tell the failing test in."""
    running: dict[int, tuple[int, int]] = {}
    todo = iter(jobs)
    more = True
    while more or running:
        while more and len(running) < workers:
            if (job := next(todo, None)) is None:
                more = False
                break
            read, write = os.pipe()
            if (child := os.fork()) == 0:
                code = 1
                try:
                    os.close(read)
                    _hush()
                    code = job[1](write)
                finally:
                    os._exit(code)
            os.close(write)
            running[child] = job[0], read
        if running:
            child, status = os.wait()
            if child in running:
                number, read = running.pop(child)
                with os.fdopen(read) as stream:
                    told = stream.read()
                yield number, _outcome(status, told)


def _outcome(status: int, told: str) -> Outcome:
    if os.WIFSIGNALED(status):
        slow = os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGPROF)
        return Outcome(TIMEOUT if slow else CAUGHT, told)
    code = os.WEXITSTATUS(status)
    if code == _EXPIRED:
        return Outcome(TIMEOUT, told)
    return Outcome(SURVIVED) if code == 0 else Outcome(CAUGHT, told)


def _limit(seconds: float) -> None:
    most = int(20 + _SLOWER * seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (most, most + 5))
    mapped = Path("/proc/self/statm")
    if mapped.exists():
        size = int(mapped.read_text().split()[0]) * resource.getpagesize() + _MOST_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (size, size))


class _Mutated(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Finds one file of the passes, and loads another text in its place."""

    def __init__(self, file: str, source: str) -> None:
        stem = Path(file).stem
        self.name = PASSES if stem == "__init__" else f"{PASSES}.{stem}"
        self.source = source
        self.path = ""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None
        assert spec.origin is not None
        self.path, spec.loader = spec.origin, self
        return spec

    def get_source(self, fullname: str) -> str:
        return self.source

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.source, self.path, "exec"), module.__dict__)


@contextmanager
def _timed(test: str, seconds: Mapping[str, float], write: int) -> Generator[None]:
    """End the process where a test takes many times its seconds on the processor."""

    def expire(*_: object) -> None:
        os.write(write, test.encode())
        os._exit(_EXPIRED)

    signal.signal(signal.SIGPROF, expire)
    signal.setitimer(signal.ITIMER_PROF, _LEAST_SECONDS + _SLOWER * seconds[test])
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


class _Selected:
    """A plugin of pytest that runs some tests, in their order, each within its time, and tells which one failed."""

    def __init__(self, tests: list[str], seconds: Mapping[str, float], write: int) -> None:
        self.order = {test: at for at, test in enumerate(tests)}
        self.seconds = seconds
        self.write = write

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        selected = [item for item in items if item.nodeid in self.order]
        items[:] = sorted(selected, key=lambda item: self.order[item.nodeid])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        with _timed(item.nodeid, self.seconds, self.write):
            return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            os.write(self.write, report.nodeid.encode())

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            os.write(self.write, report.nodeid.encode())
