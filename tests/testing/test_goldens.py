"""Golden texts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from milopt.testing import golden
from milopt.testing.goldens import UPDATE


def test_equal(tmp_path: Path) -> None:
    golden("a\nb\n", tmp_path / "x.mil", update=True)
    golden("a\nb\n", tmp_path / "x.mil", update=False)
    assert (tmp_path / "x.mil").read_text() == "a\nb\n"


def test_different(tmp_path: Path) -> None:
    golden("a\nb\n", tmp_path / "x.mil", update=True)
    with pytest.raises(AssertionError, match=r"(?s)not what x.mil holds .*\n-b\n\+c"):
        golden("a\nc\n", tmp_path / "x.mil", update=False)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"there is no .*x.mil: run once with MILOPT_UPDATE_GOLDEN=1"):
        golden("a", tmp_path / "x.mil", update=False)


def test_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(UPDATE, "1")
    golden("a", tmp_path / "new" / "x.mil")
    monkeypatch.setenv(UPDATE, "0")
    with pytest.raises(AssertionError, match="not what"):
        golden("b", tmp_path / "new" / "x.mil")


def test_without_hypothesis() -> None:
    code = (
        "import sys; sys.modules['hypothesis'] = None\ntry:\n import milopt.testing\nexcept ImportError as e: print(e)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "milopt.testing needs hypothesis: pip install 'milopt[testing]'"
