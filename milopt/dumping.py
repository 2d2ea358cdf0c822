"""The program's canonical text after each pass of a pipeline, on the screen or in a folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from milopt.errors import MiloptError
from milopt.files import whole_file
from milopt.package import Model
from milopt.pipeline import Pass, Pipeline
from milopt.reports import Report
from milopt.text import text

__all__ = ["ALL", "Dump", "printer"]

ALL = "all"
_OURS = re.compile(r"\d{2,3}-.*\.mil")


class Dump:
    """Writes ``00-input.mil``, ``01-canonicalize.mil``... into a folder: a callback of :meth:`milopt.Pipeline.run`.

    Weights are named by a hash of their bytes, so that equal texts mean equal programs. The folder must hold no such
    files; with ``overwrite`` those of an earlier run are removed first. MiloptError before anything is written.
    """

    def __init__(self, folder: str | Path, *, overwrite: bool = False) -> None:
        self.folder = Path(folder)
        self.written: list[Path] = []
        if self.folder.exists() and not self.folder.is_dir():
            raise MiloptError(f"{self.folder} is no folder")
        self._earlier = [each for each in self._there() if _OURS.fullmatch(each.name)]
        if self._earlier and not overwrite:
            raise MiloptError(f"{self._earlier[0]} exists; give --force to replace what an earlier run wrote")

    def _there(self) -> list[Path]:
        return sorted(self.folder.iterdir()) if self.folder.is_dir() else []

    def start(self, model: Model) -> None:
        """Write the program as it is before the first pass."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for each in self._earlier:
                each.unlink()
        except OSError as error:
            raise MiloptError(f"can't write {self.folder}: {error.strerror}") from error
        self._write("input", model)

    def __call__(self, each: Pass, report: Report, model: Model) -> None:
        """A pass has run."""
        self._write(each.name, model)

    def _write(self, name: str, model: Model) -> None:
        path = self.folder / f"{len(self.written):02d}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}.mil"
        with whole_file(path) as file:
            file.write(text(model, weights="hash").encode())
        self.written.append(path)


def printer(
    names: Iterable[str], pipeline: Pipeline, write: Callable[[str], None]
) -> Callable[[Pass, Report, Model], None]:
    """A callback that writes the program's text after the named passes (``all``: after each), under a line naming it.

    MiloptError for a pass that is not in the pipeline.
    """
    wanted, known = set(names), [each.name for each in pipeline.passes]
    for name in sorted(wanted - {ALL, *known}):
        raise MiloptError(f"there is no {name} in the pipeline to print after: {', '.join(dict.fromkeys(known))}")

    def after(each: Pass, report: Report, model: Model) -> None:
        if ALL in wanted or each.name in wanted:
            write(f"# after {each}: applied {report.applied}, missed {report.missed}\n{text(model)}")

    return after
