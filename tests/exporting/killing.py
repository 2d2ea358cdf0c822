"""Processes that are killed with SIGKILL: forks of one that has imported everything, so that each begins at once."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

__all__ = ["Killer"]

_PATIENCE = 600.0


class Killer:
    """Runs ``work(folder)`` again and again, and kills most of them at moments drawn with ``seed``."""

    def __init__(self, work: Callable[[Path], object], *, preload: list[str], seed: int = 0) -> None:
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload(preload)
        self._work = work
        self._draw = random.Random(seed)
        self.kills = 0

    def run(self, folder: Path) -> float:
        """One run that is left alone; how long it took."""
        process, begun = self._begin(folder), time.perf_counter()
        process.join(_PATIENCE)
        assert process.exitcode == 0
        return time.perf_counter() - begun

    def killed(self, folder: Path, longest: float) -> bool:
        """Kill a run after at most ``longest`` seconds; False where it was finished by then."""
        process = self._begin(folder)
        process.join(self._draw.uniform(0, longest))
        process.kill()
        process.join(_PATIENCE)
        assert process.exitcode in (0, -signal.SIGKILL)
        came = bool(process.exitcode)
        self.kills += came
        return came

    def _begin(self, folder: Path) -> Any:
        here, there = self._context.Pipe()
        process = self._context.Process(target=_announced, args=(there, self._work, folder))
        process.start()
        assert here.poll(_PATIENCE)
        return process


def _announced(begun: Connection, work: Callable[[Path], object], folder: Path) -> None:
    begun.send(None)
    work(folder)
