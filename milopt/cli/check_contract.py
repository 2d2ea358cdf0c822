"""``milopt check-contract``: would a client's app run this package, and answer right?"""

from __future__ import annotations

import json as json_format
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from milopt.cli.options import Debug, Json, Verbose

__all__ = ["check_contract"]


class Style(str, Enum):
    """The contracts of :mod:`milopt.contracts.styles`."""

    apple = "apple"
    anemll = "anemll"
    coreml_llm = "coreml-llm"


def check_contract(
    package: Annotated[Path, typer.Argument(metavar="PATH", help="The .mlpackage, or the client's folder, to check.")],
    style: Annotated[Style, typer.Option(help="Whose contract it is to keep.")] = Style.apple,
    reference: Annotated[
        Path | None,
        typer.Option("--reference", metavar="MODEL", help="What it was made from: transformers, .gguf, or .mlpackage."),
    ] = None,
    pickles: Annotated[
        bool, typer.Option("--pickles", help="Read the reference's .bin weights, if they hold nothing but tensors.")
    ] = False,
    tokens: Annotated[int, typer.Option(min=1, help="How many tokens a conversation has behind its prompt.")] = 16,
    agreement: Annotated[
        float, typer.Option(min=0, max=1, help="The share of tokens that must be the reference's.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="For the prompt.")] = 0,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Check that a package keeps a client's contract: names, types, shapes, ranges, states, metadata, conversations.

    Conversations are held as clients hold them; apple: with a mask of n or n + 1 columns, causal or all zeros, the
    prompt at once or token by token; anemll: a folder of packages, the prompt in padded blocks, all on one state of
    the first chunk; coreml-llm: a folder with one package, token by token, written to by mask. All must give the same
    in float64, and with --reference what that gives. Exit status: 0 when every check passed, 1 when one failed, 2 for
    bad input.

    Examples:

    * milopt check-contract model.mlpackage --style apple

    * milopt check-contract model.mlpackage --style apple --reference SmolLM2-135M-Instruct/

    * milopt check-contract llama --style anemll --reference model.mlpackage
    """
    del debug
    from milopt.cli.console import output, steps
    from milopt.contracts import check
    from milopt.errors import MiloptError
    from milopt.tables import table

    if pickles and reference is None:
        raise MiloptError("--pickles is for the weights of a --reference")
    with steps(verbose=verbose) as tell:
        found = check(
            package,
            style.value,
            reference=reference,
            pickles=pickles,
            tokens=tokens,
            agreement=agreement,
            seed=seed,
            tell=tell,
        )
    if json:
        print(json_format.dumps(found.to_json(), indent=2, ensure_ascii=False))
    else:
        rows = [(each.check, "ok" if each.passed else "FAILS", each.detail) for each in found.found]
        console = output()
        console.print(table(f"Contract {found.style}", "check", "result", "found", rows=rows))
        console.print(found.summary, markup=False)
    if not found:
        raise typer.Exit(1)
