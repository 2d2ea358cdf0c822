"""The last step: Core ML's compiler makes a ``.mlmodelc`` of every package, on a Mac."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from milopt.exporting.errors import ExportError

__all__ = ["WHERE", "compile_packages", "impossible"]

WHERE = (
    "Core ML's compiler runs on macOS alone: copy the export there and run `milopt export DIR -o OUT --only {number}`, "
    "or `xcrun coremlcompiler compile OUT/set/NAME.mlpackage OUT/compiled` for each package"
)


def impossible(number: int) -> str:
    """Why packages can't be compiled on this machine, and what to do; empty on macOS."""
    return "" if sys.platform == "darwin" else WHERE.format(number=number)


def compile_packages(folder: Path, fresh: Path, tell: Callable[[str], None]) -> list[str]:
    """Compile every package in ``folder`` into ``fresh``, and put what else a client reads beside them."""
    utils: Any = importlib.import_module("coremltools.models.utils")
    for each in sorted(folder.iterdir()):
        if each.suffix != ".mlpackage":
            copy: Any = shutil.copytree if each.is_dir() else shutil.copy2
            copy(each, fresh / each.name)
            continue
        tell(f"compile {each.name}")
        made = fresh / f"{each.stem}.mlmodelc"
        try:
            utils.compile_model(str(each), str(made))
        except Exception as error:  # Core ML's own errors, of no class that could be named
            raise ExportError(f"Core ML can't compile {each.name}: {error}") from error
        if not made.is_dir():
            raise ExportError(f"Core ML made no {made.name}")
    return []
