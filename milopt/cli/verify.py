"""``milopt verify``: run two packages on the same inputs."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from milopt.cli.options import Debug

__all__ = ["Rounded", "verify"]


class Rounded(str, Enum):
    """The precisions that round."""

    declared = "declared"
    strict = "declared-strict"


def verify(
    before: Annotated[Path, typer.Argument(metavar="A", help="The original package.")],
    after: Annotated[
        Path, typer.Argument(metavar="B", help="The package, or set of `milopt chunk`, that should compute the same.")
    ],
    trials: Annotated[int, typer.Option(min=1, help="How many sets of random inputs to try.")] = 3,
    rtol: Annotated[
        float, typer.Option(min=0, help="Largest difference, relative to an output's largest value.")
    ] = 1e-6,
    min_snr: Annotated[
        float | None,
        typer.Option(
            "--min-snr", help="Judge B in its declared precision by this signal-to-noise ratio in dB instead."
        ),
    ] = None,
    min_top1: Annotated[
        float, typer.Option("--min-top1", min=0, max=1, help="With --min-snr: share of top-1 kept.")
    ] = 0,
    safe_in: Annotated[
        list[Rounded] | None,
        typer.Option(
            "--safe-in",
            help="Also judge whether B, rounded so, comes as near to A's float64 as A does. Repeatable.",
        ),
    ] = None,
    function: Annotated[str | None, typer.Option(help="The function to run, if not each package's default.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random inputs.")] = 0,
    debug: Debug = False,
) -> None:
    """Run two packages, or a package and a set, on the same inputs and say where they first differ.

    Both run in float64, so that only a difference in the algebra shows. Exit status: 0 when none was found, 1 when
    one was, 2 for bad input.

    Examples:

    * milopt verify in.mlpackage out.mlpackage

    * milopt verify in.mlpackage set/

    * milopt verify in.mlpackage palettized.mlpackage --min-snr 20 --min-top1 0.9

    * milopt verify in.mlpackage safe.mlpackage --safe-in declared --safe-in declared-strict
    """
    del debug
    from milopt import sets
    from milopt.cli.console import output, steps
    from milopt.errors import MiloptError
    from milopt.metrics import Exact, Lossy
    from milopt.package import load
    from milopt.verify import compare

    if safe_in and min_snr is not None:
        raise MiloptError("--safe-in judges exact rewrites: leave out --min-snr")
    if sets.is_set(after) and (safe_in or function is not None):
        raise MiloptError(f"{after} is a set, of which all functions are compared: leave out --function and --safe-in")
    if (style := sets.client_style(after)) is not None:
        how = f"milopt check-contract {after} --style {style} --reference {before}"
        raise MiloptError(f"{after} is a client's folder, which is held against a package by {how}")
    metric = Exact(rtol, tuple(each.value for each in safe_in or ())) if min_snr is None else Lossy(min_snr, min_top1)
    with steps() as tell:
        tell(f"load {before.name} and {after.name}")
        one, other = load(before), sets.load(after) if sets.is_set(after) else load(after)
        tell(f"compare, {trials} trials")
        if isinstance(other, sets.DeploymentSet):
            verdict = sets.verify(one, other, trials=trials, metric=metric, seed=seed)
        else:
            verdict = compare(one, other, trials=trials, metric=metric, seed=seed, function=function)
    output().print(str(verdict), markup=False)
    if not verdict:
        raise typer.Exit(1)
