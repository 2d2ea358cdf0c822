"""The cached tensors of one sequence, whichever form the program keeps them in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch

from milopt.cachedrive.layout import CacheLayout
from milopt.interpreter import Plan

__all__ = ["Caches"]

Array: TypeAlias = np.ndarray[Any, Any]


class Caches(ABC):
    """The cached tensors of one sequence, by the names of the outputs that return them in the past form."""

    def __init__(self, layout: CacheLayout, plans: Mapping[str, Plan]) -> None:
        self.layout = layout
        self._plan = next(iter(plans.values()))

    @abstractmethod
    def run(
        self, plan: Plan, position: int, inputs: Mapping[str, Array], listeners: tuple[object, ...] = ()
    ) -> dict[str, torch.Tensor]:
        """Call a function whose new tokens go to slots ``[position, position + Q)``; the cache is updated.

        ``inputs`` are those of the function except :meth:`CacheLayout.own_names`, with masks in slot order. The result
        holds the outputs that are not part of the cache.
        """

    @abstractmethod
    def contents(self) -> dict[str, torch.Tensor]:
        """All slots of every cached tensor; not a copy where it can be avoided."""

    @abstractmethod
    def fill(self, contents: Mapping[str, Array]) -> None:
        """Replace the cached tensors."""

    @abstractmethod
    def reset(self) -> None:
        """Set all slots to zero."""
