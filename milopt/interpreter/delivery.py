"""How the inputs of an op reach its implementation: constants converted once, other values at each run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import takewhile
from typing import Any

import numpy as np
import torch

from milopt.interpreter.impls import Impl, Kind
from milopt.interpreter.steps import Body, Fetch, Frame

__all__ = ["PYTHON", "as_callables", "as_dtype", "as_ints", "as_number", "as_tuple", "invocation", "python_value"]

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
    return tuple(fetch(frame).reshape(-1).tolist())


def as_number(fetch: Fetch, frame: Frame) -> Any:
    return fetch(frame).item()


def as_dtype(fetch: Fetch, dtype: torch.dtype, frame: Frame) -> torch.Tensor:
    value: torch.Tensor = fetch(frame)
    return value.to(dtype)


def as_callables(bodies: tuple[Body, ...], frame: Frame) -> tuple[Callable[..., list[Any]], ...]:
    return tuple(body.call_in(frame) for body in bodies)


def invocation(impl: Impl, call: partial[Any], fetches: Mapping[str, Fetch], slots: Mapping[str, int]) -> Fetch:
    """``call`` with its inputs fetched from a frame, as quickly as Python can: a token takes thousands of these.

    ``slots`` are the inputs that are delivered as they lie in the frame. Inputs go by position where they can.
    """
    leading = [parameter.name for parameter in takewhile(lambda each: each.name in fetches, impl.parameters)]
    if len(leading) < len(fetches):
        return lambda frame: call(**{name: fetch(frame) for name, fetch in fetches.items()})
    if len(leading) == 1 and leading[0] in slots:
        only = slots[leading[0]]
        return lambda frame: call(frame[only])
    if len(leading) == 2 and leading[0] in slots and leading[1] in slots:
        first, second = slots[leading[0]], slots[leading[1]]
        return lambda frame: call(frame[first], frame[second])
    ordered = [fetches[name] for name in leading]
    return lambda frame: call(*[fetch(frame) for fetch in ordered])
