"""What the tests of passes share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from milopt.interpreter import evaluate
from milopt.mil import Program, dtype_name, is_state, shape_of

Arrays = dict[str, Any]


def random_inputs(program: Program, seed: int = 0, function: str = "main") -> Arrays:
    """Standard normal floats, small non-negative integers and booleans for every input."""
    rng = np.random.default_rng(seed)
    made: Arrays = {}
    for name, var in program.functions[function].inputs.items():
        if is_state(var):
            continue
        if dtype_name(var).startswith("int") or dtype_name(var) == "bool":
            made[name] = rng.integers(0, 2, shape_of(var)).astype(bool if dtype_name(var) == "bool" else np.int32)
        else:
            kind = np.float16 if dtype_name(var) == "fp16" else np.float32
            made[name] = rng.standard_normal(shape_of(var)).astype(kind)
    return made


def assert_same(before: Program, after: Program, *, rtol: float = 1e-6, seed: int = 0) -> None:
    """Both programs give the same in float64.

    1e-6 by default: a rewrite may fold two constants of a program into one fp32 number, which rounds it by 6e-8, and
    scores of size 10 pass an exponential. A wrong scale, axis or operand is off by 1e-2 and more on these inputs.
    """
    inputs = random_inputs(before, seed)
    first, second = evaluate(before, inputs, precision="float64"), evaluate(after, inputs, precision="float64")
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_allclose(second[name], first[name], rtol=rtol, atol=rtol)


def op_types(program: Program, function: str = "main") -> list[str]:
    return [op.op_type for op in program.functions[function].operations if op.op_type != "const"]


def twice(build: Callable[[], Program]) -> tuple[Program, Program]:
    """The same program two times: one to rewrite, one to compare with."""
    return build(), build()
