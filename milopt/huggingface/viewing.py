"""The blocks of a parameter, where a program has a view of it: some rows, transposed, or heads on axes of their own.

Importing this module imports torch; milopt does so only while it converts.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, prod
from typing import Any, TypeAlias

import numpy as np

from milopt.huggingface.standins import View

__all__ = ["Blocks", "blocks_of"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow


@dataclass(frozen=True)
class Blocks:
    """``counts`` along each axis of a view; ``rows`` and ``columns``, of that shape, are those of the parameter's."""

    counts: tuple[int, ...]
    rows: Array
    columns: Array

    def taken(self, each: Array) -> Array:
        """Of one number for each of the parameter's blocks (R, C), those of the view's blocks."""
        return each[self.rows, self.columns]


@dataclass(frozen=True)
class _Axis:
    index: int
    size: int
    step: int


def blocks_of(view: View, counts: tuple[int, int]) -> Blocks | None:
    """The blocks of ``view`` where its parameter, seen as (rows, columns), has ``counts`` of them; each lies in one.

    ``None`` where some axis of the view leads through rows and columns at once.
    """
    *leading, columns = view.parameter.shape
    whole = (prod(leading), columns)
    starts = divmod(view.offset, columns)
    sides: tuple[list[_Axis], list[_Axis]] = ([], [])
    for index, (size, stride) in enumerate(zip(view.shape, view.strides, strict=True)):
        if size == 1 or stride == 0:
            continue
        if stride % columns and stride > columns:
            return None
        along_rows = stride % columns == 0
        sides[not along_rows].append(_Axis(index, size, stride // columns if along_rows else stride))
    if starts[1] + sum((each.size - 1) * each.step for each in sides[1]) >= columns:
        return None
    found, places = [1] * len(view.shape), list[Array]()
    for axes, start, size, count in zip(sides, starts, whole, counts, strict=True):
        block, at = size // count, np.full([1] * len(view.shape), start)
        for axis in axes:
            run = _run(axis, block, start, [other.step for other in axes if other.step > axis.step])
            found[axis.index] = axis.size // run
            steps: Array = np.arange(found[axis.index]) * (run * axis.step)
            at = at + steps.reshape([-1 if index == axis.index else 1 for index in range(len(view.shape))])
        places.append(at // block)
    rows, wide = (np.broadcast_to(each, found) for each in places)
    return Blocks(tuple(found), rows, wide)


def _run(axis: _Axis, block: int, start: int, longer: list[int]) -> int:
    """How many elements along an axis surely lie in one block, in runs of which the axis can be divided."""
    if any(each % axis.step for each in (block, start, *longer)):
        return 1
    return gcd(axis.size, *(each // axis.step for each in (block, start, *longer)))
