"""The embedding of a program by itself: a package of the functions that look rows up, or the array of rows."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from milopt.files import whole_file
from milopt.package import Model
from milopt.sets.deployment import Table
from milopt.sets.dividing import chunk
from milopt.sets.errors import SetError

__all__ = ["embedding_of", "embedding_table", "save_table"]


def embedding_of(model: Model) -> Model:
    """What comes before the first layer, in every function of ``model``, as a model of its own.

    Its inputs are those that it uses, and its output is the residual stream, ``hidden_states``.
    :class:`~milopt.sets.SetError` where nothing comes before the layers that could be a part.
    """
    made = chunk(model, count=1, embedding="package", tied="apart")
    found = made.files[made.part("embeddings").file]
    assert isinstance(found, Model)
    found.metadata = {key: value for key, value in found.metadata.items() if not key.startswith("milopt.part")}
    return found


def embedding_table(model: Model) -> Table:
    """The rows that the embedding looks up, (entries, width), in the type that the program has for them.

    Rows of look-up tables are decoded, without rounding. SetError where the embedding does more than look up, or is
    quantized in a way that would be rounded.
    """
    made = chunk(model, count=1, embedding="table")
    found = made.files["embeddings.npy"]
    assert isinstance(found, Table)
    return found


def save_table(table: Table, file: str | os.PathLike[str]) -> Path:
    """Write the rows as a ``.npy`` file, which ``numpy.load(file, mmap_mode="r")`` maps.

    It appears whole or not at all. Rows are in order, without gaps, little-endian; the file's head names type and shape
    (numpy's NEP 1).
    """
    path = Path(file)
    if path.suffix != ".npy":
        raise SetError(f"{path}: the name of a table ends in .npy")
    with whole_file(path) as stream:
        rows = np.ascontiguousarray(table.array, dtype=table.array.dtype.newbyteorder("<"))
        np.lib.format.write_array(stream, rows, allow_pickle=False)
    return path
