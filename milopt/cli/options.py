"""Options and arguments that several commands share, and the checks that come before any long work."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from milopt.cli.console import Settings
from milopt.enclosing import enclosing
from milopt.errors import MiloptError

__all__ = [
    "Attention",
    "AttentionOption",
    "Bisect",
    "Calibration",
    "Debug",
    "DeploymentTarget",
    "DumpDir",
    "Force",
    "Functions",
    "Json",
    "Output",
    "Passes",
    "PrintAfter",
    "Verbose",
    "Verify",
    "VerifyOption",
    "check_output",
]


class Verify(str, Enum):
    """When a pipeline's work is compared with what was there before."""

    each = "each"
    stage = "stage"
    end = "end"
    none = "none"


class Attention(str, Enum):
    """What attention becomes: the fused op, einsums head by head, two matmuls for all heads, or what it is."""

    fused = "fused"
    split_einsum = "split-einsum"
    matmul = "matmul"
    keep = "keep"


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
Functions = Annotated[
    list[str] | None,
    typer.Option("--function", metavar="NAME", help="The function to rewrite; may be repeated. [default: all]"),
]
DeploymentTarget = Annotated[
    str | None,
    typer.Option(
        "--minimum-deployment-target",
        metavar="TARGET",
        help="Upgrade the model to a newer system before the passes, e.g. iOS18 or macOS15 (coremltools' names).",
    ),
]
VerifyOption = Annotated[
    Verify,
    typer.Option(
        "--verify", help="Compare before and after: each pass, stages of equal metric, all at the end, or not at all."
    ),
]
AttentionOption = Annotated[
    Attention | None,
    typer.Option(
        "--attention",
        help="What attention becomes, whatever the passes say: the op of iOS18, einsums head by head or matmuls (for "
        "the Neural Engine; with layout-bc1s, matmuls move least), or what it is.",
    ),
]
Calibration = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        metavar="STATS",
        help="Statistics of milopt calibrate, for the palettize and budget passes among them.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Everything, as JSON on stdout, instead of the tables.")]
PrintAfter = Annotated[
    list[str] | None,
    typer.Option(
        "--print-after", metavar="PASS", help="Print the program's text after this pass, or 'all'; may be repeated."
    ),
]
DumpDir = Annotated[
    Path | None,
    typer.Option(
        "--dump-dir", metavar="DIR", help="Write the program's text before and after each pass: DIR/00-input.mil, ..."
    ),
]
Bisect = Annotated[
    bool,
    typer.Option(
        "--bisect",
        help="When equality breaks, find the pass and the rewrite that do it, and write a small program that shows it "
        "to OUT's name with .bisect.",
    ),
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
    if (whole := enclosing(path)) is not None:
        raise MiloptError(f"{path} is inside {whole}, which another file would break")
    # a folder without a single write bit is meant to stay as it is, though the superuser could write there
    if not parent.stat().st_mode & 0o222 or not os.access(parent, os.W_OK | os.X_OK):
        raise MiloptError(f"{path}: the folder {parent} is read-only")
