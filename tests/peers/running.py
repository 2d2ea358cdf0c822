"""The command that runs tests inside the installed coremltools, undisturbed by the settings of this repository."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["OPS", "arguments", "run"]

OPS = "converters/mil/mil/ops/tests"
_REPOSITORY = Path(__file__).resolve().parents[2]


def arguments(given: Sequence[str]) -> list[str]:
    """pytest's arguments; those given that name something in the folder of coremltools are taken there."""
    spec: Any = find_spec("coremltools")
    root = Path(spec.origin).parent
    named = [str(root / each) if (root / each.split("::")[0]).exists() else each for each in given]
    options = ["-p", "tests.peers.plugin", "-p", "no:cacheprovider", "-p", "no:warnings", "-q"]
    # no configuration file: ours names our tests, theirs isn't shipped
    return ["-c", os.devnull, f"--rootdir={root}", *options, *named]


def run(given: Sequence[str], *, quiet: bool = False) -> int:
    """pytest's exit status. One thread each: the workers fill the machine."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(_REPOSITORY), "TQDM_DISABLE": "1"}
    command = [sys.executable, "-m", "pytest", *given]
    done = subprocess.run(command, env=environment, capture_output=quiet, check=False)
    return done.returncode
