"""One small model, converted once for all tests of the front door."""

from __future__ import annotations

from pathlib import Path

import pytest

from milopt.huggingface import convert
from milopt.package import Model
from tests.huggingface.support import CONTEXT, LENGTHS, library, write_folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder with weights, tokenizer and chat template."""
    library("transformers")
    return write_folder(tmp_path_factory.mktemp("huggingface") / "tiny")


@pytest.fixture(scope="session")
def steps() -> list[str]:
    """What ``convert`` told of its progress while ``converted`` was made."""
    return []


@pytest.fixture(scope="session")
def converted(folder: Path, steps: list[str]) -> Model:
    """The folder as a model of functions ``decode`` and ``prefill``, in float16; tests don't change it."""
    return convert(folder, context=CONTEXT, query_lengths=LENGTHS, progress=steps.append)
