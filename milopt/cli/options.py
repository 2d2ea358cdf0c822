"""Options and arguments that several commands share, and the checks that come before any long work."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from milopt.cli.console import Settings
from milopt.errors import MiloptError

__all__ = ["Debug", "Force", "Output", "Passes", "Verbose", "Verify", "VerifyOption", "check_output"]


class Verify(str, Enum):
    """When a pipeline's work is compared with what was there before."""

    each = "each"
    stage = "stage"
    none = "none"


def _set_debug(context: typer.Context, value: bool) -> bool:
    if value:
        context.ensure_object(Settings).debug = True
    return value


Debug = Annotated[
    bool, typer.Option("--debug", callback=_set_debug, is_eager=True, help="Show the traceback of an error.")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="All ops, reasons for what was left alone, each step.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace OUT if it exists.")]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="The package to write.")]
Passes = Annotated[
    str | None,
    typer.Option("--passes", metavar="SPEC", help="The passes to run, e.g. 'fuse-sdpa,palettize{bits=6}'."),
]
VerifyOption = Annotated[
    Verify, typer.Option("--verify", help="Compare before and after: each pass, stages of equal metric, or not at all.")
]


def check_output(path: Path, *, force: bool) -> None:
    """Refuse what could not be written in the end, before the long work begins. MiloptError says why."""
    if path.suffix != ".mlpackage":
        raise MiloptError(f"{path}: the output's name must end in .mlpackage")
    if path.is_symlink() or path.exists():
        if not force:
            raise MiloptError(f"{path} exists; give --force to replace it")
        if not path.is_dir() or not (path / "Manifest.json").is_file():
            raise MiloptError(f"{path} is no package; it is not replaced even with --force")
    parent = path.absolute().parent
    if not parent.is_dir():
        raise MiloptError(f"{path}: the folder {parent} does not exist")
    # a folder without a single write bit is meant to stay as it is, though the superuser could write there
    if not parent.stat().st_mode & 0o222 or not os.access(parent, os.W_OK | os.X_OK):
        raise MiloptError(f"{path}: the folder {parent} is read-only")
