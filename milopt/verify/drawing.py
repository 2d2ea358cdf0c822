"""Random values for inputs, according to their roles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from milopt.interpreter import ValueInfo
from milopt.verify.roles import Role
from milopt.verify.trials import Array

__all__ = ["MASKED", "Style", "causal", "draw", "numpy_dtype"]

MASKED = -1e4
"""What masks add where a token may not be seen: finite in fp16, and exp(-1e4) is 0 in every format (constraint L10)."""

# Inputs of unknown integers stay this small: they may be counts or sizes.
_SMALL = 4
# Positions of a program that has no limit for them.
_POSITIONS = 128
# What large numbers are multiplied with: the square of 256 is beyond fp16.
_LARGE = 256.0
_DTYPES = {"fp16": np.float16, "fp32": np.float32, "fp64": np.float64, "bool": np.bool_}


def numpy_dtype(mil_dtype: str) -> Any:
    """The numpy type of MIL's element type; integers without one of their own get the next wider."""
    if mil_dtype in _DTYPES:
        return _DTYPES[mil_dtype]
    return np.dtype(mil_dtype if mil_dtype in ("int8", "int16", "int64", "uint8", "uint16", "uint32") else "int32")


@dataclass(frozen=True)
class Style:
    """``ordinary`` values are such as a caller of the program would pass: positions that count up, causal masks.

    Otherwise they are anything the input's type and its role's limits allow, since an exact rewrite must hold for all:
    a mask's numbers then are any numbers. ``positive`` numbers suit programs that take their logarithm or square root,
    ``large`` ones show where fp16 overflows.
    """

    ordinary: bool
    positive: bool = False
    large: bool = False


def draw(
    info: ValueInfo, shape: tuple[int, ...], role: Role, rng: np.random.Generator, style: Style, context: int | None
) -> Array:
    """Values for one input, of its declared dtype; ``context`` limits positions that nothing else limits."""
    values = _values(info, shape, role, rng, style.ordinary, context)
    if style.positive and role.kind == "number":
        values = np.abs(values)
    if style.large and role.kind == "number":
        values = values * _LARGE
    return np.asarray(values).astype(numpy_dtype(info.dtype))


def _values(
    info: ValueInfo, shape: tuple[int, ...], role: Role, rng: np.random.Generator, ordinary: bool, context: int | None
) -> Any:
    if role.kind == "mask":
        return _mask(info, shape, rng, ordinary)
    if role.kind == "keep":
        kept = np.asarray(rng.integers(0, 2, shape))
        if kept.ndim:
            kept[..., 0] = 1  # a row without any token is not a question to ask
        return kept
    if role.kind == "flag":
        return rng.integers(0, 2, shape)
    if role.kind == "position":
        high = role.high or context or _POSITIONS
        if not ordinary:
            return rng.integers(0, high, shape)
        length = shape[-1] if shape else 1
        start = int(rng.integers(0, max(high - length, 0) + 1))
        count: Any = (start + np.arange(length)) % high
        return np.broadcast_to(count, shape) if shape else count[0]
    if role.kind in ("index", "image", "integer"):
        return rng.integers(0, role.high or _SMALL, shape)
    return rng.standard_normal(shape) if ordinary else _uneven(shape, rng)


def _uneven(shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    """Normal numbers of one scale or another, with a row of zeros and one of tiny numbers where there are several.

    Epsilons, divisions and overflows hide behind unit normals.
    """
    values: Any = rng.standard_normal(shape) * rng.choice([1.0, 1.0, 1.0, 0.01, 8.0])
    if len(shape) > 1 and shape[-1] and (rows := math.prod(shape[:-1])) > 2:
        flat = values.reshape(rows, shape[-1])
        zero, tiny = rng.choice(rows, 2, replace=False)
        flat[zero] = 0
        flat[tiny] *= 1e-4
    return values


def causal(shape: tuple[int, ...], position: int | None = None, window: int | None = None) -> Array:
    """Which columns each row may see, when the last of ``shape[-2]`` rows is token ``position + rows - 1``.

    With ``position=None`` the last row sees every column; with a ``window``, a row sees the last so many, its own
    included.
    """
    columns = shape[-1]
    rows = shape[-2] if len(shape) > 1 else 1
    first = max(columns - rows, 0) if position is None else position
    own: Array = first + np.arange(rows)[:, None]
    seen: Array = np.arange(columns) <= own
    if window is not None:
        seen &= np.arange(columns) > own - window
    return np.broadcast_to(seen if len(shape) > 1 else seen[0], shape)


def _mask(info: ValueInfo, shape: tuple[int, ...], rng: np.random.Generator, ordinary: bool) -> Any:
    if not shape:
        return np.ones(()) if info.dtype == "bool" else np.zeros(())
    seen = np.array(causal(shape)) if ordinary else rng.random(shape) < 0.7
    if seen.size:
        seen[..., 0] = True  # at least one column for every row
    if info.dtype == "bool":
        return seen
    return np.where(seen, 0.0 if ordinary else rng.standard_normal(shape), MASKED)
