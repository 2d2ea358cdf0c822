"""What a model consists of: ops by type, states, weights."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from milopt.mil import (
    Function,
    Var,
    arguments,
    constant,
    dtype_name,
    is_state,
    operations,
    shape_of,
    weight_key,
)
from milopt.package import Model

__all__ = ["Census", "Weight", "census", "op_counts", "package_bytes", "states_of", "weights_of"]


@dataclass(frozen=True)
class Weight:
    """A constant tensor, stored once however many functions use it; ``bytes`` as stored, without alignment."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    users: tuple[str, ...]


@dataclass(frozen=True)
class Census:
    """Counts of one model. ``ops`` holds, per function, op type -> number; constants are not among them."""

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
        sum(weight.bytes for weight in weights_of(model)),
    )


def states_of(function: Function) -> dict[str, Var]:
    """The states among a function's inputs, by name."""
    return {name: var for name, var in function.inputs.items() if is_state(var)}


# Smaller constants are axes, scales and the like, which a package keeps in its program and not in its weight file.
_FEWEST_ELEMENTS = 10


def weights_of(model: Model) -> list[Weight]:
    """Every distinct tensor of constants, the largest first."""
    found: dict[object, Weight] = {}
    for function in model.functions.values():
        for op in operations(function):
            if op.op_type != "const":
                continue
            value = constant(op.outputs[0])
            if not _is_weight(value):
                continue
            key = weight_key(value)
            var = op.outputs[0]
            earlier = found[key].users if key in found else ()
            users = tuple(dict.fromkeys([*earlier, *_users(var)]))
            dtype = dtype_name(var)
            found[key] = Weight(op.name, shape_of(var), dtype, _stored_bytes(int(value.size), dtype), users)
    return sorted(found.values(), key=lambda weight: (-weight.bytes, weight.name))


def _is_weight(value: Any) -> bool:
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    return np.size(value) >= _FEWEST_ELEMENTS and kind in tuple("fiub")


def _users(value: Var) -> list[str]:
    return [f"{user.op_type}.{name}" for user in value.child_ops for name, var in arguments(user) if var is value]


def _stored_bytes(elements: int, dtype: str) -> int:
    """``fp16`` is 16 bits, ``uint4`` is 4; a ``bool`` takes a byte."""
    bits = "".join(character for character in dtype if character.isdigit())
    return -(-elements * int(bits or 8) // 8)


def package_bytes(path: str | os.PathLike[str]) -> int:
    """The size of a package: the bytes of all its files."""
    return sum(each.stat().st_size for each in Path(path).rglob("*") if each.is_file())
