"""Sizes that MIL lost, given back to what a pass builds, unless MIL knows them otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from milopt.mil import Var, is_symbolic, refine_shape, shape_of
from milopt.reports import require

__all__ = ["refined"]


def refined(var: Var, shape: Sequence[Any], at: object) -> Var:
    """``var`` with the sizes of ``shape`` where its own are symbols. NoMatch where a program's types disagree."""
    own = shape_of(var)
    agree = len(own) == len(shape) and all(is_symbolic(old) or old == new for old, new in zip(own, shape, strict=True))
    require(agree, "its types disagree: MIL makes {} of it, not {}", own, tuple(shape), at=at)
    return refine_shape(var, shape)
