"""Why a pass does something, or nothing: ``milopt explain``."""

from __future__ import annotations

from milopt.explaining.asking import explain
from milopt.explaining.explanation import Explanation, Spot

__all__ = ["Explanation", "Spot", "explain"]
