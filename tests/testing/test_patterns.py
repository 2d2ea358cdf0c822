"""Programs drawn from a rule's own pattern, and those that miss it by one detail."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milopt.building import Builder
from milopt.matching import Match
from milopt.mil import Program, Var, constant, dtype_name, is_state, is_symbolic, operations, shape_of
from milopt.package import load
from milopt.pattern import Const, Ops, Scalar, Value, Values, Weight
from milopt.reports import require
from milopt.rules import Rule, apply
from milopt.testing import check_rule
from milopt.testing import strategies as mil
from milopt.testing.misses import changes
from milopt.testing.notes import note_of
from milopt.testing.patterns import first_match
from tests.testing.test_strategies import each_of

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

ROOT = Path(__file__).resolve().parents[2]


class Nothing(Rule[None]):
    """A pattern alone: it matches, and is never rewritten."""

    def check(self, m: Match, /) -> None:
        require(False, "it is only looked for")

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
        raise NotImplementedError


class Alternatives(Nothing):
    def pattern(self, op: Ops, /, x: Value, s: Scalar, c: Const) -> Any:
        inner = op.one_of("inner", relu=op.relu(x=x), scaled=op.mul(x=x, y=s), shifted=op.add(x=x, y=c))
        return op.softmax(x=inner, axis=...)


class Chained(Nothing):
    def pattern(self, op: Ops, /, x: Value) -> Any:
        moved = op.optional(
            "moves", x, lambda v: op.transpose(x=v, perm=...), lambda v: op.reshape(x=v, shape=...), most=3
        )
        return op.relu(x=moved)


class Starred(Nothing):
    def pattern(self, op: Ops, /, x: Value, rest: Values) -> Any:
        return op.concat(values=(op.relu(x=x), *rest), axis=..., interleave=...)


class SecondOutput(Nothing):
    def pattern(self, op: Ops, /, x: Value) -> Any:
        return op.relu(x=op.split(x=x, axis=..., num_splits=..., split_sizes=...)[1])


class TopValues(Nothing):
    def pattern(self, op: Ops, /, x: Value) -> Any:
        names = ("k", "axis", "ascending", "sort", "return_indices", "output_indices_dtype")
        return op.topk(x=x, **dict.fromkeys(names, ...))[0]


class TwoRoots(Nothing):
    def pattern(self, op: Ops, /, x: Value) -> Any:
        return op.cos(x=x), op.sin(x=x)


class AnyWeight(Nothing):
    def pattern(self, op: Ops, /, x: Value, w: Weight, b: Const) -> Any:
        return op.linear(x=x, weight=w, bias=b)


class Convolved(Nothing):
    def pattern(self, op: Ops, /, x: Value, w: Weight, c: Const) -> Any:
        others = dict.fromkeys(("strides", "pad_type", "pad", "dilations", "groups", "bias"), ...)
        return op.mul(x=op.conv(x=x, weight=w, **others), y=c)


class Sliced(Nothing):
    def pattern(self, op: Ops, /, x: Value) -> Any:
        others = dict.fromkeys(("begin_mask", "end_mask", "squeeze_mask", "stride"), ...)
        return op.relu(x=op.slice_by_index(x=x, begin=..., end=..., **others))


class Integers(Nothing):
    def pattern(self, op: Ops, /, table: Value, ids: Value, n: Scalar) -> Any:
        below = op.greater_equal(x=ids, y=0)
        return op.gather(
            x=table, indices=op.select(cond=below, a=ids, b=op.add(x=ids, y=n)), axis=..., batch_dims=...,
            validate_indices=...,
        )  # fmt: skip


class Normed(Nothing):
    def pattern(self, op: Ops, /, x: Value, gamma: Const, beta: Const) -> Any:
        return op.mul(x=op.layer_norm(x=x, axes=[-1], gamma=gamma, beta=beta, epsilon=...), y=2.0)


class SizedSlice(Nothing):
    def pattern(self, op: Ops, /, x: Value, begin: Const, size: Const) -> Any:
        return op.slice_by_size(x=op.relu(x=x), begin=begin, size=size)


class SplitInParts(Nothing):
    def pattern(self, op: Ops, /, x: Value, sizes: Const, axis: Scalar) -> Any:
        return op.split(x=op.relu(x=x), split_sizes=sizes, axis=axis)


class Pooled(Nothing):
    def pattern(self, op: Ops, /, x: Value, kernel: Const) -> Any:
        return op.max_pool(x=op.relu(x=x), kernel_sizes=kernel, pad_type="valid")


class Contracted(Nothing):
    def pattern(self, op: Ops, /, x: Value, y: Value) -> Any:
        return op.einsum(values=(x, y), equation="nchw,nwhu->nchu")


class NormedResult(Nothing):
    def pattern(self, op: Ops, /, x: Value, gamma: Weight) -> Any:
        return op.layer_norm(x=op.relu(x=x), axes=[-1], gamma=gamma)


FORMS = [
    Alternatives(), Chained(), Starred(), SecondOutput(), TopValues(), TwoRoots(), AnyWeight(), Convolved(), Sliced(),
    Integers(), Normed(), SizedSlice(), SplitInParts(), Pooled(), Contracted(), NormedResult(),
]  # fmt: skip


@pytest.mark.parametrize("rule", FORMS, ids=lambda rule: rule.name)
def test_every_form_of_a_pattern_is_drawn(rule: Rule[Any]) -> None:
    """The pattern is in what is drawn, though nothing was ever told of the ops in it."""
    found = Counter[bool]()

    def look(program: Program) -> None:
        program.validate()
        misses = apply(rule, load(program).clone()).misses
        found[any(miss.declined for miss in misses)] += 1

    each_of(mil.matching(rule, surroundings=False, attempts=4), look, 15)
    assert found[True] >= 8, found


def test_alternatives_chains_and_weights_vary() -> None:
    seen = Counter[str]()
    for rule in (Alternatives(), Chained(), AnyWeight(), Starred()):
        each_of(
            mil.matching(rule, attempts=2),
            lambda program: seen.update({op.op_type for op in operations(program.functions["main"])}),
            40,
        )
    wanted = {"relu", "mul", "add", "transpose", "reshape", "constexpr_blockwise_shift_scale", "concat"}
    assert wanted <= set(seen)


def test_surroundings() -> None:
    """Matches in branches, on symbols, on states, of shared constants and with other uses of their values."""
    rule = DropMulByOne()
    seen = Counter[str]()

    def look(program: Program) -> None:
        function = program.functions["main"]
        if not apply(rule, load(program).clone()):
            seen["refused"] += 1
        seen["nested"] += any(
            op.op_type == "mul" for outer in function.operations for b in outer.blocks for op in b.operations
        )
        seen["symbolic"] += any(is_symbolic(dim) for var in function.inputs.values() for dim in shape_of(var))
        seen["state"] += any(is_state(var) for var in function.inputs.values())
        seen["behind"] += any(
            user for op in function.operations if op.op_type == "mul" for user in op.outputs[0].child_ops
        )
        seen["constant first"] += any(
            constant(op.inputs["x"]) is not None for op in operations(function) if op.op_type == "mul"
        )
        seen.update(dtype_name(var) for var in function.inputs.values())

    each_of(mil.matching(rule), look, 150)
    for what in ("refused", "nested", "symbolic", "state", "behind", "constant first", "fp32", "fp16", "int32"):
        assert seen[what] > 0, (what, seen)


class DropMulByOne(Rule[None]):
    """``x * 1 -> x``, where the shapes allow."""

    def pattern(self, op: Ops, /, x: Value, one: Scalar) -> Any:
        return op.mul(x=x, y=one)

    def check(self, m: Match, /) -> None:
        require(m.one == 1, "the factor is {}, not {}", m.one, 1.0)

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Var:
        x: Var = m.x
        return x


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


class LooseHalf(Rule[None]):
    """``x ** 0.5 -> sqrt(x)`` for every exponent near one half, as near as 0.001."""

    def pattern(self, op: Ops, /, x: Value, e: Scalar) -> Any:
        return op.pow(x=op.abs(x=x), y=e)

    def check(self, m: Match, /) -> None:
        require(abs(float(m.e) - 0.5) < 1e-3, "the exponent is {}, not {}", m.e, 0.5)

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Var:
        made: Var = op.sqrt(x=op.abs(x=m.x))
        return made


class NearlySix(Rule[None]):
    """``clip(x, 0, 6.5) -> relu6(x)``, which is wrong for few numbers."""

    def pattern(self, op: Ops, /, x: Value) -> Any:
        return op.clip(x=x, alpha=0.0, beta=6.5)

    def check(self, m: Match, /) -> None:
        """Wherever it is found."""

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Var:
        made: Var = op.relu6(x=m.x)
        return made


WRONG = [ScaleBehindSoftmax(), SoftmaxOfExp(), TransposeTwice(), NearlySix()]


@pytest.mark.parametrize("rule", WRONG, ids=lambda rule: rule.name)
def test_wrong_rules_are_found(rule: Rule[Any]) -> None:
    with pytest.raises(AssertionError, match=f"{rule.name}: differs: "):
        check_rule(rule, mil.matching(rule), max_examples=300)  # few permutations are wrong, and keep the shape


def test_a_number_that_is_nearly_right_is_found_by_a_near_miss() -> None:
    rule = LooseHalf()
    check_rule(rule, mil.matching(rule, dtypes=["fp32"]), max_examples=30)
    with pytest.raises(AssertionError, match=r"LooseHalf: differs(.|\n)*changed: y of pow v1: 0\.5 -> 0\.5005"):
        check_rule(rule, mil.near_misses(rule, dtypes=["fp32"]), max_examples=200, must_fire=False)


def test_near_misses_change_each_detail() -> None:
    kinds = Counter[str]()

    def look(program: Program) -> None:
        assert note_of(program).startswith("changed: ")
        kinds[note_of(program)[len("changed: ") :].split(":")[0]] += 1

    each_of(mil.near_misses(ReluFirst()), look, 100)
    text = " | ".join(kinds)
    for detail in ("axes of reduce_max", "keep_dims of reduce_max", "x of relu", "x of reduce_max", "is an output too"):
        assert detail in text, text
    assert "relu v1" in kinds  # another op in its place
    assert "reduce_max v0" in kinds
    assert any(kind.startswith("input x") for kind in kinds)


def test_a_rule_that_looks_refuses_most_near_misses() -> None:
    rule = ReluFirst()
    check_rule(rule, mil.near_misses(rule), max_examples=60, must_fire=False)
    fired = Counter[bool]()
    each_of(mil.near_misses(rule), lambda program: fired.update([bool(apply(rule, load(program).clone()))]), 60)
    assert fired[False] > 0


def test_changes_are_listed_in_one_order() -> None:
    def labels(program: Program) -> list[str]:
        match = first_match(ReluFirst(), program)
        assert match is not None
        return [edit.label for edit in changes(program, match)]

    def look(program: Program) -> None:
        if apply(ReluFirst(), load(program).clone()):
            assert labels(program) == labels(program)
            assert len(labels(program)) > 8

    each_of(mil.matching(ReluFirst(), surroundings=False), look, 5)


def test_values_by_the_caller() -> None:
    """What trying does not find, the caller draws."""

    class OfPower(Nothing):
        def pattern(self, op: Ops, /, x: Value) -> Any:
            return op.relu(x=x)

        def check(self, m: Match, /) -> None:
            assert m.x.op is not None
            require(m.x.op.op_type == "pow" and constant(m.x.op.inputs["y"]) == 7, "no seventh power")
            raise ZeroDivisionError  # seen

    def seventh(draw: Any, scope: Any) -> Any:
        from milopt.mil import mb

        return mb.pow(x=scope.input((2,), "fp32"), y=np.float32(7))

    with pytest.raises(ZeroDivisionError):
        each_of(mil.matching(OfPower(), values={"x": seventh}), lambda program: None, 3)


def test_a_failure_prints_a_script_that_repeats_it(tmp_path: Path) -> None:
    rule = ScaleBehindSoftmax()
    with pytest.raises(AssertionError) as raised:
        check_rule(rule, mil.matching(rule), max_examples=60)
    message = str(raised.value)
    head, _, script = message.partition("a script that repeats it:\n\n")
    assert head.count("softmax(") <= 3
    file = tmp_path / "repeat.py"
    file.write_text(script)
    ran = subprocess.run(
        [sys.executable, str(file)], capture_output=True, text=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}
    )
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "ScaleBehindSoftmax: differs" in ran.stdout
    mended = script.replace("from tests.testing.test_patterns import ScaleBehindSoftmax", MENDED)
    assert mended != script
    file.write_text(mended)
    ran = subprocess.run(
        [sys.executable, str(file)], capture_output=True, text=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}
    )
    assert (ran.returncode, ran.stdout.strip()) == (0, "refuses, and holds")


def test_a_rule_of_a_script_is_found_by_the_script_it_prints(tmp_path: Path) -> None:
    written = tmp_path / "mine.py"
    written.write_text(MINE)
    script = tmp_path / "elsewhere" / "repeat.py"
    script.parent.mkdir()
    env = {"PYTHONPATH": str(ROOT)}
    first = subprocess.run([sys.executable, str(written)], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert "holds(Scaled(by=3.0), build())" in first.stdout, first.stderr
    script.write_text(first.stdout)
    again = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=script.parent, env=env)
    assert again.returncode == 1, again.stderr
    assert again.stdout.startswith("Scaled: differs: output v0")


MINE = """\
from dataclasses import dataclass

import numpy as np

import milopt
from milopt.testing import check_rule, strategies


@dataclass(frozen=True)
class Scaled(milopt.Rule):
    by: float = 2.0

    def pattern(self, op, /, x: milopt.Value):
        return op.exp(x=x)

    def check(self, m): ...

    def rewrite(self, op, m, facts):
        return op.mul(x=m.x, y=np.float32(self.by))


if __name__ == "__main__":
    try:
        check_rule(Scaled(by=3.0), strategies.matching(Scaled(), dtypes=("fp32",)), max_examples=20)
    except AssertionError as error:
        print(str(error).partition("a script that repeats it:")[2].strip())
"""


MENDED = """\
from tests.testing.test_patterns import ScaleBehindSoftmax as _Wrong
from milopt.reports import NoMatch


class ScaleBehindSoftmax(_Wrong):
    def check(self, m):
        raise NoMatch("it is not the same")
"""
