"""``milopt extract-function``: one function of a package as a package of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from milopt.cli.options import Debug, Force, Output, check_output

__all__ = ["extract_function"]


def extract_function(
    source: Annotated[Path, typer.Argument(metavar="PKG", help="The .mlpackage to read; it is left as it is.")],
    destination: Output,
    function: Annotated[str, typer.Option("--function", metavar="NAME", help="The function to take out.")],
    name: Annotated[str, typer.Option(metavar="NAME", help="What it is called then.")] = "main",
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Write one function of a package as a package of its own, with its weights, texts, metadata and attachments.

    Examples:

    * milopt extract-function model.mlpackage -o decode.mlpackage --function decode

    * milopt extract-function model.mlpackage -o prefill.mlpackage --function prefill --name prefill
    """
    del debug
    check_output(destination, force=force)
    from milopt.census import package_bytes
    from milopt.cli.console import output
    from milopt.cli.tables import size
    from milopt.multifunction import extract
    from milopt.package import load

    extract(load(source), function, name=name).save(destination, overwrite=force)
    sizes = f"{size(package_bytes(destination))} (before: {size(package_bytes(source))})"
    output().print(f"{destination}: function {name!r}, {sizes}", markup=False)
