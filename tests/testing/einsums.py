"""Programs with an ``einsum`` of a value and a constant."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from milopt.mil import Function, Program, mb, target, types
from milopt.testing.naming import rename_all
from milopt.testing.scope import Draw

__all__ = ["einsums"]


@st.composite
def einsums(draw: Draw, *, broken: bool = False) -> Program:
    """One of the equation that MIL has, with a batch axis or not; ``broken``: the constant has several matrices."""
    source = np.random.default_rng(draw(st.integers(0, 9999)))
    batch: list[int] = [draw(st.integers(1, 2))] if draw(st.booleans()) else []
    positions, heads, width, size = (draw(st.integers(1, 4)) for _ in range(4))
    heads = max(heads, 2) if broken else heads
    left = draw(st.booleans())
    shape = (*batch, width, heads, positions) if left else (*batch, positions, heads, width)
    several = heads if broken else 1
    ones = [1] * len(batch)
    wide = (*ones, size, several, width) if left else (*ones, width, several, size)
    program = Program()
    specs = {"x": mb.placeholder(shape=shape, dtype=types.fp32)}
    with Function(specs, opset_version=target.iOS17) as function:
        x: Any = function.inputs["x"]
        weight: Any = source.standard_normal(wide).astype(np.float32)
        equation = "nchw,nwhr->nchr" if batch else "chw,whr->chr"
        y = mb.einsum(values=(weight, x) if left else (x, weight), equation=equation)
        function.set_outputs([mb.tanh(x=y) if draw(st.booleans()) else y])
    rename_all(function)
    program.add_function("main", function)
    return program
