"""Which tests run which statements of the passes: each pass is loaded with a mark before every statement."""

from __future__ import annotations

import ast
import sys
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import pytest

from .processes import PASSES, Loader, in_child, run_pytest

__all__ = ["Coverage", "coverage_of"]

_SEEN = "__seen__"
_CACHED = type(cache(len))


@dataclass
class Coverage:
    """Which tests run which lines of the passes (file -> line -> tests), and the seconds that each test takes."""

    lines: dict[str, dict[int, list[str]]] = field(default_factory=dict[str, dict[int, list[str]]])
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    failed: list[str] = field(default_factory=list[str])

    def tests(self, file: str, lines: Iterable[int] | None = None) -> list[str]:
        """The tests that run one of ``lines`` of a file, the fastest first.

        Without ``lines``, those that run any of them, and those of files that import the pass, or the package of all.
        """
        known = self.lines.get(file, {})
        found = {test for line in (known if lines is None else lines) for test in known.get(line, ())}
        if lines is None:
            found.update(self.asking(file))
        return sorted(found, key=lambda test: (self.seconds[test], test))

    def asking(self, file: str) -> set[str]:
        """The tests that may ask what a file declares, whether they run a function of it or not."""
        wanted = (
            f"import {PASSES}\n",
            f"from {PASSES}.{Path(file).stem} import",
            f"from {PASSES} import {Path(file).stem}",
        )
        files = {test.partition("::")[0] for test in self.seconds}
        texts = {each: Path(each).read_text(encoding="utf-8") for each in files}
        asking = {each for each, text in texts.items() if any(phrase in text for phrase in wanted)}
        return {test for test in self.seconds if test.partition("::")[0] in asking}

    def add(self, other: Coverage) -> None:
        """Take in what other tests run."""
        self.seconds.update(other.seconds)
        self.failed += other.failed
        for file, lines in other.lines.items():
            mine = self.lines.setdefault(file, {})
            for line, tests in lines.items():
                mine.setdefault(line, []).extend(tests)


def coverage_of(tests: Iterable[Path]) -> Coverage:
    """Run the tests once, on the passes as they are."""

    def run() -> dict[str, Any]:
        notes = _Notes()
        sys.meta_path.insert(0, Loader(compiled=notes.marked))
        run_pytest([*map(str, tests)], [notes])
        return {"lines": notes.lines, "seconds": notes.seconds, "failed": notes.failed}

    made = in_child(run)
    lines = {file: {int(line): found for line, found in each.items()} for file, each in made["lines"].items()}
    return Coverage(lines, made["seconds"], made["failed"])


class _Notes:
    """A plugin of pytest that notes lines by test."""

    def __init__(self) -> None:
        self.seen: dict[str, set[int]] = {}
        self.lines: dict[str, dict[int, list[str]]] = {}
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []

    def marked(self, text: str, path: str, module: ModuleType) -> CodeType:
        module.__dict__[_SEEN] = self.seen.setdefault(f"passes/{Path(path).name}", set())
        tree = ast.parse(text)
        _mark(tree)
        return compile(tree, path, "exec")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        for seen in self.seen.values():
            seen.clear()
        _forget()
        start = time.process_time()
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = time.process_time() - start
            for file, seen in self.seen.items():
                for line in seen:
                    self.lines.setdefault(file, {}).setdefault(line, []).append(item.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


def _forget() -> None:
    """Empty the caches of the passes: each test runs what it needs by itself."""
    modules = [module for name, module in sys.modules.items() if name.startswith(f"{PASSES}.")]
    for held in [each for module in modules for each in vars(module).values()]:
        if isinstance(held, _CACHED):
            held.cache_clear()


def _mark(tree: ast.Module) -> None:
    """Before every statement of a function, one that notes its line."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for block in list({id(block): block for node in functions for block in _blocks(node)}.values()):
        block[:] = [each for statement in block for each in (*_notes(statement), statement)]


def _blocks(function: ast.FunctionDef) -> Iterator[list[ast.stmt]]:
    for node in ast.walk(function):
        for name in ("body", "orelse", "finalbody"):
            block: object = getattr(node, name, None)
            if isinstance(block, list):
                yield block


def _notes(statement: ast.stmt) -> list[ast.stmt]:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):  # a docstring stays the first
        return []
    note = ast.parse(f"{_SEEN}.add({statement.lineno})").body[0]
    for node in ast.walk(note):
        ast.copy_location(node, statement)
    return [note]
