"""The value of a MIL list, an array of equally shaped tensors that grows when it is written beyond its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

__all__ = ["Elements"]


@dataclass(frozen=True)
class Elements:
    """Writing gives a new list. Elements that were never written are zeros of ``shape``.

    A dimension of ``shape`` may be None: it is then learnt from the elements that were written.
    """

    items: tuple[torch.Tensor | None, ...]
    shape: tuple[int | None, ...]
    dtype: torch.dtype

    def read(self, index: int) -> torch.Tensor:
        item = self.items[index]
        return self._zeros() if item is None else item

    def written(self, values: Mapping[int, torch.Tensor]) -> Elements:
        items = list(self.items)
        items += [None] * (max(values, default=-1) + 1 - len(items))
        for index, value in values.items():
            items[index] = value
        return replace(self, items=tuple(items))

    def _zeros(self) -> torch.Tensor:
        written = next((item for item in self.items if item is not None), None)
        if written is not None:
            return torch.zeros_like(written)
        if None in self.shape:
            raise ValueError("an element of unknown shape is read before any was written")
        return torch.zeros([size or 0 for size in self.shape], dtype=self.dtype)
