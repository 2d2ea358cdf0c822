"""Results of earlier runs, good for as long as what they followed from has not changed."""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from .mutating import Mutant
from .running import CAUGHT, Coverage, Outcome

__all__ = ["Store"]


class Store:
    """Outcomes in a local file.

    One holds for the mutated text itself, the passes that the tests import, the rest of milopt, and the tests: the one
    that caught the mutant, or all that did not.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder = folder
        self.root = root
        folder.mkdir(parents=True, exist_ok=True)
        self.known: dict[str, Any] = self._read("outcomes.json")
        self.fresh: dict[str, Any] = {}

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
    def _needed(self, test_file: str) -> frozenset[Path]:
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
    def _engine(self) -> list[Path]:
        files = (self.root / "milopt").rglob("*.py")
        return [each for each in files if each.relative_to(self.root).parts[1] != "passes"]

    def coverage(self, tests: Iterable[Path], make: Any) -> Coverage:
        """The map of lines to tests, made anew if anything at all has changed."""
        files = [*self._engine, *(self.root / "passes").glob("*.py")]
        for folder in tests:
            files += (self.root / folder).rglob("*.py")
        digest = self._digest(files)
        known: dict[str, Any] = self._read("coverage.json")
        if known.get("digest") != digest:
            made: Coverage = make()
            if not made.failed:
                self._write("coverage.json", {"digest": digest, **asdict(made)})
            return made
        lines = {file: {int(line): found for line, found in each.items()} for file, each in known["lines"].items()}
        return Coverage(lines, known["seconds"], known["failed"])

    def key(self, mutant: Mutant) -> str:
        return self._digest((), f"{mutant.file}\n{mutant.source}")

    def get(self, mutant: Mutant, tests: list[str]) -> Outcome | None:
        """What became of the mutant before, if that still holds."""
        entry = self.known.get(self.key(mutant))
        if entry is None:
            return None
        outcome = Outcome(entry["status"], entry["test"])
        holds = entry["from"] == self._origin(outcome, tests)
        if holds:
            self.fresh[self.key(mutant)] = entry
        return outcome if holds else None

    def hint(self, mutant: Mutant) -> str:
        """The test that caught the mutant before."""
        entry = self.known.get(self.key(mutant), {"test": ""})
        return str(entry["test"])

    def put(self, mutant: Mutant, tests: list[str], outcome: Outcome) -> None:
        self.fresh[self.key(mutant)] = {**asdict(outcome), "from": self._origin(outcome, tests)}

    def save(self) -> None:
        self._write("outcomes.json", {**self.known, **self.fresh})

    def _origin(self, outcome: Outcome, tests: list[str]) -> str:
        told = [outcome.test] if outcome.status == CAUGHT and outcome.test else tests
        files = {test.partition("::")[0] for test in told}
        needed = {path for file in files for path in self._needed(file)}
        text = "" if outcome.status == CAUGHT else "\n".join(tests)
        return self._digest(needed, text + self._milopt)

    @property
    @cache  # noqa: B019
    def _milopt(self) -> str:
        return self._digest(self._engine)


def _passes_in(source: bytes, root: Path) -> set[Path]:
    found: set[Path] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("milopt.passes."):
            found.add(root / "passes" / f"{node.module.rpartition('.')[2]}.py")
    return {path for path in found if path.exists()}
