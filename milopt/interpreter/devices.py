"""Where a run computes: the CPU, or an accelerator that torch knows."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from milopt.errors import EvaluationError
from milopt.precisions import Precision

__all__ = ["device_named", "placed", "values_on"]

_DEVICES = ("cpu", "cuda", "mps")


def device_named(name: str | torch.device, precision: Precision) -> torch.device:
    """The device ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; EvaluationError where it isn't there or lacks float64.

    Metal has no float64, and neither ``float64`` nor ``declared-strict`` do without.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise EvaluationError(f"there is no device {str(name)!r}; choose {', '.join(_DEVICES)}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise EvaluationError(f"device {str(name)!r} is not available: torch sees {count} CUDA devices")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise EvaluationError("device 'mps' is not available: it needs macOS and a torch built with Metal")
    if device.type == "mps" and precision != "declared":
        raise EvaluationError(f"device 'mps' has no float64, which precision {precision!r} needs; choose declared")
    if device.type not in (*_DEVICES, "meta"):  # meta: shapes without numbers, for tests
        raise EvaluationError(f"there is no device {str(name)!r}; choose {', '.join(_DEVICES)}")
    return device


def values_on(device: torch.device) -> AbstractContextManager[object]:
    """While it is entered, tensors that implementations make anew are made on ``device``."""
    return nullcontext() if device.type == "cpu" else device


def placed(value: torch.Tensor) -> torch.Tensor:
    """A tensor that had to be made on the CPU, where implementations now make theirs."""
    device = torch.get_default_device()
    return value.float().to(device) if device.type == "mps" and value.dtype is torch.float64 else value.to(device)
