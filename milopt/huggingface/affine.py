"""Matrices that a checkpoint holds as integers with scales, decoded to the floats that they stand for.

``value = (integer - zero) * scale``, where every zero point and every scale belongs to a run of columns of a row, or,
in blocks, to a run of rows too. Integers of at most 8 bits times scales of 16-bit floats are exact in float32.

Importing this module imports torch; milopt does so only while it converts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Affine", "unpacked"]


@dataclass(frozen=True)
class Affine:
    """``integers`` (rows, columns); ``scales`` and ``zeros`` (rows / a, columns / b), or what broadcasts to it.

    ``groups`` (columns,), where given, says which column of ``scales`` each column of ``integers`` has; else columns
    have them in equal runs. ``zeros=None`` is zero everywhere.
    """

    integers: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None = None
    groups: torch.Tensor | None = None

    def values(self) -> torch.Tensor:
        """float32 (rows, columns)."""
        numbers = self.integers.to(torch.float32)
        if self.zeros is not None:
            numbers = numbers - self._spread(self.zeros.to(torch.float32))
        return numbers * self._spread(self.scales.to(torch.float32))

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
