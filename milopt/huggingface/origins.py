"""What a checkpoint holds of a matrix that it has quantized: in which blocks its scales are, and how many bytes it is.

Importing this module imports torch; milopt does so only while it converts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import gcd

import torch

from milopt.huggingface.standins import Elements

__all__ = ["Grid", "Origin", "Quantized", "evenly"]


@dataclass(frozen=True)
class Grid:
    """The blocks of a matrix (rows, columns), all of one size.

    ``scales``, where there are any, gives float32 (R, C): a block has rows / R rows and columns / C columns, whose
    elements are integers times its scale, or ``levels`` times it, float32 and ascending, where these are given.
    ``tables`` is (R', C') of the blocks, perhaps smaller ones, in which few different values occur.
    """

    scales: Elements | None
    tables: tuple[int, int]
    levels: torch.Tensor | None = None

    @classmethod
    def of(cls, scales: Elements, levels: torch.Tensor | None = None) -> Grid:
        """A scale (R, C) for each block, in which values also repeat."""
        rows, columns = scales().shape
        return cls(scales, (int(rows), int(columns)), levels)


@dataclass(frozen=True)
class Origin:
    """One matrix of a checkpoint: its ``name`` there, the ``kind`` of its numbers, its bytes in the file.

    ``grid=None`` where its blocks are none of the matrix. ``beyond`` says what its numbers are besides integers times
    scales, or why it has no grid; it is empty where there is nothing to say.
    """

    name: str
    kind: str
    nbytes: int
    grid: Grid | None
    beyond: str = ""


@dataclass(frozen=True)
class Quantized:
    """The elements of such a matrix, as the floats that they stand for.

    ``twins`` are other matrices of the checkpoint with the same elements, which the model has once.
    """

    elements: Elements
    origin: Origin
    twins: list[Origin] = field(default_factory=list[Origin])

    def __call__(self) -> torch.Tensor:
        return self.elements()


def evenly(each: torch.Tensor, shape: tuple[int, int], runs: tuple[int, int]) -> torch.Tensor:
    """``each`` (R, C), of blocks of ``runs`` rows and columns, the last of which may be cut: of equal blocks.

    Equal ones are as long as they can be. ``runs`` may be longer than the matrix.
    """
    for axis, (size, run) in enumerate(zip(shape, runs, strict=True)):
        step = gcd(size, run) if run < size else size
        firsts = torch.arange(0, size, max(step, 1)) // max(run, 1)
        each = each.index_select(axis, firsts)
    return each
