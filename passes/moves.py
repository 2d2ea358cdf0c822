"""Movements of data that undo each other, or come to one."""

from __future__ import annotations

from typing import Any

from milopt.axes import axes_of
from milopt.building import Builder
from milopt.matching import Match
from milopt.mil import Operation, Var
from milopt.pattern import Const, Ops, Value
from milopt.reports import require
from milopt.rules import Rule

__all__ = ["MOVE_RULES", "CancelExpandDims", "CancelSqueeze", "MergeTransposes"]


class MergeTransposes(Rule["list[int]"]):
    """``transpose(transpose(x))``  ->  one ``transpose``, or ``x`` where they undo each other."""

    def pattern(self, op: Ops, /, x: Value, first: Const, then: Const) -> Any:
        return op.transpose(x=op.shared(op.transpose(x=x, perm=first)), perm=then)

    def check(self, m: Match, /) -> list[int]:
        rank = m.x.rank
        return [int(m.first.val[axis]) % rank for axis in m.then.val]

    def rewrite(self, op: Builder, m: Match, facts: list[int], /) -> Var:
        source: Var = m.x
        if facts == sorted(facts):
            return source
        merged: Var = op.transpose(x=source, perm=facts)
        return merged


def _axes(op: Operation) -> list[int]:
    """The axes of a squeeze or expand_dims, counted from the front, ascending."""
    axes = axes_of(op, "axes")
    return [at for at, dim in enumerate(op.x.shape) if dim == 1] if axes is None else list(axes)


class _ToTheInnermost(Rule[None]):
    """A rule that puts ``x`` in the place of two ops on it."""

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Var:
        source: Var = m.x
        return source


class CancelSqueeze(_ToTheInnermost):
    """``squeeze(expand_dims(x))``  ->  ``x``, where the axes are the same."""

    def pattern(self, op: Ops, /, x: Value) -> Any:
        return op.squeeze(x=op.shared(op.expand_dims(x=x, axes=...)), axes=...)

    def check(self, m: Match, /) -> None:
        squeeze, expand_dims = m.ops
        added, removed = _axes(expand_dims), _axes(squeeze)
        require(added == removed, "axes {} are added, {} removed", added, removed)


class CancelExpandDims(_ToTheInnermost):
    """``expand_dims(squeeze(x))``  ->  ``x``, where the axes are the same."""

    def pattern(self, op: Ops, /, x: Value) -> Any:
        return op.expand_dims(x=op.shared(op.squeeze(x=x, axes=...)), axes=...)

    def check(self, m: Match, /) -> None:
        expand_dims, squeeze = m.ops
        added, removed = _axes(expand_dims), _axes(squeeze)
        require(added == removed, "axes {} are removed, {} added", removed, added)


MOVE_RULES: tuple[Rule[Any], ...] = (MergeTransposes(), CancelSqueeze(), CancelExpandDims())
