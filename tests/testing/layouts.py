"""Programs with layers to lay out, and such that have none."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from milopt.mil import Program, mb, target, types
from milopt.package import load
from milopt.passes.convolution import LinearToConv
from milopt.testing import strategies as mil
from milopt.testing.scope import Draw

__all__ = ["attentions", "convolved", "unlinear", "weight"]

_RNG = np.random.default_rng(0)


def weight(*shape: int) -> Any:
    return (_RNG.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


@st.composite
def attentions(draw: Draw) -> Program:
    """Projections of one input, heads, perhaps scaled or rotated, attention fused or written out, an output or two."""
    heads, head, length = draw(st.integers(1, 2)), draw(st.sampled_from([2, 4])), draw(st.integers(1, 3))
    fused, scaled, rotated, given, shared = (draw(st.booleans()) for _ in range(5))
    width = 3
    past = (1, heads, 5, head) if given else (1,)
    specs = [mb.TensorSpec(shape, types.fp32) for shape in ((1, length, width), past, past)]

    def split_heads(x: Any) -> Any:
        x = mb.reshape(x=mb.linear(x=x, weight=weight(heads * head, width)), shape=[1, length, heads, head])
        x = mb.mul(x=x, y=weight(head)) if scaled else x
        x = mb.transpose(x=x, perm=[0, 2, 1, 3])
        if rotated:
            first, second = mb.split(x=x, num_splits=2, axis=3)
            x = mb.concat(values=[second, first], axis=3)
        return x

    @mb.program(input_specs=specs, opset_version=target.iOS18)
    def program(x: Any, keys: Any, values: Any) -> Any:
        query = split_heads(x)
        key, value = (keys, values) if given else (split_heads(x), split_heads(x))
        if fused:
            y = mb.scaled_dot_product_attention(query=query, key=key, value=value)
        else:
            y = mb.matmul(x=mb.softmax(x=mb.matmul(x=query, y=key, transpose_y=True), axis=-1), y=value)
        y = mb.reshape(x=mb.transpose(x=y, perm=[0, 2, 1, 3]), shape=[1, length, heads * head])
        y = mb.linear(x=y, weight=weight(width, heads * head))
        return (mb.add(x=x, y=y), query) if shared else y

    return program


def convolved() -> st.SearchStrategy[Program]:
    """The same after linear-to-conv, which is what the pass is for."""
    return attentions().map(_convolved)


def _convolved(program: Program) -> Program:
    model = load(program)
    LinearToConv().run(model)
    return model.program


def unlinear() -> st.SearchStrategy[Program]:
    """Moves and elementwise ops, but no layer that wants its channels anywhere."""
    return mil.programs(ops=["transpose", "expand_dims", "squeeze", "relu", "add", "mul", "softmax"], max_ops=6)
