"""The rows of docs/families.md: kept from run to run while nothing that they depend on changes, and the document.

A row is kept with a digest of the files of this project that its measurement had loaded, and of the versions of what it
runs on. Where one of them is another today, the row is stale: it is measured again, or marked.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

__all__ = ["NONE", "Key", "Row", "Store", "files_loaded", "loaded_digest", "sources_digest", "versions", "write"]

ROOT = Path(__file__).resolve().parent.parent
_BEGUN = time.time()
NONE = "—"
HEADS = (
    "family", "route", "shapes", "converts", "fp32", "declared fp16", "greedy", "first other token",
    "ops a layer", "verified", "s",
)  # fmt: skip
Key = tuple[str, str, str]
"""Family, route and shapes."""


@dataclass
class Row:
    """One line of the table, and what the passes did: rewrites by pass, and (pass, reason) of what they left alone."""

    family: str
    route: str
    shapes: str
    converts: str = NONE
    fp32: str = NONE
    fp16: str = NONE
    greedy: str = NONE
    parts: str = NONE
    ops: str = NONE
    verified: str = NONE
    seconds: float = 0.0
    applied: dict[str, int] = field(default_factory=dict[str, int])
    reasons: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    digest: str = ""

    @property
    def key(self) -> Key:
        return self.family, self.route, self.shapes

    def line(self, stale: bool) -> str:
        cells = [*self.key, self.converts, self.fp32, self.fp16, self.greedy, self.parts, self.ops, self.verified]
        return f"| {' | '.join([*cells, f'{self.seconds:.0f}' + ' †' * stale])} |"


def versions() -> str:
    return ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "coremltools", "numpy"))


def files_loaded() -> list[str]:
    """The files of this project that the process has loaded as modules, relative to its root."""
    found: set[str] = set()
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if path is None or not Path(path).is_absolute():  # torch has modules with names of files that are none
            continue
        if ROOT in (real := Path(path).resolve()).parents and ".venv" not in real.parts:
            found.add(real.relative_to(ROOT).as_posix())
    return sorted(found)


@dataclass
class Store:
    """The rows measured so far, in a JSON file; ``files`` are what the rows of one digest had loaded."""

    path: Path
    rows: dict[Key, Row] = field(default_factory=dict[Key, Row])
    files: dict[str, list[str]] = field(default_factory=dict[str, list[str]])

    @classmethod
    def open(cls, path: Path) -> Store:
        store = cls(path)
        if path.exists():
            held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            rows = [Row(**each) for each in held["rows"]]
            store.rows, store.files = {row.key: row for row in rows}, held["files"]
        return store

    def is_fresh(self, key: Key) -> bool:
        """Whether the row is there, and everything it depends on is as it was."""
        return key in self.rows and self.rows[key].digest in self._current

    @cached_property
    def _current(self) -> set[str]:
        return {digest for digest, files in self.files.items() if sources_digest(files) == digest}

    def add(self, row: Row, files: list[str]) -> None:
        """Keep ``row``, for whose measurement ``files`` were loaded."""
        self.rows[row.key] = row
        self.files[row.digest] = files
        used = {each.digest for each in self.rows.values()}
        self.files = {digest: each for digest, each in self.files.items() if digest in used}
        self.__dict__.pop("_current", None)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        held = {"files": self.files, "rows": [asdict(each) for each in self.rows.values()]}
        self.path.write_text(json.dumps(held, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def sources_digest(files: Sequence[str]) -> str:
    """Of the contents of ``files`` and of the versions; of what is no longer there, nothing is equal to it."""
    made = hashlib.sha256(versions().encode())
    for each in files:
        path = ROOT / each
        data = path.read_bytes() if path.exists() else b""
        made.update(f"\n{each} {len(data) if path.exists() else None}\n".encode())
        made.update(data)
    return made.hexdigest()[:16]


def loaded_digest(files: Sequence[str]) -> str:
    """:func:`sources_digest` of what this process runs; where a file was changed since it began, one of nothing."""
    changed = [each for each in files if (ROOT / each).stat().st_mtime > _BEGUN]
    return f"{changed[0]} changed meanwhile" if changed else sources_digest(files)


def write(path: Path, store: Store, preface: str, order: Sequence[Key], passes: Sequence[str]) -> None:
    """The document of all rows of ``order`` that were measured; stale ones are marked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(_lines(store, preface, order, passes)) + "\n", encoding="utf-8")


def _lines(store: Store, preface: str, order: Sequence[Key], passes: Sequence[str]) -> Iterator[str]:
    rows = [store.rows[key] for key in order if key in store.rows]
    stale = {row.key for row in rows if not store.is_fresh(row.key)}
    yield preface
    yield f"| {' | '.join(HEADS)} |"
    yield f"|{'---|' * len(HEADS)}"
    yield from (row.line(row.key in stale) for row in rows)
    if stale:
        yield "\n† Measured before the last change of a file or version that the row depends on."
    if missing := len(order) - len(rows):
        yield f"\nNot measured yet: {missing} rows."
    yield "\n## What the passes did\n"
    yield "Rewrites made, of the first route with static shapes; below, what was left alone and why.\n"
    yield f"| family | {' | '.join(passes)} |"
    yield f"|{'---|' * (len(passes) + 1)}"
    first = [row for row in rows if row.route == order[0][1]]
    for row in first:
        if row.applied and row.shapes == order[0][2]:
            yield f"| {row.family} | {' | '.join(str(row.applied.get(name, NONE)) for name in passes)} |"
    yield ""
    reasons: dict[tuple[str, str, str], dict[str, None]] = {}
    for row in first:
        for name, reason in row.reasons:
            reasons.setdefault((row.shapes, name, reason), {})[row.family] = None
    for (shapes, name, reason), families in reasons.items():
        yield f"- {shapes}, {name}: {reason} ({', '.join(families)})"
