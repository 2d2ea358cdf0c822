"""``milopt explain``: why a pass does something at an op, or nothing."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated

import typer

from milopt.cli.options import Debug, Json

__all__ = ["explain"]


def explain(
    passes: Annotated[str, typer.Argument(metavar="PASS", help="The pass; of several, the last one is explained.")],
    source: Annotated[Path, typer.Argument(metavar="PKG", help="The .mlpackage to look at; it is left as it is.")],
    op: Annotated[str | None, typer.Option("--op", metavar="NAME", help="Ask about this op or value.")] = None,
    function: Annotated[str | None, typer.Option(metavar="NAME", help="Look at this function only.")] = None,
    most: Annotated[int, typer.Option("--most", min=1, help="How many places of each kind to show.")] = 5,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what a pass would rewrite in a package, and why it leaves the rest alone, nearest misses first.

    Every reason comes with the text around its place: `>` marks the op in question, `*` the ops that had matched, and
    the line of the rule that wanted something else is named. Nothing is written.

    Examples:

    * milopt explain fuse-sdpa model.mlpackage

    * milopt explain fuse-sdpa model.mlpackage --op softmax_3

    * milopt explain 'canonicalize,palettize{bits=4}' model.mlpackage --function decode --json
    """
    del debug
    from milopt.cli.console import output, steps
    from milopt.explaining import explain as ask
    from milopt.pipeline import Pipeline

    pipeline = Pipeline.parse(passes)
    with steps() as tell:
        tell(f"{passes} on {source.name}")
        found = ask(pipeline, source, op, function=function, most=most)
    if json:
        print(json_format.dumps(found.as_dict(), indent=2, ensure_ascii=False))
    else:
        output().print(str(found), markup=False, soft_wrap=True)
