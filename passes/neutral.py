"""Ops that do nothing, and roundabout ways to write an op."""

from __future__ import annotations

from typing import Any

import numpy as np

from milopt.building import Builder
from milopt.matching import Match
from milopt.mil import Var, constant, dtype_name, is_output, shape_of
from milopt.pattern import Const, Ops, Value
from milopt.reports import require
from milopt.rules import Rule

__all__ = [
    "NEUTRAL_RULES",
    "DropIdentity",
    "DropNeutralOperand",
    "DropSingleConcat",
    "DropStill",
    "DropZeroBias",
    "NormalizePerm",
]

_NEUTRAL = {"mul": 1, "real_div": 1, "add": 0, "sub": 0}


class _ToItsOperand(Rule[None]):
    """A rule that puts ``x`` in the place of an op on it."""

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Var:
        operand: Var = m.x
        return operand


class DropIdentity(_ToItsOperand):
    """``identity(x)``  ->  ``x``. It stays where it is an output: there it gives x a second name."""

    def pattern(self, op: Ops, /, x: Value) -> Any:
        return op.identity(x=x)

    def check(self, m: Match, /) -> None:
        require(not is_output(m.root.outputs[0]), "it names an output")


class DropSingleConcat(_ToItsOperand):
    """``concat(values=(x,))``  ->  ``x``. Empty parts of a concatenation leave such behind."""

    def pattern(self, op: Ops, /, x: Value) -> Any:
        return op.concat(values=[x], axis=..., interleave=...)

    def check(self, m: Match, /) -> None:
        pass


class DropNeutralOperand(_ToItsOperand):
    """``x * 1``, ``x / 1``, ``x + 0``, ``x - 0``  ->  ``x``. Not where the constant makes x larger by broadcasting."""

    def pattern(self, op: Ops, /, x: Value, c: Const) -> Any:
        return op.one_of(
            "op", mul=op.mul(x=x, y=c), add=op.add(x=x, y=c), real_div=op.real_div(x=x, y=c), sub=op.sub(x=x, y=c)
        )

    def check(self, m: Match, /) -> None:
        # to the bit: a pattern's literal would also match its neighbour
        require(np.all(constant(m.c) == _NEUTRAL[m.op]), "its constant is not neutral")


class DropStill(_ToItsOperand):
    """A ``transpose``, ``reshape``, ``tile`` or ``cast`` to what its operand is already  ->  the operand.

    A reshape between symbolic dimensions stays unless they are the same symbols.
    """

    def pattern(self, op: Ops, /, x: Value) -> Any:
        return op.one_of(
            "op",
            transpose=op.transpose(x=x, perm=...),
            reshape=op.reshape(x=x, shape=...),
            tile=op.tile(x=x, reps=...),
            cast=op.cast(x=x, dtype=...),
        )

    def check(self, m: Match, /) -> None:
        result = m.root.outputs[0]
        same = dtype_name(result) == dtype_name(m.x) and shape_of(result) == shape_of(m.x)
        require(same, "it changes type or shape")
        if m.op == "transpose":
            perm = [int(axis) % m.x.rank for axis in constant(m.root.inputs["perm"])]
            require(perm == sorted(perm), "it moves axes")
        if m.op == "tile":
            require(constant(m.root.inputs["reps"]) is not None, "its repetitions are computed")


class NormalizePerm(Rule[list[int]]):
    """``transpose(x, perm=[0, 2, -3, -1])``  ->  ``transpose(x, perm=[0, 2, 1, 3])``."""

    def pattern(self, op: Ops, /, x: Value, perm: Const) -> Any:
        return op.transpose(x=x, perm=perm)

    def check(self, m: Match, /) -> list[int]:
        perm = constant(m.perm)
        require(np.any(perm < 0), "no axis is negative")
        return [int(axis) % m.x.rank for axis in perm]

    def rewrite(self, op: Builder, m: Match, facts: list[int], /) -> Var:
        result: Var = op.transpose(x=m.x, perm=facts)
        return result


class DropZeroBias(Rule[None]):
    """``conv(x, w, bias=0)``  ->  ``conv(x, w)``. For ``linear``, whose default it is, there is nothing to do."""

    def pattern(self, op: Ops, /, x: Value, weight: Value, bias: Const) -> Any:
        others = dict.fromkeys(("strides", "pad_type", "pad", "dilations", "groups"), ...)
        return op.conv(x=x, weight=weight, bias=bias, **others)

    def check(self, m: Match, /) -> None:
        require(not np.any(constant(m.bias)), "its bias is not zero")

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Var:
        given = {name: value for name, value in m.root.inputs.items() if name != "bias"}
        result: Var = op.conv(**given)
        return result


NEUTRAL_RULES: tuple[Rule[Any], ...] = (
    DropIdentity(),
    DropSingleConcat(),
    DropNeutralOperand(),
    DropStill(),
    NormalizePerm(),
    DropZeroBias(),
)
