"""Patterns that end in an op with several outputs, in one of them, or in several ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from milopt.building import Builder
from milopt.interpreter import evaluate
from milopt.matching import Match
from milopt.mil import Program, Var, mb, operations, target
from milopt.package import load
from milopt.pattern import Ops, Value, Weight
from milopt.rules import Rule, apply
from milopt.text import text
from milopt.verify import compare

from .support import X, find, kinds, op_of, program, reason


class Named(Rule[None]):
    """A rule without conditions."""

    def check(self, m: Match, /) -> None: ...


class SplitOfConcat(Named):
    """``split(concat(x, y))``  ->  ``x``, ``y``: all outputs of one op are replaced."""

    def pattern(self, op: Ops, /, x: Value, y: Value) -> Any:
        return op.split(x=op.concat(values=(x, y), axis=1), num_splits=2, axis=1)

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
        return m.x, m.y


def test_every_output_of_an_op_is_replaced() -> None:
    def body(a: Any, b: Any) -> Any:
        x, y = mb.split(x=mb.concat(values=(a, b), axis=1), num_splits=2, axis=1, name="halves")
        return mb.exp(x=x, name="first"), mb.sin(x=y, name="second")

    before, after = program(body, X, X), program(body, X, X)
    assert apply(SplitOfConcat(), after).applied == 1
    after.validate()
    assert kinds(after) == ["exp", "sin"]
    assert compare(before, after)


def test_outputs_that_are_outputs_keep_their_names() -> None:
    def body(a: Any, b: Any) -> Any:
        x, y = mb.split(x=mb.concat(values=(a, b), axis=1), num_splits=2, axis=1, name="halves")
        return x, y

    before, after = program(body, X, X), program(body, X, X)
    assert apply(SplitOfConcat(), after).applied == 1
    assert kinds(after) == ["identity", "identity"]
    assert [var.name for var in after.functions["main"].outputs] == ["halves_0", "halves_1"]
    assert compare(before, after)


class FirstHalf(Named):
    """``split(x)[0]``  ->  ``slice_by_size(x)``, where nothing needs the other half."""

    def pattern(self, op: Ops, /, x: Value) -> Any:
        return op.split(x=x, num_splits=2, axis=2)[0]

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
        (half,) = m.replaced
        return op.slice_by_size(x=m.x, begin=[0] * m.x.rank, size=list(half.shape))


def test_one_output_is_replaced_where_nothing_needs_the_others() -> None:
    def first(a: Any) -> Any:
        return mb.exp(x=mb.split(x=a, num_splits=2, axis=2, name="halves")[0], name="out")

    def both(a: Any) -> Any:
        x, y = mb.split(x=a, num_splits=2, axis=2, name="halves")
        return mb.exp(x=x), mb.sin(x=y)

    before, after = program(first, X), program(first, X)
    assert apply(FirstHalf(), after).applied == 1
    assert kinds(after) == ["slice_by_size", "exp"]
    assert compare(before, after)
    kept = program(both, X)
    report = apply(FirstHalf(), kept)
    assert not report
    (miss,) = report.misses
    assert (miss.place, miss.reason) == ("halves_1", "a matched value is also used outside the match")


class JoinWaves(Named):
    """``sin(x)``, ``cos(x)``  ->  both from one value: ``t = x * 1``, to see where that is built."""

    def pattern(self, op: Ops, /, x: Value) -> Any:
        return op.sin(x=x), op.cos(x=x)

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
        half = op.mul(x=m.x, y=np.float32(0.5))
        # sin x = 2 sin(x/2) cos(x/2), cos x = 1 - 2 sin²(x/2)
        sine, twice = op.sin(x=half, name="half_sine"), np.float32(2)
        first = op.mul(x=op.mul(x=sine, y=op.tanh(x=half)), y=twice)
        return first, op.mul(x=first, y=twice)


Body = Callable[[Any], Any]


def test_several_roots_are_found_from_each_of_them() -> None:
    def pattern(op: Ops, x: Value) -> Any:
        return op.sin(x=x), op.cos(x=x)

    def body(a: Any) -> Any:
        x = mb.relu(x=a, name="x")
        return mb.cos(x=x, name="c"), mb.sin(x=x, name="s")

    waves = program(body, X)
    for at in (0, 1):
        (match,), _ = find(pattern, waves, at)
        assert [op.name for op in match.roots] == ["s", "c"]
        assert match.root is match.roots[0]
        assert [var.name for var in match.replaced] == ["s", "c"]
        assert match.ops == list(match.roots)


def test_why_there_is_no_second_root() -> None:
    def pattern(op: Ops, x: Value) -> Any:
        return op.sin(x=x), op.cos(x=x)

    alone = program(lambda a: mb.sin(x=a), X)
    assert reason(find(pattern, alone)[1]) == "found no other root that belongs to it"
    strangers = program(lambda a: (mb.sin(x=a), mb.cos(x=mb.exp(x=a))), X)
    assert not find(pattern, strangers)[0]


def test_roots_that_meet_in_one_alternative_only() -> None:
    """The third root has x in common with the first in one alternative, and y with the second in the other."""

    def pattern(op: Ops, x: Value, y: Value, z: Value) -> Any:
        either = op.one_of("kind", x=op.cos(x=x), y=op.cos(x=y))
        return op.sin(x=x), op.add(x=either, y=z), op.mul(x=x, y=y)

    def body(a: Any, b: Any) -> Any:
        return mb.sin(x=a), mb.add(x=mb.cos(x=b), y=mb.cos(x=a)), mb.mul(x=a, y=b)

    matches, _ = find(pattern, program(body, X, X))
    assert {(match.kind, match.y.name) for match in matches} >= {("y", "b"), ("x", "b")}


def test_roots_are_different_ops() -> None:
    def pattern(op: Ops, x: Value, v: Weight, w: Weight) -> Any:
        return op.linear(x=x, weight=v, bias=...), op.linear(x=x, weight=w, bias=...)

    weight = np.ones((5, 4), np.float32)
    assert not find(pattern, program(lambda a: mb.linear(x=a, weight=weight), X))[0]
    two = program(lambda a: (mb.linear(x=a, weight=weight), mb.linear(x=a, weight=weight)), X)
    assert find(pattern, two)[0]


def test_roots_that_meet_further_up() -> None:
    """The second root is three ops above what both have in common, with a chain and an alternative between."""

    def pattern(op: Ops, x: Value, y: Value) -> Any:
        common = op.relu(x=x)
        kind = op.one_of("kind", exp=op.exp(x=common), sqrt=op.sqrt(x=common))
        far = op.optional("casts", kind, lambda v: op.cast(x=v, dtype=...))
        return op.sin(x=common), op.add(x=far, y=y)

    def body(a: Any, b: Any) -> Any:
        x = mb.relu(x=a)
        return mb.sin(x=x), mb.add(x=b, y=mb.cast(x=mb.sqrt(x=x), dtype="fp32"))

    for at in (0, 1):
        (match,), _ = find(pattern, program(body, X, X), at)
        assert (match.kind, len(match.casts), match.y.name) == ("sqrt", 1, "b")


WEIGHTS = np.random.default_rng(0).normal(size=(2, 4, 4)).astype(np.float32)


class Shared(Named):
    """``linear(x, v)``, ``linear(x, w)``  ->  ``matmul`` with each, to see constants move."""

    def pattern(self, op: Ops, /, x: Value, v: Weight, w: Weight) -> Any:
        return op.linear(x=x, weight=v), op.linear(x=x, weight=w)

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
        return tuple(op.matmul(x=m.x, y=each, transpose_y=True) for each in (m.v, m.w))


def test_the_replacement_comes_before_the_first_use_and_constants_move_there() -> None:
    """Between the roots stands a use of the first; the second one's weight is written behind that."""

    def body(a: Any) -> Any:
        first = mb.exp(x=mb.linear(x=a, weight=WEIGHTS[0], name="q"), name="use")
        return first, mb.linear(x=a, weight=WEIGHTS[1], name="k")

    before, after = program(body, X), program(body, X)
    assert apply(Shared(), after).applied == 1
    after.functions["main"].validate(force_validate=True)
    assert kinds(after) == ["matmul", "matmul", "exp"]
    assert [op.name for op in operations(after.functions["main"]) if op.op_type != "const"] == ["q", "k", "use"]
    assert compare(before, after)


def test_roots_that_nothing_fits_between_are_left_alone() -> None:
    """The second root uses what is made of the first one."""

    class Pair(Named):
        def pattern(self, op: Ops, /, x: Value, y: Value) -> Any:
            return op.sin(x=x), op.add(x=x, y=y)

        def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
            return op.cos(x=m.x), op.sub(x=m.x, y=m.y)

    def body(a: Any) -> Any:
        sine = mb.exp(x=mb.sin(x=a, name="s"), name="y")
        return mb.add(x=a, y=sine, name="out")

    kept = program(body, X)
    before = text(kept)
    report = apply(Pair(), kept)
    assert not report
    assert ("y", "its replacement needs a value that comes after it") in [
        (miss.place, miss.reason) for miss in report.misses
    ]
    assert text(kept) == before
    kept.functions["main"].validate(force_validate=True)


def test_a_root_inside_another_root_s_pattern() -> None:
    class Ladder(Named):
        """``y = exp(x)`` with ``sin(y)``  ->  ``relu`` and ``tanh`` of it: both are replaced."""

        def pattern(self, op: Ops, /, x: Value) -> Any:
            first = op.exp(x=x)
            return first, op.sin(x=first)

        def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
            relu = op.relu(x=m.x)
            return relu, op.tanh(x=relu)

    def body(a: Any) -> Any:
        y = mb.exp(x=a, name="y")
        return mb.cos(x=y, name="other"), mb.sin(x=y, name="out")

    after = program(body, X)
    assert apply(Ladder(), after).applied == 1
    after.functions["main"].validate(force_validate=True)
    assert kinds(after) == ["relu", "tanh", "cos"]
    x = np.resize(np.linspace(-1, 1, 24, dtype=np.float32), X)
    np.testing.assert_allclose(evaluate(after, {"a": x})["other"], np.cos(np.maximum(x, 0)), rtol=1e-6)


class ShareEqual(Named):
    """``relu(x)``, ``relu(x)``  ->  the first, twice: one root stays as it is."""

    def pattern(self, op: Ops, /, x: Value) -> Any:
        return op.relu(x=x), op.relu(x=x)

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
        return m.replaced[0], m.replaced[0]


def test_a_root_may_stay_and_replace_another() -> None:
    def body(a: Any) -> Any:
        first = mb.relu(x=a, name="first")
        used = mb.exp(x=first, name="used")
        return used, mb.sin(x=mb.relu(x=a, name="second"), name="out")

    before, after = program(body, X), program(body, X)
    assert apply(ShareEqual(), after).applied == 1
    after.functions["main"].validate(force_validate=True)
    assert [op.name for op in operations(after.functions["main"])] == ["first", "used", "out"]
    assert compare(before, after)


def test_two_outputs_that_become_one_value_keep_both_names() -> None:
    class Both(Named):
        def pattern(self, op: Ops, /, x: Value) -> Any:
            return op.sin(x=x), op.cos(x=x)

        def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
            both = op.tanh(x=m.x)
            return both, both

    after = program(lambda a: (mb.sin(x=a, name="s"), mb.cos(x=a, name="c")), X)
    assert apply(Both(), after).applied == 1
    assert [var.name for var in after.functions["main"].outputs] == ["s", "c"]
    assert len({id(var) for var in after.functions["main"].outputs}) == 2
    after.functions["main"].validate(force_validate=True)


def nested(body: Callable[[Any, Var], Any], *, alone: bool = False) -> Program:
    """A branch that may use a value of the block around it; ``alone`` if nothing else does."""

    @mb.program(input_specs=[mb.TensorSpec(X), mb.TensorSpec((1,))], opset_version=target.iOS18)
    def program(a: Any, flag: Any) -> Any:
        outer = mb.sin(x=a, name="outer")
        pred = mb.greater(x=mb.squeeze(x=flag), y=np.float32(0))
        inner = mb.cond(pred=pred, _true_fn=lambda: body(a, outer), _false_fn=lambda: mb.exp(x=a))
        return mb.exp(x=inner, name="out") if alone else mb.add(x=inner, y=outer, name="out")

    return program


def test_roots_of_two_blocks_are_left_alone() -> None:
    after = nested(lambda a, _: mb.cos(x=a, name="inner"))
    before = text(after)
    report = apply(JoinWaves(), after)
    assert not report
    assert "the roots lie in different blocks" in [miss.reason for miss in report.misses]
    assert text(after) == before


def test_roots_in_a_nested_block_use_values_of_the_outer_one() -> None:
    def body(a: Any, outer: Var) -> Any:
        return mb.add(x=mb.sin(x=outer), y=mb.cos(x=outer))

    after = nested(body)
    assert apply(JoinWaves(), after).applied == 1
    after.functions["main"].validate(force_validate=True)
    (cond,) = (op for op in after.functions["main"].operations if op.op_type == "cond")
    inner = [op.op_type for op in cond.blocks[0].operations if op.op_type != "const"]
    assert inner == ["mul", "sin", "tanh", "mul", "mul", "mul", "add"]


class DoubleAngle(Rule[None]):
    """``sin(x) * cos(x)``  ->  ``sin(2 x) / 2``; the sine may be needed elsewhere."""

    def pattern(self, op: Ops, /, x: Value) -> Any:
        return op.mul(x=op.shared(op.sin(x=x)), y=op.cos(x=x))

    def check(self, m: Match, /) -> None:
        pass

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Var:
        made: Var = op.mul(x=op.sin(x=op.mul(x=m.x, y=np.float32(2))), y=np.float32(0.5))
        return made


class DoubleAngleAlone(DoubleAngle):
    """The same where the sine is needed nowhere else."""

    def pattern(self, op: Ops, /, x: Value) -> Any:
        return op.mul(x=op.sin(x=x), y=op.cos(x=x))


@pytest.mark.parametrize("alone", [False, True])
def test_a_shared_op_may_lie_in_an_outer_block_and_no_other(alone: bool) -> None:
    def body(a: Any, outer: Var) -> Any:
        return mb.mul(x=outer, y=mb.cos(x=a))

    after = nested(body, alone=alone)
    before = load(after).clone()
    report = apply(DoubleAngleAlone(), after)
    assert not report
    assert "a matched op lies in an outer block" in [miss.reason for miss in report.misses]
    assert apply(DoubleAngle(), after).applied == 1
    after.functions["main"].validate(force_validate=True)
    # the sine goes where only the match has used it
    assert ("outer" in [op.name for op in after.functions["main"].operations]) is not alone
    assert compare(before, after)


@pytest.mark.parametrize("order", [("sin", "cos"), ("cos", "sin")])
def test_several_roots_are_replaced_together(order: tuple[str, str]) -> None:
    def body(a: Any) -> Any:
        x = mb.relu(x=a)
        first, second = (getattr(mb, kind)(x=x, name=kind) for kind in order)
        return mb.exp(x=first, name="of_first"), mb.exp(x=second, name="of_second")

    after = program(body, X)
    assert apply(JoinWaves(), after).applied == 1
    after.functions["main"].validate(force_validate=True)
    names = {var.name for op in operations(after.functions["main"]) for var in op.outputs}
    assert {"sin", "cos", "of_first", "of_second"} <= names
    assert op_of(op_of(after.functions["main"].outputs[0]).x).op_type == "mul"
