"""When a constant of a program is what a pattern wrote: numbers, arrays of them, axes, words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from milopt.axes import axes_of
from milopt.literals import same_number
from milopt.mil import Program, get_new_symbol, mb, target, types
from milopt.pattern import Ops, Scalar, Value

from .support import X, find, op_of, program, reason

F16, F32, I32 = np.float16, np.float32, np.int32


@pytest.mark.parametrize(
    ("wanted", "found", "equal"),
    [
        (0.1, F16(0.1), True),
        (0.1, F32(0.1), True),
        (0.1, F32(0.1 * (1 + 7e-8)), True),  # one step beside: rounded once more
        (0.1, F32(0.1 * (1 + 3e-7)), False),
        (1.0, F16(1.002), False),
        (2, F32(2), True),
        (2.0, I32(2), True),
        (2.5, I32(2), False),
        (1, np.True_, False),
        (True, I32(1), False),
        (True, np.True_, True),
        (True, F32(1), False),
        (0.0, F32(0.0), True),
        (0.0, F32(-0.0), False),
        (0, F16(-0.0), False),
        (-0.0, F16(-0.0), True),
        (-0.0, F16(0.0), False),
        (-0.0, I32(0), False),
        (0.0, I32(0), True),
        (False, F32(0), False),
        (1e-12, F16(0), False),  # rounds to it, but is no 0
        (0.0, F16(6e-8), False),
        (1e-7, F16(1.2e-7), True),  # the subnormal number it rounds to
        (1e-7, F16(6e-8), False),
        (1e6, F16(np.inf), False),
        (1e6, F16(3), False),
        (65510.0, F16(65504), True),
        (2.0, np.nextafter(F16(2), F16(3)), False),  # nothing rounds 2
        (np.inf, F16(np.inf), True),
        (-np.inf, F16(np.inf), False),
        (np.nan, F32(np.nan), True),
        (np.nan, F32(0), False),
        (0.0, F32(np.nan), False),
        (F32(0.1), F16(0.1), True),
        (3, np.uint8(3), True),
    ],
)
def test_numbers_are_equal_relatively_and_to_their_own_kind(wanted: Any, found: Any, equal: bool) -> None:
    assert same_number(wanted, found) == equal


def scaled(constant: Any, shape: tuple[Any, ...] = X) -> Program:
    return program(lambda a: mb.mul(x=a, y=constant), shape)


UNIFORM: dict[str, tuple[Any, bool]] = {
    "a number": (F32(2), True),
    "an array of one": (np.full((1, 1), 2, F32), True),
    "an array of equal numbers": (np.full((3, 4), 2, F32), True),
    "other numbers": (np.full((3, 4), 3, F32), False),
    "almost equal numbers": (np.array([2, 2, 2, 2.0001], F32), False),
    "a larger array": (np.full((5, 1, 1, 1), 2, F32), False),
    "an array of one, and a higher rank": (np.full((1, 1, 1, 1), 2, F32), False),
}


@pytest.mark.parametrize("case", UNIFORM)
def test_an_array_of_equal_numbers_is_the_number_where_it_makes_nothing_larger(case: str) -> None:
    def literal(op: Ops, x: Value) -> Any:
        return op.mul(x=x, y=2.0)

    def scalar(op: Ops, x: Value, s: Scalar) -> Any:
        return op.mul(x=x, y=s)

    constant, equal = UNIFORM[case]
    assert bool(find(literal, scaled(constant))[0]) == equal
    bound = [float(match.s) for match in find(scalar, scaled(constant))[0]]
    assert bound == ([2.0] if equal else [3.0] if case == "other numbers" else [])


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zeros_of_either_sign_are_two_numbers(zero: float) -> None:
    """As where a scalar is repeated: ``1 / 0.0`` and ``1 / -0.0`` are not the same."""

    def literal(op: Ops, x: Value) -> Any:
        return op.real_div(x=x, y=zero)

    def either(op: Ops, x: Value) -> Any:
        return op.real_div(x=x, y=op.one_of("zero", plus=0.0, minus=-0.0))

    def repeated(op: Ops, x: Value, s: Scalar) -> Any:
        return op.add(x=op.real_div(x=x, y=s), y=s)

    def divided(by: float) -> Program:
        return program(lambda a: mb.real_div(x=a, y=F32(by)), X)

    def moved(by: float) -> Program:
        return program(lambda a: mb.add(x=mb.real_div(x=a, y=F32(by)), y=F32(zero)), X)

    assert find(literal, divided(zero))[0]
    assert not find(literal, divided(-zero))[0]
    assert find(either, divided(-zero))[0]
    assert find(repeated, moved(zero))[0]
    assert not find(repeated, moved(-zero))[0]


def test_what_broadcasts_against_a_symbol_may_enlarge_it() -> None:
    def literal(op: Ops, x: Value) -> Any:
        return op.mul(x=x, y=2.0)

    shape = (get_new_symbol(), 4)
    assert find(literal, scaled(np.full((1, 4), 2, F32), shape))[0]
    assert not find(literal, scaled(np.full((3, 4), 2, F32), shape))[0]


def test_why_an_array_is_no_number() -> None:
    def pattern(op: Ops, x: Value, s: Scalar) -> Any:
        return op.mul(x=x, y=s)

    larger = find(pattern, scaled(np.full((5, 1, 1, 1), 2, F32)))[1]
    assert reason(larger) == "s makes the result larger"
    several = find(pattern, scaled(np.arange(4, dtype=F32)))[1]
    assert reason(several) == "s is not a single number"


def test_a_scalar_that_does_not_broadcast_has_rank_0() -> None:
    """``gather`` with indices [1] has an axis more than with the index 1."""

    def pattern(op: Ops, x: Value, i: Scalar) -> Any:
        return op.gather(x=x, indices=i, axis=0, batch_dims=..., validate_indices=...)

    assert find(pattern, program(lambda a: mb.gather(x=a, indices=I32(1), axis=0), X))[0]
    assert not find(pattern, program(lambda a: mb.gather(x=a, indices=[1], axis=0), X))[0]


def test_arrays_are_equal_element_by_element_and_in_shape() -> None:
    def pattern(op: Ops, x: Value) -> Any:
        return op.add(x=x, y=np.array([[1.0, 2.0, 3.0, 4.0]]))

    row = np.array([[1, 2, 3, 4]], F32)
    assert find(pattern, program(lambda a: mb.add(x=a, y=row), X))[0]
    assert not find(pattern, program(lambda a: mb.add(x=a, y=row + F32(1e-3)), X))[0]
    assert not find(pattern, program(lambda a: mb.add(x=a, y=row[0]), X))[0]


def test_words_are_equal_exactly() -> None:
    def pattern(op: Ops, x: Value) -> Any:
        return op.cast(x=x, dtype="fp16")

    assert find(pattern, program(lambda a: mb.cast(x=a, dtype="fp16"), X))[0]
    assert not find(pattern, program(lambda a: mb.cast(x=a, dtype="int32"), X))[0]


def same(pattern: Callable[[Any, Any], Any], body: Callable[[Any], Any], **specs: Any) -> bool:
    def written(op: Ops, x: Value) -> Any:
        return pattern(op, x)

    return bool(find(written, program(body, X, **specs))[0])


AXES: dict[str, tuple[Callable[[Any, Any], Any], Callable[[Any], Any], bool]] = {
    "softmax": (lambda op, x: op.softmax(x=x, axis=-1), lambda a: mb.softmax(x=a, axis=2), True),
    "softmax elsewhere": (lambda op, x: op.softmax(x=x, axis=-2), lambda a: mb.softmax(x=a, axis=2), False),
    "concat": (lambda op, x: op.concat(values=(x, x), axis=2), lambda a: mb.concat(values=(a, a), axis=-1), True),
    "stack": (lambda op, x: op.stack(values=(x, x), axis=-1), lambda a: mb.stack(values=(a, a), axis=3), True),
    "stack, counted in the operand": (
        lambda op, x: op.stack(values=(x, x), axis=-1),
        lambda a: mb.stack(values=(a, a), axis=2),
        False,
    ),
    "split": (
        lambda op, x: op.split(x=x, num_splits=2, axis=-1)[0],
        lambda a: mb.split(x=a, num_splits=2, axis=2)[0],
        True,
    ),
    "gather": (
        lambda op, x: op.gather(x=x, indices=0, axis=-1, batch_dims=..., validate_indices=...),
        lambda a: mb.gather(x=a, indices=I32(0), axis=2),
        True,
    ),
    "reduce": (
        lambda op, x: op.reduce_sum(x=x, axes=[-1, 0]),
        lambda a: mb.reduce_sum(x=a, axes=[0, 2]),
        True,
    ),
    "reduce more": (
        lambda op, x: op.reduce_sum(x=x, axes=[-1, 0]),
        lambda a: mb.reduce_sum(x=a, axes=[0, 1, 2]),
        False,
    ),
    "argmax": (lambda op, x: op.reduce_argmax(x=x, axis=2), lambda a: mb.reduce_argmax(x=a, axis=-1), True),
    "expand_dims": (lambda op, x: op.expand_dims(x=x, axes=[3, 0]), lambda a: mb.expand_dims(x=a, axes=[0, -2]), True),
    "expand_dims, counted in the operand": (
        lambda op, x: op.expand_dims(x=x, axes=[-1]),
        lambda a: mb.expand_dims(x=a, axes=[2]),
        False,
    ),
    "layer_norm": (lambda op, x: op.layer_norm(x=x, axes=[-1]), lambda a: mb.layer_norm(x=a, axes=[2]), True),
    "cumsum": (lambda op, x: op.cumsum(x=x, axis=-3), lambda a: mb.cumsum(x=a, axis=0), True),
    "topk": (
        lambda op, x: op.topk(x=x, k=1, axis=-1, sort=..., return_indices=..., output_indices_dtype=...)[0],
        lambda a: mb.topk(x=a, k=1, axis=2)[0],
        True,
    ),
    "transpose": (lambda op, x: op.transpose(x=x, perm=[0, 2, 1]), lambda a: mb.transpose(x=a, perm=[0, -1, -2]), True),
    "transpose, in order": (
        lambda op, x: op.transpose(x=x, perm=[0, 2, 1]),
        lambda a: mb.transpose(x=a, perm=[0, -2, -1]),
        False,
    ),
    "reverse": (lambda op, x: op.reverse(x=x, axes=[2, 0]), lambda a: mb.reverse(x=a, axes=[0, -1]), True),
    "flatten2d behind the last axis": (
        lambda op, x: op.flatten2d(x=x, axis=0),
        lambda a: mb.flatten2d(x=a, axis=3),
        False,
    ),
    "one number for one axis": (
        lambda op, x: op.reduce_mean(x=x, axes=-1),
        lambda a: mb.reduce_mean(x=a, axes=[2]),
        True,
    ),
    "what counts no axes": (
        lambda op, x: op.slice_by_size(x=x, begin=[0, 0, -1], size=...),
        lambda a: mb.slice_by_size(x=a, begin=[0, 0, 2], size=[-1, -1, 1]),
        False,
    ),
}


@pytest.mark.parametrize("case", AXES)
def test_axes(case: str) -> None:
    pattern, body, equal = AXES[case]
    assert same(pattern, body) == equal


def test_squeezed_axes_are_a_set() -> None:
    def pattern(op: Ops, x: Value) -> Any:
        return op.squeeze(x=x, axes=[-1, 0])

    assert find(pattern, program(lambda a: mb.squeeze(x=a, axes=[0, 2]), (1, 3, 1)))[0]


def test_defaults_that_are_no_plain_numbers() -> None:
    """A convolution's strides and pads are left out, in whatever form the program has them."""

    def pattern(op: Ops, x: Value, w: Value) -> Any:
        return op.conv(x=x, weight=w)

    weight = np.ones((2, 3, 1, 1), F32)

    def conv(**inputs: Any) -> Program:
        return program(lambda a: mb.conv(x=a, weight=weight, **inputs), (1, 3, 4, 4))

    assert find(pattern, conv())[0]
    assert find(pattern, conv(strides=[1, 1]))[0]
    matches, matcher = find(pattern, conv(strides=[2, 1]))
    assert not matches
    assert reason(matcher) == "conv's strides is not the default"


def test_axes_of_an_input() -> None:
    moved = program(lambda a: mb.transpose(x=mb.squeeze(x=mb.expand_dims(x=a, axes=[-1])), perm=[-1, 0, 1]), X)
    transpose = op_of(moved.functions["main"].outputs[0])
    squeeze = op_of(transpose.x)
    assert axes_of(transpose, "perm") == (2, 0, 1)
    assert axes_of(squeeze, "axes") is None
    assert axes_of(op_of(squeeze.x), "axes") == (3,)


def test_half_precision_programs() -> None:
    def pattern(op: Ops, x: Value) -> Any:
        return op.layer_norm(x=x, axes=[-1], gamma=None, beta=None, epsilon=1e-5)

    half = program(lambda a: mb.layer_norm(x=a, axes=[-1], epsilon=F16(1e-5)), X, dtype=types.fp16)
    other = program(lambda a: mb.layer_norm(x=a, axes=[-1], epsilon=F16(2e-5)), X, dtype=types.fp16)
    assert find(pattern, half)[0]
    assert not find(pattern, other)[0]


def test_older_opsets_have_their_own_inputs() -> None:
    def pattern(op: Ops, x: Value, i: Value) -> Any:
        return op.gather(x=x, indices=i, axis=0, batch_dims=..., validate_indices=...)

    # anything is also nothing: iOS15's gather has neither of the two
    assert find(pattern, program(lambda a: mb.gather(x=a, indices=[0], axis=0), X, opset=target.iOS15))[0]
    assert find(pattern, program(lambda a: mb.gather(x=a, indices=[0], axis=0), X, opset=target.iOS18))[0]
