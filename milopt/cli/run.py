"""``milopt run``: a package's answer to some inputs, and a look at every op on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from milopt.cli.options import Debug
from milopt.precisions import Precision

__all__ = ["run"]


def run(
    package: Annotated[Path, typer.Argument(metavar="PKG", help="The package to run.")],
    input: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            "-i",
            metavar="NAME=VALUE",
            help="A .npy, .npz, .json, .png or .jpg file, or JSON: x=in.npy, n=3, x=[[1,2]]. "
            "A .npz or .json file alone gives all that it names.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Write the outputs here: .npy, .png, or .json for labels."),
    ] = None,
    function: Annotated[str | None, typer.Option(help="The function to run, if not the default one.")] = None,
    precision: Annotated[Precision, typer.Option(help="How results are rounded.")] = "declared",
    device: Annotated[str, typer.Option(metavar="cpu|cuda|mps", help="Where to compute.")] = "cpu",
    random: Annotated[bool, typer.Option("--random", help="Draw the inputs that are not given.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="For --random, and for random ops without a seed.")] = 0,
    state_in: Annotated[
        Path | None, typer.Option("--state-in", metavar="FILE.npz", help="The states before the run; else zeros.")
    ] = None,
    state_out: Annotated[
        Path | None, typer.Option("--state-out", metavar="FILE.npz", help="Write the states after the run.")
    ] = None,
    repeat: Annotated[
        int | None, typer.Option(min=1, help="Run so often, each time from the same states, and tell the time.")
    ] = None,
    trace: Annotated[bool, typer.Option("--trace", help="List every op: shape, type, range, NaN, Inf, time.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Tell where the time goes, by op and type of op.")] = False,
    check_overflow: Annotated[
        bool | None,
        typer.Option(
            "--check-overflow/--no-check-overflow",
            help="Find the ops where NaN or Inf begins that float64 does not have; exit status 1 if there are any. "
            "By default only when an output or a state has NaN or Inf, the status then being 0.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace files that exist.")] = False,
    debug: Debug = False,
) -> None:
    """Run a package here, on any machine, and write what it answers.

    In `declared` precision every op's result is rounded to its type, in `declared-strict` what composite ops compute
    inside as well; `float64` rounds nothing.

    Examples:

    * milopt run model.mlpackage --input x=x.npy --output answers

    * milopt run classifier.mlpackage --input image=cat.png

    * milopt run model.mlpackage --random --seed 1 --trace --check-overflow
    """
    del debug
    from milopt.cli.running import Request, perform

    request = Request(
        package=package,
        inputs=tuple(input or ()),
        output=output,
        function=function,
        precision=precision,
        device=device,
        seed=seed,
        random=random,
        state_in=state_in,
        state_out=state_out,
        repeat=repeat,
        trace=trace,
        profile=profile,
        check_overflow=check_overflow,
        json=json,
        force=force,
    )
    if not perform(request):
        raise typer.Exit(1)
