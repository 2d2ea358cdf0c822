"""Machine code where its files can't be kept."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from milopt import compiled as compiled_module
from milopt.compiled import compiled


@pytest.mark.parametrize("signatures", [(), ("float64(float64)",)], ids=["lazy", "at once"])
def test_without_a_folder_that_can_be_written_code_is_made_anew(
    monkeypatch: pytest.MonkeyPatch, signatures: tuple[str, ...]
) -> None:
    caching: Any = importlib.import_module("numba.core.caching")
    monkeypatch.setattr(caching.CompileResultCacheImpl, "_locator_classes", [])

    def half(value: float) -> float:
        return value / 2

    made: Any = compiled(*signatures)(half)
    assert made(3.0) == 1.5
    assert [str(each) for each in made.signatures] == ["(float64,)"]  # machine code all the same


SOURCE = """
from milopt.compiled import compiled

@compiled({0})
def inner(value):
    return value + {1}
"""
CALLER = """
from milopt.compiled import compiled
from inner_kernels import inner

@compiled("float64(float64)")
def outer(value):
    return 10 * inner(value)

print(outer(1.0), sum(outer.stats.cache_hits.values()))
"""


def test_code_is_made_anew_when_a_loop_that_it_calls_has_changed(tmp_path: Path) -> None:
    shutil.copy(compiled_module.__file__, tmp_path / "compiled.py")
    caller = CALLER.replace("milopt.compiled", "compiled")

    def outcome(added: int) -> list[str]:
        text = SOURCE.replace("milopt.compiled", "compiled").format("", added)
        (tmp_path / "inner_kernels.py").write_text(text)
        found = subprocess.run([sys.executable, "caller_kernels.py"], cwd=tmp_path, capture_output=True, check=True)
        return found.stdout.decode().split()

    (tmp_path / "caller_kernels.py").write_text(caller)
    assert outcome(1) == ["20.0", "0"]
    assert outcome(1) == ["20.0", "1"]
    assert outcome(2) == ["30.0", "0"]


def test_every_module_with_loops_is_looked_at() -> None:
    """The stamp is of files by their names."""
    home = Path(compiled_module.__file__).parent
    users = [each.stem for each in home.rglob("*.py") if "import compiled\n" in each.read_text(encoding="utf-8")]
    assert len(users) > 4
    assert all(each.endswith(("kernels", "kmeans")) for each in users)
