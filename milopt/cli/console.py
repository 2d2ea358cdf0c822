"""What the commands print with: results to stdout, progress and complaints to stderr."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

__all__ = ["Settings", "Steps", "complain", "output", "steps"]

# A file or pipe has no width; wide enough for every table, so that nothing is cut there.
_WIDTH_WITHOUT_TERMINAL = 140


@dataclass
class Settings:
    """What is the same for all commands: typer's context object."""

    debug: bool = False


def output() -> Console:
    """stdout. Made anew each time: tests and shells exchange the stream."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL)


def complain(message: str, *, lines: bool = False) -> None:
    """``error: message`` on stderr; in one line, whatever the message holds, unless ``lines``."""
    print(f"error: {message.strip() if lines else ' '.join(message.split())}", file=sys.stderr, flush=True)


class Steps:
    """Tells what is going on: a spinner on a terminal; elsewhere nothing, or lines where ``verbose``."""

    def __init__(self, progress: Progress | None, *, verbose: bool) -> None:
        self._progress = progress
        self._verbose = verbose
        self._task = progress.add_task("", total=None) if progress else None

    def __call__(self, text: str) -> None:
        """A new step begins; ``text`` is a lowercase phrase without a full stop."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=text)
        elif self._verbose:
            print(f"{text} ...", file=sys.stderr, flush=True)


@contextmanager
def steps(*, verbose: bool = False) -> Generator[Steps]:
    """A :class:`Steps` that is gone, line and all, when the block ends."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield Steps(None, verbose=verbose)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield Steps(progress, verbose=verbose)
