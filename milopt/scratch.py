"""Files without a name, in the folder for temporary files (``TMPDIR``): they go with whoever holds them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from typing import BinaryIO, cast

from milopt.errors import MiloptError

__all__ = ["room_needed", "scratch_file"]


@contextmanager
def room_needed(what: str) -> Generator[None]:
    """What the disk refuses, as a MiloptError of one line that says for ``what`` there is no room, and where."""
    try:
        yield
    except OSError as error:  # gettempdir() itself refuses where no folder can be written
        where = tempfile.tempdir or os.environ.get("TMPDIR") or "any folder for temporary files"
        raise MiloptError(f"no room for {what} in {where}: {error.strerror or error}") from None


def scratch_file(what: str) -> BinaryIO:
    """An empty one, for ``what``; whoever takes it closes it."""
    with room_needed(what):
        return cast("BinaryIO", tempfile.TemporaryFile(prefix="milopt-"))
