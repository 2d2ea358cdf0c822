"""``milopt optimize``: run passes over a package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from milopt.cli.options import Debug, Force, Output, Passes, Verbose, Verify, VerifyOption, check_output

__all__ = ["optimize"]


def optimize(
    source: Annotated[Path, typer.Argument(metavar="IN", help="The .mlpackage to read; it is left as it is.")],
    destination: Output,
    passes: Passes = None,
    verify: VerifyOption = Verify.stage,
    force: Force = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Rewrite a package with passes, compare it with what it was, and save it.

    Exit status: 0 when the verdict holds, 1 when it does not (nothing is written then), 2 for bad input.

    Examples:

    * milopt optimize in.mlpackage -o out.mlpackage

    * milopt optimize in.mlpackage -o out.mlpackage --passes 'fuse-sdpa,palettize{bits=6}' --verify each
    """
    del debug
    check_output(destination, force=force)
    from milopt.cli.work import optimize_and_save, pipeline_of
    from milopt.package import load

    pipeline = pipeline_of(passes)
    model = load(source)
    optimize_and_save(model, pipeline, destination, source=source, verify=verify, force=force, verbose=verbose)
