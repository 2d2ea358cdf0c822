"""Small programs to compare with changed versions of themselves."""

from __future__ import annotations

from typing import Any

import numpy as np

from milopt.mil import Function, Program, Var, mb, target, types
from milopt.package import Model, load

Dims = tuple[int, ...]


def attention(
    *,
    scale: float = 0.25,
    masked: bool = True,
    output: str = "out",
    axis: int = -1,
    heads: int = 2,
    dtype: Any = types.fp32,
) -> Program:
    """``softmax(q @ kᵀ * scale + mask) @ v`` on q (1, H, 3, 8), k and v (1, H, 5, 8), mask (1, 1, 3, 5)."""
    shapes: list[Dims] = [(1, heads, 3, 8), (1, heads, 5, 8), (1, heads, 5, 8), (1, 1, 3, 5)]

    @mb.program(input_specs=[mb.TensorSpec(shape, dtype) for shape in shapes], opset_version=target.iOS18)
    def program(q: Var, k: Var, v: Var, mask: Var) -> Var:
        number = np.float16 if dtype is types.fp16 else np.float32
        scores = mb.matmul(x=q, y=k, transpose_y=True, name="scores")
        scores = mb.mul(x=scores, y=number(scale), name="scaled")
        if masked:
            scores = mb.add(x=scores, y=mask, name="masked")
        shares = mb.softmax(x=scores, axis=axis, name="shares")
        out: Var = mb.matmul(x=shares, y=v, name=output)
        return out

    result: Program = program
    return result


def two_layers(*, flip: bool = False, noise: float = 0.0, bias: float = 0.0) -> Program:
    """Two square linears on x (4, 16), outputs ``hidden`` and ``out``; ``flip`` transposes the second's weight."""
    rng = np.random.default_rng(7)
    first: Any = rng.standard_normal((16, 16)).astype(np.float32)
    other: Any = rng.standard_normal((16, 16)).astype(np.float32)
    error: Any = rng.standard_normal((16, 16)).astype(np.float32)
    second = other + np.float32(noise) * error

    @mb.program(input_specs=[mb.TensorSpec((4, 16))], opset_version=target.iOS18)
    def program(x: Var) -> tuple[Var, Var]:
        hidden = mb.linear(x=x, weight=first, bias=np.full(16, bias, np.float32), name="hidden")
        active = mb.relu(x=hidden, name="active")
        return hidden, mb.linear(
            x=active, weight=np.ascontiguousarray(np.transpose(second)) if flip else second, name="out"
        )

    result: Program = program
    return result


def accumulator(*, step: float = 1.0, forgets: bool = False) -> Model:
    """``out = state + step * x``; the state becomes the output, or with ``forgets`` stays as it was."""
    specs = [mb.TensorSpec((2, 3), types.fp16), mb.StateTensorSpec((2, 3), types.fp16)]

    @mb.function(input_specs=specs, opset_version=target.iOS18)
    def main(x: Var, total: Var) -> Var:
        before = mb.read_state(input=total)
        after = mb.add(x=before, y=mb.mul(x=x, y=np.float16(step)))
        mb.coreml_update_state(state=total, value=before if forgets else after)
        out: Var = mb.identity(x=after, name="out")
        return out

    function: Function = main
    program = Program()
    program.add_function("main", function)
    return load(program)


def unary(op_type: str, shape: Dims = (2, 6), **inputs: Any) -> Program:
    """One op of one floating input."""

    @mb.program(input_specs=[mb.TensorSpec(shape)], opset_version=target.iOS18)
    def program(x: Var) -> Var:
        out: Var = getattr(mb, op_type)(x=x, **inputs, name="out")
        return out

    result: Program = program
    return result
