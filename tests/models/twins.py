"""Loading what a package holds into torch modules, as the second way of computing it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch

from milopt import mil
from milopt.package import Model

__all__ = ["EPSILON_16", "Arrays", "bare", "constants", "fill", "log_ratio", "set_epsilon", "tensors"]

Arrays: TypeAlias = Mapping[str, "np.ndarray[Any, Any]"]

EPSILON_16 = float(np.float16(1e-5))
"""How a layer norm's usual 1e-5 is written in fp16."""


def constants(model: Model, function: str | None = None) -> dict[str, np.ndarray[Any, Any]]:
    """The float constants of a function in float64 by name, compressed ones as coremltools itself decompresses them."""
    found: dict[str, np.ndarray[Any, Any]] = {}
    for op in mil.operations(model.function(function)):
        var = op.outputs[0]
        value: Any = None
        if op.op_type == "const":
            value = var.val
        elif op.op_type.startswith("constexpr_"):
            value = op.materialized_val_inference()
        if getattr(getattr(value, "dtype", None), "kind", "") == "f":
            found[var.name] = np.array(value, np.float64)
    return found


def bare(name: str) -> str:
    """The name of a constant without what fp16 conversion and compression append to it."""
    return re.sub(r"(_cast_fp16_to_fp32)?(_to_fp16)?(_(sparsified|quantized|palettized))?$", "", name)


def tensors(model: Model, function: str | None = None) -> dict[str, torch.Tensor]:
    """The float constants in float64, by their bare names."""
    arrays = constants(model, function)
    return {bare(name): torch.as_tensor(np.ascontiguousarray(array)) for name, array in arrays.items()}


def fill(module: Any, arrays: Arrays, name_of: Callable[[str], str]) -> Any:
    """``module`` in float64 and evaluation mode, each of its weights the array that ``name_of`` says.

    A weight that is missing, or that is of another shape, is an error.
    """
    module = module.double().eval()
    with torch.no_grad():
        for key, weight in module.state_dict().items():
            if not weight.is_floating_point():
                continue
            array = arrays[name_of(key)]
            if array.shape != tuple(weight.shape):
                raise ValueError(f"{key} is {tuple(weight.shape)}, {name_of(key)} has {array.shape}")
            weight.copy_(torch.as_tensor(np.ascontiguousarray(array)))
    return module


def set_epsilon(module: torch.nn.Module, epsilon: float) -> None:
    """Give every layer norm the epsilon that the program has, which may be rounded."""
    for each in module.modules():
        if isinstance(each, torch.nn.LayerNorm):
            each.eps = epsilon


def log_ratio(value: Any, reference: Any) -> float:
    """Signal to noise in dB: ten times the logarithm of the reference's power over that of the difference."""
    expected = np.asarray(reference, np.float64)
    noise = float(np.square(np.asarray(value, np.float64) - expected).sum())
    return float(10 * np.log10(np.square(expected).sum() / noise)) if noise else math.inf
