"""``milopt passes``: what there is, and what each one does."""

from __future__ import annotations

import dataclasses
import inspect as python_inspect
from typing import Annotated, get_type_hints

import typer

from milopt.cli.options import Debug

__all__ = ["passes"]


def passes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Tell all about one pass.")] = None,
    debug: Debug = False,
) -> None:
    """List the passes, or describe one with its options.

    Examples:

    * milopt passes

    * milopt passes palettize
    """
    del debug
    if name is None:
        _list()
    else:
        _describe(name)


def _list() -> None:
    from milopt.cli.console import output
    from milopt.pipeline import DEFAULT
    from milopt.registry import names, pass_class
    from milopt.spec import split_spec
    from milopt.tables import table

    by_default = [name for name, _ in split_spec(DEFAULT)]
    rows: list[tuple[str, str, str, str]] = []
    for name in names():
        cls = pass_class(name)
        options = ", ".join(f"{each.name}={each.default}" for each in dataclasses.fields(cls))
        rows.append((name, "yes" if name in by_default else "", _summary(cls), options))
    output().print(table("", "pass", "default", "what it does", "options", rows=rows))
    output().print(f"default pipeline: {DEFAULT}", markup=False)


def _describe(name: str) -> None:
    from milopt.cli.console import output
    from milopt.registry import pass_class
    from milopt.tables import table

    cls = pass_class(name)
    console = output()
    console.print(f"{name}\n\n{python_inspect.getdoc(cls)}\n", markup=False)
    console.print(f"compared: {cls.metric}", markup=False)
    if cls.after:
        console.print(f"comes after: {', '.join(cls.after)}", markup=False)
    hints = get_type_hints(cls)
    rows = [(each.name, _type(hints[each.name]), each.default) for each in dataclasses.fields(cls)]
    console.print(table("options", "option", "type", "default", rows=rows) if rows else "no options")


def _summary(cls: type) -> str:
    """The first paragraph of a class's docstring, in one line."""
    return " ".join((python_inspect.getdoc(cls) or "").split("\n\n")[0].split())


def _type(hint: object) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
