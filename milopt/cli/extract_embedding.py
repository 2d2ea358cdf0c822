"""``milopt extract-embedding``: the embedding of a package as a package of its own, or as an array of rows."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated

import typer

from milopt.cli.options import Debug, Force, Json, check_output

__all__ = ["extract_embedding"]


def extract_embedding(
    source: Annotated[Path, typer.Argument(metavar="PKG", help="The .mlpackage to read; it is left as it is.")],
    destination: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="A .mlpackage, or with --table a .npy file.")
    ],
    table: Annotated[
        bool, typer.Option("--table", help="Write the rows as an array that can be mapped into memory.")
    ] = False,
    force: Force = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write what comes before a program's first layer: it is found by dataflow, whatever it is called.

    A table is numpy's own format, whose head names type and shape; rows of look-up tables are decoded.

    Examples:

    * milopt extract-embedding model.mlpackage -o embeddings.mlpackage

    * milopt extract-embedding model.mlpackage -o embeddings.npy --table
    """
    del debug
    from milopt.cli.console import output
    from milopt.cli.tables import size
    from milopt.cli.writing import check_file
    from milopt.package import load
    from milopt.sets.deployment import interface, weight_bytes
    from milopt.sets.errors import SetError
    from milopt.sets.extracting import embedding_of, embedding_table, save_table
    from milopt.sets.wiring import row_type

    if table:
        if destination.suffix != ".npy":
            raise SetError(f"{destination}: the name of a table ends in .npy")
        check_file(destination, force=force)
        rows = embedding_table(load(source))
        save_table(rows, destination)
        told = {"dtype": row_type(rows, "the embedding"), "shape": list(rows.array.shape), "bytes": rows.bytes}
        shape = f"{told['dtype']} {told['shape']}"
        text = f"{destination}: {rows.array.shape[0]:,} rows, {shape}, {size(rows.bytes)}"
    else:
        check_output(destination, force=force)
        model = embedding_of(load(source))
        model.save(destination, overwrite=force)
        told = {
            "functions": {name: interface(model, name) for name in model.functions},
            "weight_bytes": weight_bytes(model),
        }
        text = f"{destination}: {', '.join(model.functions)}, {size(weight_bytes(model))} of weights"
    if json:
        print(json_format.dumps(told, indent=2, ensure_ascii=False))
    else:
        output().print(text, markup=False, soft_wrap=True)
