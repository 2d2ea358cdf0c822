"""Files that are on the disk when it is said that they are, and one process at a time in a folder."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from milopt.exporting.errors import ExportError
from milopt.sets.saving import digest_of

__all__ = ["FINDER", "described", "files_below", "locked", "scratch", "sync_folder", "sync_tree", "write_atomically"]

FINDER = ".DS_Store"


def write_atomically(file: Path, text: str) -> None:
    """The file holds the old text or the new one, and the new one is on the disk when this returns."""
    fresh = file.with_name(f".{file.name}.new")
    try:
        with fresh.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(fresh, file)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    sync_folder(file.parent)


def sync_tree(folder: Path) -> None:
    """Have every file below ``folder``, and the names of all, on the disk."""
    for parent, _, files in os.walk(folder):
        for name in files:
            with (Path(parent) / name).open("rb") as stream:
                os.fsync(stream.fileno())
        sync_folder(Path(parent))


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def described(folder: Path, start: str) -> dict[str, dict[str, int | str]]:
    """Size and SHA-256 of every file below ``folder``, by its path there behind ``start``."""
    files = files_below(folder)
    return {
        f"{start}/{each.relative_to(folder).as_posix()}": {"bytes": each.stat().st_size, "sha256": digest_of(each)}
        for each in files
    }


def files_below(folder: Path) -> list[Path]:
    """Every file, in order, but what macOS leaves in a folder that was looked at."""
    return sorted(each for each in folder.rglob("*") if not each.is_dir() and each.name != FINDER)


@contextmanager
def scratch(folder: Path) -> Generator[None]:
    """Temporary files are made in ``folder``, which is gone afterwards: a killed process leaves none elsewhere."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """No other process is in such a block with this folder; ExportError where one is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ExportError(f"{folder}: another export is at work there") from error
        yield
    finally:
        os.close(handle)
