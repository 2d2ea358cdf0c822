"""``milopt calibrate``: what a package's weights are fed with, in a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from milopt.cli.options import Debug, Verbose
from milopt.errors import MiloptError

if TYPE_CHECKING:
    from milopt.calibration.running import Runs
    from milopt.package import Model

__all__ = ["calibrate"]


def calibrate(
    package: Annotated[Path, typer.Argument(metavar="PKG", help="The .mlpackage to run.")],
    destination: Annotated[
        Path, typer.Option("--output", "-o", metavar="STATS", help="The file to write, e.g. stats.safetensors.")
    ],
    text: Annotated[
        list[Path] | None,
        typer.Option("--text", metavar="FILE", help="Run a language model on this text; may be repeated."),
    ] = None,
    arrays: Annotated[
        list[Path] | None,
        typer.Option("--arrays", metavar="FILE.npz", help="Run a function on these inputs; may be repeated."),
    ] = None,
    function: Annotated[
        str | None, typer.Option("--function", metavar="NAME", help="Of --arrays. [default: the default function]")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="How many tokens of the texts, at most.")] = 8192,
    window: Annotated[
        int | None, typer.Option(min=1, help="Tokens of one sequence. [default: the model's context]")
    ] = None,
    hessian: Annotated[
        bool,
        typer.Option(
            "--hessian",
            help="Collect what feedback=true needs: on disk, 4 bytes for each pair of inputs of a layer, 0.4 GB for "
            "SmolLM2-135M, some 5 GB for 1.2B parameters.",
        ),
    ] = False,
    sensitivities: Annotated[
        bool,
        typer.Option(
            "--sensitivities", help="Measure what an error in each weight costs the outputs: one run for each weight."
        ),
    ] = False,
    sensitivity_tokens: Annotated[
        int, typer.Option("--sensitivity-tokens", min=2, help="How many of the tokens those runs take.")
    ] = 256,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace STATS if it exists.")] = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Run a package on text or arrays and collect what its weights are multiplied with, for compression to spare it.

    The file goes with `palettize{weighting=activation}` and with `budget`, as their option `calibration`, or as
    `milopt optimize --calibration STATS`. Weights are known in it by their bytes: it fits the package, whatever passes
    made of its ops, until its weights change. Calibrate on text other than what the result is judged on.

    Examples:

    * milopt calibrate model.mlpackage --text book.txt -o stats.safetensors

    * milopt calibrate model.mlpackage --text book.txt --hessian --sensitivities -o stats.safetensors

    * milopt calibrate image.mlpackage --arrays one.npz --arrays two.npz -o stats.safetensors

    * milopt optimize in.mlpackage -o out.mlpackage --passes 'palettize{bits=4}' --calibration stats.safetensors
    """
    del debug
    if bool(text) == bool(arrays):
        raise MiloptError("calibrate runs on --text or on --arrays: give one of them")
    if text and function is not None:
        raise MiloptError("--function goes with --arrays; text is fed to whichever function takes so many tokens")
    from milopt.cli.writing import check_file

    check_file(destination, force=force)
    from milopt.calibration.calibrating import collect
    from milopt.calibration.sensitivity import measure
    from milopt.cli.console import steps
    from milopt.package import load

    with steps(verbose=verbose) as tell:
        tell(f"read {package.name}")
        model = load(package)
        found_tokens = _tokens(model, text or (), tokens)
        samples = _samples(arrays or ())

        def runs(some: list[int]) -> Runs:
            from milopt.calibration.running import sample_runs, text_runs

            return text_runs(model, some, window=window) if text else sample_runs(model, samples, function=function)

        tell("run it and collect moments")
        found = collect(model, runs(found_tokens), hessian=hessian)
        if sensitivities:
            tell("measure sensitivities")
            measure(model, runs(found_tokens[:sensitivity_tokens]), found)
        tell(f"save {destination.name}")
        found.save(destination)
    vectors = max((each.count for each in found.moments.values()), default=0)
    measured = f", {len(found.sensitivities)} sensitivities" if sensitivities else ""
    print(f"{destination}: the inputs of {len(found.moments)} weights, up to {vectors:,} vectors each{measured}")


def _tokens(model: Model, texts: list[Path] | tuple[()], most: int) -> list[int]:
    if not texts:
        return []
    from milopt.huggingface.tokenizer import Tokenizer

    tokenizer = Tokenizer.of(model)
    found = [token for path in texts for token in tokenizer.encode(_text(path))]
    if len(found) < 2:
        raise MiloptError(f"{', '.join(map(str, texts))}: a calibration needs at least two tokens of text")
    return found[:most]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MiloptError(f"{path} can't be read as text: {error}") from error


def _samples(files: list[Path] | tuple[()]) -> list[dict[str, Any]]:
    from milopt.cli.reading import read_arrays

    return [dict(read_arrays(path)) for path in files]
