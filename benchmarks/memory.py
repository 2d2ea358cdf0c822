"""How much memory of its own a process holds: anonymous pages, mapped files apart."""

from __future__ import annotations

import resource
import sys
import threading
from pathlib import Path

__all__ = ["AnonymousPeak", "anonymous_bytes"]

_STATUS = Path("/proc/self/status")


def anonymous_bytes() -> int:
    """Resident anonymous bytes now (``RssAnon``); where there is no /proc, the largest resident size so far."""
    if not _STATUS.exists():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    for line in _STATUS.read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon")


class AnonymousPeak:
    """The largest :func:`anonymous_bytes` seen while it is entered, sampled every few milliseconds."""

    def __init__(self, interval: float = 0.004) -> None:
        self.interval = interval
        self.peak = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> AnonymousPeak:
        self.peak = anonymous_bytes()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.peak = max(self.peak, anonymous_bytes())

    def so_far(self) -> int:
        """The peak until now."""
        self.peak = max(self.peak, anonymous_bytes())
        return self.peak

    def _watch(self) -> None:
        while not self._over.wait(self.interval):
            self.peak = max(self.peak, anonymous_bytes())
