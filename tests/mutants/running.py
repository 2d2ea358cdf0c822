"""Tests against mutants, each mutant in a process of its own."""

from __future__ import annotations

import gc
import inspect
import json
import os
import resource
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, TextIO

import pytest

from .processes import PASSES, Loader, hush, run_pytest

__all__ = ["CAUGHT", "SURVIVED", "TIMEOUT", "Outcome", "Task", "outcomes"]

CAUGHT, SURVIVED, TIMEOUT = "caught", "survived", "timeout"

# A mutant may make a test slower before it fails: so many times its own seconds on the processor, and at least so many.
_SLOWER, _LEAST_SECONDS = 10.0, 2.0
# beside what the parent has mapped; the programs of the tests are small
_MOST_MEMORY = 4 << 30
_EXPIRED = 97
_FAULT = -1  # in the place of a mutant's number
# seconds that pytest adds to every test, and to every file of tests that it reads
_OVERHEAD, _READING = 0.005, 0.3
# how much a mutant of the same file that a test caught counts beside one of the same function; what a test counts that
# caught none yet, and one of a file that imports the pass
_IN_FILE, _NONE, _OWN = 0.1, 0.01, 0.1


@dataclass(frozen=True)
class Task:
    """A mutant (the text ``source`` of ``file``, changed in ``function``), and the tests among which one may fail.

    ``hint`` is the test that caught it in an earlier run. It gets tests that take ``most`` seconds together, those
    that caught others like it before the rest, then ``own``, which are of files that import the pass; one at least.
    """

    number: int
    file: str
    function: str
    at_import: bool
    source: str
    tests: list[str]
    most: float
    own: frozenset[str] = frozenset()
    hint: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant: ``status``, the test that caught it, and how many tests it was not given.

    What ended without a word of a test that failed or took too long was not caught.
    """

    status: str
    test: str = ""
    left: int = 0


def outcomes(work: Iterable[Task], seconds: Mapping[str, float], workers: int) -> Iterator[tuple[int, Outcome]]:
    """Run tests against mutants, ``workers`` at a time, and yield the number of each and how it ended."""
    tasks = list(work)
    order = _Order(seconds)
    yield from ((task.number, Outcome(SURVIVED)) for task in tasks if not task.tests)
    if inside := [task for task in tasks if task.tests and not task.at_import]:
        yield from _served(inside, order, workers)
    imported = [task for task in tasks if task.tests and task.at_import]
    yield from order.learning(imported, lambda task: _imported(task, order), workers)


@dataclass
class _Order:
    """An order of tests in which one may soon fail: what caught a mutant may well catch its neighbours."""

    seconds: Mapping[str, float]
    function: dict[tuple[str, str], Counter[str]] = field(default_factory=lambda: defaultdict(Counter[str]))
    file: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter[str]))

    def learning(
        self, tasks: list[Task], job: Callable[[Task], Callable[[int], None]], workers: int
    ) -> Iterator[tuple[int, Outcome]]:
        """Run the job of each task, and remember which test caught which."""
        places = {task.number: (task.file, task.function) for task in tasks}
        for number, outcome in _forked(((task.number, job(task)) for task in tasks), workers):
            if outcome.test:
                self.function[places[number]][outcome.test] += 1
                self.file[places[number][0]][outcome.test] += 1
            yield number, outcome

    def tests(self, task: Task) -> list[str]:
        """The tests of a mutant that it is given."""
        function, file = self.function[task.file, task.function], self.file[task.file]

        def worth(test: str) -> float:
            caught = function[test] + _IN_FILE * file[test] + (_OWN if test in task.own else _NONE)
            return caught / (self.seconds[test] + _OVERHEAD)

        tests = sorted(task.tests, key=lambda test: (test != task.hint, -worth(test)))
        spent, chosen = 0.0, tests[:1]
        for test in tests[1:]:
            spent += self.seconds[test] + _OVERHEAD
            if spent > task.most:
                break
            chosen.append(test)
        return chosen


def _imported(task: Task, order: _Order) -> Callable[[int], None]:
    """A mutant that runs on import: with the tests' modules imported anew, one file after another."""

    def run(write: int) -> None:
        sys.meta_path.insert(0, Loader({task.file: task.source}))
        tests = order.tests(task)
        plugin = _Selected(set(tests), order.seconds, write)
        for file, _ in groupby(_by_file(tests), lambda test: test.partition("::")[0]):
            if run_pytest(["-x", file], [plugin]) == pytest.ExitCode.NO_TESTS_COLLECTED:
                run_pytest(["-x", file], [_Telling(write)])  # the mutant gave the tests other names
        _tell(write, left=len(task.tests) - len(tests))

    return lambda write: _limited(sum(order.seconds[test] + _READING for test in task.tests), lambda: run(write))


def _by_file(tests: list[str]) -> list[str]:
    """The tests with those of a file together, in the order of the first of each."""
    files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
    return sorted(tests, key=lambda test: files.index(test.partition("::")[0]))


def _served(tasks: list[Task], order: _Order, workers: int) -> Iterator[tuple[int, Outcome]]:
    """Mutants of functions: a child collects the tests once, and its own children each change a function's code."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        code = 1
        try:
            os.close(read)
            hush()
            files = dict.fromkeys(test.partition("::")[0] for task in tasks for test in task.tests)
            with os.fdopen(write, "w") as stream:
                code = run_pytest([*files], [_Server(tasks, order, workers, stream)])
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as stream:
        for line in stream:
            number, *told = json.loads(line)
            if number == _FAULT:
                raise RuntimeError(told[0])
            yield number, Outcome(*told)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("the process that holds the tests failed")


class _Server:
    """A plugin of pytest that runs collected tests against one mutant after another, in place of running them once."""

    def __init__(self, tasks: list[Task], order: _Order, workers: int, stream: TextIO) -> None:
        self.tasks = tasks
        self.order = order
        self.workers = workers
        self.stream = stream
        self.telling = _Telling(-1)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        unknown = next((test for task in self.tasks for test in task.tests if test not in items), None)
        if unknown is not None:
            self.tell(_FAULT, f"{unknown} is no test in this process: names must be the same in each")
            return True
        session.config.pluginmanager.register(self.telling)
        gc.collect()
        gc.freeze()
        known: set[str] = set()
        for number, outcome in self.order.learning(self.tasks, lambda task: self.job(task, items), self.workers):
            self.tell(number, outcome.status, outcome.test, outcome.left)
            if outcome.test and outcome.test not in known:
                known.add(outcome.test)
                self.check(items[outcome.test])
        return True

    def tell(self, *found: object) -> None:
        self.stream.write(json.dumps(found) + "\n")
        self.stream.flush()

    def check(self, item: pytest.Item) -> None:
        """A test that has caught a mutant passes where nothing is changed, in such a process too."""

        def run(write: int) -> None:
            self.telling.write = write
            with _timed(item.nodeid, self.order.seconds, write):
                item.ihook.pytest_runtest_protocol(item=item, nextitem=None)

        child, read = _started(run)
        if _outcome(os.waitpid(child, 0)[1], read).status != SURVIVED:
            self.tell(_FAULT, f"{item.nodeid} fails in a process of its own without any change")

    def job(self, task: Task, items: Mapping[str, pytest.Item]) -> Callable[[int], None]:
        tests = self.order.tests(task)

        def run(write: int) -> None:
            self.telling.write = write
            _change(task)
            selected = [items[test] for test in tests]
            for item, following in zip(selected, [*selected[1:], None], strict=True):
                with _timed(item.nodeid, self.order.seconds, write):
                    item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
            _tell(write, left=len(task.tests) - len(tests))

        return lambda write: _limited(sum(self.order.seconds[test] for test in tests), lambda: run(write))


def _change(task: Task) -> None:
    """Give the function that holds the mutant its other code."""
    stem = Path(task.file).stem
    module = sys.modules[PASSES if stem == "__init__" else f"{PASSES}.{stem}"]
    code = compile(task.source, str(module.__file__), "exec")
    owner: Any = module
    held: Any = module
    for name in task.function.split("."):
        owner, held = held, vars(held)[name]
        code = next(each for each in code.co_consts if isinstance(each, CodeType) and each.co_name == name)
        if not isinstance(held, type):
            break
    held = getattr(held, "fget", held)
    held = inspect.unwrap(getattr(held, "__func__", held))
    if len(code.co_freevars) == len(held.__code__.co_freevars):
        held.__code__ = code
    else:  # a method that calls super no more
        cells = dict(zip(held.__code__.co_freevars, held.__closure__, strict=True))
        closure = tuple(cells[name] for name in code.co_freevars)
        setattr(owner, held.__name__, FunctionType(code, held.__globals__, held.__name__, held.__defaults__, closure))


def _forked(jobs: Iterable[tuple[int, Callable[[int], None]]], workers: int) -> Iterator[tuple[int, Outcome]]:
    """Run each job in a process of its own, ``workers`` at a time; a job gets a pipe to tell in what it found."""
    running: dict[int, tuple[int, int]] = {}
    todo = iter(jobs)
    more = True
    while more or running:
        while more and len(running) < workers:
            if (job := next(todo, None)) is None:
                more = False
                break
            child, read = _started(job[1])
            running[child] = job[0], read
        if running:
            child, status = os.wait()
            if child in running:
                number, read = running.pop(child)
                yield number, _outcome(status, read)


def _started(job: Callable[[int], None]) -> tuple[int, int]:
    """A process that runs the job, and the end of a pipe at which to hear what it tells."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        code = 1
        try:
            os.close(read)
            hush()
            job(write)
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    return child, read


def _tell(write: int, **found: object) -> None:
    os.write(write, json.dumps(found).encode())


def _outcome(status: int, read: int) -> Outcome:
    with os.fdopen(read) as stream:
        told: dict[str, Any] = json.loads(stream.read() or "{}")
    test = told.get("test", "")
    if os.WIFSIGNALED(status):
        slow = os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGPROF)
        return Outcome(TIMEOUT if slow else CAUGHT, test)
    code = os.WEXITSTATUS(status)
    if code == _EXPIRED:
        return Outcome(TIMEOUT, test)
    return Outcome(CAUGHT, test) if test else Outcome(SURVIVED, left=told.get("left", 1))


def _limited(seconds: float, run: Callable[[], None]) -> None:
    most = int(20 + _SLOWER * seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (most, most + 5))
    mapped = Path("/proc/self/statm")
    if mapped.exists():
        size = int(mapped.read_text().split()[0]) * resource.getpagesize() + _MOST_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    run()


@contextmanager
def _timed(test: str, seconds: Mapping[str, float], write: int) -> Generator[None]:
    """End the process where a test takes many times its seconds on the processor."""

    def expire(*_: object) -> None:
        _tell(write, test=test)
        os._exit(_EXPIRED)

    signal.signal(signal.SIGPROF, expire)
    signal.setitimer(signal.ITIMER_PROF, _LEAST_SECONDS + _SLOWER * seconds[test])
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


class _Telling:
    """A plugin of pytest that tells the first test that fails, and ends the process."""

    def __init__(self, write: int) -> None:
        self.write = write

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.told(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.told(report)

    def told(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.failed:
            _tell(self.write, test=report.nodeid)
            os._exit(1)


class _Selected(_Telling):
    """Runs some tests, the fastest first, each within its time."""

    def __init__(self, tests: set[str], seconds: Mapping[str, float], write: int) -> None:
        super().__init__(write)
        self.tests = tests
        self.seconds = seconds

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        selected = [item for item in items if item.nodeid in self.tests]
        items[:] = sorted(selected, key=lambda item: self.seconds[item.nodeid])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        with _timed(item.nodeid, self.seconds, self.write):
            return (yield)
