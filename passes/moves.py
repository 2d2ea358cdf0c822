"""Movements of data that undo each other, or come to one."""

from __future__ import annotations

from typing import Any

from milopt.building import Builder
from milopt.matching import Match
from milopt.mil import Operation, Var, constant
from milopt.pattern import Const, Ops, Value
from milopt.reports import require
from milopt.rules import Rule

__all__ = ["MOVE_RULES", "CancelExpandDims", "CancelSqueeze", "MergeTransposes"]


def _producer(var: Var, op_type: str) -> Operation:
    """The op that computes ``var``, which may have other users: it stays for them."""
    require(var.op is not None and var.op.op_type == op_type, "its operand is no {}", op_type, at=var)
    assert var.op is not None
    return var.op


def _axes(op: Operation, rank: int) -> list[int]:
    """The axes of a squeeze or expand_dims, counted from the front, ascending."""
    axes = constant(op.inputs.get("axes"))
    if axes is None:
        return [at for at, dim in enumerate(op.x.shape) if dim == 1]
    return sorted(int(axis) % rank for axis in axes)


class MergeTransposes(Rule["list[int]"]):
    """``transpose(transpose(x))``  ->  one ``transpose``, or ``x`` where they undo each other."""

    def pattern(self, op: Ops, /, x: Value, perm: Const) -> Any:
        return op.transpose(x=x, perm=perm)

    def check(self, m: Match, /) -> list[int]:
        inner = [int(axis) % m.x.rank for axis in constant(_producer(m.x, "transpose").perm)]
        return [inner[int(axis) % m.x.rank] for axis in m.perm.val]

    def rewrite(self, op: Builder, m: Match, facts: list[int], /) -> Var:
        source: Var = m.x.op.x
        if facts == sorted(facts):
            return source
        merged: Var = op.transpose(x=source, perm=facts)
        return merged


class CancelSqueeze(Rule[None]):
    """``squeeze(expand_dims(x))``  ->  ``x``, where the axes are the same."""

    def pattern(self, op: Ops, /, x: Value) -> Any:
        return op.squeeze(x=x, axes=...)

    def check(self, m: Match, /) -> None:
        added = _axes(_producer(m.x, "expand_dims"), m.x.rank)
        removed = _axes(m.root, m.x.rank)
        require(added == removed, "axes {} are added, {} removed", added, removed)

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Var:
        source: Var = m.x.op.x
        return source


class CancelExpandDims(Rule[None]):
    """``expand_dims(squeeze(x))``  ->  ``x``, where the axes are the same."""

    def pattern(self, op: Ops, /, x: Value) -> Any:
        return op.expand_dims(x=x, axes=...)

    def check(self, m: Match, /) -> None:
        inner = _producer(m.x, "squeeze")
        removed = _axes(inner, inner.x.rank)
        added = _axes(m.root, m.root.outputs[0].rank)
        require(added == removed, "axes {} are removed, {} added", removed, added)

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Var:
        source: Var = m.x.op.x
        return source


MOVE_RULES: tuple[Rule[Any], ...] = (MergeTransposes(), CancelSqueeze(), CancelExpandDims())
