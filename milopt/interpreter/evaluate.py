"""One call from a model and numpy arrays to numpy arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from milopt.interpreter.compiler import compile
from milopt.interpreter.source import Source
from milopt.interpreter.state import State
from milopt.interpreter.values import Precision, to_numpy

__all__ = ["evaluate"]


def evaluate(
    model: Source,
    inputs: Mapping[str, np.ndarray[Any, Any] | torch.Tensor],
    *,
    state: State | None = None,
    function: str | None = None,
    precision: Precision = "declared",
    device: str = "cpu",
) -> dict[str, np.ndarray[Any, Any]]:
    """The outputs of one function (the default one if None) by name, in their declared dtypes.

    In ``float64`` precision floats come as float64. ``state`` is updated. To call a model often, compile it once:
    this prepares its weights anew at every call.
    """
    plan = compile(model, function, precision=precision, device=device)
    outputs = plan.run(inputs, state)
    return {name: to_numpy(value, plan.outputs[name], precision) for name, value in outputs.items()}
