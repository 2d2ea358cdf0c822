"""How far long work has come: told to whoever listens, which nobody does unless asked to."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

__all__ = ["counted", "listening"]

T = TypeVar("T")
Listener = Callable[[str, float, float], None]

_listener: ContextVar[Listener | None] = ContextVar("milopt-progress", default=None)


@contextmanager
def listening(listener: Listener) -> Generator[None]:
    """Within the block, ``listener`` gets what is being done, how much of it is done, and how much there is."""
    before = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(before)


def counted(what: str, parts: Iterable[T], sizes: Iterable[float]) -> Iterator[T]:
    """``parts`` as they come, each of the size beside it; whoever listens is told at the start and after each."""
    listener = _listener.get()
    if listener is None:
        yield from parts
        return
    each = list(sizes)
    total, done = sum(each), 0.0
    listener(what, done, total)
    for part, size in zip(parts, each, strict=True):
        done += size
        listener(what, done, total)
        yield part
