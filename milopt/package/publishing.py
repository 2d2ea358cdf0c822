"""A folder appears whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from milopt.errors import PackageError
from milopt.package.container import MANIFEST

__all__ = ["published"]


@contextmanager
def published(path: Path, *, overwrite: bool) -> Generator[Path]:
    """A new folder to fill, beside ``path`` and therefore on its file system; at the end it becomes ``path``.

    Until that moment, and for ever when anything is raised inside (Ctrl-C included), ``path`` is as it was and the
    new folder is removed. :class:`PackageError` where ``path`` can't be written or holds something that is not to be
    replaced.
    """
    try:
        path = _target(path, overwrite)
    except OSError as error:
        raise PackageError(f"can't write {path}: {error.strerror or error}") from error
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        fresh.mkdir()
        yield fresh
        _sync(fresh)
        _swap(fresh, path)
    except OSError as error:
        raise PackageError(f"can't write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _target(path: Path, overwrite: bool) -> Path:
    if path.suffix != ".mlpackage":
        raise PackageError(f"{path}: a package's name ends in .mlpackage")
    path = path.resolve() if path.is_symlink() else path.absolute()
    if not path.parent.is_dir():
        raise PackageError(f"can't write {path}: its folder does not exist")
    if path.exists() and not overwrite:
        raise PackageError(f"{path} exists; it is replaced only on request (overwrite, --force)")
    if path.exists() and not (path / MANIFEST).is_file():
        raise PackageError(f"{path} exists and is no package; it is not replaced")
    return path


def _swap(fresh: Path, path: Path) -> None:
    """Rename ``fresh`` to ``path``; an old ``path`` steps aside first, and back if that fails."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.old")
    try:
        if path.exists():
            path.rename(aside)
        fresh.rename(path)
    except BaseException:
        if aside.exists() and not path.exists():
            aside.rename(path)
        raise
    finally:
        if path.exists():
            shutil.rmtree(aside, ignore_errors=True)
    _sync_folder(path.parent)


def _sync(folder: Path) -> None:
    """Have everything below ``folder`` on the disk before it gets its name."""
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
