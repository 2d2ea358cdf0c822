"""What all tests share."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# What fails on one machine fails on all, and what passed passes again: a rare failure stops the change that brings it,
# not one that has nothing to do with it. `--hypothesis-profile=default` draws other examples on every run.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


def _not_ours(_path: str) -> bool:
    return False


# Hypothesis also draws numbers that stand in the sources of loaded modules. Which these are depends on the tests that
# were chosen, and any edit anywhere adds to them: so it is told that none is ours. It has no option for that.
providers: Any = importlib.import_module("hypothesis.internal.conjecture.providers")
if hasattr(providers, "is_local_module_file"):
    providers.is_local_module_file = _not_ours


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference models beside the repository, which is no part of it; tests skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("../shared, the folder of reference models, is absent")
    return folder
