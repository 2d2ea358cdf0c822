"""The driver: every match is found, in one order, at a cost that grows with what can match, and it comes to an end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milopt.building import Builder
from milopt.errors import PassError
from milopt.matching import Match, Matcher
from milopt.mil import Operation, Program, is_output, mb, operations, target
from milopt.pattern import Ops, Scalar, Value, build
from milopt.reports import require
from milopt.rules import Rule, apply
from milopt.text import text

from .support import X, kinds, op_of, program


class Pair(Rule[None]):
    """``outer(inner(x))``  ->  ``result(x)``."""

    def __init__(self, outer: str, inner: str, result: str) -> None:
        self.ops = outer, inner, result

    @property
    def name(self) -> str:
        return "-".join(self.ops)

    def pattern(self, op: Ops, /, x: Value) -> Any:
        outer, inner, _ = self.ops
        return getattr(op, outer)(x=getattr(op, inner)(x=x))

    def check(self, m: Match, /) -> None: ...

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
        return getattr(op, self.ops[2])(x=m.x)


class Drop(Rule[None]):
    """``kind(x)``  ->  ``x``."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def pattern(self, op: Ops, /, x: Value) -> Any:
        return getattr(op, self.kind)(x=x)

    def check(self, m: Match, /) -> None: ...

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
        return m.x


class Deep(Rule[None]):
    """``sin(cos(exp(abs(x))))``  ->  ``tanh(x)``."""

    def pattern(self, op: Ops, /, x: Value) -> Any:
        return op.sin(x=op.cos(x=op.exp(x=op.abs(x=x))))

    def check(self, m: Match, /) -> None: ...

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
        return op.tanh(x=m.x)


class Lonely(Rule[None]):
    """``sqrt(x)``  ->  ``x``, where x has no other user: what it looks at lies beyond its pattern."""

    def pattern(self, op: Ops, /, x: Value) -> Any:
        return op.sqrt(x=x)

    def check(self, m: Match, /) -> None:
        require(len(m.x.child_ops) == 1, "x is used {} times", len(m.x.child_ops), at=m.x)

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
        return m.x


class Pull(Rule[None]):
    """``x * s + y * s``  ->  ``(x + y) * s``."""

    def pattern(self, op: Ops, /, x: Value, y: Value, s: Scalar) -> Any:
        return op.add(x=op.mul(x=x, y=s), y=op.mul(x=y, y=s))

    def check(self, m: Match, /) -> None: ...

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
        return op.mul(x=op.add(x=m.x, y=m.y), y=m.s)


RULES = (
    Pair("relu", "relu", "relu"),
    Pair("abs", "relu", "relu"),
    Pair("cos", "abs", "cos"),
    Drop("identity"),
    Deep(),
    Lonely(),
    Pull(),
)
UNARY = ("relu", "abs", "cos", "sin", "exp", "sqrt", "identity")


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Ops that the rules are about, on one another, some used twice."""

    @mb.program(input_specs=[mb.TensorSpec(X)])
    def program(x: Any) -> Any:
        values = [x]
        for _ in range(draw(st.integers(3, 14))):
            kind = draw(st.sampled_from((*UNARY, "mul", "add")))
            value = draw(st.sampled_from(values[-3:]))
            if kind == "mul":
                values.append(mb.mul(x=value, y=np.float32(draw(st.sampled_from([2, 3])))))
            elif kind == "add":
                values.append(mb.add(x=value, y=draw(st.sampled_from(values[-3:]))))
            else:
                values.append(getattr(mb, kind)(x=value))
        return values[-1], mb.tanh(x=draw(st.sampled_from(values)))

    return program


def places(program: Program) -> Iterator[str]:
    """Where a rule still could be applied."""
    for rule in RULES:
        matcher = Matcher(*build(rule.pattern))
        for op in operations(program.functions["main"]):
            for match in matcher.matches(op):
                declined = isinstance(rule, Lonely) and len(match.x.child_ops) != 1
                names_an_output = op.op_type == "identity" and is_output(op.outputs[0])
                if not declined and not names_an_output:
                    yield f"{rule.name} at {op.name}"


@settings(max_examples=150, deadline=None)
@given(programs())
def test_nothing_is_left_to_do(program: Program) -> None:
    report = apply(RULES, program)
    program.functions["main"].validate(force_validate=True)
    assert list(places(program)) == []
    after = text(program)
    assert not apply(RULES, program)
    assert text(program) == after
    assert report.applied == sum(stats.applied for stats in report.rules.values())


def test_what_a_rule_declined_is_looked_at_again() -> None:
    """The second user of x goes only after the square root was tried."""

    def body(a: Any) -> Any:
        x = mb.exp(x=a, name="x")
        return mb.sin(x=mb.sqrt(x=x), name="out"), mb.cos(x=mb.abs(x=mb.mul(x=x, y=np.float32(0))))

    class Zero(Rule[None]):
        """``x * 0``  ->  0, the whole array."""

        def pattern(self, op: Ops, /, x: Value) -> Any:
            return op.mul(x=x, y=0.0)

        def check(self, m: Match, /) -> None: ...

        def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
            return op.const(val=np.zeros(m.x.shape, np.float32))

    after = program(body, X)
    report = apply([Lonely(), Zero()], after)
    assert report.applied == 2
    assert report.misses == []
    assert kinds(after) == ["exp", "sin", "abs", "cos"]


def test_a_use_in_a_nested_block_that_goes_makes_room_for_a_match_outside() -> None:
    @mb.program(input_specs=[mb.TensorSpec(X), mb.TensorSpec((1,))], opset_version=target.iOS17)
    def nested(x: Any, flag: Any) -> Any:
        inner = mb.relu(x=x, name="inner")
        out = mb.relu(x=inner, name="out")
        pred = mb.greater(x=mb.squeeze(x=flag), y=np.float32(0))
        other = mb.cond(
            pred=pred,
            _true_fn=lambda: mb.add(x=mb.exp(x=x), y=np.float32(1)),
            _false_fn=lambda: mb.mul(x=mb.mul(x=mb.exp(x=inner), y=np.float32(0)), y=np.float32(3)),
        )
        return out, mb.sin(x=other, name="other")

    class Forget(Rule[None]):
        """``exp(x) * 0``  ->  0."""

        def pattern(self, op: Ops, /, x: Value) -> Any:
            return op.mul(x=op.exp(x=x), y=0.0)

        def check(self, m: Match, /) -> None: ...

        def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
            return op.const(val=np.zeros(m.x.shape, np.float32))

    report = apply([Pair("relu", "relu", "relu"), Forget()], nested)
    assert report.applied == 2
    nested.functions["main"].validate(force_validate=True)
    assert kinds(nested).count("relu") == 1


def test_an_output_that_is_no_longer_used_makes_room_for_a_match() -> None:
    class Half(Rule[None]):
        """``split(x)[0]``  ->  ``slice_by_size(x)``, where nothing needs the other half."""

        def pattern(self, op: Ops, /, x: Value) -> Any:
            return op.split(x=x, num_splits=2, axis=2)[0]

        def check(self, m: Match, /) -> None: ...

        def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
            return op.slice_by_size(x=m.x, begin=[0, 0, 0], size=[2, 3, 2])

    class Forget(Half):
        """``x * 0``  ->  0."""

        def pattern(self, op: Ops, /, x: Value) -> Any:
            return op.mul(x=x, y=0.0)

        def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
            return op.const(val=np.zeros(m.x.shape, np.float32))

    def body(a: Any) -> Any:
        first, second = mb.split(x=a, num_splits=2, axis=2)
        return mb.exp(x=first), mb.sin(x=mb.mul(x=second, y=np.float32(0)))

    after = program(body, X)
    assert apply([Half(), Forget()], after).applied == 2
    assert kinds(after) == ["slice_by_size", "exp", "sin"]


def chain(count: int, kind: str = "relu") -> Program:
    def body(a: Any) -> Any:
        for index in range(count):
            a = getattr(mb, kind)(x=a, name=f"{kind}_{index}")
        return a

    return program(body, X)


class Swap(Pair):
    """``kind`` -> another, and back."""

    def pattern(self, op: Ops, /, x: Value) -> Any:
        return getattr(op, self.ops[0])(x=x)


def test_rules_without_end_are_named_with_the_place() -> None:
    rules = [Drop("identity"), Swap("relu", "", "abs"), Swap("abs", "", "relu")]
    with pytest.raises(
        PassError,
        match=r"^(relu--abs, abs--relu|abs--relu, relu--abs): still changing function 'main' after 102 rewrites of one "
        r"place, the last at 'relu_0'$",
    ):
        apply(rules, chain(1))


def test_rules_that_multiply_are_stopped_too() -> None:
    class Double(Rule[None]):
        """``exp(x)``  ->  ``exp(x) + exp(x)``, as two ops."""

        def pattern(self, op: Ops, /, x: Value) -> Any:
            return op.exp(x=x)

        def check(self, m: Match, /) -> None: ...

        def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
            return op.add(x=op.exp(x=m.x), y=op.exp(x=m.x))

    with pytest.raises(PassError, match=r"^Double: still changing function 'main' after 201 rewrites, the last at"):
        apply(Double(), chain(1, "exp"))


def test_a_long_chain_that_shrinks_is_no_endless_one() -> None:
    after = chain(400)
    assert apply(Pair("relu", "relu", "relu"), after).applied == 399
    assert kinds(after) == ["relu"]


def test_an_op_may_be_moved_along_all_the_others() -> None:
    """Every step leaves as many ops as there were: 150 rewrites of what began as one op."""

    class Sink(Rule[None]):
        """``relu(abs(x))``  ->  ``abs(relu(x))``."""

        def pattern(self, op: Ops, /, x: Value) -> Any:
            return op.relu(x=op.abs(x=x))

        def check(self, m: Match, /) -> None: ...

        def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
            return op.abs(x=op.relu(x=m.x))

    def body(a: Any) -> Any:
        a = mb.abs(x=a)
        for _ in range(150):
            a = mb.relu(x=a)
        return a

    after = program(body, X)
    assert apply(Sink(), after).applied == 150
    assert kinds(after) == ["relu"] * 150 + ["abs"]


def test_counts_per_rule() -> None:
    def body(a: Any) -> Any:
        roots = mb.sqrt(x=a), mb.sqrt(x=a)
        return mb.exp(x=mb.relu(x=mb.relu(x=a))), *roots

    report = apply([Pair("relu", "relu", "relu"), Lonely()], program(body, X))
    stats = report.rules["relu-relu-relu"]
    # both ops, and the new one
    assert (stats.tried, stats.matched, stats.applied) == (3, 1, 1)
    lonely = report.rules["Lonely"]
    # both, and both again after the rewrite
    assert (lonely.tried, lonely.matched, lonely.applied) == (4, 4, 0)
    assert report.tried == stats.tried + lonely.tried
    assert 0 < stats.seconds < report.seconds


class Counted(Matcher):
    """Counts the ops that any pattern is held against."""

    visits = 0

    def _op(self, pattern: Any, op: Operation, found: Any) -> Iterator[Any]:
        Counted.visits += 1
        return super()._op(pattern, op, found)


def layers(count: int) -> Program:
    """What rules fire on, and much that they don't, on one stream: every layer adds to it."""

    def body(a: Any) -> Any:
        scale = mb.identity(x=mb.exp(x=a))  # a value that every layer uses
        for _ in range(count):
            b = mb.relu(x=mb.relu(x=mb.mul(x=a, y=scale)))
            c = mb.sin(x=mb.cos(x=mb.exp(x=mb.abs(x=b))))
            a = mb.add(x=a, y=mb.identity(x=mb.sqrt(x=c)))
        return a

    return program(body, X)


def test_the_work_grows_with_the_program_and_not_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milopt.engine.index.Matcher", Counted)
    visits: dict[int, int] = {}
    for count in (20, 200):
        Counted.visits = 0
        report = apply(RULES, layers(count))
        assert report.applied == 4 * count + 1
        visits[count] = Counted.visits
    assert visits[200] < 10.5 * visits[20]


def test_ops_that_cannot_match_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milopt.engine.index.Matcher", Counted)
    Counted.visits = 0
    report = apply([Deep()], layers(50))
    # a sine each, the four ops of its pattern, and the new op's users are no sines
    assert report.tried == 50
    assert Counted.visits == 200


def test_the_order_is_the_program_s() -> None:
    seen: list[str] = []

    class Note(Drop):
        def check(self, m: Match, /) -> None:
            seen.append(m.root.name)
            require(False, "it only looks")

    def body(a: Any) -> Any:
        for index in range(5):
            a = mb.identity(x=mb.exp(x=a), name=f"at_{index}")
        return a

    apply(Note("identity"), program(body, X))
    assert seen == [f"at_{index}" for index in range(5)]


_SCRIPT = """
from milopt.rules import apply
from milopt.text import text
from tests.engine.test_driver import RULES, layers
program = layers(12)
report = apply(RULES, program)
print(text(program))
print([op.name for op in program.functions["main"].operations])
print([str(miss) for miss in report.misses])
print({name: (each.tried, each.matched, each.applied) for name, each in report.rules.items()})
"""


def test_two_processes_do_the_same() -> None:
    root = Path(__file__).parents[2]
    said = [
        subprocess.run(
            [sys.executable, "-c", _SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "12345")
    ]
    assert said[0] == said[1]
    assert "relu" in said[0]


def test_an_anchor_is_found_once_per_block() -> None:
    """Ops are in the order in which ``Order`` says they are, also after many were put in the same place."""
    from milopt.engine.order import Order

    after = chain(3)
    function = after.functions["main"]
    order = Order(function)
    first, second, last = function.operations
    assert order.before(first, last)
    builder = Builder(last, {op.name for op in function.operations})
    x = second.outputs[0]
    for _ in range(100):
        x = builder.exp(x=x)
        assert order.before(op_of(x), last)
        assert order.before(second, op_of(x))
    ops = list(function.operations)
    assert sorted(ops, key=order.__getitem__) == ops
