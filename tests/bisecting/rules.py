"""Right rules, and one that is wrong at some places only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from milopt.building import Builder
from milopt.matching import Match
from milopt.mil import Program, Var, mb, operations, remove_if_dead, replace_uses, target, types
from milopt.package import Model
from milopt.pattern import Ops, Scalar, Value
from milopt.pipeline import Pass, RulePass
from milopt.reports import Report, require
from milopt.rules import Rule
from tests.package.support import program_of

SHAPE = (2, 3)


class DoubleToSum(Rule[None]):
    """``x * 2 -> x + x``, which is right."""

    def pattern(self, op: Ops, /, x: Value, s: Scalar) -> Any:
        return op.mul(x=x, y=s)

    def check(self, m: Match, /) -> None:
        require(float(m.s) == 2, "another factor")

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Var:
        made: Var = op.add(x=m.x, y=m.x)
        return made


class RelusToOne(Rule[None]):
    """``relu(relu(x)) -> relu(x)``, which is right."""

    def pattern(self, op: Ops, /, x: Value) -> Any:
        return op.relu(x=op.relu(x=x))

    def check(self, m: Match, /) -> None:
        return None

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Var:
        made: Var = op.relu(x=m.x)
        return made


class ScaledTanh(Rule[None]):
    """``tanh(x * s) -> tanh(x) * s``, which is right for a factor of 1 only."""

    def pattern(self, op: Ops, /, x: Value, s: Scalar) -> Any:
        return op.tanh(x=op.mul(x=x, y=s))

    def check(self, m: Match, /) -> None:
        return None

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Var:
        made: Var = op.mul(x=op.tanh(x=m.x), y=m.s)
        return made


@dataclass(frozen=True)
class Mixed(RulePass):
    """All of them."""

    name: ClassVar[str] = "mixed"
    factor: float = 1.0

    def rules(self) -> tuple[Rule[Any], ...]:
        return (DoubleToSum(), RelusToOne(), ScaledTanh())


@dataclass(frozen=True)
class Right(RulePass):
    """The right ones."""

    name: ClassVar[str] = "right"

    def rules(self) -> tuple[Rule[Any], ...]:
        return (DoubleToSum(), RelusToOne())


@dataclass(frozen=True)
class Careless(RulePass):
    """Right rules, and after them something wrong that no rule does."""

    name: ClassVar[str] = "careless"

    def rules(self) -> tuple[Rule[Any], ...]:
        return (DoubleToSum(),)

    def run(self, model: Model) -> Report:
        report = super().run(model)
        report.applied += drop_last_tanh(model)
        return report


@dataclass(frozen=True)
class Plain(Pass):
    """No rules at all, and wrong."""

    name: ClassVar[str] = "plain"

    def run(self, model: Model) -> Report:
        return Report(self.name, applied=drop_last_tanh(model))


def drop_last_tanh(model: Model) -> int:
    """Replace the last tanh by its operand."""
    found = [op for op in operations(model.function()) if op.op_type == "tanh"]
    if not found:
        return 0
    op: Any = found[-1]
    replace_uses(op.outputs[0], op.x)
    remove_if_dead([op])
    return 1


def chain(blocks: int = 6, wrong: int | None = 4) -> Program:
    """Blocks of right matches in a row; block ``wrong`` has a tanh of a factor 3, the others of 1."""

    def build(x: Any) -> Any:
        for block in range(blocks):
            doubled = mb.mul(x=x, y=np.float32(2), name=f"double_{block}")
            relus = mb.relu(x=mb.relu(x=doubled, name=f"inner_{block}"), name=f"outer_{block}")
            # a sum keeps the values small and of both signs
            moved = mb.sub(x=relus, y=np.float32(0.3), name=f"moved_{block}")
            factor = 3.0 if block == wrong else 1.0
            scaled = mb.mul(x=moved, y=np.float32(factor), name=f"scaled_{block}")
            x = mb.tanh(x=scaled, name=f"tanh_{block}")
        return mb.exp(x=x, name="y")

    specs = [mb.TensorSpec(shape=SHAPE, dtype=types.fp32)]
    return program_of(mb.program(input_specs=specs, opset_version=target.iOS17)(build))
