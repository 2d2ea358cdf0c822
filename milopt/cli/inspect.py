"""``milopt inspect``: what is in a package."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from milopt.cli.options import Debug

if TYPE_CHECKING:
    from rich.console import Console

    from milopt.mil import Function
    from milopt.package import Model

__all__ = ["inspect"]

_TARGETS = {6: "iOS 15", 7: "iOS 16", 8: "iOS 17", 9: "iOS 18", 10: "iOS 26"}


def inspect(
    package: Annotated[Path, typer.Argument(metavar="PKG", help="The .mlpackage to look into.")],
    json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    weights: Annotated[int, typer.Option(min=0, help="How many of the largest weights to list.")] = 10,
    debug: Debug = False,
) -> None:
    """Show a package's functions, inputs, outputs, states, ops, largest weights, compression and metadata.

    Examples:

    * milopt inspect model.mlpackage

    * milopt inspect model.mlpackage --json | jq .functions.main.ops
    """
    del debug
    from milopt.cli.console import output
    from milopt.package import load

    facts = describe(load(package), package)
    if json:
        print(json_format.dumps(facts, indent=2, ensure_ascii=False))
    else:
        _print(output(), facts, weights)


def describe(model: Model, package: Path) -> dict[str, Any]:
    """All that ``milopt inspect`` knows, as plain values for JSON. Sizes are in bytes."""
    from milopt.census import op_counts, package_bytes, weights_of

    weights = weights_of(model)
    return {
        "package": package.name,
        "bytes": package_bytes(package),
        "specification_version": model.spec_version,
        "default_function": model.default_function,
        "functions": {
            name: {**_interface(function), "ops": dict(op_counts(function).most_common())}
            for name, function in model.functions.items()
        },
        "weights": [
            {"name": each.name, "shape": list(each.shape), "dtype": each.dtype, "bytes": each.bytes,
             "used_by": list(each.users)}
            for each in weights
        ],
        "compression": _compression(model),
        "author": model.author,
        "license": model.license,
        "version": model.version,
        "description": model.short_description,
        "metadata": dict(model.metadata),
        "attachments": {name: len(content) for name, content in model.attachments.items()},
    }  # fmt: skip


def _interface(function: Function) -> dict[str, Any]:
    from milopt.census import states_of
    from milopt.mil import dtype_name, shape_of

    def values(named: dict[str, Any]) -> dict[str, Any]:
        return {
            name: {
                "dtype": dtype_name(var),
                "shape": [dim if isinstance(dim, int) else str(dim) for dim in shape_of(var)],
            }
            for name, var in named.items()
        }

    states = states_of(function)
    return {
        "inputs": values({name: var for name, var in function.inputs.items() if name not in states}),
        "outputs": values({var.name: var for var in function.outputs}),
        "states": values(states),
    }


def _compression(model: Model) -> dict[str, int]:
    """How many weights each ``constexpr_*`` op decompresses, over all functions."""
    from milopt.census import op_counts

    counts: dict[str, int] = {}
    for function in model.functions.values():
        for kind, count in op_counts(function).items():
            if kind.startswith("constexpr_"):
                counts[kind] = counts.get(kind, 0) + count
    return counts


def _print(console: Console, facts: dict[str, Any], listed: int) -> None:
    from rich.text import Text

    from milopt.cli.tables import size
    from milopt.tables import table

    version = facts["specification_version"]
    total = sum(each["bytes"] for each in facts["weights"])
    compressed = ", ".join(f"{count} {kind}" for kind, count in facts["compression"].items()) or "none"
    head = {
        "package": f"{facts['package']}, {size(facts['bytes'])}",
        "specification": f"{version} ({_TARGETS.get(version, 'unknown')})",
        "weights": f"{len(facts['weights'])} tensors, {size(total)}",
        "compression": compressed,
        **{key: facts[key] for key in ("author", "license", "version", "description") if facts[key]},
        **facts["metadata"],
        **{f"file {name}": size(count) for name, count in facts["attachments"].items()},
    }
    console.print(table("", "", "", rows=[(key, _short(value)) for key, value in head.items()]))
    for name, function in facts["functions"].items():
        mark = " (default)" if name == facts["default_function"] else ""
        rows = [
            (kind, label, value["dtype"], "x".join(map(str, value["shape"])))
            for kind in ("inputs", "outputs", "states")
            for label, value in function[kind].items()
        ]
        console.print(table(f"function {name}{mark}", "", "name", "type", "shape", rows=_folded(rows)))
        ops = ", ".join(f"{count} {kind}" for kind, count in function["ops"].items())
        console.print(Text(f"{sum(function['ops'].values())} ops: {ops}\n"))
    biggest = [
        (
            each["name"],
            each["dtype"],
            "x".join(map(str, each["shape"])),
            size(each["bytes"]),
            ", ".join(each["used_by"][:3]),
        )
        for each in facts["weights"][:listed]
    ]
    if biggest:
        console.print(table("Largest weights", "name", "type", "shape", ">size", "used by", rows=biggest))


# More than this many inputs, outputs or states of one kind are shortened to the first and the last.
_MOST_ROWS = 12


def _folded(rows: list[tuple[str, str, str, str]]) -> list[tuple[str, str, str, str]]:
    folded: list[tuple[str, str, str, str]] = []
    for kind in ("inputs", "outputs", "states"):
        of_kind = [(kind if index == 0 else "", *row[1:]) for index, row in enumerate(r for r in rows if r[0] == kind)]
        if len(of_kind) > _MOST_ROWS:
            of_kind = [*of_kind[:8], ("", f"... {len(of_kind) - 9} more", "", ""), of_kind[-1]]
        folded += of_kind
    return folded


def _short(text: str) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= 100 else f"{line[:97]}..."
