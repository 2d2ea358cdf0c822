"""Which token each column of a mask, or of a cached tensor, is about.

A column that is about no token has -1: it is hidden, or zero.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch

__all__ = ["column_order", "last_tokens", "ring_tokens", "take_columns", "take_slots"]

Array: TypeAlias = np.ndarray[Any, Any]

# What a mask adds to the scores of a slot that is not there. exp(-1e4) is 0 in every format (constraint L10).
_MASKED = -1e4


def column_order(context: int, position: int, new: int) -> list[int]:
    """Which slot each column of [past | new] is about, when slots ``[position, position + new)`` are the new ones."""
    slots = list(range(context))
    return slots[:position] + slots[position + new :] + slots[position : position + new]


def ring_tokens(size: int, stop: int) -> Array:
    """The newest token before ``stop`` that each slot of a ring may hold: token ``t`` is in slot ``t mod size``.

    >>> ring_tokens(4, 6).tolist()
    [4, 5, 2, 3]
    """
    slots = np.arange(size)
    return np.where(slots < stop, slots + size * ((stop - 1 - slots) // size), -1)


def last_tokens(count: int, stop: int) -> Array:
    """The ``count`` tokens before ``stop``, in their order; -1 before the first."""
    return np.maximum(np.arange(stop - count, stop), -1)


def take_columns(mask: Array, tokens: Array) -> Array:
    """A mask over tokens (last axis) as one over columns that are about ``tokens``."""
    taken: Array = mask[..., np.maximum(tokens, 0)]
    taken[..., tokens < 0] = False if mask.dtype == np.bool_ else _MASKED
    return taken


def take_slots(slots: torch.Tensor, tokens: Array, axis: int) -> torch.Tensor:
    """A cached tensor's slots for ``tokens``; zeros where there is none."""
    taken = slots.index_select(axis, torch.as_tensor(np.maximum(tokens, 0), device=slots.device))
    if (tokens < 0).any():
        taken.index_fill_(axis, torch.as_tensor(np.flatnonzero(tokens < 0), device=slots.device), 0)
    return taken
