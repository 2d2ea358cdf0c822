"""``milopt chunk``: a package becomes a deployment set."""

from __future__ import annotations

import json as json_format
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from milopt.cli.options import Debug, Json, Verbose

if TYPE_CHECKING:
    from milopt.package import Model
    from milopt.sets import DeploymentSet
    from milopt.verify import Verdict

__all__ = ["chunk", "layers", "size_in_bytes"]


class _Embedding(str, Enum):
    first = "first"
    package = "package"
    table = "table"


class _Head(str, Enum):
    last = "last"
    package = "package"


class _After(str, Enum):
    mlp = "mlp"
    attention = "attention"


class _Shared(str, Enum):
    smaller = "smaller"
    recompute = "recompute"
    hand_over = "pass"


class _Device(str, Enum):
    iphone = "iphone"
    ipad = "ipad"
    mac = "mac"


def chunk(
    source: Annotated[Path, typer.Argument(metavar="PKG", help="The .mlpackage to cut; it is left as it is.")],
    destination: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The folder for the set.")],
    count: Annotated[int | None, typer.Option(metavar="N", help="The number of chunks.")] = None,
    max_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="The most that a weight file may have, e.g. 950MB or 1.5GB.")
    ] = None,
    at: Annotated[
        str | None, typer.Option(metavar="LAYERS", help="Cut behind these layers, counted from 0, e.g. 7,15.")
    ] = None,
    after: Annotated[_After, typer.Option(help="Cut behind whole layers, or behind their attention.")] = _After.mlp,
    target: Annotated[
        _Device | None, typer.Option(help="Keep the limits known for this device, and say what else is known of it.")
    ] = None,
    embedding: Annotated[
        _Embedding, typer.Option(help="Where the embedding goes: the first chunk, a package, or an array of rows.")
    ] = _Embedding.first,
    head: Annotated[_Head, typer.Option(help="Where the head goes: the last chunk, or a package.")] = _Head.last,
    shared: Annotated[
        _Shared, typer.Option(help="Masks, angles and the like: computed by each chunk, handed over, or the smaller.")
    ] = _Shared.smaller,
    apart: Annotated[
        bool, typer.Option("--apart", help="Two packages for embedding and head also where they share a weight.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Run program and set, which must be bit-equal in float64.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace DIR if it is a set.")] = False,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Cut a package between its layers into a set of packages that run one after another.

    Cuts are found by dataflow, where the fewest bytes are handed over, and chunks are balanced by the bytes of their
    weights. A set has a set.json that names every file; `milopt generate DIR` runs it. Exit status: 0 when the set
    computes what the package does, 1 when not (nothing is written then), 2 for bad input.

    Examples:

    * milopt chunk model.mlpackage -o set --count 4 --embedding package --head package

    * milopt chunk model.mlpackage -o set --target iphone

    * milopt chunk model.mlpackage -o set --at 7,15 --after attention
    """
    del debug
    from milopt.cli.console import steps
    from milopt.package import load
    from milopt.sets import chunk as cut
    from milopt.sets import verify as compare
    from milopt.sets import warnings_for
    from milopt.sets.saving import check_destination
    from milopt.sets.targets import target_named

    check_destination(destination, force=force)
    limit = size_in_bytes(max_bytes) if max_bytes is not None else None
    if target is not None and count is None and limit is None and at is None:
        limit = target_named(target.value).limit - 1
    verdict: Verdict | None = None
    with steps(verbose=verbose) as tell:
        tell(f"load {source.name}")
        model = load(source)
        tell("cut")
        made = cut(
            model,
            count=count,
            max_bytes=limit,
            at=layers(at) if at is not None else None,
            after=after.value,
            embedding=embedding.value,
            head=head.value,
            shared=_shared(shared),
            tied="apart" if apart else "together",
        )
        warnings = warnings_for(made, target.value) if target is not None else []
        if verify:
            tell("compare")
            verdict = compare(model, made)
        if verdict is None or verdict:
            tell(f"save {destination.name}")
            made.save(destination, overwrite=force)
    if json:
        print(json_format.dumps(_document(model, made, verdict, warnings), indent=2, ensure_ascii=False))
    else:
        _print(model, made, verdict, warnings, destination)
    if verdict is not None and not verdict:
        raise typer.Exit(1)


def _shared(chosen: _Shared) -> Literal["smaller", "recompute", "pass"]:
    return chosen.value


def layers(text: str) -> list[int]:
    """``7,15`` as numbers of layers; MiloptError for anything else."""
    from milopt.errors import MiloptError

    numbers = [each.strip() for each in text.split(",")]
    if not all(each.isdecimal() for each in numbers):
        raise MiloptError(f"--at takes numbers of layers with commas between, such as 7,15, not {text!r}")
    return [int(each) for each in numbers]


def size_in_bytes(text: str) -> int:
    """``950MB`` as a number; MiloptError for anything else."""
    from milopt.errors import MiloptError

    units = {"GB": 10**9, "MB": 10**6, "KB": 10**3, "B": 1}
    number, factor = text.strip().upper(), 1
    for unit, size in units.items():
        if number.endswith(unit):
            number, factor = number.removesuffix(unit).strip(), size
            break
    try:
        found = int(float(number) * factor)
    except (ValueError, OverflowError):
        found = 0
    if found < 1:
        raise MiloptError(f"{text!r} is no size: give bytes, or a number with kB, MB or GB")
    return found


def _document(model: Model, made: DeploymentSet, verdict: Verdict | None, warnings: list[str]) -> dict[str, Any]:
    from milopt.sets import weight_bytes

    return {
        "equal": None if verdict is None else bool(verdict),
        "weight_bytes": {"before": weight_bytes(model), "after": made.sizes()},
        "parts": [
            {
                "name": part.name,
                "file": part.file,
                "functions": {
                    name: {"takes": dict(step.takes), "gives": dict(step.gives)} for name, step in part.steps.items()
                },
            }
            for part in made.parts
        ],
        "notes": made.notes,
        "warnings": warnings,
    }


def _print(model: Model, made: DeploymentSet, verdict: Verdict | None, warnings: list[str], destination: Path) -> None:
    from milopt.cli.console import output
    from milopt.cli.tables import size
    from milopt.sets import weight_bytes
    from milopt.tables import table

    console, sizes = output(), made.sizes()
    rows: list[list[object]] = []
    for part in made.parts:
        step = part.steps[made.default_function]
        shared = " (shared)" if [each.file for each in made.parts].count(part.file) > 1 else ""
        rows.append([part.name, part.file, size(sizes[part.file]) + shared, _names(step.takes), _names(step.gives)])
    console.print(table("Parts", "part", "file", ">weights", "takes", "gives", rows=rows))
    for note in [*made.notes, *(f"warning: {each}" for each in warnings)]:
        console.print(note, markup=False, soft_wrap=True)
    if verdict is not None:
        console.print(str(verdict), markup=False)
    console.print(f"weights: {size(weight_bytes(model))} before, {size(sum(sizes.values()))} in the set", markup=False)
    if verdict is None or verdict:
        console.print(str(destination), markup=False)


def _names(names: Any) -> str:
    return ", ".join(names)
