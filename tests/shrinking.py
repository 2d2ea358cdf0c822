"""The smallest program that goes wrong, as far as a limit of time allows."""

from __future__ import annotations

import time
from collections.abc import Callable

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st

from milopt.mil import Program
from milopt.testing.sourcing import ops_of
from milopt.text import text

__all__ = ["drawing", "smallest"]


class _Enough(BaseException):
    """The time is over. No Exception: hypothesis would take that for a failure of the program."""


def drawing(count: int, *phases: Phase) -> settings:
    """Settings that draw ``count`` programs, and say nothing."""
    return settings(
        max_examples=count,
        deadline=None,
        database=None,
        verbosity=Verbosity.quiet,
        phases=phases,
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )


def smallest(
    programs: st.SearchStrategy[Program],
    failure: Callable[[Program], str | None],
    *,
    count: int,
    start: int,
    seconds: float,
) -> str | None:
    """What ``failure`` says of the smallest of ``programs`` that it says anything of; ``None`` where it never does.

    The first ``count`` programs of the seed ``start`` are looked through, for as long as it takes; then what goes wrong
    is shrunk for ``seconds``.
    """
    found: list[tuple[int, int, str]] = []
    until: list[float] = []

    @seed(start)
    @drawing(count, Phase.generate, Phase.shrink)
    @given(programs)
    def look(program: Program) -> None:
        if until and time.monotonic() > until[0]:
            raise _Enough
        if (message := failure(program)) is None:
            return
        found.append((ops_of(program), len(text(program, weights="hash")), message))
        until.append(time.monotonic() + seconds)
        raise AssertionError(message)

    try:
        look()
    except (AssertionError, _Enough):
        return min(found)[2]
    return None
