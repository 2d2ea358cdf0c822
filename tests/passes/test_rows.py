"""Layers on rows, between reshapes: on (B, S, C) again, or left as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from milopt.mil import Program, get_new_symbol, mb, target, types
from milopt.package import load
from milopt.passes.convolution import LinearToConv
from milopt.passes.rows import lift_rows
from milopt.text import text

from .support import assert_same, op_types, twice

RNG = np.random.default_rng(0)
WIDE: Any = RNG.standard_normal((6, 6)).astype(np.float32)
BIAS: Any = RNG.standard_normal(6).astype(np.float32)
ROWS: Any = np.linspace(0, 9, 10, dtype=np.float32)[:, None]


def program(body: Callable[[Any], Any], *, shape: tuple[Any, ...] = (2, 5, 6), dtype: type = types.fp32) -> Program:
    """``body`` on x of (2, 5, 6)."""
    return mb.program(input_specs=[mb.TensorSpec(shape, dtype)], opset_version=target.iOS17)(body)


def rows(x: Any) -> Any:
    return mb.reshape(x=x, shape=[10, 6])


def back(y: Any, name: str = "out") -> Any:
    return mb.reshape(x=y, shape=[2, 5, 6], name=name)


def block(x: Any) -> Any:
    """What OPT does between two reshapes: norm, layers, a residual."""
    start = rows(x)
    y = mb.layer_norm(x=start, axes=[1], gamma=BIAS, beta=BIAS)
    y = mb.relu(x=mb.linear(x=y, weight=WIDE, bias=BIAS))
    return back(mb.add(x=mb.mul(x=mb.matmul(x=y, y=WIDE), y=BIAS), y=start))


LIFTED: dict[str, Callable[[Any], Any]] = {
    "linear": lambda x: back(mb.linear(x=rows(x), weight=WIDE, bias=BIAS)),
    "matmul": lambda x: back(mb.matmul(x=rows(x), y=WIDE, transpose_y=True)),
    "block": block,
    "two reshapes": lambda x: back(mb.mul(x=mb.linear(x=rows(x), weight=WIDE), y=rows(mb.sigmoid(x=x)))),
    "two results": lambda x: mb.add(
        x=back(y := mb.linear(x=rows(x), weight=WIDE), "y"), y=back(mb.tanh(x=y), "z"), name="out"
    ),
}


@pytest.mark.parametrize("name", LIFTED)
def test_lifted(name: str) -> None:
    before, after = twice(lambda: program(LIFTED[name]))
    assert lift_rows(after.functions["main"]) == 1
    after.validate()
    assert_same(before, after)
    kinds = op_types(after)
    assert "reshape" not in kinds
    assert sorted(kind for kind in kinds if kind != "identity") == sorted(
        kind for kind in op_types(before) if kind != "reshape"
    )
    assert [var.name for var in after.functions["main"].outputs] == ["out"]


@pytest.mark.parametrize("name", LIFTED)
def test_then_converted(name: str) -> None:
    before, after = twice(lambda: program(LIFTED[name]))
    model = load(after)
    report = LinearToConv().run(model)
    layers = sum(kind in ("linear", "matmul") for kind in op_types(before))
    assert report.applied == layers + 1
    assert_same(before, after)
    kinds = op_types(after)
    assert (kinds.count("conv"), kinds.count("reshape")) == (layers, 0)


def turned(x: Any) -> Any:
    y = mb.matmul(x=mb.linear(x=rows(x), weight=WIDE), y=np.eye(10, dtype=np.float32), transpose_x=True)
    return back(mb.transpose(x=y, perm=[1, 0]))


def computed(x: Any) -> Any:
    y = mb.linear(x=rows(x), weight=WIDE)
    return back(mb.matmul(x=mb.matmul(x=y, y=rows(x), transpose_y=True), y=y))


STAYING: dict[str, Callable[[Any], Any]] = {
    "no layer": lambda x: back(mb.relu(x=rows(x))),
    "no way back": lambda x: mb.linear(x=rows(x), weight=WIDE, name="out"),
    "another way back": lambda x: mb.reshape(x=mb.linear(x=rows(x), weight=WIDE), shape=[5, 2, 6], name="out"),
    "an output between": lambda x: (y := mb.linear(x=rows(x), weight=WIDE, name="y"), back(y)),
    "rows among each other": lambda x: back(mb.softmax(x=mb.linear(x=rows(x), weight=WIDE), axis=0)),
    "numbers of rows": lambda x: back(mb.add(x=mb.linear(x=rows(x), weight=WIDE), y=ROWS)),
    "norm of columns": lambda x: back(mb.layer_norm(x=mb.linear(x=rows(x), weight=WIDE), axes=[0])),
    "norm of all": lambda x: back(mb.layer_norm(x=mb.linear(x=rows(x), weight=WIDE), axes=[0, 1])),
    "channels cut": lambda x: mb.reshape(
        x=mb.linear(x=mb.reshape(x=x, shape=[20, 3]), weight=WIDE[:, :3]), shape=[4, 5, 6], name="out"
    ),
    "turned": turned,
    "computed matrix": computed,
    "rows of another": lambda x: back(
        mb.add(x=mb.linear(x=rows(x), weight=WIDE), y=mb.reshape(x=mb.reshape(x=x, shape=[5, 2, 6]), shape=[10, 6]))
    ),
}


@pytest.mark.parametrize("name", STAYING)
def test_staying(name: str) -> None:
    made = program(STAYING[name])
    before = text(made)
    assert lift_rows(made.functions["main"]) == 0
    assert text(made) == before


def test_integers_stay() -> None:
    integers: Any = np.ones((6, 6), np.int32)
    made = program(lambda x: back(mb.linear(x=rows(x), weight=integers)), dtype=types.int32)
    before = text(made)
    assert not LinearToConv().run(load(made))
    assert text(made) == before


def test_sizes_that_are_not_known() -> None:
    """B and S need not be known where the way back has the same symbols."""
    length = get_new_symbol()

    def body(x: Any) -> Any:
        y = mb.linear(x=mb.reshape(x=x, shape=[-1, 6]), weight=WIDE)
        sizes = mb.shape(x=x)
        return mb.reshape(x=y, shape=sizes, name="out")

    made = program(body, shape=(1, length, 6))
    assert lift_rows(made.functions["main"]) == 1
    assert [kind for kind in op_types(made) if kind in ("reshape", "linear")] == ["linear"]


def heads(x: Any) -> Any:
    """What GPT-2 does behind its attention: (B, S, H, D) as rows."""
    y = mb.linear(x=mb.reshape(x=mb.transpose(x=x, perm=[0, 2, 1, 3]), shape=[-1, 6]), weight=WIDE)
    return back(y)


def test_heads_are_joined_at_once() -> None:
    before, after = twice(lambda: program(heads, shape=(2, 3, 5, 2)))
    assert lift_rows(after.functions["main"]) == 1
    after.validate()
    assert_same(before, after)
    assert op_types(after) == ["transpose", "reshape", "linear", "identity"]


def test_heads_with_sizes_that_are_not_known() -> None:
    def body(x: Any) -> Any:
        y = mb.linear(x=mb.reshape(x=x, shape=[-1, 6]), weight=WIDE)
        sizes = mb.concat(values=[mb.gather(x=mb.shape(x=x), indices=[0, 1]), np.array([6], np.int32)], axis=0)
        return mb.reshape(x=y, shape=sizes, name="out")

    for shape, lifted in (((1, get_new_symbol(), 3, 2), 1), ((get_new_symbol(), get_new_symbol(), 3, 2), 0)):
        made = program(body, shape=shape)
        assert lift_rows(made.functions["main"]) == lifted


def test_in_a_nested_block() -> None:
    def body(x: Any) -> Any:
        return mb.cond(
            pred=mb.greater(x=mb.reduce_sum(x=x, keep_dims=False), y=np.float32(0)),
            _true_fn=lambda: back(mb.linear(x=rows(x), weight=WIDE), "then"),
            _false_fn=lambda: mb.relu(x=x, name="otherwise"),
            name="out",
        )

    before, after = twice(lambda: program(body))
    assert lift_rows(after.functions["main"]) == 1
    after.validate()
    assert_same(before, after)
