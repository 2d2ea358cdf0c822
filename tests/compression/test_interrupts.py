"""Ctrl-C while workers compress: one line, the status of a signal, and neither files nor processes left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from milopt.package import load

from .support import linear_program, weights

# The command as it is, but for a k-means that says when it has begun, and then takes its time. Workers that are
# processes have the module of their own, so that they are told by a file.
SLOWLY = """
import signal, sys, time
from pathlib import Path
import joblib
import milopt.passes.palettes as palettes

signal.signal(signal.SIGINT, signal.default_int_handler)
backend, begun, *command = sys.argv[1:]
encode = palettes.encode_palette

def slow(*given):
    import time
    from pathlib import Path
    Path(begun).touch()
    time.sleep(1)
    return encode(*given)

palettes.encode_palette = slow
from milopt.cli import main
with joblib.parallel_config(backend=backend, n_jobs=2):
    sys.exit(main(command))
"""

# Of workers that are processes joblib now and then says that a semaphore was left, which it then does not find.
OWN_WARNINGS = "ignore:resource_tracker:UserWarning"


@pytest.mark.parametrize("backend", ["threading", pytest.param("loky", marks=pytest.mark.processes)])
def test_a_signal_while_workers_compress(backend: str, tmp_path: Path) -> None:
    package, temporary = tmp_path / "in.mlpackage", tmp_path / "temporary"
    load(linear_program(weights((64, 64)))).save(package)
    temporary.mkdir()
    begun, out = tmp_path / "begun", tmp_path / "out.mlpackage"
    command = ["optimize", str(package), "-o", str(out), "--passes", "palettize{bits=4}", "--verify", "none"]
    with subprocess.Popen(
        [sys.executable, "-c", SLOWLY, backend, str(begun), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONWARNINGS": OWN_WARNINGS},
        start_new_session=True,
    ) as process:
        while not begun.exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        output, error = process.communicate(timeout=60)  # ends when no worker holds the pipes any more
    assert process.returncode == 128 + signal.SIGINT
    assert (output, error) == ("", "interrupted\n")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["begun", "in.mlpackage", "temporary"]
    assert list(temporary.iterdir()) == []
    wait_for_the_end_of(process.pid)


def wait_for_the_end_of(group: int) -> None:
    """Workers of joblib have one more process, which ends when it hears that they have."""
    for _ in range(600):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("processes are left behind")
