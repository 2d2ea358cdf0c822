"""How far a pass has come is told to whoever listens, on a terminal as a bar, and to nobody else."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from milopt.cli import console as consoles
from milopt.package import load
from milopt.passes.budget import Budget
from milopt.passes.compression import Palettize
from milopt.progress import counted, listening

from .support import linear_program, weights

Heard = list[tuple[str, float, float]]


def test_parts_are_counted_by_their_sizes() -> None:
    heard: Heard = []
    with listening(lambda what, done, total: heard.append((what, done, total))):
        assert list(counted("weights", "ab", [3, 1])) == ["a", "b"]
    assert heard == [("weights", 0, 4), ("weights", 3, 4), ("weights", 4, 4)]
    assert list(counted("weights", "ab", [3, 1])) == ["a", "b"]
    assert len(heard) == 3


def test_a_pass_tells_its_name_and_its_numbers() -> None:
    heard: Heard = []
    with listening(lambda what, done, total: heard.append((what, done, total))):
        Palettize(bits=4).run(load(linear_program(weights((48, 64)))))
    assert heard == [("palettize", 0, 3072), ("palettize", 3072, 3072)]


def test_a_budget_tells_what_it_measures_too() -> None:
    heard: Heard = []
    with listening(lambda what, done, total: heard.append((what, done, total))):
        Budget(size=0.3).run(load(linear_program(weights((48, 64)))))
    assert heard == [(what, done, 3072) for what in ("measure forms", "budget") for done in (0, 3072)]


def test_a_terminal_has_a_bar_while_there_is_something_to_count(monkeypatch: pytest.MonkeyPatch) -> None:
    told = shown(monkeypatch, terminal=True)
    assert "optimize" in told
    assert "25% weights" in told
    assert "100%" not in told


def test_elsewhere_nothing_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, terminal=False) == ""


def shown(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> str:
    written = io.StringIO()

    def console(**_options: object) -> Console:
        return Console(file=written, force_terminal=terminal, width=100, color_system=None)

    monkeypatch.setattr(consoles, "Console", console)
    with consoles.steps() as tell:
        tell("optimize")
        for _ in counted("weights", "ab", [1, 3]):
            tell.refresh()
        tell.refresh()
    return written.getvalue()
