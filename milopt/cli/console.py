"""What the commands print with: results to stdout, progress and complaints to stderr."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.columns import Columns
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from milopt.progress import listening

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
        self._task = progress.add_task("", total=None, part="") if progress else None

    def __call__(self, text: str) -> None:
        """A new step begins; ``text`` is a lowercase phrase without a full stop."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=text)
        elif self._verbose:
            print(f"{text} ...", file=sys.stderr, flush=True)

    def refresh(self) -> None:
        """Show it now, and not at the next of ten times a second."""
        if self._progress is not None:
            self._progress.refresh()

    def count(self, what: str, done: float, total: float) -> None:
        """On a terminal, a bar beside the step: how much of ``what`` is done."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total, part="" if done >= total else what)


@contextmanager
def steps(*, verbose: bool = False) -> Generator[Steps]:
    """A :class:`Steps` that is gone, line and all, when the block ends."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield Steps(None, verbose=verbose)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn(), _Part())
    with Progress(*columns, console=console, transient=True) as progress:
        told = Steps(progress, verbose=verbose)
        with listening(told.count):
            yield told


class _Part(ProgressColumn):
    """The bar of what can be counted, and what it counts; nothing otherwise."""

    _bar = BarColumn(bar_width=24)

    def render(self, task: Task) -> Any:
        if not task.fields["part"] or not task.total:
            return Text("")
        text = Text(f" {task.completed / task.total:.0%} {task.fields['part']}")
        return Columns([self._bar.render(task), text])
