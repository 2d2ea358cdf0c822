"""Ctrl-C and SIGTERM end a command by an exception, so that what is being written is taken back.

Such an exception does not always get through. Libraries take whatever stops an optional import for its absence, and go
on with modules that are half there: coremltools has a bare ``except:`` around the import of torch, and others in its
converters. So nothing is raised while a module is being imported, or in a finalizer, and what got lost is raised again.
"""

from __future__ import annotations

import signal
import sys
import threading
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from types import CodeType, FrameType

__all__ = ["Ending", "Terminated", "asked", "ending"]

# Seconds until it is looked again whether a command has ended that was to end.
_AGAIN = 0.1
_IMPORTING = ("<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")
_FINALIZER: CodeType = vars(weakref.finalize)["__call__"].__code__


class Terminated(SystemExit):
    """What SIGTERM raises."""


class Ending:
    """By which signal the command is to end; ``number`` is 0 where nobody has asked for it."""

    def __init__(self) -> None:
        self.number = 0

    def ask(self, number: int, frame: FrameType | None) -> None:
        """The handler of a signal that ends a command."""
        self.number = self.number or number
        self.again(number, frame)

    def again(self, _: int, frame: FrameType | None) -> None:
        """Raise what ends the command, now or, if that can't be yet, a little later."""
        if not self.number:
            return
        signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        if _would_be_lost(frame) or _is_ending():
            return
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Terminated(128 + self.number)

    def forget(self) -> None:
        """The command has ended, or goes on after all."""
        if self.number:
            signal.setitimer(signal.ITIMER_REAL, 0)
        self.number = 0


asked = Ending()
"""Signals are the process's own, and so is what they ask for."""


@contextmanager
def ending() -> Generator[Ending]:
    """While this lasts, signals end the command that runs within. Outside the main thread nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    handlers = {signal.SIGTERM: asked.ask, signal.SIGALRM: asked.again}
    # what a shell runs in the background ignores Ctrl-C
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        handlers[signal.SIGINT] = asked.ask
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield asked
    finally:
        asked.forget()
        for number, handler in before.items():
            signal.signal(number, handler)


def _would_be_lost(frame: FrameType | None) -> bool:
    """Whether another library is importing modules, or Python runs a finalizer, which prints what is raised there."""
    importing: set[bool] = set()
    while frame is not None and not _is_ours(frame):
        if frame.f_code is _FINALIZER or frame.f_code.co_name == "__del__":
            return True
        importing.add(frame.f_code.co_filename in _IMPORTING)
        frame = frame.f_back
    return len(importing) > 1


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).split(".")[0] == "milopt"


def _is_ending() -> bool:
    """Whether the exception is on its way, and something is being taken back."""
    error = sys.exc_info()[1]
    while error is not None and not isinstance(error, (KeyboardInterrupt, Terminated)):
        error = error.__context__
    return error is not None
