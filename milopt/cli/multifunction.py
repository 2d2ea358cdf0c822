"""``milopt multifunction``: one package of open sizes, or several of fixed ones, become the functions of one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from milopt.cli.options import Debug, Force, Output, Verbose, check_output

if TYPE_CHECKING:
    from milopt.package import Model

__all__ = ["multifunction"]

_PASSES = "canonicalize,kv-to-state"


def multifunction(
    sources: Annotated[list[Path], typer.Argument(metavar="PKG...", help="One of open sizes, or several to merge.")],
    destination: Output,
    query_lengths: Annotated[
        str | None, typer.Option(metavar="N,N", help="How many new tokens the functions take, e.g. 1,64.")
    ] = None,
    contexts: Annotated[
        str | None, typer.Option(metavar="N,N", help="How many tokens there are in all, e.g. 512,1024.")
    ] = None,
    passes: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help=f"What runs on the functions of each context, before they are merged. [default: {_PASSES}]",
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Run every function and the open one, in float64.")
    ] = True,
    force: Force = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Make one package of functions for several numbers of tokens and contexts, which store every weight once.

    A package of open sizes (milopt convert --shapes ranged) is given fixed ones: a function for every query length and
    context. States get the slots of the longest context, so that one state object serves all functions; each reads
    those of its own. Several packages of fixed sizes are merged: functions keep their names, and main gets the file's.
    Compress afterwards (milopt optimize OUT): what functions share is clustered once. Exit status: 0 when all is well,
    1 when a function computes something else than the open one, 2 for bad input.

    Examples:

    * milopt multifunction ranged.mlpackage -o model.mlpackage --query-lengths 1,64 --contexts 512,1024

    * milopt multifunction decode.mlpackage prefill.mlpackage -o model.mlpackage
    """
    del debug
    check_output(destination, force=force)
    from milopt.census import package_bytes
    from milopt.cli.console import output, steps
    from milopt.cli.tables import size
    from milopt.contexts import joined
    from milopt.contexts import multifunction as specialised
    from milopt.errors import MiloptError
    from milopt.package import load
    from milopt.pipeline import Pipeline
    from milopt.sets.deployment import interface
    from milopt.tables import table

    if len(sources) > 1 and any(each is not None for each in (query_lengths, contexts, passes)):
        raise MiloptError(
            "--query-lengths, --contexts and --passes are for one package of open sizes, not for several packages"
        )
    if len(sources) == 1 and query_lengths is None:
        raise MiloptError("say which functions one package becomes, --query-lengths 1,64, or give several to merge")
    lengths = _numbers("--query-lengths", query_lengths)
    wanted = _numbers("--contexts", contexts)
    pipeline = Pipeline.parse(_PASSES if passes is None else passes)
    with steps(verbose=verbose) as tell:
        tell("load")
        models = {path: load(path) for path in sources}
        if len(models) < len(sources):
            raise MiloptError("a package is given twice")
        if len(sources) > 1:
            tell("merge")
            made = joined(_functions(models))
        else:
            made = specialised(models[sources[0]], lengths, wanted, passes=pipeline, verify=verify, tell=tell)
        tell(f"save {destination.name}")
        made.save(destination, overwrite=force)
    rows: list[list[object]] = []
    for name in made.functions:
        known = interface(made, name)
        inputs = ", ".join(f"{each} {kind[1:]}" for each, kind in known["inputs"].items())
        rows.append([name, inputs, ", ".join(f"{each} {kind[1:]}" for each, kind in known["states"].items())])
    console = output()
    console.print(table("Functions", "function", "inputs", "states", rows=rows))
    before = sum(map(package_bytes, sources))
    console.print(f"{destination}: {size(package_bytes(destination))} (before: {size(before)})", markup=False)


def _numbers(option: str, text: str | None) -> list[int]:
    from milopt.errors import MiloptError

    if text is None:
        return []
    numbers = [each.strip() for each in text.split(",")]
    if not all(each.isdecimal() and len(each) < 12 and int(each) for each in numbers):
        raise MiloptError(f"{option} takes numbers with commas between, such as 1,64, not {text!r}")
    return [int(each) for each in numbers]


def _identifier(stem: str) -> str:
    """A function's name: MIL's identifiers are letters, digits and underscores, and begin with no digit."""
    name = re.sub(r"[^A-Za-z0-9_]", "_", stem)
    return f"_{name}" if name[:1].isdigit() else name


def _functions(models: dict[Path, Model]) -> dict[str, Model]:
    """Every function as a model of its own, under a name that no other has."""
    from milopt.errors import MiloptError
    from milopt.multifunction import extract

    found: dict[str, Model] = {}
    for path, model in models.items():
        for function in model.functions:
            name = _identifier(path.stem) if function == "main" else function
            if name in found:
                raise MiloptError(
                    f"two functions would be called {name!r}: milopt extract-function --name gives one another name"
                )
            found[name] = extract(model, function, name=name)
    return found
