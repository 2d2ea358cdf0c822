"""``milopt export`` killed at random moments: what comes out in the end is what comes out undisturbed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.exporting.counting import tree
from tests.exporting.killing import Killer
from tests.exporting.tiny import export_beside, write

pytestmark = pytest.mark.slow

KILLS = 30
IMPORTS = [
    "tests.exporting.tiny",
    "milopt.verify",
    "milopt.passes.compression",
    "milopt.huggingface.conversion",
    "milopt.huggingface.programcheck",
    "milopt.huggingface.standins",
    "transformers.models.llama.modeling_llama",
]


def test_the_same_set_byte_for_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers", reason="milopt[huggingface] is not installed")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the forks inherit it
    write(tmp_path)
    killer, number = Killer(export_beside, preload=IMPORTS), 0
    killer.run(tmp_path / "first")  # which waits for the imports
    whole = killer.run(tmp_path / "undisturbed")
    wanted = tree(tmp_path / "undisturbed")
    assert tree(tmp_path / "first") == wanted
    while killer.kills < KILLS:
        number += 1
        out = tmp_path / f"out{number}"
        while killer.killed(out, whole) and killer.kills < KILLS:
            pass
        killer.run(out)
        assert tree(out) == wanted
