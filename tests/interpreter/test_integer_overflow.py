"""Integers beyond int32, against what coremltools' value_inference makes of the same constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from milopt.interpreter.ops import core
from milopt.interpreter.ops.overflow import INTEGER_OVERFLOW
from milopt.mil import mb
from tests.interpreter.support import program, run

HIGH, LOW = 2**31 - 1, -(2**31)
X: Any = np.array([HIGH, LOW, LOW, HIGH, 7, -7, 0, 3], np.int32)
Y: Any = np.array([1, -1, 2, HIGH, 5, 2, 1, 40], np.int32)
ZERO: Any = np.array([0, 1, 0, 0, 0, 0, 0, 0], np.int32)

WEIGHT: Any = np.array([[1, 1], [3, 1]], np.int32)

Build = Callable[[Any, Any], Any]


def int32(values: Any) -> Any:
    return np.array(values, np.int32)


INFERRED: dict[str, Build] = {
    "abs": lambda x, y: mb.abs(x=x),
    "add": lambda x, y: mb.add(x=x, y=y),
    "cast": lambda x, y: mb.cast(x=mb.cast(x=x, dtype="uint16"), dtype="int32"),
    "cumsum": lambda x, y: mb.cumsum(x=x, axis=0),
    "exp2": lambda x, y: mb.exp2(x=y),
    "floor_div": lambda x, y: mb.floor_div(x=x, y=y),
    "matmul": lambda x, y: mb.matmul(x=mb.expand_dims(x=x, axes=[0]), y=mb.expand_dims(x=y, axes=[1])),
    "mod": lambda x, y: mb.mod(x=x, y=y),
    "mul": lambda x, y: mb.mul(x=x, y=y),
    "pow": lambda x, y: mb.pow(x=x, y=mb.abs(x=y)),
    "real_div": lambda x, y: mb.real_div(x=x, y=y),
    "reduce_l1_norm": lambda x, y: mb.reduce_l1_norm(x=x, axes=[0]),
    "reduce_l2_norm": lambda x, y: mb.reduce_l2_norm(x=x, axes=[0]),
    "reduce_log_sum": lambda x, y: mb.reduce_log_sum(x=y, axes=[0]),
    "reduce_mean": lambda x, y: mb.reduce_mean(x=y, axes=[0]),
    "reduce_prod": lambda x, y: mb.reduce_prod(x=y, axes=[0]),
    "reduce_sum": lambda x, y: mb.reduce_sum(x=y, axes=[0]),
    "reduce_sum_square": lambda x, y: mb.reduce_sum_square(x=x, axes=[0]),
    "square": lambda x, y: mb.square(x=x),
    "sub": lambda x, y: mb.sub(x=y, y=x),
}

# no value is inferred, or one that overflows in the computation of the inference itself
KNOWN: dict[str, tuple[Build, list[int]]] = {
    "linear": (
        lambda x, y: mb.linear(x=mb.reshape(x=x, shape=[4, 2]), weight=WEIGHT),
        [-1, -3, -1, -1, 0, 14, 3, 3],
    ),
    "range_1d": (
        lambda x, y: mb.range_1d(start=np.int32(HIGH - 3), end=np.int32(HIGH), step=np.int32(2)),
        [HIGH - 3, HIGH - 1],
    ),
    "reduce_log_sum_exp": (lambda x, y: mb.reduce_log_sum_exp(x=mb.identity(x=ZERO), axes=[0]), [2]),
    "scatter": (
        lambda x, y: mb.scatter(data=x, indices=int32([0, 0]), updates=int32([1, 1]), axis=0, mode="add"),
        [LOW + 1, *X[1:].tolist()],
    ),
    "scatter_along_axis": (
        lambda x, y: mb.scatter_along_axis(data=x, indices=int32([1, 6]), updates=int32([-1, 0]), axis=0, mode="div"),
        X.tolist(),
    ),
    "scatter_nd": (
        lambda x, y: mb.scatter_nd(data=x, indices=int32([[0], [5]]), updates=int32([3, -9]), mode="mul"),
        [HIGH - 2, *X[1:5].tolist(), 63, *X[6:].tolist()],
    ),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("op", INFERRED)
def test_agrees_with_the_inferred_value(op: str) -> None:
    inferred: list[Any] = []

    def build(z: Any) -> Any:
        var = INFERRED[op](X, Y)
        assert var.op.op_type == op or op == "cast"
        inferred.append(np.asarray(var.val).astype(np.int32))
        return mb.identity(x=z)

    program(build, {"z": Y})
    (found,) = run(INFERRED[op], {"x": X, "y": Y})
    np.testing.assert_array_equal(found, inferred[0])


@pytest.mark.parametrize("op", KNOWN)
def test_is_as_stated_where_nothing_is_inferred(op: str) -> None:
    build, expected = KNOWN[op]
    (found,) = run(lambda x, y: mb.identity(x=build(x, y)), {"x": X, "y": Y})
    assert np.ravel(found).tolist() == expected


def test_division_by_zero_gives_zero() -> None:
    for division in (mb.floor_div, mb.mod, mb.real_div):
        (found,) = run(lambda x, y, division=division: division(x=x, y=y), {"x": X, "y": ZERO})
        assert found[[0, 2, 3, 4, 5, 6, 7]].tolist() == [0] * 7


def test_every_statement_is_about_an_op_and_tested() -> None:
    assert set(INTEGER_OVERFLOW) <= set(core)
    assert set(INTEGER_OVERFLOW) == set(INFERRED) | set(KNOWN)
