"""Ctrl-C and SIGTERM while a package is written: one line, the status of a signal, and nothing left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.support import contents
from tests.sets.programs import Transformer

# The command as it is, but for a writer that says when it has begun, and then takes its time. What a shell runs in the
# background ignores SIGINT, and what the tests start there would do so too.
SLOWLY = """
import signal, sys, time
import milopt.package.saving as saving

signal.signal(signal.SIGINT, signal.default_int_handler)

write = saving.write_program

def slow(program, version, carried, weights):
    made = write(program, version, carried, weights)
    (weights / "begun").write_text("half of a package")
    print("writing", flush=True)
    time.sleep(60)
    return made

saving.write_program = slow
from milopt.cli import main
sys.exit(main())
"""


def _interrupted(command: list[str], folder: Path, number: signal.Signals, word: str) -> None:
    """The command leaves ``folder`` as empty as it was when the signal comes while it writes there."""
    with subprocess.Popen(
        [sys.executable, "-c", SLOWLY, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        (half,) = folder.iterdir()
        assert half.name.startswith(".out")
        process.send_signal(number)
        output, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert (output, error) == ("", f"{word}\n")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")], ids=["Ctrl-C", "SIGTERM"]
)
def test_a_signal_while_saving(number: signal.Signals, word: str, package: Path, tmp_path: Path) -> None:
    before = contents(package)
    out = tmp_path / "out.mlpackage"
    command = ["optimize", str(package), "-o", str(out), "--passes", "canonicalize", "--verify", "none"]
    _interrupted(command, tmp_path, number, word)
    assert contents(package) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["chunk", "PKG", "-o", "out", "--count", "2", "--no-verify"],
        ["contract", "PKG", "-o", "out", "--style", "anemll", "--count", "2", "--no-verify"],
        ["contract", "PKG", "-o", "out", "--style", "coreml-llm", "--no-verify"],
        ["extract-embedding", "PKG", "-o", "out.mlpackage"],
        ["extract-function", "PKG", "-o", "out.mlpackage", "--function", "decode"],
    ],
    ids=lambda command: "-".join(each for each in command if each in (command[0], "anemll", "coreml-llm")),
)
def test_ctrl_c_while_a_set_is_saved(command: list[str], tmp_path: Path) -> None:
    package = Transformer(states="unified", mlp=(24, 24)).model().save(tmp_path / "whole.mlpackage")
    folder = tmp_path / "folder"
    folder.mkdir()
    paths = {"PKG": str(package), "out": str(folder / "out"), "out.mlpackage": str(folder / "out.mlpackage")}
    _interrupted([paths.get(each, each) for each in command], folder, signal.SIGINT, "interrupted")
