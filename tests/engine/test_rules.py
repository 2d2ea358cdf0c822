"""Applying rules: everywhere, all or nothing, with names, scopes and outputs kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from milopt.building import Builder
from milopt.errors import PassError
from milopt.interpreter import evaluate
from milopt.matching import Match
from milopt.mil import Program, Var, mb, operations, target, types
from milopt.pattern import Ops, Scalar, Value
from milopt.reports import require
from milopt.rules import Rule, apply
from milopt.text import text


class DoubleRelu(Rule[None]):
    """``relu(relu(x))``  ->  ``relu(x)``."""

    def pattern(self, op: Ops, /, x: Value) -> Any:
        return op.relu(x=op.relu(x=x))

    def check(self, m: Match, /) -> None: ...

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Var:
        result: Var = op.relu(x=m.x)
        return result


class WrongInput(DoubleRelu):
    """Calls the input of relu what it is not called, behind an op that is right."""

    def pattern(self, op: Ops, /, x: Value) -> Any:
        return op.relu(x=x)

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Var:
        result: Var = op.relu(a=op.tanh(x=m.x))
        return result


class DropUnit(Rule[None]):
    """``x * 1``  ->  ``x``."""

    def pattern(self, op: Ops, /, x: Value, one: Scalar) -> Any:
        return op.mul(x=x, y=one)

    def check(self, m: Match, /) -> None:
        require(m.one == 1, "the factor is {:g}", float(m.one))

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Var:
        source: Var = m.x
        return source


X = (2, 3)


def chain(count: int) -> Program:
    @mb.program(input_specs=[mb.TensorSpec(X)])
    def program(x: Any) -> Any:
        for index in range(count):
            x = mb.relu(x=x, name=f"relu_{index}")
        return x

    return program


def kinds(program: Program, function: str = "main") -> list[str]:
    return [op.op_type for op in operations(program.functions[function]) if op.op_type != "const"]


def test_until_nothing_matches() -> None:
    program = chain(9)
    report = apply(DoubleRelu(), program)
    assert report.applied == 8
    assert kinds(program) == ["relu"]
    assert not apply(DoubleRelu(), program)


def test_the_output_keeps_its_name_and_the_op_takes_it() -> None:
    program = chain(2)
    apply(DoubleRelu(), program)
    (var,) = program.functions["main"].outputs
    assert var.name == "relu_1"
    assert var.op is not None
    assert var.op.name == "relu_1"


def test_inner_values_keep_their_names_too() -> None:
    @mb.program(input_specs=[mb.TensorSpec(X)])
    def program(x: Any) -> Any:
        return mb.exp(x=mb.relu(x=mb.relu(x=x, name="a"), name="kept"), name="out")

    apply(DoubleRelu(), program)
    assert [op.name for op in operations(program.functions["main"])] == ["kept", "out"]


def test_scopes_are_kept() -> None:
    program = chain(2)
    old = program.functions["main"].outputs[0].op
    assert old is not None
    old.scopes = {"module": ["layer", "act"]}
    apply(DoubleRelu(), program)
    new = program.functions["main"].outputs[0].op
    assert new is not None
    assert new.scopes == {"module": ["layer", "act"]}


def test_an_output_that_would_become_an_input_stays_a_value_of_its_own() -> None:
    @mb.program(input_specs=[mb.TensorSpec(X)])
    def program(x: Any) -> Any:
        return mb.mul(x=x, y=np.float32(1), name="out")

    assert apply(DropUnit(), program).applied == 1
    assert [var.name for var in program.functions["main"].outputs] == ["out"]
    assert kinds(program) == ["identity"]
    x = np.ones(X, np.float32)
    np.testing.assert_array_equal(evaluate(program, {"x": x})["out"], x)


def test_two_outputs_that_become_one_value_stay_two() -> None:
    @mb.program(input_specs=[mb.TensorSpec(X)])
    def program(x: Any) -> Any:
        y = mb.relu(x=x, name="first")
        return y, mb.mul(x=y, y=np.float32(1), name="second")

    assert apply(DropUnit(), program).applied == 1
    assert [var.name for var in program.functions["main"].outputs] == ["first", "second"]
    program.validate()


def test_dead_ops_go_with_what_needed_them() -> None:
    class Forget(Rule[None]):
        """``x - y`` -> ``x``: wrong, but it leaves y's producers without a use."""

        def pattern(self, op: Ops, /, x: Value, y: Value) -> Any:
            return op.sub(x=x, y=y)

        def check(self, m: Match, /) -> None: ...

        def rewrite(self, op: Builder, m: Match, facts: None, /) -> Var:
            result: Var = op.relu(x=m.x)
            return result

    @mb.program(input_specs=[mb.TensorSpec(X)])
    def program(x: Any) -> Any:
        return mb.sub(x=x, y=mb.exp(x=mb.add(x=x, y=np.float32(2))))

    apply(Forget(), program)
    assert [op.op_type for op in operations(program.functions["main"])] == ["relu"]


class Breaks(Rule[None]):
    """Builds something, then finds a reason to stop; or builds what MIL refuses; or returns another type."""

    def __init__(self, how: str) -> None:
        self.how = how

    def pattern(self, op: Ops, /, x: Value) -> Any:
        return op.relu(x=x)

    def check(self, m: Match, /) -> None: ...

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
        y = op.add(x=m.x, y=np.ones((2, 3), np.float32))
        if self.how == "reason":
            require(False, "second thoughts about {}", m.x.name)
        if self.how == "refused":
            return op.matmul(x=y, y=y)  # (2, 3) @ (2, 3)
        if self.how == "shape":
            return op.transpose(x=y, perm=[1, 0])
        if self.how == "dtype":
            return op.cast(x=y, dtype="int32")
        raise RuntimeError("a bug in the rule")


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("reason", "second thoughts about x"),
        ("refused", "MIL refuses the matmul it would build"),
        ("shape", "the replacement is ('fp32', (3, 2)), not ('fp32', (2, 3))"),
        ("dtype", "the replacement is ('int32', (2, 3)), not ('fp32', (2, 3))"),
    ],
)
def test_a_refused_rewrite_leaves_the_program_to_the_letter(how: str, reason: str) -> None:
    program = chain(1)
    before, ops = text(program), list(operations(program.functions["main"]))
    report = apply(Breaks(how), program)
    assert not report
    assert report.misses[0].declined
    assert report.misses[0].reason.startswith(reason)
    assert report.misses[0].place == "relu_0"
    assert text(program) == before
    assert list(operations(program.functions["main"])) == ops
    program.validate()


def test_a_bug_in_a_rule_is_not_swallowed_and_nothing_is_left_behind() -> None:
    program = chain(1)
    before = text(program)
    with pytest.raises(RuntimeError, match="a bug in the rule"):
        apply(Breaks("bug"), program)
    assert text(program) == before


def test_all_functions_or_the_one_named() -> None:
    program = chain(2)
    program.functions["other"] = chain(2).functions["main"]
    apply(DoubleRelu(), program, function="other")
    assert (kinds(program), kinds(program, "other")) == (["relu", "relu"], ["relu"])
    apply(DoubleRelu(), program)
    assert kinds(program) == ["relu"]


def test_a_function_that_is_not_there() -> None:
    with pytest.raises(PassError, match="no function 'nope'; this model has: main"):
        apply(DoubleRelu(), chain(1), function="nope")


def test_nested_blocks() -> None:
    @mb.program(input_specs=[mb.TensorSpec(X), mb.TensorSpec((1,))], opset_version=target.iOS17)
    def program(x: Any, flag: Any) -> Any:
        outer = mb.relu(x=x, name="outer")
        inside = mb.cond(
            pred=mb.greater(x=mb.squeeze(x=flag), y=np.float32(0)),
            _true_fn=lambda: mb.relu(x=mb.relu(x=x)),
            _false_fn=lambda: mb.relu(x=outer),
        )
        return mb.add(x=inside, y=np.float32(1), name="out")

    report = apply(DoubleRelu(), program)
    program.validate()
    assert report.applied == 1  # the pair across the block's border stays: moving it in would run it once per turn
    assert "a matched op lies in an outer block" in [miss.reason for miss in report.misses]
    for flag in (-1, 1):
        x = np.array([[-1, 2, -3], [4, -5, 6]], np.float32)
        result = evaluate(program, {"x": x, "flag": np.array([flag], np.float32)})["out"]
        np.testing.assert_array_equal(result, np.maximum(x, 0) + 1)


def test_rules_that_undo_each_other_are_named() -> None:
    class Flip(Rule[None]):
        """``relu`` -> ``abs``, and back."""

        def __init__(self, one: str, other: str) -> None:
            self.one, self.other = one, other

        @property
        def name(self) -> str:
            return f"{self.one}-to-{self.other}"

        def pattern(self, op: Ops, /, x: Value) -> Any:
            return getattr(op, self.one)(x=x)

        def check(self, m: Match, /) -> None: ...

        def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
            return getattr(op, self.other)(x=m.x)

    with pytest.raises(PassError, match="relu-to-abs, abs-to-relu: still changing function 'main'"):
        apply([Flip("relu", "abs"), Flip("abs", "relu")], chain(1))


def test_new_names_are_unique() -> None:
    @mb.program(input_specs=[mb.TensorSpec((2, 2))])
    def program(x: Any) -> Any:
        y = mb.exp(x=x, name="out_add")  # the name the builder would choose
        return mb.relu(x=y, name="out")

    class AddFirst(Rule[None]):
        """``relu(x)`` -> ``abs(x + x)``: wrong on purpose, it only builds two ops."""

        def pattern(self, op: Ops, /, x: Value) -> Any:
            return op.relu(x=x)

        def check(self, m: Match, /) -> None: ...

        def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
            return op.abs(x=op.add(x=m.x, y=m.x))

    apply(AddFirst(), program)
    names = [op.name for op in operations(program.functions["main"])]
    assert len(set(names)) == len(names)
    assert names[-1] == "out"


def test_reports_say_where_and_why() -> None:
    @mb.program(input_specs=[mb.TensorSpec(X)])
    def program(x: Any) -> Any:
        return mb.mul(x=x, y=np.float32(2), name="doubled"), mb.mul(x=x, y=x, name="squared")

    report = apply(DropUnit(), program)
    reasons = {miss.place: (miss.reason, miss.declined) for miss in report.misses}
    assert reasons == {"doubled": ("the factor is 2", True), "x": ("one is computed, not a constant", False)}
    assert report.missed == 1
    assert str(report) == "DropUnit: applied 0, missed 1\n  - doubled: the factor is 2"


def test_work_grows_with_the_places_that_can_match() -> None:
    """Ten times the ops: the number of places tried grows tenfold, not a hundredfold."""
    assert apply(DoubleRelu(), chain(200)).tried < 15 * apply(DoubleRelu(), chain(20)).tried


def test_builder_knows_only_mil_ops() -> None:
    program = chain(1)
    anchor = program.functions["main"].outputs[0].op
    assert anchor is not None
    with pytest.raises(AttributeError, match="MIL has no op 'frobnicate'"):
        Builder(anchor, set()).frobnicate(x=1)


def test_builder_knows_the_inputs_of_an_op() -> None:
    program = chain(1)
    before = text(program)
    with pytest.raises(PassError, match="relu has no input 'a'; its inputs are: x"):
        apply(WrongInput(), program)
    assert text(program) == before


def test_integer_and_string_inputs() -> None:
    class ToHalf(Rule[None]):
        """``relu(x)`` -> through fp16 and back: builds ops with string inputs."""

        def pattern(self, op: Ops, /, x: Value) -> Any:
            return op.relu(x=x)

        def check(self, m: Match, /) -> None:
            require(m.x.dtype is types.fp32, "not fp32")

        def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
            return op.cast(x=op.abs(x=op.cast(x=m.x, dtype="fp16")), dtype="fp32")

    program = chain(1)
    assert apply(ToHalf(), program).applied == 1
    assert kinds(program) == ["cast", "abs", "cast"]
