"""Machine code where its files can't be kept."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

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
