"""Programs drawn at random: upgraded they compute the same, and packages of them hold what they should."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import milopt
from milopt.mil import Function, Program, Var, dtype_name, mb, shape_of, target, types
from milopt.package import load
from milopt.testing import strategies as mil
from milopt.upgrading.indices import never_negative


def _values(var: Var) -> Any:
    rng = np.random.default_rng(0)
    if dtype_name(var) == "bool":
        return rng.random(shape_of(var)) < 0.5
    if dtype_name(var).startswith(("int", "uint")):
        return rng.integers(-1 if dtype_name(var) == "int32" else 0, 2, shape_of(var)).astype(dtype_name(var))
    return rng.standard_normal(shape_of(var)).astype(np.float16 if dtype_name(var) == "fp16" else np.float32)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@settings(max_examples=40, deadline=None)
@given(mil.programs(ops=mil.ALL, max_ops=8, opset=target.iOS16))
def test_random_programs(program: Program) -> None:
    before = load(program)
    model = before.clone()
    milopt.upgrade(model, "iOS18")
    inputs = {name: _values(var) for name, var in program.functions["main"].inputs.items()}
    for old, new in zip(*(milopt.evaluate(each, inputs).values() for each in (before, model)), strict=True):
        np.testing.assert_array_equal(new, old)


def small(*values: int) -> Any:
    return np.array(values, np.int32)


NEVER: list[Callable[[Any], Any]] = [
    lambda v: mb.shape(x=v.x),
    lambda v: mb.reduce_argmax(x=v.x, axis=1),
    lambda v: mb.expand_dims(x=mb.argsort(x=v.x, axis=0), axes=[0]),
    lambda v: mb.topk(x=v.x, k=2)[1],
    lambda v: mb.maximum(x=v.i, y=small(0)),
    lambda v: mb.mod(x=v.i, y=small(4)),
    lambda v: mb.floor_div(x=mb.mod(x=v.i, y=small(4)), y=small(2)),
    lambda v: mb.select(cond=mb.greater(x=v.i, y=small(0)), a=mb.mod(x=v.i, y=small(4)), b=small(1, 2, 3)),
    lambda v: mb.concat(values=[mb.reduce_argmax(x=v.x, axis=1), small(5)], axis=0),
    lambda v: mb.cast(x=mb.greater(x=v.i, y=small(0)), dtype="int32"),
    lambda v: mb.range_1d(start=np.int32(0), end=mb.reduce_max(x=v.i, axes=[0]), step=np.int32(2)),
    lambda v: mb.gather(x=small(3, 0), indices=v.i),
    lambda v: mb.cast(x=mb.cast(x=mb.reduce_argmax(x=v.x, axis=1), dtype="int32"), dtype="int32"),
]
MAYBE: list[Callable[[Any], Any]] = [
    lambda v: v.i,
    lambda v: mb.gather(x=small(3, -1), indices=v.i),
    lambda v: mb.maximum(x=v.i, y=small(-1)),
    lambda v: mb.minimum(x=v.i, y=small(4)),
    lambda v: mb.mod(x=v.i, y=small(-4)),
    lambda v: mb.floor_div(x=v.i, y=small(2)),
    lambda v: mb.sub(x=mb.reduce_argmax(x=v.x, axis=1), y=small(1)),
    lambda v: mb.add(x=v.i, y=v.i),
    lambda v: mb.concat(values=[mb.reduce_argmax(x=v.x, axis=1), v.i], axis=0),
    lambda v: mb.select(cond=mb.greater(x=v.i, y=small(0)), a=v.i, b=small(1, 2, 3)),
    lambda v: mb.cast(x=mb.mul(x=v.x, y=np.float32(9)), dtype="int32"),
    lambda v: mb.range_1d(start=np.int32(5), end=mb.reduce_max(x=v.i, axes=[0]), step=np.int32(-2)),
    lambda v: mb.range_1d(start=mb.reduce_max(x=v.i, axes=[0]), end=np.int32(5), step=np.int32(1)),
    lambda v: mb.topk(x=v.i, k=2)[0],
]


def indices(build: Callable[[Any], Any]) -> bool:
    """What is known of an index computed by ``build`` from an input i (int32) and another x (fp32)."""
    specs = {"i": mb.placeholder((3,), dtype=types.int32), "x": mb.placeholder((3, 4), dtype=types.fp32)}
    with Function(specs, opset_version=target.iOS16) as function:
        index = build(SimpleNamespace(**function.inputs))
        function.set_outputs([mb.identity(x=index)])
    return never_negative(index)


@pytest.mark.parametrize("build", NEVER)
def test_indices_that_are_never_negative(build: Callable[[Any], Any]) -> None:
    assert indices(build)


@pytest.mark.parametrize("build", MAYBE)
def test_indices_that_may_be_negative(build: Callable[[Any], Any]) -> None:
    assert not indices(build)
