"""A folder appears whole or not at all.

It is filled under another name beside its place, ``.NAME.XXXXXXXX.new``, and gets its own at the end: by a rename, or
by an exchange with the package that it replaces. Where the system has no exchange the old one steps aside first, to
``.NAME.XXXXXXXX.old``, and a process that is killed between the two renames leaves it there; :func:`recover` puts it
back. What a killed process left behind is removed by the next save of the same package.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from milopt.errors import PackageError
from milopt.files import remove_folder
from milopt.package.container import MANIFEST
from milopt.package.exchanging import put

__all__ = ["published", "recover"]

_TOKEN = re.compile(r"\.[0-9a-f]{8}\.(new|old)")


@contextmanager
def published(
    path: Path, *, overwrite: bool, marker: str = MANIFEST, suffix: str = ".mlpackage", what: str = "package"
) -> Generator[Path]:
    """A new folder to fill, beside ``path`` and therefore on its file system; at the end it becomes ``path``.

    Until that moment, and for ever when anything is raised inside (Ctrl-C included) or the process is killed, ``path``
    is as it was. A package that is replaced is only given up when the new one is on the disk. :class:`PackageError`
    where ``path`` can't be written or holds something that is not to be replaced: only a folder with a file ``marker``
    is, which is what ``what`` says.
    """
    try:
        path = _target(path, overwrite, marker, suffix, what)
    except OSError as error:
        raise PackageError(f"can't write {path}: {error.strerror or error}") from error
    fresh, lock = path, -1
    try:
        _clean(path)
        fresh, lock = _new_folder(path)
        yield fresh
        if path.exists():
            _sync(fresh)
        _swap(fresh, path)
    except OSError as error:
        raise PackageError(f"can't write {path}: {error.strerror or error}") from error
    finally:
        if fresh != path:
            remove_folder(fresh)
        if lock >= 0:
            os.close(lock)


def recover(path: Path) -> None:
    """Put a package back that stepped aside for one that never came, because the process was killed just then."""
    if path.exists() or not path.parent.is_dir() or any(_is_held(each) for each in _left(path, "new")):
        return
    for each in sorted(_left(path, "old"), key=lambda old: old.stat().st_mtime, reverse=True):
        each.rename(path)
        return


def _target(path: Path, overwrite: bool, marker: str, suffix: str, what: str) -> Path:
    if suffix and path.suffix != suffix:
        raise PackageError(f"{path}: a {what}'s name ends in {suffix}")
    path = path.resolve() if path.is_symlink() else path.absolute()
    if not path.parent.is_dir():
        raise PackageError(f"can't write {path}: its folder does not exist")
    recover(path)
    if path.exists() and not overwrite:
        raise PackageError(f"{path} exists; it is replaced only on request (overwrite, --force)")
    if path.exists() and not (path / marker).is_file():
        raise PackageError(f"{path} exists and is no {what}; it is not replaced")
    return path


def _left(path: Path, kind: str) -> Iterator[Path]:
    """The folders that saves to ``path`` are filling, or have left behind."""
    start = f".{path.name}"
    for each in path.parent.iterdir():
        found = _TOKEN.fullmatch(each.name[len(start) :]) if each.name.startswith(start) else None
        if found is not None and found[1] == kind and each.is_dir() and not each.is_symlink():
            yield each


def _new_folder(path: Path) -> tuple[Path, int]:
    """A new folder, and the handle that holds its lock: it tells others that it is not left behind."""
    while True:
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
        fresh.mkdir()
        lock = os.open(fresh, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            return fresh, lock
        if fresh.exists():
            return fresh, lock
        os.close(lock)  # another save took it for a folder left behind, before it was locked


def _is_held(folder: Path) -> bool:
    """Whether the process that fills the folder is alive; True where that can't be told."""
    try:
        lock = os.open(folder, os.O_RDONLY)
    except OSError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False


def _clean(path: Path) -> None:
    """Remove what killed saves to ``path`` left behind."""
    for each in [*_left(path, "new")]:
        if not _is_held(each):
            remove_folder(each)
    if path.exists():
        for each in [*_left(path, "old")]:
            remove_folder(each)


def _swap(fresh: Path, path: Path) -> None:
    """``fresh`` becomes ``path``, and an old ``path`` is removed."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.old")
    try:
        put(fresh, path, aside)
    finally:
        if path.exists():
            remove_folder(aside)
    _sync_folder(path.parent)


def _sync(folder: Path) -> None:
    """Have everything below ``folder`` on the disk before it replaces anything."""
    for parent, _, files in os.walk(folder):
        for name in files:
            with (Path(parent) / name).open("rb") as file:
                os.fsync(file.fileno())
        _sync_folder(Path(parent))


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
