"""Which pass, and which single rewrite, breaks equality: ``milopt optimize --bisect``."""

from __future__ import annotations

from milopt.bisecting.bisection import Bisection, check_folder
from milopt.bisecting.reduction import reduce_model
from milopt.bisecting.searching import bisect

__all__ = ["Bisection", "bisect", "check_folder", "reduce_model"]
