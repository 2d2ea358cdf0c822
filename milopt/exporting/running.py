"""Numbered steps, each of which fills a folder; what is finished stays, and what changed is done again.

A step writes to a hidden folder, which is on the disk before it gets its own name; only then is it recorded. A process
that is killed at any moment leaves a record that is true, and the next one goes on with the first step that lacks one.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from milopt.exporting.durable import FINDER, described, locked, scratch, sync_folder, sync_tree
from milopt.exporting.errors import ExportError
from milopt.exporting.journal import JOURNAL, Journal, Key, Record, difference
from milopt.files import remove_folder
from milopt.package.exchanging import put

__all__ = ["Outcome", "Step", "Tell", "run_steps"]

Tell: TypeAlias = Callable[[str], None]

_SCRATCH = ".temporary"
_NEW_JOURNAL = f".{JOURNAL}.new"


@dataclass(frozen=True)
class Step:
    """``work(fresh, tell)`` fills the folder ``fresh`` and returns notes; it finds the folders of ``needs`` in place.

    ``key()`` is what the outputs depend on beside those of ``needs``. Where ``impossible`` says why, the step can't be
    done on this machine.
    """

    number: int
    name: str
    folder: str
    work: Callable[[Path, Tell], list[str]]
    key: Callable[[], Key]
    needs: tuple[str, ...] = ()
    impossible: str = ""

    def __str__(self) -> str:
        return f"step {self.number} ({self.name})"


@dataclass(frozen=True)
class Outcome:
    """What became of a step: ``done``, or done again because of ``reason``; kept as it was; or impossible here."""

    step: Step
    done: bool
    reason: str
    seconds: float = 0.0
    bytes: int = 0
    notes: list[str] = field(default_factory=list[str])


def run_steps(
    root: Path,
    steps: Sequence[Step],
    *,
    result: str,
    restart: int | None = None,
    only: int | None = None,
    force: bool = False,
    tell: Tell,
) -> list[Outcome]:
    """Do what is not done, in order; the folder ``root`` is made where there is none.

    ``restart`` does a step and all later ones again, ``only`` one alone. Where the folder ``result`` is finished, but
    would be replaced because options or inputs differ, that takes ``force``. ExportError says what stands in the way.
    """
    last = steps[-1].number
    for name, number in (("--restart", restart), ("--only", only)):
        if number is not None and not 1 <= number <= last:
            raise ExportError(f"{name} {number}: there are steps 1 to {last}")
    if only is not None and restart is not None:
        raise ExportError("--restart and --only exclude each other")
    _prepare(root)
    with locked(root):
        _check_foreign(root, steps)
        _clean(root, steps)
        run = _Run(root, {each.folder: each for each in steps}, Journal.open(root), result, force, tell)
        if only is not None:
            return run.only(steps[only - 1])
        return run.all(steps, restart)


@dataclass
class _Run:
    root: Path
    steps: dict[str, Step]
    journal: Journal
    result: str
    force: bool
    tell: Tell
    outcomes: list[Outcome] = field(default_factory=list[Outcome])

    def all(self, steps: Sequence[Step], restart: int | None) -> list[Outcome]:
        finished = self.result in self.journal.records
        for step in steps:
            if step.impossible:
                self.outcomes.append(Outcome(step, False, step.impossible))
                continue
            self.tell(f"{step.number}/{len(steps)} {step.name}: look at what is there")
            asked = f"--restart {restart}" if restart is not None and step.number >= restart else ""
            record = self.journal.records.get(step.folder)
            reason, differs = (asked, False) if asked else self.lacks(step, record)
            if differs and finished and not self.force and restart is None:
                raise ExportError(
                    f"{self.root} holds a finished set made otherwise: {reason}; --force replaces what depends on it"
                )
            if record is None or reason:
                self.do(step, reason)
            else:
                self.outcomes.append(Outcome(step, False, "", bytes=record.bytes, notes=record.notes))
        return self.outcomes

    def only(self, step: Step) -> list[Outcome]:
        if step.impossible:
            raise ExportError(f"{step}: {step.impossible}")
        for name in step.needs:
            record, needed = self.journal.records.get(name), self.steps[name]
            if record is None or not (self.root / name).is_dir():
                raise ExportError(f"{step} needs {needed}, which is not done: leave out --only")
            if damage := record.damage(self.root):
                raise ExportError(f"{step} needs {needed}, but {damage}: leave out --only")
        self.do(step, f"--only {step.number}")
        return self.outcomes

    def lacks(self, step: Step, record: Record | None) -> tuple[str, bool]:
        """Why a finished step has to be done again, and whether that is because something else would come out.

        One on the way whose folder was removed as a whole is finished, unless a later one needs it.
        """
        if record is None:
            return "", False
        if told := difference(record.key, self.key(step)):
            return told, True
        needed = {name for each in self.steps.values() for name in each.needs} - {self.result}
        removed = step.folder in needed and not (self.root / step.folder).exists()
        return "" if removed else record.damage(self.root), False

    def key(self, step: Step) -> Key:
        own = step.key()
        return {**own, "input": {**own.get("input", {}), **self.inputs(step)}}

    def inputs(self, step: Step) -> dict[str, str]:
        return {path: content for name in step.needs for path, content in self.journal.records[name].hashes.items()}

    def do(self, step: Step, reason: str) -> None:
        for name in step.needs:
            if not (self.root / name).is_dir():
                self.do(self.steps[name], f"{step} needs it")
        begun = time.perf_counter()
        key, fresh, own = self.key(step), _fresh(self.root, step), self.root / step.folder
        self.journal.forget(step.folder)
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        try:
            with scratch(self.root / _SCRATCH):
                notes = step.work(fresh, lambda text: self.tell(f"{step.number}/{len(self.steps)} {step.name}: {text}"))
            self.tell(f"{step.number}/{len(self.steps)} {step.name}: write")
            sync_tree(fresh)
            files = described(fresh, step.folder)
            old = _old(self.root, step)
            put(fresh, own, old)
            sync_folder(self.root)
            self.journal.add(step.folder, Record(key, files, notes))
            remove_folder(old)
        finally:
            remove_folder(fresh)
        record = self.journal.records[step.folder]
        self.outcomes.append(Outcome(step, True, reason, time.perf_counter() - begun, record.bytes, notes))


def _fresh(root: Path, step: Step) -> Path:
    return root / f".{step.folder}.new"


def _old(root: Path, step: Step) -> Path:
    return root / f".{step.folder}.old"


def _prepare(root: Path) -> None:
    if root.is_symlink() or (root.exists() and not root.is_dir()):
        raise ExportError(f"{root} is no folder")
    if not root.absolute().parent.is_dir():
        raise ExportError(f"{root}: the folder {root.absolute().parent} does not exist")
    root.mkdir(exist_ok=True)


def _clean(root: Path, steps: Sequence[Step]) -> None:
    """Remove what a process that was killed left behind."""
    for left in (root / _SCRATCH, *(folder for each in steps for folder in (_fresh(root, each), _old(root, each)))):
        shutil.rmtree(left, ignore_errors=True)
    (root / _NEW_JOURNAL).unlink(missing_ok=True)


def _check_foreign(root: Path, steps: Sequence[Step]) -> None:
    folders = {name for each in steps for name in (each.folder, _fresh(root, each).name, _old(root, each).name)}
    folders.add(_SCRATCH)
    own = {FINDER, _NEW_JOURNAL}
    if (root / JOURNAL).is_file():
        own |= {JOURNAL, *folders}
    for each in sorted(root.iterdir()):
        if each.name not in own:
            raise ExportError(f"{each} is not of the export: move it away, or name another folder")
        if each.name in folders and (each.is_symlink() or not each.is_dir()):
            raise ExportError(f"{each} is not of the export: it is no folder")
