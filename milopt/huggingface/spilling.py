"""Tensors that were computed, put into a file without a name and read from there: they take no memory then.

Importing this module imports torch; milopt does so only while it converts.
"""

from __future__ import annotations

import mmap
import tempfile
from math import prod
from typing import Any

import torch

from milopt.huggingface.errors import ConversionError
from milopt.huggingface.standins import FEWEST, Elements

__all__ = ["spilled"]

_CHUNK = 1 << 22  # elements that are written at a time


def spilled(tensor: torch.Tensor) -> Elements:
    """The tensor's elements, float32; those of a small one stay where they are. ConversionError on a full disk."""
    shape = tuple(tensor.shape)
    if prod(shape) < FEWEST:
        kept = tensor.detach().float().contiguous()
        return lambda: kept
    try:
        return _written(tensor.detach().contiguous().reshape(-1), shape)
    except OSError as problem:
        raise ConversionError(f"the weights can't be written to a temporary file: {problem}") from problem


def _written(flat: torch.Tensor, shape: tuple[int, ...]) -> Elements:
    with tempfile.TemporaryFile(prefix="milopt-") as file:
        for first in range(0, flat.numel(), _CHUNK):
            part: Any = flat[first : first + _CHUNK].float().numpy()
            file.write(memoryview(part).cast("B"))
        file.flush()
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return lambda: torch.frombuffer(memory, dtype=torch.float32).reshape(shape)
