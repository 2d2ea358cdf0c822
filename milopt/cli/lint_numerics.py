"""``milopt lint-numerics``: where fp16 is too small for a package, and which pass repairs it."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated, Any

import typer

from milopt.cli.options import Debug
from milopt.errors import MiloptError

__all__ = ["lint_numerics"]


def lint_numerics(
    package: Annotated[Path, typer.Argument(metavar="PKG", help="The .mlpackage to look into.")],
    static: Annotated[bool, typer.Option("--static", help="Only look at the program, don't run it.")] = False,
    inputs: Annotated[
        Path | None, typer.Option("--inputs", metavar="FILE.npz", help="Run the default function on these, too.")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", metavar="TEXT", help="Run the model on this text, too (needs a tokenizer)."),
    ] = None,
    trials: Annotated[int, typer.Option(min=0, help="How many random inputs to run it on.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="For the random inputs.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Find where fp16 is too small for a package: overflows and by how much, and which pass repairs each.

    The program runs in float64, and every value declared as fp16 is held against what fp16 can hold. Besides, squares
    of norms, rounded angles and inverse frequencies, mask fills and epsilons are looked at as they are written. Exit
    status: 0 when nothing is found, 1 when something is, 2 for bad input.

    Examples:

    * milopt lint-numerics model.mlpackage

    * milopt lint-numerics model.mlpackage --prompt "The capital of France is"

    * milopt lint-numerics model.mlpackage --static --json
    """
    del debug
    from milopt.cli.console import steps
    from milopt.numerics import lint
    from milopt.package import load

    with steps() as tell:
        tell(f"read {package.name}")
        model = load(package)
        given: list[Any] = []
        if inputs is not None:
            given.append(_arrays(inputs))
        if prompt is not None:
            from milopt.huggingface.tokenizer import Tokenizer

            given.append(Tokenizer.of(model).encode(prompt))
        tell("look at every op" if static else "run it in float64")
        found = lint(model, inputs=given, run=not static and bool(given or trials), trials=trials, seed=seed)
    if json:
        print(json_format.dumps(found.to_json(), indent=2, ensure_ascii=False))
    else:
        print(found)
    if found:
        raise typer.Exit(1)


def _arrays(path: Path) -> dict[str, Any]:
    import numpy as np

    try:
        with np.load(path) as held:
            return {name: held[name] for name in held.files}
    except (OSError, ValueError, AttributeError) as error:
        raise MiloptError(f"can't read {path}: {error}") from error
