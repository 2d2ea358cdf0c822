"""The precisions a program can be run in; ``milopt/interpreter/README.md`` defines them."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

__all__ = ["PRECISIONS", "Precision"]

Precision: TypeAlias = Literal["declared", "declared-strict", "float64"]
"""``declared`` rounds every op's result to its declared dtype, ``declared-strict`` also every intermediate value of a
composite op; ``float64`` rounds nothing."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
