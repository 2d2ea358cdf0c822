"""Results of earlier runs, good for as long as what they followed from has not changed."""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from .covering import Coverage
from .mutating import Mutant
from .running import SURVIVED, Outcome

__all__ = ["Store"]

# so many files of tests are run between two times that the map of lines is written
_AT_ONCE = 10


class Store:
    """Outcomes in a local file.

    One holds for the mutated text itself, the passes that the tests need, the rest of milopt, and the tests: the file
    of the one that caught the mutant, or all files of those that did not.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder = folder
        self.root = root
        folder.mkdir(parents=True, exist_ok=True)
        self.known: dict[str, dict[str, Any]] = self._read("outcomes.json")
        self.covered: dict[str, dict[str, Any]] = self._read("coverage.json")

    def _read(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        return json.loads(path.read_text()) if path.exists() else {}

    def _write(self, name: str, data: dict[str, Any]) -> None:
        part = self.folder / f"{name}.part"
        part.write_text(json.dumps(data))
        part.replace(self.folder / name)

    @cache  # noqa: B019
    def _bytes(self, path: Path) -> bytes:
        return path.read_bytes()

    def _digest(self, paths: Iterable[Path], text: str = "") -> str:
        made = hashlib.blake2b(f"{sys.version}\n{text}".encode(), digest_size=12)
        for path in sorted(set(paths)):
            made.update(str(path.relative_to(self.root)).encode() + self._bytes(path))
        return made.hexdigest()

    @cache  # noqa: B019
    def _imported(self, test_file: str) -> frozenset[Path]:
        """A file of tests, what is beside it for all tests, and the passes it imports, in their turn."""
        path = self.root / test_file
        beside = [each for each in path.parent.glob("*.py") if not each.name.startswith("test_")]
        todo, found = [path, *beside], {path, *beside}
        while todo:
            for each in _passes_in(self._bytes(todo.pop()), self.root) - found:
                found.add(each)
                todo.append(each)
        return frozenset(found)

    @property
    @cache  # noqa: B019
    def _milopt(self) -> str:
        files = (self.root / "milopt").rglob("*.py")
        return self._digest(each for each in files if each.relative_to(self.root).parts[1] != "passes")

    @cache  # noqa: B019
    def _of(self, test_file: str) -> str:
        """What stands for all that an outcome of the tests of a file follows from, the mutant aside."""
        return self._digest_with(test_file, self.covered[test_file]["lines"])

    def _digest_with(self, test_file: str, passes: Iterable[str]) -> str:
        run = (self.root / each for each in passes)
        return self._digest({*self._imported(test_file), *filter(Path.exists, run)}, self._milopt)

    def coverage(self, files: Iterable[Path], make: Callable[[list[Path]], Coverage]) -> Coverage:
        """Which of the tests in ``files`` run which lines: made anew for files for which anything has changed."""
        names = sorted(file.as_posix() for file in files)
        stale = [each for each in names if not self._is_covered(each)]
        for at in range(0, len(stale), _AT_ONCE):
            several = stale[at : at + _AT_ONCE]
            made = make([Path(each) for each in several])
            if made.failed:
                return made
            self.covered |= {each: self._part(made, each) for each in several}
            self._write("coverage.json", self.covered)
        whole = Coverage()
        for entry in map(self.covered.__getitem__, names):
            lines = {file: {int(line): found for line, found in each.items()} for file, each in entry["lines"].items()}
            whole.add(Coverage(lines, entry["seconds"]))
        return whole

    def _is_covered(self, test_file: str) -> bool:
        entry = self.covered.get(test_file)
        return entry is not None and entry["from"] == self._digest_with(test_file, entry["lines"])

    def _part(self, made: Coverage, test_file: str) -> dict[str, Any]:
        def ours(test: str) -> bool:
            return test.partition("::")[0] == test_file

        lines: dict[str, dict[int, list[str]]] = {}
        for file, each in made.lines.items():
            if found := {line: here for line, told in each.items() if (here := list(filter(ours, told)))}:
                lines[file] = found
        seconds = {test: each for test, each in made.seconds.items() if ours(test)}
        return {"from": self._digest_with(test_file, lines), "lines": lines, "seconds": seconds}

    def get(self, mutant: Mutant) -> Outcome | None:
        """What became of the mutant before, on the same text."""
        entry = self.known.get(_name(mutant))
        if entry is None or entry["text"] != self._digest((), mutant.source):
            return None
        return Outcome(entry["status"], entry["test"], entry["left"])

    def todo(self, mutant: Mutant, tests: list[str], most: float) -> list[str]:
        """The tests that may say more of the mutant than what is known: those of files that have changed since.

        All of them where a mutant that survived would now be given more seconds.
        """
        outcome = self.get(mutant)
        if outcome is None:
            return tests
        entry = self.known[_name(mutant)]
        if outcome.status != SURVIVED:
            known = all(file in self.covered and self._of(file) == made for file, made in entry["from"].items())
            return [] if known else tests
        if outcome.left and entry["most"] < most:
            return tests
        return [test for test in tests if entry["from"].get(file := test.partition("::")[0]) != self._of(file)]

    def hint(self, mutant: Mutant) -> str:
        """The test that caught the mutant before."""
        return str(self.known.get(_name(mutant), {"test": ""})["test"])

    def put(self, mutant: Mutant, tests: list[str], most: float, outcome: Outcome) -> None:
        """Keep what became of a mutant for which there are ``tests``."""
        told = [outcome.test] if outcome.test else tests
        files = {test.partition("::")[0] for test in told}
        self.known[_name(mutant)] = {
            **asdict(outcome),
            "text": self._digest((), mutant.source),
            "most": most,
            "from": {file: self._of(file) for file in files if file in self.covered},
        }

    def save(self) -> None:
        self._write("outcomes.json", self.known)


def _name(mutant: Mutant) -> str:
    return " | ".join(map(str, mutant.key))


def _passes_in(source: bytes, root: Path) -> set[Path]:
    found: set[Path] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("milopt.passes."):
            found.add(root / "passes" / f"{node.module.rpartition('.')[2]}.py")
    return {path for path in found if path.exists()}
