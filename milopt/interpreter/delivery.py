"""How the inputs of an op reach its implementation: constants converted once, other values at each run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from milopt.interpreter.impls import Kind
from milopt.interpreter.steps import Body, Fetch, Frame

__all__ = ["PYTHON", "as_callables", "as_dtype", "as_ints", "as_number", "as_tuple", "python_value"]

# delivered as Python values, so that constants are converted when the plan is made
PYTHON = frozenset({Kind.INTS, Kind.NUMBER, Kind.TEXT, Kind.LABELS})


def python_value(value: Any, kind: Kind) -> Any:
    if kind is Kind.INTS:
        return tuple(int(each) for each in np.ravel(value))
    if kind is Kind.NUMBER:
        return np.asarray(value).item()
    if kind is Kind.TEXT:
        return str(value)
    labels: list[Any] = getattr(value, "ls", value)
    return tuple(np.asarray(each).item() for each in labels)


def as_tuple(fetches: tuple[Fetch, ...], frame: Frame) -> tuple[Any, ...]:
    return tuple(fetch(frame) for fetch in fetches)


def as_ints(fetch: Fetch, frame: Frame) -> tuple[int, ...]:
    value: Any = fetch(frame)
    return tuple((value if value.dim() == 1 else value.reshape(-1)).tolist())


def as_number(fetch: Fetch, frame: Frame) -> Any:
    return fetch(frame).item()


def as_dtype(fetch: Fetch, dtype: torch.dtype, frame: Frame) -> torch.Tensor:
    value: torch.Tensor = fetch(frame)
    return value.to(dtype)


def as_callables(bodies: tuple[Body, ...], frame: Frame) -> tuple[Callable[..., list[Any]], ...]:
    return tuple(body.call_in(frame) for body in bodies)
