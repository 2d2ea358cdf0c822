"""Inputs of an op drawn together, from the op's own cases, in one element type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from milopt.mil import Target
from milopt.testing.ops.drawing import Draw as CaseDraw
from milopt.testing.scope import Draw, mil_type

__all__ = ["OfType"]


class OfType(CaseDraw):
    """Draws values of the type ``kind`` and, where the rank allows it, of the shape ``base``."""

    def __init__(self, draw: Draw, opset: Target, kind: str, base: tuple[int, ...]) -> None:
        super().__init__(_Drawn(draw), opset)
        self._kind = kind
        self._base = base

    def pick(self, *options: Any) -> Any:
        if all(isinstance(each, np.dtype) for each in options):
            same = [each for each in options if mil_type(each) == self._kind]
            if same and self.number(0, 7):
                return same[0]
        return super().pick(*options)

    def shape(self, min_rank: int = 1, max_rank: int = 4, *, max_size: int = 4, empty: bool = True) -> tuple[int, ...]:
        if min_rank <= len(self._base) <= max_rank and self.number(0, 3):
            return self._base
        return super().shape(min_rank, max_rank, max_size=max_size, empty=False)

    def array(self, shape: tuple[int, ...], dtype: Any = np.float32, **bounds: Any) -> Any:
        given: dict[str, Any] = {**bounds, "edges": "none"}
        return super().array(shape, dtype, **given)


@dataclass(frozen=True)
class _Drawn:
    draw: Draw
