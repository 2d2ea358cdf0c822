"""Two folders swap their names in one step, where the system can do that.

Linux has ``renameat2`` with ``RENAME_EXCHANGE`` (3.15 and glibc 2.28 on), macOS ``renamex_np`` with ``RENAME_SWAP``
(10.12 on, APFS); neither is in Python's ``os``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path
from typing import Any

__all__ = ["exchange", "put"]

_AT_FDCWD = -100
_EXCHANGE = 2  # Linux's RENAME_EXCHANGE, and macOS's RENAME_SWAP
_UNSUPPORTED = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP})


def put(fresh: Path, path: Path, aside: Path) -> None:
    """``fresh`` becomes ``path``. What was there is ``fresh`` then, or ``aside``; it comes back if that fails."""
    if not path.exists():
        fresh.rename(path)
        return
    if exchange(fresh, path):
        return
    try:
        path.rename(aside)
        fresh.rename(path)
    except BaseException:
        if aside.exists() and not path.exists():
            aside.rename(path)
        raise


def exchange(one: Path, other: Path) -> bool:
    """Let the two existing folders swap names; False where the system or the file system can't, OSError otherwise."""
    library: Any = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    flag = ctypes.c_uint(_EXCHANGE)
    if sys.platform == "darwin" and hasattr(library, "renamex_np"):
        result = library.renamex_np(*names, flag)
    elif hasattr(library, "renameat2"):
        result = library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], flag)
    else:
        return False
    if result == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(one))
