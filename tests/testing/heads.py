"""Programs that end in a layer and what is done to its results, for ``split-head``."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from milopt.mil import Function, Program, mb, target, types
from milopt.testing.naming import rename_all
from milopt.testing.notes import noted
from milopt.testing.scope import Draw

__all__ = ["broken_heads", "heads"]

_ODDITIES = ("softmax", "used twice", "an output", "a computed factor", "no layer")


def heads() -> st.SearchStrategy[Program]:
    """A layer with a constant weight, and ops on each of its results."""
    return _program(odd=False)


def broken_heads() -> st.SearchStrategy[Program]:
    """The same with something between them that keeps it whole."""
    return _program(odd=True)


@st.composite
def _program(draw: Draw, odd: bool) -> Program:
    source = np.random.default_rng(draw(st.integers(0, 9999)))
    odd_one: str = draw(st.sampled_from(_ODDITIES)) if odd else ""
    batch, length = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    width, size = draw(st.integers(1, 4)), draw(st.integers(2, 9))

    def numbers(*shape: int) -> Any:
        return source.standard_normal(shape).astype(np.float32)

    program = Program()
    specs = {"x": mb.placeholder(shape=(batch, length, width), dtype=types.fp32)}
    with Function(specs, opset_version=target.iOS18) as function:
        x: Any = function.inputs["x"]
        kind = draw(st.sampled_from(["linear", "matmul", "left", "conv"]))
        axis = -1
        if odd_one == "no layer":
            y: Any = mb.tanh(x=x)
        elif kind == "linear":
            y = mb.linear(x=x, weight=numbers(size, width), bias=numbers(size))
        elif kind == "matmul":
            y = mb.matmul(x=x, y=numbers(width, size))
        elif kind == "left":
            y, axis = mb.matmul(x=numbers(size, width), y=x, transpose_y=True), -2
        else:
            y = mb.conv(x=mb.transpose(x=x, perm=[0, 2, 1]), weight=numbers(size, width, 1))
            y = mb.transpose(x=y, perm=[0, 2, 1])
        outputs: list[Any] = [y] if odd_one == "an output" else []
        if odd_one == "used twice":
            outputs.append(mb.exp(x=mb.tanh(x=y)))
        if odd_one == "softmax":
            y = mb.softmax(x=y, axis=axis)
        if odd_one == "a computed factor":
            y = mb.mul(x=y, y=mb.reduce_mean(x=y, axes=[axis], keep_dims=True))
        for _ in range(draw(st.integers(1 if odd_one == "an output" else 0, 3))):
            step = draw(st.sampled_from(["tanh", "mul", "add", "transpose", "expand"]))
            if step == "tanh":
                y = mb.tanh(x=y)
            elif step == "mul":
                y = mb.mul(x=y, y=numbers())
            elif step == "add" and len(y.shape) == 3 and odd_one != "no layer":
                y = mb.add(x=y, y=numbers(*([size] if axis == -1 else [size, 1])))
            elif step == "transpose" and len(y.shape) == 3:
                y, axis = mb.transpose(x=y, perm=[0, 2, 1]), -3 - axis
            elif step == "expand" and len(y.shape) == 3:
                y = mb.expand_dims(x=y, axes=[0])
        function.set_outputs([*outputs, y])
    rename_all(function)
    program.add_function("main", function)
    return noted(program, f"changed: {odd_one}") if odd_one else program
