"""No pauses for Python's garbage collector while many objects are made that all stay."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["uncollected"]


@contextmanager
def uncollected() -> Generator[None]:
    """Don't look for garbage inside the ``with`` block.

    Every so many new objects Python looks at all there are, and with torch and coremltools these are a million: half
    of the time it takes to read a program.
    """
    if not gc.isenabled():  # so it was wanted, by the caller or another thread's block
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
