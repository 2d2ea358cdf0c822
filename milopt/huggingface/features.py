"""What a function takes and returns, one feature each: the part of a signature that every kind of model has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

__all__ = ["Feature", "Shape", "Signature", "Sizes"]


@dataclass(frozen=True)
class Sizes:
    """A dimension that may be anything from ``lower`` to ``upper``; equal ``name`` means equal size in every call."""

    name: str
    lower: int
    upper: int
    usual: int


Shape: TypeAlias = tuple["int | Sizes", ...]


@dataclass(frozen=True)
class Feature:
    """An input or output: int32 where ``integer``, otherwise of the function's float type. ``text`` describes it."""

    shape: Shape
    text: str
    integer: bool = False


class Signature(Protocol):
    """Inputs and outputs by name, in the order of the function's."""

    @property
    def inputs(self) -> dict[str, Feature]: ...
    @property
    def outputs(self) -> dict[str, Feature]: ...
    @property
    def is_flexible(self) -> bool: ...
