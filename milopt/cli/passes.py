"""``milopt passes``: what there is, and what each one does."""

from __future__ import annotations

import dataclasses
import inspect as python_inspect
from typing import Annotated, Any, get_type_hints

import typer

from milopt.cli.options import Debug
from milopt.errors import PassError
from milopt.spec import value_text

__all__ = ["passes"]


def passes(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Tell all about one pass; ct: lists those of coremltools.")
    ] = None,
    debug: Debug = False,
) -> None:
    """List the passes, or describe one with its options.

    Examples:

    * milopt passes

    * milopt passes palettize

    * milopt passes ct:

    * milopt passes ct:common::add_fp16_cast
    """
    del debug
    if name is None:
        _list()
    elif name == "ct:":
        _list_coremltools()
    else:
        _describe(name)


def _list() -> None:
    from milopt.cli.console import output
    from milopt.pipeline import DEFAULT
    from milopt.registry import names, pass_class
    from milopt.spec import split_spec
    from milopt.tables import table

    by_default = [name for name, _ in split_spec(DEFAULT)]

    def row(name: str) -> tuple[str, str, str, str]:
        try:
            cls = pass_class(name)
        except PassError as error:  # the others are still there
            return name, "", str(error), ""
        return name, "yes" if name in by_default else "", _summary(cls), _options(cls)

    rows = [row(name) for name in names()]
    output().print(table("", "pass", "default", "what it does", "options", rows=rows))
    output().print(f"default pipeline: {DEFAULT}", markup=False)
    output().print("passes of coremltools are steps too, ct:common::const_elimination: `milopt passes ct:` lists them")


def _list_coremltools() -> None:
    from milopt.cli.console import output
    from milopt.coremltools_steps import coremltools_names, step_class
    from milopt.tables import table

    def row(name: str) -> tuple[str, str]:
        try:
            return name, _options(step_class(name))
        except PassError as error:
            return name, str(error).removeprefix(f"{name} ")

    rows = [row(name) for name in coremltools_names()]
    output().print(table("Passes of coremltools", "pass", "options", rows=rows))


def _options(cls: type[Any]) -> str:
    return ", ".join(f"{each.name}={_default(each)}" for each in dataclasses.fields(cls) if each.init)


def _default(each: dataclasses.Field[Any]) -> str:
    """The default of an option as a pipeline's text has it."""
    if each.default_factory is not dataclasses.MISSING:
        return value_text(each.default_factory())
    return "" if each.default is dataclasses.MISSING else value_text(each.default)


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
    if cls.before:
        console.print(f"comes before: {', '.join(cls.before)}", markup=False)
    hints = get_type_hints(cls)
    rows = [(each.name, _type(hints[each.name]), _default(each)) for each in dataclasses.fields(cls) if each.init]
    console.print(table("options", "option", "type", "default", rows=rows) if rows else "no options")


def _summary(cls: type) -> str:
    """The first paragraph of a class's docstring, in one line."""
    return " ".join((python_inspect.getdoc(cls) or "").split("\n\n")[0].split())


def _type(hint: object) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
