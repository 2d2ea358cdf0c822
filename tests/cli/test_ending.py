"""Ctrl-C and SIGTERM end a command whatever it is doing: importing, losing exceptions, taking things back."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from milopt.cli import main
from milopt.cli.signals import Terminated, asked, ending

Capture = pytest.CaptureFixture[str]

IMPORTED = """
import os, signal

lost = False
try:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(100):
        pass
except BaseException:
    lost = True
"""


def interrupt(number: signal.Signals = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


def lose() -> None:
    """What ``except:`` around an optional import does, elsewhere."""
    try:
        interrupt()
    except BaseException:
        return
    raise AssertionError("nothing was raised")


def test_nothing_is_raised_while_a_module_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "careless.py").write_text(IMPORTED)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    found: list[Any] = []

    def work() -> None:
        found.append(importlib.import_module("careless"))
        time.sleep(30)

    with ending(), pytest.raises(KeyboardInterrupt):
        work()
    assert [each.lost for each in found] == [False]


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)], ids=["Ctrl-C", "SIGTERM"]
)
def test_what_is_lost_is_raised_again(number: signal.Signals, kind: type[BaseException]) -> None:
    lost: list[BaseException] = []

    def work() -> None:
        try:
            interrupt(number)
        except kind as error:
            lost.append(error)
        time.sleep(30)

    with ending(), pytest.raises(kind) as raised:
        work()
    assert lost
    assert raised.value not in lost


def test_nothing_is_raised_in_a_finalizer(capsys: Capture) -> None:
    ended: list[int] = []

    def finalize() -> None:
        interrupt()
        ended.extend(number for number in range(100))

    class Thing:
        """To be finalized."""

    def work() -> None:
        things = [Thing()]
        weakref.finalize(things[0], finalize)
        things.clear()
        time.sleep(30)

    with ending(), pytest.raises(KeyboardInterrupt):
        work()
    assert ended == list(range(100))
    assert capsys.readouterr().err == ""


def test_what_is_taken_back_is_taken_back_in_peace() -> None:
    done: list[bool] = []

    def work() -> None:
        try:
            interrupt()
        finally:
            time.sleep(0.3)  # three times as long as it takes to ask again
            done.append(True)

    with pytest.raises(KeyboardInterrupt), ending():
        work()
    assert done


def test_a_command_that_goes_on_is_left_alone() -> None:
    with ending():
        lose()
        asked.forget()
        time.sleep(0.3)
        assert not asked.number


def test_signals_are_put_back() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = [signal.getsignal(each) for each in numbers]
    with ending():
        assert [signal.getsignal(each) for each in numbers] != before
        lose()
    assert [signal.getsignal(each) for each in numbers] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_what_a_shell_runs_in_the_background_is_not_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with ending():
            interrupt()
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def _raised(number: signal.Signals) -> None:
    interrupt(number)


def _as_another_error(number: signal.Signals) -> None:
    try:
        interrupt(number)
    except BaseException as error:
        raise ValueError("tensor value type should be compatible") from error


@pytest.mark.parametrize("work", [_raised, _as_another_error])
@pytest.mark.parametrize(
    ("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")], ids=["Ctrl-C", "SIGTERM"]
)
def test_one_line_and_the_status_of_a_signal(
    number: signal.Signals,
    word: str,
    work: Callable[[signal.Signals], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    def run(**_: object) -> None:
        work(number)

    monkeypatch.setattr("milopt.cli.app.command", lambda: SimpleNamespace(main=run))
    assert main(["passes"]) == 128 + number
    assert capsys.readouterr() == ("", f"{word}\n")
