"""The commands by name. Each lives in a module of its own, and imports what is heavy when it runs."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any

import typer

import milopt
from milopt.cli.calibrate import calibrate
from milopt.cli.check_contract import check_contract
from milopt.cli.chunk import chunk
from milopt.cli.contract import contract
from milopt.cli.convert import convert
from milopt.cli.demo import demo
from milopt.cli.diff import diff
from milopt.cli.explain import explain
from milopt.cli.export import export
from milopt.cli.extract_embedding import extract_embedding
from milopt.cli.extract_function import extract_function
from milopt.cli.generate import generate
from milopt.cli.inspect import inspect
from milopt.cli.lint_numerics import lint_numerics
from milopt.cli.multifunction import multifunction
from milopt.cli.optimize import optimize
from milopt.cli.passes import passes
from milopt.cli.run import run
from milopt.cli.verify import verify

__all__ = ["command"]

_COMMANDS = (
    convert,
    optimize,
    verify,
    run,
    inspect,
    diff,
    explain,
    lint_numerics,
    passes,
    chunk,
    contract,
    multifunction,
    export,
    extract_embedding,
    extract_function,
    generate,
    calibrate,
    check_contract,
    demo,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"milopt {milopt.__version__}")
        raise typer.Exit


def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Rewrite Core ML packages, and prove that nothing else changed."""
    del version
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@lru_cache(maxsize=1)
def command() -> Any:
    """The command that runs one of the others."""
    app = typer.Typer(
        name="milopt",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_root)
    for each in _COMMANDS:
        app.command()(each)
    return typer.main.get_command(app)
