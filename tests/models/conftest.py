"""Graphs with synthetic weights: written once per run of the tests, and removed after it, for they are large."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest

import milopt
from milopt.package import Model
from tests.models.packages import SHARED, refill


@pytest.fixture(scope="session")
def refilled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Model]]:
    """Loads a package of ../shared/models/graphs by its name."""
    if not SHARED.is_dir():
        pytest.skip("../shared, the folder of reference models, is absent")
    folder = tmp_path_factory.mktemp("refilled")
    yield lambda name: milopt.load(refill(SHARED / "models" / "graphs" / f"{name}.mlpackage", folder))
    shutil.rmtree(folder)
