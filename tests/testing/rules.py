"""Rules to test the tests with: good ones, and ones with a mistake each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from milopt.building import Builder
from milopt.matching import Match
from milopt.mil import Var, dtype_name
from milopt.package import Model
from milopt.pattern import Ops, Scalar, Value
from milopt.pipeline import Pass
from milopt.reports import Report, require
from milopt.rules import Rule


class DropMulByOne(Rule[None]):
    """``x * 1 -> x``, where the shapes allow."""

    def pattern(self, op: Ops, x: Value, one: Scalar) -> Any:
        return op.mul(x=x, y=one)

    def check(self, m: Match) -> None:
        require(float(m.one) == 1, "the factor is {}", m.one)

    def rewrite(self, op: Builder, m: Match, facts: None) -> Var:
        x: Var = m.x
        return x


class DropAnyMul(DropMulByOne):
    """Forgets to look at the factor."""

    def check(self, m: Match) -> None:
        return None


class MulToSquare(Rule[None]):
    """``x * x -> square(x)``."""

    def pattern(self, op: Ops, x: Value) -> Any:
        return op.mul(x=x, y=x)

    def check(self, m: Match) -> None:
        require(dtype_name(m.x).startswith("fp"), "not a float")

    def rewrite(self, op: Builder, m: Match, facts: None) -> Var:
        made: Var = op.square(x=m.x)
        return made


class WantsTanh(Rule[None]):
    """``x * tanh(x) -> x``: where nothing is a tanh, it never fires."""

    def pattern(self, op: Ops, x: Value) -> Any:
        return op.mul(x=x, y=op.tanh(x=x))

    def check(self, m: Match) -> None:
        return None

    def rewrite(self, op: Builder, m: Match, facts: None) -> Var:
        x: Var = m.x
        return x


class Unlikely(WantsTanh):
    """Wants an equation that MIL has no einsum for."""

    def pattern(self, op: Ops, x: Value) -> Any:
        return op.einsum(values=(x, x), equation="a,a->a")


@dataclass(frozen=True)
class OneMoreRelu(Pass):
    """``relu(x) -> relu(relu(x))`` at the first relu: right, and never done."""

    name: ClassVar[str] = "one-more-relu"

    def run(self, model: Model) -> Report:
        report = Report(self.name)
        op = next((op for op in model.function().operations if op.op_type == "relu"), None)
        if op is not None:
            op.set_inputs(x=Builder(op, {each.name for each in model.function().operations}).relu(x=op.inputs["x"]))
            report.applied = 1
        return report


@dataclass(frozen=True)
class Lies(OneMoreRelu):
    """The same, and reports nothing, or with ``idle`` does nothing and reports something."""

    name: ClassVar[str] = "lies"

    idle: bool = False

    def run(self, model: Model) -> Report:
        return Report(self.name, applied=1) if self.idle else Report(self.name, tried=super().run(model).applied)


class LeavesDeadOps(MulToSquare):
    """Builds more than it needs, and keeps it from being cleaned up."""

    def rewrite(self, op: Builder, m: Match, facts: None) -> Var:
        op.tanh(x=m.x)
        op.built.clear()
        return super().rewrite(op, m, facts)
