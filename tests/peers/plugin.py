"""A pytest plugin: the adapter around the whole run, and a report that counts the tests in which milopt predicted.

On Linux a test of coremltools skips its prediction and passes with nothing behind it, so "passed" alone says nothing.
"""

from __future__ import annotations

import gc
import importlib
import json
import random
import zlib
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from milopt.testing import coremltools_predict
from milopt.testing.coremltools_adapter import Answers
from tests.peers.known_failures import KNOWN_FAILURES
from tests.peers.summary import Result, Summary
from tests.peers.wrong import WRONG

# What fails must be known, and what is known must be little.
_GOAL = 0.99


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("peers")
    group.addoption("--peers-report", metavar="FILE", help="write the outcome of every test to a JSON file")
    group.addoption("--peers-sample", type=int, metavar="N", help="run N tests, always the same ones")
    group.addoption("--peers-wrong", choices=sorted(WRONG), help="predict wrongly, to see whether the tests notice")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Peers(config), "peers")


class _Peers:
    """In the process that runs the tests it answers, in the one that reports it counts; without xdist it does both."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.stack = ExitStack()
        wrong: str | None = config.getoption("peers_wrong")
        # modules of tests ask at import whether they run on a Mac: collecting is inside
        self.answers: Answers = self.stack.enter_context(coremltools_predict(WRONG[wrong] if wrong else None))
        self.summary = Summary(KNOWN_FAILURES)

    def pytest_unconfigure(self) -> None:
        self.stack.close()

    @pytest.hookimpl(trylast=True)  # of what -k and -m leave
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        count: int | None = config.getoption("peers_sample")
        if count is None or count >= len(items):
            return
        chosen = set(sorted((_hash(item.nodeid), item.nodeid) for item in items)[:count])
        dropped = [item for item in items if (_hash(item.nodeid), item.nodeid) not in chosen]
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if (_hash(item.nodeid), item.nodeid) in chosen]

    def pytest_collection_finish(self) -> None:
        """coremltools collects garbage at every conversion, which costs more than the rest where much is loaded."""
        gc.collect()
        gc.freeze()
        converting: Any = importlib.import_module("coremltools.converters._converters_entry")
        converting.gc = SimpleNamespace(collect=lambda: None)  # Python collects by itself now and then

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Tests draw from the global generators: seeded by name, a test sees the same numbers in any company."""
        seed = _hash(item.nodeid)
        random.seed(seed)
        np.random.seed(seed)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        count, refused = self.answers.count, len(self.answers.failures)
        try:
            return (yield)
        finally:
            item.user_properties.append(("answered", self.answers.count - count))
            item.user_properties.append(("refused", len(self.answers.failures) - refused))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            properties: dict[str, Any] = dict(report.user_properties)
            outcome = f"x{report.outcome}" if hasattr(report, "wasxfail") else str(report.outcome)
            asked = int(properties.get("answered", 0)) + int(properties.get("refused", 0))
            self.summary.add(Result(report.nodeid, outcome, asked, _last_line(report)))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.summary.broken[report.nodeid] = str(report.longrepr).strip().split("\n")[-1][:300]

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(self.config, "workerinput"):  # xdist: the controller has all results
            return
        if session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            session.exitstatus = int(not self.summary.is_good(_GOAL))
        path: str | None = self.config.getoption("peers_report")
        if path is not None:
            Path(path).write_text(json.dumps(self.summary.to_json(), indent=1) + "\n")

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.section("predictions by milopt")
        for line in self.summary.lines(_GOAL):
            terminalreporter.write_line(line)


def _hash(text: str) -> int:
    return zlib.crc32(text.encode())


def _last_line(report: pytest.TestReport) -> str:
    if report.outcome == "passed":
        return ""
    crash: Any = getattr(report.longrepr, "reprcrash", None)
    text = str(crash.message if crash else report.longrepr).strip()
    return text.split("\n")[0][:300]
