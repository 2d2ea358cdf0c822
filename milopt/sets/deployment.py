"""What a deployment set is: parts that run one after another, and the packages and tables that they are in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from milopt.mil import dtype_name, is_state, shape_of
from milopt.package import Model
from milopt.package.tensors import Stored, stored_tensors

__all__ = ["DeploymentSet", "Part", "Step", "Table", "entry_bytes", "interface", "weight_bytes"]

# An entry in a weight file has a head of 64 bytes, and begins at a multiple of 64 (milopt.package.blobs).
_ALIGNMENT = 64


@dataclass(frozen=True)
class Table:
    """Rows that are looked up: ``array`` is (entries, width), perhaps mapped from a file of numpy's own form."""

    array: np.ndarray[Any, Any] = field(repr=False)

    @property
    def bytes(self) -> int:
        return int(self.array.nbytes)


@dataclass(frozen=True)
class Step:
    """What a part does for one function of the set: a function of its package, or a look-up in its table.

    ``takes`` says for each input what it is given, an input of the set or ``part/output``; ``gives`` what each output
    is, likewise. A table takes ``indices`` and gives ``rows``.
    """

    function: str
    takes: Mapping[str, str]
    gives: Mapping[str, str]


@dataclass(frozen=True)
class Part:
    """One part: ``file`` is a key of the set's files, which several parts may have in common."""

    name: str
    file: str
    steps: Mapping[str, Step]


@dataclass
class DeploymentSet:
    """Programs that together compute what one program did; made by :func:`milopt.sets.chunk`, read by ``load``.

    ``parts`` run in order, for each of ``functions``; ``files`` are their packages and tables by file name.
    ``inputs`` are what the caller gives a function of the set, each with its element type and sizes, and ``outputs``
    the names of what it returns. ``notes`` say how the set was made.
    """

    parts: tuple[Part, ...]
    files: dict[str, Model | Table]
    inputs: dict[str, dict[str, list[Any]]]
    outputs: dict[str, tuple[str, ...]]
    default_function: str
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    attachments: dict[str, bytes] = field(default_factory=dict[str, bytes])
    notes: list[str] = field(default_factory=list[str])

    @property
    def functions(self) -> tuple[str, ...]:
        return tuple(self.outputs)

    def part(self, name: str) -> Part:
        return next(each for each in self.parts if each.name == name)

    def sizes(self) -> dict[str, int]:
        """The bytes of each package's weight file, and of each table."""
        return {
            name: each.bytes if isinstance(each, Table) else weight_bytes(each) for name, each in self.files.items()
        }

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the set to ``folder``, which appears whole or not at all; an old set is replaced only if asked to."""
        from milopt.sets.saving import save

        return save(self, Path(folder), overwrite=overwrite)


def weight_bytes(model: Model) -> int:
    """The size that the weight files of the model have once it is saved; a tensor of several functions counts once."""
    sizes = [entry_bytes(each) for each in stored_tensors(model) if each.file is not None]
    return sum(sizes) + _ALIGNMENT * bool(sizes)


def entry_bytes(tensor: Stored) -> int:
    """The room that a tensor takes in a weight file, its head included."""
    return _ALIGNMENT + -(-tensor.bytes // _ALIGNMENT) * _ALIGNMENT


def interface(model: Model, function: str) -> dict[str, dict[str, list[Any]]]:
    """Inputs, outputs and states of a function as ``name: [element type, sizes...]``."""
    graph = model.function(function)
    found: dict[str, dict[str, list[Any]]] = {"inputs": {}, "outputs": {}, "states": {}}
    for var in graph.inputs.values():
        found["states" if is_state(var) else "inputs"][var.name] = [dtype_name(var), *map(_plain, shape_of(var))]
    for var in graph.outputs:
        found["outputs"][var.name] = [dtype_name(var), *map(_plain, shape_of(var))]
    return found


def _plain(dim: Any) -> Any:
    return dim if isinstance(dim, int) else str(dim)
