"""``milopt inspect``: what is in a package."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated

import typer

from milopt.cli.options import Debug

__all__ = ["inspect"]


def inspect(
    package: Annotated[Path, typer.Argument(metavar="PKG", help="The .mlpackage to look into.")],
    function: Annotated[
        list[str] | None,
        typer.Option("--function", metavar="NAME", help="The function to tell of; may be repeated. [default: all]"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    weights: Annotated[int, typer.Option(min=0, help="How many of the largest weights to list.")] = 10,
    debug: Debug = False,
) -> None:
    """Show a package's functions, inputs, outputs, states, ops, weights, sharing, compression and metadata.

    Weights are not read, but for the first bytes of those that may be equal: it takes no longer for large packages.

    Examples:

    * milopt inspect model.mlpackage

    * milopt inspect model.mlpackage --function decode --weights 50

    * milopt inspect model.mlpackage --json | jq .functions.main.ops
    """
    del debug
    from milopt.cli.console import output
    from milopt.cli.inspection import print_inspection
    from milopt.inspection import inspect as look_into

    found = look_into(package, functions=function or None)
    if json:
        print(json_format.dumps(found.as_dict(), indent=2, ensure_ascii=False))
    else:
        print_inspection(output(), found, weights)
