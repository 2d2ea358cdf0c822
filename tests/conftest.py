"""What all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# What fails on one machine fails on all, and what passed passes again: a rare failure stops the change that brings it,
# not one that has nothing to do with it. `--hypothesis-profile=default` draws other examples on every run.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference models beside the repository, which is no part of it; tests skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("../shared, the folder of reference models, is absent")
    return folder
