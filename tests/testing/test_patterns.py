"""Programs drawn from a rule's own pattern."""

from __future__ import annotations

from typing import Any

import pytest

from milopt.building import Builder
from milopt.matching import Match
from milopt.mil import Var, constant
from milopt.passes.attention import FuseAttention
from milopt.passes.canonical import MergeReshapes
from milopt.passes.neutral import DropNeutralOperand, DropZeroBias, NormalizePerm
from milopt.pattern import Const, Ops, Scalar, Value
from milopt.reports import require
from milopt.rules import Rule
from milopt.testing import check_rule
from milopt.testing import strategies as mil


class ScaleBehindSoftmax(Rule[None]):
    """``softmax(x) * s -> softmax(x * s)``: wrong, and seen only where both ops are there."""

    def pattern(self, op: Ops, /, x: Value, s: Scalar) -> Any:
        return op.mul(x=op.softmax(x=x, axis=-1), y=s)

    def check(self, m: Match, /) -> None:
        require(float(m.s) not in (0, 1), "it does nothing")

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Var:
        made: Var = op.softmax(x=op.mul(x=m.x, y=m.s), axis=-1)
        return made


class SoftmaxOfExp(Rule[None]):
    """``softmax(x) -> exp(x) / sum(exp(x))`` over the last axis, without a look at the axis its pattern lets open."""

    def pattern(self, op: Ops, /, x: Value) -> Any:
        return op.softmax(x=x, axis=...)

    def check(self, m: Match, /) -> None:
        return None

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Var:
        powers = op.exp(x=m.x)
        made: Var = op.real_div(x=powers, y=op.reduce_sum(x=powers, axes=[-1], keep_dims=True))
        return made


class ReluFirst(Rule[None]):
    """``relu(max(x)) -> max(relu(x))``, for axes and keep_dims as the pattern says."""

    def pattern(self, op: Ops, /, x: Value) -> Any:
        return op.relu(x=op.reduce_max(x=x, axes=[-1], keep_dims=False))

    def check(self, m: Match, /) -> None:
        return None

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Var:
        made: Var = op.reduce_max(x=op.relu(x=m.x), axes=[-1], keep_dims=False)
        return made


class TransposeTwice(Rule[None]):
    """``transpose(transpose(x, perm), perm) -> x``, which only some permutations allow."""

    def pattern(self, op: Ops, /, x: Value, perm: Const) -> Any:
        return op.transpose(x=op.transpose(x=x, perm=perm), perm=perm)

    def check(self, m: Match, /) -> None:
        require(constant(m.perm) is not None, "never")

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Var:
        made: Var = op.identity(x=m.x)
        return made


@pytest.mark.parametrize("rule", [MergeReshapes(), NormalizePerm(), DropNeutralOperand(), DropZeroBias()])
def test_rules_of_milopt(rule: Rule[Any]) -> None:
    check_rule(rule, mil.matching(rule), max_examples=60)


def test_attention() -> None:
    """In fp32: in fp16 the rule rounds a factor, which its pass declares as lossy."""
    rule = FuseAttention()
    check_rule(rule, mil.matching(rule, dtypes=["fp32"]), max_examples=30)
    check_rule(rule, mil.near_misses(rule, dtypes=["fp32"]), max_examples=30, must_fire=False)


@pytest.mark.parametrize("rule", [ScaleBehindSoftmax(), SoftmaxOfExp(), TransposeTwice()])
def test_wrong_rules_are_found(rule: Rule[Any]) -> None:
    with pytest.raises(AssertionError, match=f"{rule.name}: differs: "):
        check_rule(rule, mil.matching(rule), max_examples=60)


def test_near_misses() -> None:
    """A literal that is changed takes the program out of the pattern: such a rule fires on none of them."""
    rule = ReluFirst()
    check_rule(rule, mil.matching(rule), max_examples=20)
    with pytest.raises(AssertionError, match="vacuous: ReluFirst never fired"):
        check_rule(rule, mil.near_misses(rule), max_examples=20)
    check_rule(rule, mil.near_misses(rule), max_examples=20, must_fire=False)
