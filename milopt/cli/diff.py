"""``milopt diff``: what differs between two packages."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from milopt.cli.options import Debug

if TYPE_CHECKING:
    from rich.console import Console

    from milopt.difference import Difference

__all__ = ["diff"]


def diff(
    before: Annotated[Path, typer.Argument(metavar="A", help="The .mlpackage to compare with.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="The .mlpackage that may differ.")],
    json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    most: Annotated[int, typer.Option("--most", min=1, help="How many differences of each kind to list.")] = 20,
    debug: Debug = False,
) -> None:
    """Say what differs between two packages: interface, ops, weights, metadata, files.

    Ops are told apart by what they do and use, not by names; weights by content. Differences of names, order, place
    and encoding are listed apart. Exit status: 0 when the packages are identical, 1 when they differ, 2 for bad input.

    Examples:

    * milopt diff before.mlpackage after.mlpackage

    * milopt diff before.mlpackage after.mlpackage --json | jq .sections.weights
    """
    del debug
    from milopt.cli.console import output, steps
    from milopt.difference import diff as compare

    with steps() as tell:
        tell(f"compare {before.name} and {after.name}")
        found = compare(before, after)
    if json:
        print(json_format.dumps(found.as_dict(), indent=2, ensure_ascii=False))
    else:
        _print(output(), found, most)
    if found:
        raise typer.Exit(1)


def _print(console: Console, found: Difference, most: int) -> None:
    from rich.text import Text

    from milopt.cli.tables import size
    from milopt.tables import table

    for line in found.lines(most):
        console.print(Text(line), soft_wrap=True)  # one difference a line, for grep
    if found:
        rows = [(name, size(one), size(other)) for name, (one, other) in found.sizes.items()]
        console.print(table("Sizes", "file", ">before", ">after", rows=rows))
