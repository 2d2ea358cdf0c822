"""Matrices that a checkpoint holds as integers with scales, decoded to the floats that they stand for.

``value = (integer - zero) * scale``, where every zero point and every scale belongs to a run of columns of a row, or,
in blocks, to a run of rows too. Integers of at most 8 bits times scales of 16-bit floats are exact in float32.

Importing this module imports torch; milopt does so only while it converts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from milopt.huggingface.origins import Grid, evenly

__all__ = ["Affine", "Scaled", "small_floats", "unpacked"]


@dataclass(frozen=True)
class Affine:
    """``integers`` (rows, columns); ``scales`` and ``zeros`` (rows / a, columns / b), or what broadcasts to it.

    ``groups`` (columns,), where given, says which column of ``scales`` each column of ``integers`` has; else columns
    have them in equal runs. ``zeros=None`` is zero everywhere. ``kind`` names the integers.
    """

    integers: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None = None
    groups: torch.Tensor | None = None
    kind: str = ""
    beyond: ClassVar[str] = ""

    def values(self) -> torch.Tensor:
        """float32 (rows, columns)."""
        numbers = self.integers.to(torch.float32)
        if self.zeros is not None:
            numbers = numbers - self._spread(self.zeros.to(torch.float32))
        return numbers * self._spread(self.scales.to(torch.float32))

    def grid(self) -> Grid | None:
        """The blocks; ``None`` where a group's columns lie apart. It keeps the scales alive, and no integers."""
        scales = self.scales.reshape(-1, 1) if self.scales.dim() < 2 else self.scales
        rows, columns = self.integers.shape
        if 0 in (*scales.shape, rows, columns):
            return None
        order = None
        if self.groups is not None:
            if columns % scales.shape[1]:
                return None
            runs = self.groups.long().reshape(-1, columns // scales.shape[1])
            if bool((runs != runs[:, :1]).any()):
                return None
            order = runs[:, 0].clone()
        sizes = (-(-rows // scales.shape[0]), -(-columns // scales.shape[1]))
        return Grid.of(partial(_even_scales, scales, order, (rows, columns), sizes))

    def _spread(self, each: torch.Tensor) -> torch.Tensor:
        rows, columns = self.integers.shape
        if each.dim() < 2:
            each = each.reshape(-1, 1)
        if self.groups is not None:
            each = each[:, self.groups.long()]
        for axis, size in enumerate((rows, columns)):
            if each.shape[axis] not in (1, size):
                run = -(-size // each.shape[axis])
                each = each.repeat_interleave(run, axis).narrow(axis, 0, size)
        return each


@dataclass(frozen=True)
class Scaled:
    """``floats`` (rows, columns) that were made of ``scales`` (rows / a, columns / b), and mostly of ``levels``.

    ``levels`` are what elements are as multiples of their scale, ascending; ``None`` for integers. ``scales=None``
    where they are not for blocks of a row. ``beyond`` is what else there is to an element.
    """

    floats: torch.Tensor
    scales: torch.Tensor | None
    levels: torch.Tensor | None = None
    kind: str = ""
    beyond: str = ""

    def values(self) -> torch.Tensor:
        """float32 (rows, columns)."""
        return self.floats

    def grid(self) -> Grid | None:
        return None if self.scales is None else Grid.of(self.scales.to(torch.float32).clone, self.levels)


def _even_scales(
    scales: torch.Tensor, order: torch.Tensor | None, shape: tuple[int, int], runs: tuple[int, int]
) -> torch.Tensor:
    """float32; ``order`` is which column of ``scales`` each run of columns has."""
    whole = scales.to(torch.float32)
    return evenly(whole if order is None else whole[:, order], shape, runs)


def unpacked(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Unsigned integers of ``bits`` out of int32 ``words`` (rows, words), the first in the lowest bits: (rows, count).

    A word has ``32 // bits`` of them; those of 3 bits lie across words, 32 in three.
    """
    if 32 % bits == 0:
        shifts = torch.arange(0, 32, bits, dtype=torch.int32)
        fields = (words.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
        return fields.reshape(words.shape[0], -1)[:, :count].to(torch.int16)
    single = (words.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32)) & 1
    stream = single.reshape(words.shape[0], -1)[:, : count * bits].reshape(words.shape[0], count, bits)
    return (stream << torch.arange(bits, dtype=torch.int32)).sum(-1).to(torch.int16)


def small_floats(dtype: torch.dtype) -> torch.Tensor:
    """The finite numbers of a type of 8 bits, ascending, both zeros among them."""
    every = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(dtype).float()
    every = every[torch.isfinite(every)]
    # torch sorts -0 and 0 as equal, and keeps their order where it is told to
    return torch.cat((every[torch.signbit(every)].sort().values, every[~torch.signbit(every)].sort().values))
