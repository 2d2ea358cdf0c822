"""Packages that are made once and only read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.support import with_tokenizer
from tests.verify.decoders import Decoder


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder of two layers with past keys and values; functions for one token and for four."""
    return with_tokenizer(Decoder(context=24).stateless()).save(tmp_path_factory.mktemp("package") / "in.mlpackage")


@pytest.fixture(scope="session")
def stateful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same decoder with states."""
    return with_tokenizer(Decoder(context=24).stateful()).save(tmp_path_factory.mktemp("stateful") / "in.mlpackage")
