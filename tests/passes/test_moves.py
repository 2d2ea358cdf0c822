"""Movements that cancel, come to one, or are made twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milopt.mil import Program, mb
from milopt.passes.moves import MOVE_RULES, CancelExpandDims, CancelSqueeze, MergeTransposes
from milopt.passes.sharing import share_moves
from milopt.rules import apply
from milopt.text import text

from .support import assert_same, op_types, twice

Step = Callable[[Any], Any]
X = (2, 1, 3, 4)


def moved(*steps: Step, also: int | None = None) -> Program:
    """The steps one after another; with ``also``, the value after that many of them is an output as well."""

    @mb.program(input_specs=[mb.TensorSpec(X)])
    def program(x: Any) -> Any:
        seen: list[Any] = []
        for step in steps:
            x = step(x)
            seen.append(x)
        out = mb.relu(x=x, name="out")
        return out if also is None else (out, mb.exp(x=seen[also], name="seen"))

    return program


def transpose(*perm: int) -> Step:
    return lambda x: mb.transpose(x=x, perm=perm)


def squeeze(*axes: int) -> Step:
    return lambda x: mb.squeeze(x=x, axes=axes) if axes else mb.squeeze(x=x)


def expand(*axes: int) -> Step:
    return lambda x: mb.expand_dims(x=x, axes=axes)


# steps, the ops that are left
CASES: dict[str, tuple[Sequence[Step], list[str]]] = {
    "inverse transposes": ((transpose(0, 2, 3, 1), transpose(0, 3, 1, 2)), []),
    # applied twice this perm is not the identity: a rule that composes the wrong way round would drop both
    "a rotation twice": ((transpose(1, 2, 0, 3), transpose(1, 2, 0, 3)), ["transpose"]),
    "order of composition": ((transpose(1, 0, 2, 3), transpose(0, 2, 1, 3)), ["transpose"]),
    "negative axes": ((transpose(0, -1, -3, -2), transpose(0, -2, -1, -3)), []),
    "three in a row": ((transpose(1, 2, 0, 3),) * 3, []),
    "expand and squeeze": ((expand(1), squeeze(1)), []),
    "expand and squeeze, counted from the end": ((expand(-2), squeeze(3)), []),
    "expand and squeeze elsewhere": ((expand(0), squeeze(2)), ["expand_dims", "squeeze"]),
    "squeeze and expand": ((squeeze(1), expand(1)), []),
    "squeeze of whatever there is": ((squeeze(), expand(1)), []),
    "squeeze and expand elsewhere": ((squeeze(1), expand(0)), ["squeeze", "expand_dims"]),
    "a transpose between a cancelling pair": (
        (squeeze(1), transpose(0, 2, 1), transpose(0, 2, 1), expand(1)),
        [],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_moves(case: str) -> None:
    steps, left = CASES[case]
    before, after = twice(lambda: moved(*steps))
    apply(MOVE_RULES, after)
    after.validate()
    assert op_types(after) == [*left, "relu"]
    assert_same(before, after)


def test_a_value_in_between_stays_for_its_other_users() -> None:
    before, after = twice(lambda: moved(transpose(1, 0, 2, 3), transpose(1, 0, 2, 3), also=0))
    assert apply(MOVE_RULES, after).applied == 1
    assert op_types(after) == ["transpose", "relu", "exp"]
    assert_same(before, after)


@pytest.mark.parametrize(
    ("rule", "steps", "reason"),
    [
        (MergeTransposes(), (squeeze(1), transpose(1, 0, 2)), "wanted transpose, found squeeze"),
        (CancelSqueeze(), (expand(0), squeeze(2)), "axes [0] are added, [2] removed"),
        (CancelSqueeze(), (squeeze(1),), "wanted expand_dims, found an input"),
        (CancelExpandDims(), (squeeze(1), expand(0)), "axes [1] are removed, [0] added"),
        (CancelExpandDims(), (expand(0),), "wanted squeeze, found an input"),
    ],
)
def test_refuses_with_its_reason(rule: Any, steps: Sequence[Step], reason: str) -> None:
    program = moved(*steps)
    before = text(program)
    report = apply(rule, program)
    assert not report
    assert reason in [miss.reason for miss in report.misses]
    assert text(program) == before


def test_golden() -> None:
    program = moved(transpose(1, 0, 2, 3), transpose(0, 2, 1, 3))
    apply(MOVE_RULES, program)
    assert text(program) == (
        "main[CoreML3](%x: fp32[2, 1, 3, 4]) {\n"
        "  %0: fp32[1, 3, 2, 4] = transpose(x=%x, perm=[1, 2, 0, 3])\n"
        "  %1: fp32[1, 3, 2, 4] = relu(x=%0)\n"
        "} -> (out=%1)\n"
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.permutations(range(4)), min_size=1, max_size=5))
def test_any_chain_of_transposes_is_one_or_none(perms: list[list[int]]) -> None:
    before, after = twice(lambda: moved(*(transpose(*perm) for perm in perms)))
    apply(MOVE_RULES, after)
    assert op_types(after).count("transpose") <= 1 or len(perms) == 1
    assert_same(before, after)


def test_equal_moves_of_one_value_are_shared() -> None:
    def build() -> Program:
        @mb.program(input_specs=[mb.TensorSpec(X)])
        def program(x: Any) -> Any:
            first = mb.expand_dims(x=mb.transpose(x=x, perm=[0, 2, 1, 3]), axes=[0])
            second = mb.expand_dims(x=mb.transpose(x=x, perm=[0, 2, 1, 3]), axes=[0])
            third = mb.expand_dims(x=mb.transpose(x=x, perm=[0, 2, 1, 3]), axes=[1])
            named = mb.transpose(x=x, perm=[0, 2, 1, 3], name="named")
            return mb.add(x=first, y=second, name="sum"), mb.relu(x=third, name="other"), named

        return program

    before, after = twice(build)
    assert share_moves(after) == 3
    kinds = op_types(after)
    assert (kinds.count("transpose"), kinds.count("expand_dims")) == (2, 2)  # the output keeps its own
    assert [var.name for var in after.functions["main"].outputs] == ["sum", "other", "named"]
    assert_same(before, after)
