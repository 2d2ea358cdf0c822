"""What the two precisions promise: every result rounded to its declared dtype, or no rounding at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from milopt.errors import EvaluationError
from milopt.interpreter import Precision, compile
from milopt.interpreter.values import Array
from milopt.mil import mb
from tests.interpreter.support import normals, program, run

HALF = normals(3, 64, dtype=np.float16)
BIG = np.full((1, 64), 300.0, np.float16)


def test_fp16_overflow_shows_in_declared_and_not_in_float64() -> None:
    def build(x: Any) -> Any:
        return mb.mul(x=x, y=x)

    assert np.isinf(run(build, {"x": BIG}, precision="declared")[0]).all()
    assert (run(build, {"x": BIG})[0] == 90_000).all()


def test_the_norm_whose_square_overflows_is_zero_in_declared() -> None:
    """Why fp16-safe-norm exists: pow gives inf, rsqrt of it 0, and the row vanishes."""

    def build(x: Any) -> Any:
        mean = mb.reduce_mean(x=mb.pow(x=x, y=np.float16(2)), axes=[-1], keep_dims=True)
        return mb.mul(x=x, y=mb.rsqrt(x=mb.add(x=mean, y=np.float16(1e-5))))

    assert (run(build, {"x": BIG}, precision="declared")[0] == 0).all()
    np.testing.assert_allclose(run(build, {"x": BIG})[0], 1, rtol=1e-6)  # epsilon is 1e-10 of the square


@pytest.mark.parametrize("op_type", ["exp", "sigmoid", "gelu", "tanh", "square", "sqrt", "cos", "silu"])
def test_each_fp16_result_is_the_rounded_fp32_one(op_type: str) -> None:
    x = np.abs(HALF)

    def build(x: Any) -> Any:
        return getattr(mb, op_type)(x=x)

    (declared,) = run(build, {"x": x}, precision="declared")
    (wide,) = run(build, {"x": x.astype(np.float32)}, precision="declared")
    assert declared.dtype == np.float16
    np.testing.assert_array_equal(declared, wide.astype(np.float16), strict=True)


def test_fp16_arithmetic_is_numpys() -> None:
    x, y = HALF, normals(3, 64, seed=1, dtype=np.float16)

    def build(x: Any, y: Any) -> Any:
        total = mb.add(x=x, y=y)
        return total, mb.mul(x=total, y=x), mb.real_div(x=x, y=y), mb.sub(x=mb.mul(x=x, y=x), y=total)

    got = run(build, {"x": x, "y": y}, precision="declared")
    for have, want in zip(got, (x + y, (x + y) * x, x / y, x * x - (x + y)), strict=True):
        np.testing.assert_array_equal(have, want, strict=True)


def _relative(got: Array, want: Array) -> float:
    return float(np.abs(got - want).max() / np.abs(want).max())


COMPOSITES: dict[str, Callable[[Any], Any]] = {
    "layer_norm": lambda x: mb.layer_norm(x=x, axes=[-1]),
    "reduce_mean": lambda x: mb.reduce_mean(x=x, axes=[-1]),
    "softmax": lambda x: mb.softmax(x=x, axis=-1),
    "linear": lambda x: mb.linear(x=x, weight=normals(16, 4096, dtype=np.float16)),
    "matmul": lambda x: mb.matmul(x=x, y=normals(4096, 16, dtype=np.float16)),
}


@pytest.mark.parametrize("name", COMPOSITES)
def test_composites_accumulate_in_fp32(name: str) -> None:
    """4,096 terms summed in fp16 would lose 1e-2 and more; rounding the result alone loses 2**-11 = 4.9e-4."""
    x = normals(2, 4096, dtype=np.float16) * np.float16(10)
    (declared,) = run(COMPOSITES[name], {"x": x}, precision="declared")
    (exact,) = run(COMPOSITES[name], {"x": x})
    assert _relative(declared.astype(np.float64), exact) < 6e-4


def test_a_layer_norm_of_large_values_does_not_overflow_inside() -> None:
    x = HALF * np.float16(1000)
    (declared,) = run(COMPOSITES["layer_norm"], {"x": x}, precision="declared")
    np.testing.assert_allclose(declared, HALF / np.std(HALF.astype(np.float32), -1, keepdims=True), atol=0.3)


def test_moving_values_rounds_nothing_and_casts_do() -> None:
    x = normals(2, 3)

    def build(x: Any) -> Any:
        half = mb.cast(x=mb.transpose(x=x, perm=[1, 0]), dtype="fp16")
        return mb.cast(x=half, dtype="fp32"), mb.reshape(x=x, shape=[6])

    declared = run(build, {"x": x}, precision="declared")
    np.testing.assert_array_equal(declared[0], x.T.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(declared[1], x.reshape(6))
    np.testing.assert_array_equal(run(build, {"x": x})[0], x.T.astype(np.float64))


def test_float64_returns_float64_and_keeps_integers() -> None:
    def build(x: Any) -> Any:
        return mb.exp(x=x), mb.cast(x=x, dtype="int32"), mb.greater(x=x, y=np.float16(0))

    exponential, whole, positive = run(build, {"x": HALF})
    np.testing.assert_allclose(exponential, np.exp(HALF.astype(np.float64)), rtol=1e-15)  # float64's own rounding
    assert (whole.dtype, positive.dtype) == (np.int32, np.bool_)


def test_int32_wraps_and_large_integers_survive_a_cast() -> None:
    x = np.array([2**31 - 1, 16_777_217, -5], np.int32)

    def build(x: Any) -> Any:
        return mb.add(x=x, y=np.int32(1)), mb.reduce_sum(x=x, axes=[0]), mb.cast(x=x, dtype="fp32")

    wrapped, total, wide = run(build, {"x": x})
    np.testing.assert_array_equal(wrapped, [-(2**31), 16_777_218, -4])
    assert total == np.int32((2**31 - 1 + 16_777_217 - 5) - 2**32)
    np.testing.assert_array_equal(wide, x.astype(np.float64))


def test_inputs_are_rounded_to_their_declared_dtype() -> None:
    x, rounded = np.array([0.1, 1e6]), np.array([0.1, np.inf], np.float16)
    made = program(lambda x: mb.identity(x=x, name="out"), {"x": rounded})
    np.testing.assert_array_equal(compile(made).run({"x": x})["out"], rounded.astype(np.float32))
    np.testing.assert_array_equal(compile(made, precision="float64").run({"x": x})["out"], x)


def test_an_unknown_precision_is_refused() -> None:
    wrong: Any = "fp16"
    precision: Precision = wrong
    with pytest.raises(EvaluationError, match="no precision 'fp16'; choose declared, declared-strict, float64"):
        compile(program(lambda x: mb.relu(x=x), {"x": HALF}), precision=precision)
