"""numpy as oracles use it: their operands are of any type, and numpy's own types are only half known for those."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["np"]

np: Any = importlib.import_module("numpy")
