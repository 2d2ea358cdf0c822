"""What can be told of an op of a pattern before its inputs are matched: cheap reasons to go on to the next op."""

from __future__ import annotations

from typing import Any

from milopt.engine.forms import Chain, OneOf, OpPattern, Pat, parts_of, root_op
from milopt.mil import Operation, Var

__all__ = ["COMMUTATIVE", "Plan", "Wrong", "described"]

COMMUTATIVE = frozenset(
    {"add", "mul", "maximum", "minimum", "equal", "not_equal", "logical_and", "logical_or", "logical_xor"}
)


Wrong = tuple[object, tuple[str, ...], OpPattern]


class Plan:
    """An op of a pattern: its inputs, literals first, and the types of ops that must stand at some of them."""

    def __init__(self, pattern: OpPattern) -> None:
        inputs = pattern.inputs
        # literals first: they are cheap, and a reason found early is the one a reader looks for
        self.inputs = sorted(inputs.items(), key=lambda item: isinstance(item[1], (Pat, list, tuple)))
        self.names = frozenset(inputs)
        self.commutes = pattern.op_type in COMMUTATIVE and {"x", "y"} <= inputs.keys()
        self._producers = [
            (name, types, first)
            for name, each in inputs.items()
            if (types := _types_of(each)) and (first := _first_of(each)) is not None
        ]

    def wrong_producer(self, op: Operation) -> Wrong | None:
        """What stands at an input whose pattern it can't match, the op types that might, and the first such pattern."""
        if not self._producers:
            return None
        wrong = self._wrong(op, "x", "y")
        if wrong is not None and self.commutes and self._wrong(op, "y", "x") is None:
            return None
        return wrong

    def _wrong(self, op: Operation, x: str, y: str) -> Wrong | None:
        for name, types, first in self._producers:
            # an op has its inputs as attributes too, and gathers them anew for each look at all of them
            var: Any = getattr(op, x if name == "x" else y if name == "y" else name, None)
            if isinstance(var, Var) and (var.op is None or var.op.op_type not in types):
                return var.op or var, types, first
        return None


def _types_of(pattern: Any) -> tuple[str, ...]:
    """The types of the ops of which the value must come; none where it may be anything else."""
    if (op := root_op(pattern)) is not None:
        return (op.op_type,)
    if not isinstance(pattern, (OneOf, Chain)):
        return ()
    parts = [_types_of(part) for part in parts_of(pattern)]
    return tuple(dict.fromkeys(each for part in parts for each in part)) if all(parts) else ()


def _first_of(pattern: Any) -> OpPattern | None:
    """The op of a pattern, of alternatives that of the first one: it is where a reader looks."""
    if (op := root_op(pattern)) is not None:
        return op
    parts = parts_of(pattern) if isinstance(pattern, (OneOf, Chain)) else ()
    return next((op for part in parts if (op := _first_of(part)) is not None), None)


def described(at: object) -> str:
    """What stands where another op was wanted."""
    return at.op_type if isinstance(at, Operation) else "an input"
