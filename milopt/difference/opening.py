"""Both packages of a comparison: checked as ``load`` checks them, then read as they lie on the disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from coremltools.models import MLModel
from coremltools.proto import Model_pb2

from milopt.mil import Program
from milopt.package import Model, load
from milopt.package.container import Container, open_container
from milopt.package.weights import Weights

__all__ = ["Opened", "Source", "opened"]

Source = str | os.PathLike[str] | MLModel | Program | Model


@dataclass(frozen=True)
class Opened:
    """A package: its specification, its mapped weights, its further files by path, and the size of each file."""

    name: str
    spec: Any
    weights: Weights
    container: Container
    files: dict[str, bytes]
    sizes: dict[str, int]


@contextmanager
def opened(source: Source) -> Generator[Opened]:
    """``source`` as a package; a model in memory is saved for the purpose and the copy removed in the end."""
    if not isinstance(source, (str, os.PathLike)):
        with tempfile.TemporaryDirectory(prefix="milopt-") as folder:
            yield _open(load(source).save(Path(folder) / "model.mlpackage"), f"the {type(source).__name__}")
    else:
        path = Path(source)
        yield _open(path, path.name)


def _open(path: Path, name: str) -> Opened:
    checked = load(path)
    container = open_container(path)
    spec = Model_pb2.Model()
    spec.ParseFromString(container.file(container.spec.path).read_bytes())
    folder = PurePosixPath(container.spec.path).parent
    weights = Weights(lambda each: container.file(str(folder / each)), container.name)
    return Opened(name, spec, weights, container, checked.attachments, _sizes(path))


def _sizes(package: Path) -> dict[str, int]:
    files = sorted(each for each in package.rglob("*") if each.is_file())
    sizes = {each.relative_to(package).as_posix(): each.stat().st_size for each in files}
    return {"package": sum(sizes.values()), **sizes}
