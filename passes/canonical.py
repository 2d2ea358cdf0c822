"""What coremltools leaves behind -> nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from milopt.building import Builder
from milopt.matching import Match
from milopt.mil import Block, Operation, Var, dtype_name, is_dead, is_symbolic, operations, shape_of
from milopt.package import Model
from milopt.passes.indices import INDEX_RULES
from milopt.passes.moves import MOVE_RULES
from milopt.passes.neutral import NEUTRAL_RULES
from milopt.pattern import Ops, Value
from milopt.pipeline import RulePass
from milopt.reports import Report, require
from milopt.rules import Rule

__all__ = ["Canonicalize", "MergeCasts", "MergeReshapes"]


@dataclass(frozen=True)
class Canonicalize(RulePass):
    """Ops without effect, guards of indices, chains of casts and of moves, dead ops  ->  gone, or one op.

    Its misses are those of indices and casts; the other rules miss wherever an op does something.
    """

    name: ClassVar[str] = "canonicalize"

    def rules(self) -> tuple[Rule[Any], ...]:
        return (*NEUTRAL_RULES, *INDEX_RULES, MergeCasts(), *MOVE_RULES, MergeReshapes())

    def run(self, model: Model) -> Report:
        report = Report(self.name)
        dead = 0
        while True:
            gone = sum(remove_dead(function) for function in model.functions.values())
            # a dead user hides a match from the rules, and a rewrite may leave dead ops behind
            part = super().run(model)
            dead += gone
            report.misses = []
            report.extend(part)
            if not part:
                break
        report.applied += dead
        telling = {type(rule).__name__ for rule in (*INDEX_RULES, MergeCasts())}
        report.misses = [miss for miss in report.misses if miss.near and miss.rule in telling]
        if dead:
            report.notes.append(f"{dead} dead ops removed")
        return report


def remove_dead(block: Block) -> int:
    """Remove ops that nothing needs, in nested blocks too; returns how many, constants of other removed ops aside.

    The last op that reads a state stays: coremltools refuses a state that nothing uses (constraints S10).
    """
    ops = list(operations(block))
    dead = {op for op in ops if is_dead(op)}
    count = 0
    for op in reversed(ops):  # users come behind what they use
        if is_dead(op) and not _reads_last(op):
            op.enclosing_block.remove_ops([op])
            count += op.op_type != "const" or op in dead
    return count


def _reads_last(op: Operation) -> bool:
    return op.op_type == "read_state" and len(op.inputs["input"].child_ops) == 1


class MergeCasts(Rule[None]):
    """``cast(cast(x, wide), t)``  ->  ``cast(x, t)``, or ``x`` where it has type t already.

    Not where the first cast loses something: fp32 -> fp16 -> fp32 rounds, int32 -> int16 -> int32 wraps.
    """

    def pattern(self, op: Ops, /, x: Value) -> Any:
        return op.cast(x=op.shared(op.cast(x=x, dtype=...)), dtype=...)

    def check(self, m: Match, /) -> None:
        first, wide = dtype_name(m.x), dtype_name(m.root.inputs["x"])
        held = np.can_cast(_NUMPY.get(first, first), _NUMPY.get(wide, wide), "safe")
        require(held, "{} does not hold every {}", wide, first, at=m.root.inputs["x"])

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Var:
        kind = dtype_name(m.root.outputs[0])
        result: Var = m.x if dtype_name(m.x) == kind else op.cast(x=m.x, dtype=kind)
        return result


_NUMPY = {"fp16": "float16", "fp32": "float32"}


class MergeReshapes(Rule[tuple[int, ...]]):
    """``reshape`` of a ``reshape``, ``expand_dims`` or ``squeeze``  ->  one ``reshape``; two that cancel  ->  ``x``.

    All of them keep the elements in their order. It stays away from symbolic dimensions, unless the shapes at both ends
    are the same symbols, and keeps the first op where something else needs it, unless the two cancel.
    """

    def pattern(self, op: Ops, /, x: Value) -> Any:
        def moved(value: Any, tag: str, shared: bool) -> Any:
            made = {
                "reshape": op.reshape(x=value, shape=...),
                "expand_dims": op.expand_dims(x=value, axes=...),
                "squeeze": op.squeeze(x=value, axes=...),
            }
            return op.one_of(tag, **{name: op.shared(each) if shared else each for name, each in made.items()})

        return moved(moved(x, "first", True), "second", False)

    def check(self, m: Match, /) -> tuple[int, ...]:
        before, after = shape_of(m.x), shape_of(m.root.outputs[0])
        if before != after:
            require(m.second == "reshape", "they don't cancel")
            require(len(m.root.inputs["x"].child_ops) == 1, "the first one is needed elsewhere")
            require(not any(map(is_symbolic, (*before, *after))), "a dimension is symbolic")
        return after

    def rewrite(self, op: Builder, m: Match, facts: tuple[int, ...], /) -> Var:
        result: Var = m.x if shape_of(m.x) == facts else op.reshape(x=m.x, shape=facts)
        return result
