"""``export.json``: which steps are finished, what they were made of, and every file they wrote with its hash.

It holds no time, no path outside the folder and nothing random: the same export gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast

from milopt.exporting.durable import files_below, write_atomically
from milopt.exporting.errors import ExportError
from milopt.sets.saving import digest_of

__all__ = ["JOURNAL", "Journal", "Key", "Record", "difference"]

JOURNAL = "export.json"
FORMAT = "milopt export"
VERSION = 1

Key: TypeAlias = "dict[str, Any]"
"""What a step's outputs depend on: options and hashes, as JSON has them."""


@dataclass(frozen=True)
class Record:
    """A finished step: its ``key``, its ``files`` with size and SHA-256 by path, and ``notes`` of what was done."""

    key: Key
    files: dict[str, dict[str, Any]]
    notes: list[str]

    @property
    def bytes(self) -> int:
        return sum(int(each["bytes"]) for each in self.files.values())

    @property
    def hashes(self) -> dict[str, str]:
        return {path: str(each["sha256"]) for path, each in self.files.items()}

    def damage(self, root: Path) -> str:
        """Which file is not what was written, in a few words; empty where all are. ExportError for one too many."""
        for path, told in self.files.items():
            file = root / path
            if not file.is_file():
                return f"{path} is missing"
            if file.stat().st_size != told["bytes"] or digest_of(file) != told["sha256"]:
                return f"{path} was changed"
        for folder in sorted({Path(path).parts[0] for path in self.files}):
            for each in files_below(root / folder):
                if each.relative_to(root).as_posix() not in self.files:
                    raise ExportError(f"{each} is not of the export: move it away")
        return ""


@dataclass
class Journal:
    """The records of finished steps by name; every change is on the disk when the call returns."""

    root: Path
    records: dict[str, Record] = field(default_factory=dict[str, Record])

    @classmethod
    def open(cls, root: Path) -> Journal:
        """The journal of a folder, or a new one. ExportError where there is something else in its place."""
        file = root / JOURNAL
        if not file.is_file():
            made = cls(root)
            made.write()
            return made
        try:
            found: Any = json.loads(file.read_text(encoding="utf-8"))
            if found["format"] != FORMAT or found["version"] != VERSION:
                raise ExportError(f"{file} is of {found['format']}, version {found['version']}; this is not its reader")
            steps = cast("Mapping[str, Any]", found["steps"])
            records = {name: Record(each["key"], each["files"], each["notes"]) for name, each in steps.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, ExportError):
                raise
            raise ExportError(f"{file} is no journal of an export: {type(error).__name__} {error}") from error
        return cls(root, records)

    def add(self, name: str, record: Record) -> None:
        self.records[name] = record
        self.write()

    def forget(self, name: str) -> None:
        if self.records.pop(name, None) is not None:
            self.write()

    def write(self) -> None:
        steps = {
            name: {"key": each.key, "files": each.files, "notes": each.notes}
            for name, each in sorted(self.records.items())
        }
        text = json.dumps({"format": FORMAT, "version": VERSION, "steps": steps}, indent=1, ensure_ascii=False)
        write_atomically(self.root / JOURNAL, text + "\n")


def difference(before: Key, now: Key) -> str:
    """The first thing in which two keys differ, in words; empty where they are equal."""
    for name in dict.fromkeys((*now, *before)):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            return _entry(name, cast("Key", old), cast("Key", new))
        return f"{name} was {_plain(before.get(name))}, is {_plain(now.get(name))}"
    return ""


def _entry(name: str, old: Key, new: Key) -> str:
    for each in dict.fromkeys((*new, *old)):
        if old.get(each) == new.get(each):
            continue
        if name != "input":
            return f"{name}: {each} was {_plain(old.get(each))}, is {_plain(new.get(each))}"
        return f"{each} is {'new' if each not in old else 'gone' if each not in new else 'another than it was'}"
    return f"the order of {name} changed"


def _plain(value: object) -> str:
    return "not given" if value is None else str(value)
