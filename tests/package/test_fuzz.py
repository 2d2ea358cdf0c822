"""The fuzzer at work, briefly, and that it can fail. ``make fuzz`` runs thousands of mutants."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from milopt.errors import PackageError

from . import fuzz as fuzzer
from .fuzz import TookTooLong, check, fuzz, samples
from .mutating import Mutant


def test_a_hundred_mutants(tmp_path: Path) -> None:
    packages = samples(tmp_path, None)
    ends = fuzz(packages, tmp_path / "run", 100)
    assert set(ends) == {"load refused", "save refused", "saved"}


def mutant(folder: Path) -> Mutant:
    return Mutant(samples(folder, None)["linear"])


def test_what_the_fuzzer_objects_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = mutant(tmp_path)
    assert check(good, tmp_path / "run") == "saved"

    def loads_as(behaviour: Any) -> None:
        monkeypatch.setattr(fuzzer, "load", behaviour)

    def write_beside(package: Path) -> None:
        (package / "Manifest.json").write_text("{}")
        raise PackageError("no")

    def two_lines(_: Path) -> None:
        raise PackageError("one\ntwo")

    def crash(_: Path) -> None:
        raise KeyError("x")

    def hang(_: Path) -> None:
        time.sleep(60)

    def swell(_: Path) -> None:
        bytearray(4 << 30)

    monkeypatch.setattr(fuzzer, "_SECONDS", 1)
    for behaviour, error in (
        (write_beside, AssertionError),
        (two_lines, AssertionError),
        (crash, KeyError),
        (hang, TookTooLong),
        (swell, MemoryError),
    ):
        loads_as(behaviour)
        with pytest.raises(error):
            check(good, tmp_path / "run")
