"""The pattern language: what matches, what does not, and what is said then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from milopt.matching import unify_shapes
from milopt.mil import get_new_symbol, mb, types
from milopt.pattern import Const, Ops, Scalar, Value
from milopt.reports import NoMatch

from .support import X, find, program


def test_an_input_left_out_must_have_its_default() -> None:
    plain = program(lambda a, b: mb.matmul(x=a, y=b), (3, 4), (4, 5))
    flipped = program(lambda a, b: mb.matmul(x=a, y=b, transpose_y=True), (3, 4), (5, 4))

    def unsaid(op: Ops, x: Value, y: Value) -> Any:
        return op.matmul(x=x, y=y)

    def anything(op: Ops, x: Value, y: Value) -> Any:
        return op.matmul(x=x, y=y, transpose_y=...)

    assert len(find(unsaid, plain)[0]) == 1
    matches, matcher = find(unsaid, flipped)
    assert not matches
    assert matcher.why[0].format(*matcher.why[1]) == "matmul's transpose_y is not the default"
    assert len(find(anything, flipped)[0]) == 1


def test_commutative_inputs_match_both_ways() -> None:
    def pattern(op: Ops, x: Value, y: Value) -> Any:
        return op.add(x=op.relu(x=x), y=y)

    first = program(lambda a, b: mb.add(x=mb.relu(x=a), y=b), X, X)
    second = program(lambda a, b: mb.add(x=b, y=mb.relu(x=a)), X, X)
    for each in (first, second):
        (match,), _ = find(pattern, each)
        assert (match.x.name, match.y.name) == ("a", "b")


def test_subtraction_does_not_commute() -> None:
    def pattern(op: Ops, x: Value, y: Value) -> Any:
        return op.sub(x=op.relu(x=x), y=y)

    matches, matcher = find(pattern, program(lambda a, b: mb.sub(x=b, y=mb.relu(x=a)), X, X))
    assert not matches
    assert matcher.why[0].format(*matcher.why[1]) == "wanted relu, found an input"
    assert matcher.depth == 1


def test_a_variable_used_twice_is_one_value() -> None:
    def square(op: Ops, x: Value) -> Any:
        return op.mul(x=x, y=x)

    assert len(find(square, program(lambda a: mb.mul(x=a, y=a), X))[0]) == 1
    matches, matcher = find(square, program(lambda a, b: mb.mul(x=a, y=b), X, X))
    assert not matches
    assert "x is not the same value as before" in matcher.why[0].format(*matcher.why[1])


def test_alternatives_backtrack() -> None:
    """The first alternative fits the op, but fails deeper: the second is tried."""

    def pattern(op: Ops, x: Value, y: Value) -> Any:
        inner = op.one_of("kind", exact=op.mul(x=op.relu(x=x), y=y), loose=op.mul(x=x, y=y))
        return op.exp(x=inner)

    (match, *_), _ = find(pattern, program(lambda a, b: mb.exp(x=mb.mul(x=a, y=b)), X, X))
    assert match.kind == "loose"
    (match, *_), _ = find(pattern, program(lambda a, b: mb.exp(x=mb.mul(x=mb.relu(x=a), y=b)), X, X))
    assert match.kind == "exact"


def test_variables_of_alternatives_not_chosen_are_none() -> None:
    def pattern(op: Ops, x: Value, s: Scalar) -> Any:
        return op.relu(x=op.one_of("scaled", yes=op.mul(x=x, y=s), no=x))

    (match, *_), _ = find(pattern, program(lambda a: mb.relu(x=a), X))
    assert (match.scaled, match.s) == ("no", None)
    (match, *_), _ = find(pattern, program(lambda a: mb.relu(x=mb.mul(x=a, y=np.float32(3))), X))
    assert (match.scaled, match.s) == ("yes", 3)
    with pytest.raises(AttributeError, match="no variable or tag 'nonsense'"):
        getattr(match, "nonsense")  # noqa: B009  (the access is the test)


def test_scalars_are_constants_of_one_element() -> None:
    def pattern(op: Ops, x: Value, s: Scalar) -> Any:
        return op.real_div(x=x, y=s)

    matches, matcher = find(pattern, program(lambda a, b: mb.real_div(x=a, y=b), X, X))
    assert not matches
    assert matcher.why[0].format(*matcher.why[1]) == "s is computed, not a constant"
    several = np.arange(1, 5, dtype=np.float32)
    matches, matcher = find(pattern, program(lambda a: mb.real_div(x=a, y=several), X))
    assert matcher.why[0].format(*matcher.why[1]) == "s is not a single number"


def test_constants_are_bound_to_their_value() -> None:
    def pattern(op: Ops, x: Value, w: Const) -> Any:
        return op.add(x=x, y=w)

    (match, *_), _ = find(pattern, program(lambda a: mb.add(x=a, y=np.arange(4, dtype=np.float32)), X))
    np.testing.assert_array_equal(match.w.val, [0, 1, 2, 3])


@pytest.mark.parametrize(("written", "found", "equal"), [(-1, 2, True), (2, -1, True), (-1, 1, False)])
def test_axes_are_counted_from_either_end(written: int, found: int, equal: bool) -> None:
    def pattern(op: Ops, x: Value) -> Any:
        return op.softmax(x=x, axis=written)

    assert bool(find(pattern, program(lambda a: mb.softmax(x=a, axis=found), X))[0]) == equal


def test_perms_are_counted_from_either_end() -> None:
    def pattern(op: Ops, x: Value) -> Any:
        return op.transpose(x=x, perm=[0, 2, 1])

    assert find(pattern, program(lambda a: mb.transpose(x=a, perm=[0, -1, -2]), X))[0]
    assert not find(pattern, program(lambda a: mb.transpose(x=a, perm=[1, 0, 2]), X))[0]


@pytest.mark.parametrize(
    ("number", "equal"), [(np.float16(0.1), True), (np.float16(0.1003), False), (np.float16(0.2), False)]
)
def test_literals_are_equal_at_the_precision_of_the_constant(number: np.float16, equal: bool) -> None:
    def pattern(op: Ops, x: Value) -> Any:
        return op.mul(x=x, y=0.1)

    assert bool(find(pattern, program(lambda a: mb.mul(x=a, y=number), X, dtype=types.fp16))[0]) == equal


def test_tiny_literals_are_not_all_alike() -> None:
    """Equality is relative: an absolute tolerance would take 1e-5 for 1e-12."""

    def pattern(op: Ops, x: Value) -> Any:
        return op.rsqrt(x=x, epsilon=1e-12)

    assert not find(pattern, program(lambda a: mb.rsqrt(x=a, epsilon=np.float32(1e-5)), X))[0]
    assert find(pattern, program(lambda a: mb.rsqrt(x=a, epsilon=np.float32(1e-12)), X))[0]


def test_outputs_of_an_op_with_several() -> None:
    def second(op: Ops, x: Value) -> Any:
        return op.relu(x=op.split(x=x, num_splits=2, axis=2)[1])

    def body(index: int) -> Callable[[Any], Any]:
        return lambda a: mb.relu(x=mb.split(x=a, num_splits=2, axis=2)[index])

    assert find(second, program(body(1), X))[0]
    matches, matcher = find(second, program(body(0), X))
    assert not matches
    assert matcher.why[0].format(*matcher.why[1]) == "wanted output 1 of split, found output 0"


def test_variadic_inputs() -> None:
    def pattern(op: Ops, x: Value, y: Value) -> Any:
        return op.concat(values=(x, op.relu(x=y)), axis=1)

    assert find(pattern, program(lambda a, b: mb.concat(values=(a, mb.relu(x=b)), axis=1), X, X))[0]
    matches, matcher = find(pattern, program(lambda a: mb.concat(values=(a,), axis=1), X))
    assert not matches
    assert matcher.why[0].format(*matcher.why[1]) == "concat has 1 values, not 2"


def test_absent_inputs() -> None:
    def without(op: Ops, q: Value, k: Value) -> Any:
        return op.scaled_dot_product_attention(query=q, key=k, value=k, attn_mask=None)

    bare = program(lambda a: mb.scaled_dot_product_attention(query=a, key=a, value=a), X)
    masked = program(
        lambda a, b: mb.scaled_dot_product_attention(query=a, key=a, value=a, attn_mask=b), (2, 3, 4), (2, 3, 3)
    )
    assert find(without, bare)[0]
    matches, matcher = find(without, masked)
    assert not matches
    assert matcher.why[0].format(*matcher.why[1]) == "scaled_dot_product_attention's attn_mask is given"


def test_the_same_pattern_twice_is_the_same_op() -> None:
    def pattern(op: Ops, x: Value) -> Any:
        shared = op.exp(x=x)
        return op.mul(x=op.relu(x=shared), y=op.tanh(x=shared))

    def shared(a: Any) -> Any:
        e = mb.exp(x=a)
        return mb.mul(x=mb.relu(x=e), y=mb.tanh(x=e))

    assert find(pattern, program(shared, X))[0]
    twice = program(lambda a: mb.mul(x=mb.relu(x=mb.exp(x=a)), y=mb.tanh(x=mb.exp(x=a))), X)
    assert not find(pattern, twice)[0]


def test_shapes_unify() -> None:
    (match, *_), _ = find(_pair, program(lambda a, b: mb.matmul(x=a, y=b), (2, 5, 3, 4), (2, 5, 4, 6)))
    size = match.shapes(x="*B L E", y="*B E S")
    assert (size.B, size.L, size.E, size.S) == ((2, 5), 3, 4, 6)
    with pytest.raises(NoMatch, match=r"y: E is 6, but 4 before"):
        match.shapes(x="*B L E", y="*B S E")
    with pytest.raises(NoMatch, match=r"x: rank 4 does not fit L E"):
        match.shapes(x="L E")
    with pytest.raises(NoMatch, match=r"x: a dimension is 2, not 1"):
        match.shapes(x="1 *B L E".replace("*B", "H"))


def _pair(op: Ops, x: Value, y: Value) -> Any:
    return op.matmul(x=x, y=y)


def test_symbols_are_equal_only_to_themselves() -> None:
    first, second = get_new_symbol(), get_new_symbol()
    a = program(lambda a, b: mb.matmul(x=a, y=b), (2, first, 4), (2, 4, second)).functions["main"].inputs
    assert first == unify_shapes({"a": (a["a"], "B S E"), "again": (a["a"], "B S E")}).S
    with pytest.raises(NoMatch, match="but"):
        unify_shapes({"a": (a["a"], "B S E"), "b": (a["b"], "B E S")})
