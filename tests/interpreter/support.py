"""Small programs for the tests of the interpreter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

import numpy as np

from milopt.interpreter import Precision, compile
from milopt.interpreter.values import Array, to_numpy
from milopt.mil import Function, Program, Target, flat, mb, target, types

# spelt out by number of parameters, so that type checkers see what the parameters of a lambda are
Build: TypeAlias = Callable[[], Any] | Callable[[Any], Any] | Callable[[Any, Any], Any] | Callable[[Any, Any, Any], Any]

_TYPES = {"f2": types.fp16, "f4": types.fp32, "i4": types.int32, "i1": types.int8, "u1": types.uint8, "b1": types.bool}


def placeholder(like: Array) -> Any:
    """An input of an array's shape and type."""
    return mb.placeholder(shape=like.shape, dtype=_TYPES[like.dtype.str[1:]])


def state(*shape: int, dtype: type = types.fp16) -> Any:
    return mb.state_tensor_placeholder(shape=shape, dtype=dtype)


def program(build: Build, inputs: Mapping[str, Any], opset: Target = target.iOS18) -> Program:
    """The program that ``build`` makes of one value per entry of ``inputs``: an array to be like, or a placeholder."""
    made = Program()
    made.add_function("main", function(build, inputs, opset))
    return made


def function(build: Build, inputs: Mapping[str, Any], opset: Target = target.iOS18) -> Function:
    placeholders = {name: placeholder(each) if hasattr(each, "nbytes") else each for name, each in inputs.items()}
    with Function(placeholders, opset_version=opset) as made:
        outputs = cast("Callable[..., Any]", build)(**made.inputs)
        made.set_outputs(list(flat(outputs)))
    return made


def run(
    build: Build, inputs: Mapping[str, Array], *, precision: Precision = "float64", opset: Target = target.iOS18
) -> list[Any]:
    """The outputs, in order, of the program that ``build`` makes of inputs like these."""
    plan = compile(program(build, inputs, opset), precision=precision)
    outputs = plan.run(inputs)
    return [to_numpy(outputs[name], info, precision) for name, info in plan.outputs.items()]


def normals(*shape: int, seed: int = 0, dtype: type[np.floating[Any]] = np.float32) -> Any:
    """An array of standard normals."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)
