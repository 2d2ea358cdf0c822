"""What a program is tried on: calls with inputs, and what its states or cache hold before the first."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

__all__ = ["Array", "Arrays", "Call", "Trial"]

Array: TypeAlias = np.ndarray[Any, Any]
Arrays: TypeAlias = dict[str, Array]


@dataclass(frozen=True)
class Call:
    """One call of a function.

    For a program with a cache, ``position`` is the first slot of the new tokens, and ``inputs`` lack what
    :meth:`milopt.cachedrive.CacheLayout.own_names` names; their masks are in slot order.
    """

    function: str
    inputs: Arrays
    position: int = 0


@dataclass(frozen=True)
class Trial:
    """Calls one after another on the same states. ``contents`` are the states (or cached tensors) at the start."""

    label: str
    calls: tuple[Call, ...]
    contents: Arrays = field(default_factory=dict[str, Array])
