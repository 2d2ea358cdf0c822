"""Programs whose weights are large enough to be compressed, for ``palettize`` and ``quantize``."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from milopt.mil import Function, Program, Target, mb, target, types
from milopt.testing.naming import rename_all
from milopt.testing.notes import noted
from milopt.testing.scope import Draw, numpy_type

__all__ = ["odd_weights", "weighted"]

_ODDITIES = ("not finite", "an output", "added too", "shared", "both axes", "zeros", "one value", "small")


def weighted(*, opset: Target = target.iOS18) -> st.SearchStrategy[Program]:
    """A few layers with weights of some thousand normal numbers."""
    return _program(opset, odd=False)


def odd_weights(*, opset: Target = target.iOS18) -> st.SearchStrategy[Program]:
    """The same with a weight that has something about it."""
    return _program(opset, odd=True)


@st.composite
def _program(draw: Draw, opset: Target, odd: bool) -> Program:
    dtype = draw(st.sampled_from(["fp32", "fp16"]))
    source = np.random.default_rng(draw(st.integers(0, 9999)))
    odd_one: str = draw(st.sampled_from(_ODDITIES)) if odd else ""
    width = draw(st.sampled_from([32, 48, 64]))
    program = Program()

    def weight(*shape: int) -> Any:
        values = source.standard_normal(shape) / np.sqrt(shape[1])  # what comes out is as large as what goes in
        if odd_one == "zeros":
            values *= 0
        if odd_one == "one value":
            values[...] = 0.5
        if odd_one == "small":
            values *= 2.0**-6  # two layers of less would vanish in fp16 with or without compression
        if odd_one == "not finite":
            values.flat[0] = draw(st.sampled_from([np.inf, np.nan]))
        return values.astype(numpy_type(dtype))

    specs = {"x": mb.placeholder(shape=(2, width), dtype=types.string_to_builtin(dtype))}
    with Function(specs, opset_version=opset) as function:
        y: Any = function.inputs["x"]
        outputs: list[Any] = []
        for _ in range(draw(st.integers(1, 3))):
            kind = draw(st.sampled_from(["linear", "matmul", "left", "conv", "gather"]))
            held = mb.const(val=weight(width, width))
            if kind == "linear":
                made = mb.linear(x=y, weight=held)
            elif kind == "matmul":
                made = mb.matmul(x=y, y=held, transpose_y=draw(st.booleans()))
            elif kind == "left":
                made = mb.transpose(x=mb.matmul(x=held, y=y, transpose_y=True), perm=[1, 0])
            elif kind == "conv":
                kernel = mb.const(val=weight(width, width, 1))
                columns = mb.expand_dims(x=y, axes=[2])
                made = mb.squeeze(x=mb.conv(x=columns, weight=kernel), axes=[2])
            else:
                ids = np.array(source.integers(0, width, 2), np.int32)
                axis: int = draw(st.sampled_from([0, 1, -1, -2]))
                rows = mb.gather(x=held, indices=ids, axis=axis)
                made = mb.add(x=y, y=rows if axis in (0, -2) else mb.transpose(x=rows, perm=[1, 0]))
            if odd_one == "an output" and held.child_ops:
                outputs.append(held)
            if odd_one == "added too" and held.child_ops:
                made = mb.add(x=made, y=mb.reduce_mean(x=held, axes=[0], keep_dims=True))
            if odd_one == "shared" and held.child_ops:
                made = mb.linear(x=made, weight=held)
            if odd_one == "both axes" and held.child_ops:
                made = mb.matmul(x=made, y=held)
            y = mb.tanh(x=made) if draw(st.booleans()) else made
        outputs.append(y)
        function.set_outputs(list(dict.fromkeys(outputs)))
    rename_all(function)
    program.add_function("main", function)
    return noted(program, f"changed: {odd_one}") if odd_one else program
