"""The checks pass good rules and find each kind of mistake."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import strategies as st

from milopt.errors import PassError
from milopt.mil import Program, Var, mb
from milopt.passes.canonical import Canonicalize
from milopt.testing import check_pass, check_rule
from milopt.testing import strategies as mil
from milopt.testing.scope import Draw
from tests.testing.rules import (
    DropAnyMul,
    DropMulByOne,
    LeavesDeadOps,
    Lies,
    MulToSquare,
    OneMoreRelu,
    Unlikely,
    WantsTanh,
)

PRODUCTS = mil.programs(ops={"mul", "relu", "add"}, max_ops=5)


def test_good_rules() -> None:
    check_rule(DropMulByOne(), PRODUCTS)
    check_rule([MulToSquare(), DropMulByOne()], PRODUCTS)


def test_a_wrong_rule_is_found_with_a_small_example() -> None:
    with pytest.raises(AssertionError, match=r"DropAnyMul: differs: output v\d") as raised:
        check_rule(DropAnyMul(), PRODUCTS)
    before = str(raised.value).split("after:")[1].split("became")[0]
    assert before.count("mul(") == 1
    assert before.count(" = ") == 1  # shrunk to the one op it takes


def test_a_rule_that_never_fires_is_vacuous() -> None:
    with pytest.raises(AssertionError, match=r"vacuous: MulToSquare never fired in \d+ programs"):
        check_rule(MulToSquare(), mil.programs(ops={"relu"}), max_examples=20)


def test_a_vacuous_test_says_why_the_rule_stayed_away() -> None:
    programs = mil.programs(ops={"relu", "mul"}, min_ops=2, max_ops=3, dtypes=["fp32"])
    with pytest.raises(AssertionError, match=r"it stayed away because\n  \d+ times: .*\(rules.py:\d+\)"):
        check_rule(WantsTanh(), programs, max_examples=20)


def test_a_pattern_that_no_program_holds() -> None:
    with pytest.raises(AssertionError, match="no program could be drawn for Unlikely: MIL refuses all"):
        check_rule(Unlikely(), mil.matching(Unlikely(), attempts=1, surroundings=False), max_examples=20)


def test_what_is_no_rule() -> None:
    with pytest.raises(PassError, match=r"MulToSquare is a class of rules: write MulToSquare\(\)"):
        check_rule(cast("Any", MulToSquare), PRODUCTS)
    with pytest.raises(PassError, match=r"'fuse-sdpa' is no milopt\.Rule"):
        check_pass(cast("Any", "fuse-sdpa"), PRODUCTS)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_constants_that_coremltools_computes_warn_of_nothing() -> None:
    """A quotient of two constants is computed where it is drawn, and one of them is 0 now and then."""

    def quotient(draw: Draw, values: Sequence[Var]) -> Var:
        made: Var = mb.real_div(x=np.ones(2, np.float32), y=np.zeros(2, np.float32))
        return made

    check_rule(
        MulToSquare(), mil.programs(ops={"quotient"}, makers={"quotient": quotient}), max_examples=3, must_fire=False
    )


def test_dead_ops_are_found() -> None:
    with pytest.raises(AssertionError, match=r"LeavesDeadOps leaves dead ops: v\d_tanh"):
        check_rule(LeavesDeadOps(), PRODUCTS)


@pytest.mark.parametrize(
    ("each", "message"),
    [
        (OneMoreRelu(), "one-more-relu changes its own result"),
        (Lies(), "lies reports no change, but the program is now"),
        (Lies(idle=True), "reports a change, but the program is still"),
    ],
)
def test_passes_that_break_their_word(each: OneMoreRelu, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_pass(each, mil.programs(ops={"relu"}, max_ops=2), max_examples=20)


def test_a_pass_of_milopt() -> None:
    check_pass(Canonicalize(), mil.programs(ops=mil.ELEMENTWISE | mil.MOVEMENT, max_ops=6), max_examples=40)


@pytest.mark.parametrize("family", [mil.ELEMENTWISE, mil.MOVEMENT, mil.REDUCTION, mil.LINEAR])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_programs_are_programs(family: frozenset[str], dtype: str) -> None:
    """Every op of a family is drawn, validates, and is named alike in equal programs."""
    seen: set[str] = set()

    def look(program: Program) -> None:
        program.validate()
        ops = [op for op in program.functions["main"].operations if op.op_type != "const"]
        assert [op.name for op in ops] == [f"v{index}" for index in range(len(ops))]
        assert 2 <= len(ops) <= 9
        seen.update(op.op_type for op in ops)

    _each(look, mil.programs(ops=family, min_ops=2, max_ops=9, dtypes=[dtype]))
    assert family <= seen


def test_makers_of_others() -> None:
    seen: list[int] = []

    def look(program: Program) -> None:
        seen.append(sum(op.op_type == "cumsum" for op in program.functions["main"].operations))

    _each(look, mil.programs(ops={"cumsum"}, makers={"cumsum": lambda draw, values: mb.cumsum(x=values[-1], axis=0)}))
    assert min(seen) >= 1


def test_ops_without_a_maker() -> None:
    with pytest.raises(ValueError, match=r"there is no maker for no_such_op, reluu; did you mean .*relu"):
        mil.programs(ops={"no_such_op", "reluu", "relu"})


def test_tensors() -> None:
    arrays: list[np.ndarray[tuple[int, ...], np.dtype[np.float16]]] = []
    _each(arrays.append, mil.tensors((2, 3), dtype="fp16"))
    assert {(each.shape, str(each.dtype)) for each in arrays} == {((2, 3), "float16")}
    assert {0.0, 1.0, 0.25} <= {float(number) for each in arrays for number in each.ravel()}


def _each(look: Callable[..., None], drawn: st.SearchStrategy[object]) -> None:
    from hypothesis import HealthCheck, given, settings

    @settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    @given(drawn)
    def check(value: object) -> None:
        look(value)

    check()
