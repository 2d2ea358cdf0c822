"""What a model consists of, in numbers: ops by type, states, bytes of weights."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from milopt.mil import Function, Var, is_state, operations
from milopt.package import Model
from milopt.package.tensors import stored_tensors

__all__ = ["Census", "census", "op_counts", "package_bytes", "states_of"]


@dataclass(frozen=True)
class Census:
    """Counts of one model. ``ops`` holds, per function, op type -> number; constants are not among them.

    ``weight_bytes`` are those of every distinct tensor, as :func:`~milopt.package.tensors.stored_tensors` tells them.
    """

    ops: dict[str, Counter[str]]
    states: dict[str, int] = field(default_factory=dict[str, int])
    weight_bytes: int = 0

    @property
    def functions(self) -> tuple[str, ...]:
        return tuple(self.ops)


def op_counts(function: Function) -> Counter[str]:
    """Op type -> number, nested blocks included and ``const`` left out."""
    return Counter(op.op_type for op in operations(function) if op.op_type != "const")


def census(model: Model) -> Census:
    """Count a model's ops, states (per function) and distinct weight bytes."""
    return Census(
        {name: op_counts(function) for name, function in model.functions.items()},
        {name: len(states_of(function)) for name, function in model.functions.items()},
        sum(tensor.bytes for tensor in stored_tensors(model)),
    )


def states_of(function: Function) -> dict[str, Var]:
    """The states among a function's inputs, by name."""
    return {name: var for name, var in function.inputs.items() if is_state(var)}


def package_bytes(path: str | os.PathLike[str]) -> int:
    """The size of a package: the bytes of all its files."""
    return sum(each.stat().st_size for each in Path(path).rglob("*") if each.is_file())
