"""Where a value has its channels, and how it becomes (B, C, 1, S), the form of a convolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from milopt.building import Builder
from milopt.mil import Var, is_symbolic, shape_of
from milopt.reports import require

__all__ = ["Form", "require_form", "to_channels", "to_form"]

Order: TypeAlias = Literal["rows", "columns", "channels"]

# where the axes of a value up to rank 3, with a unit axis behind them, (B, S, C, 1) or (B, C, S, 1), go to become
# (B, C, 1, S): with it behind the batch, or (B, C, S) turned first, common::compose_conv1d makes a conv of rank 3 of it
_BEHIND: dict[Order, tuple[int, ...]] = {"rows": (0, 2, 3, 1), "columns": (0, 1, 3, 2)}

# where the axes (B, D, S, C) or (B, D, C, S) or (B, C, D, S) of a value of rank 4 go to become (B, C, D, S)
_PERMS: dict[Order, tuple[int, ...]] = {"rows": (0, 3, 1, 2), "columns": (0, 2, 1, 3), "channels": (0, 1, 2, 3)}


@dataclass(frozen=True)
class Form:
    """The channels of a value are its last axis (``rows``), the one before (``columns``) or that before (``channels``).

    Lower ranks get unit axes, and then one transpose: all forms of a rank get the same ones, so that they cancel.
    """

    order: Order
    rank: int

    @property
    def axis(self) -> int:
        """The axis of the channels, from the end."""
        return {"rows": -1, "columns": -2, "channels": -3}[self.order]

    @property
    def perm(self) -> tuple[int, ...]:
        return _BEHIND.get(self.order, _PERMS[self.order]) if self.rank < 4 else _PERMS[self.order]

    @property
    def inverse(self) -> tuple[int, ...]:
        return tuple(int(each) for each in np.argsort(self.perm))


def require_form(x: Var, form: Form) -> None:
    """Raise NoMatch where ``x`` has more than 4 axes, and sizes that are not known."""
    known = not any(map(is_symbolic, shape_of(x)))
    require(form.rank <= 4 or known, "its operand has rank {} and unknown sizes", form.rank, at=x)


def to_channels(op: Builder, x: Var, form: Form) -> Var:
    """``x`` as (B, C, D, S), which is (B, C, 1, S) up to rank 3."""
    value = x
    if form.rank < 4:
        value = op.expand_dims(x=x, axes=_units(form))
    elif form.rank > 4:
        value = op.reshape(x=x, shape=_merged(shape_of(x)))
    if form.perm == (0, 1, 2, 3):
        return value
    moved: Var = op.transpose(x=value, perm=list(form.perm))
    return moved


def to_form(op: Builder, y: Var, form: Form, shape: tuple[Any, ...]) -> Var:
    """``y``, (B, C, D, S), as a value of ``form`` again, which has ``shape``."""
    value = y if form.perm == (0, 1, 2, 3) else op.transpose(x=y, perm=list(form.inverse))
    if form.rank < 4:
        value = op.squeeze(x=value, axes=_units(form))
    elif form.rank > 4:
        value = op.reshape(x=value, shape=shape)
    return value


def _units(form: Form) -> list[int]:
    """Where a value up to rank 3 gets unit axes: before and behind its own, but (C, D, S) has no batch."""
    return [0] if form.order == "channels" else [*range(3 - form.rank), 3]


def _merged(shape: tuple[Any, ...]) -> tuple[int, ...]:
    """The axes before the last three as one."""
    return (int(np.prod(shape[:-3])), *shape[-3:])
