"""A file appears whole or not at all: it is filled under another name beside its place, and then gets its own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from milopt.errors import MiloptError

__all__ = ["remove_folder", "whole_file"]


@contextmanager
def whole_file(path: Path) -> Generator[BinaryIO]:
    """A new file to fill; at the end it becomes ``path``, in place of what is there.

    Until that moment, and for ever when anything is raised inside (Ctrl-C included), ``path`` is as it was. MiloptError
    of one line where it can't be written.
    """
    fresh: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=".milopt-", suffix=path.suffix, dir=path.absolute().parent)
        fresh = Path(name)
        with os.fdopen(handle, "wb") as file:
            yield cast("BinaryIO", file)
            file.flush()
            if path.exists():
                os.fsync(handle)  # the old one is only given up when the new one is on the disk
        fresh.chmod(0o666 & ~_umask())
        fresh.replace(path)
        fresh = None
    except OSError as error:
        raise MiloptError(f"can't write {path}: {error.strerror or error}") from error
    finally:
        if fresh is not None:
            fresh.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove what is there of ``folder``, and all that is in it; to the end also where Ctrl-C comes in between."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
