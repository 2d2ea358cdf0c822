"""The inputs of an op, described."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch

from milopt.interpreter import Step
from milopt.interpreter.lists import Elements
from milopt.interpreter.ops.activation import activation
from milopt.interpreter.ops.elementwise import elementwise
from milopt.interpreter.state import Cell
from milopt.observation.overflow import Operand
from milopt.observation.summary import summarize

__all__ = ["operands_of"]

# Ops whose result at a place depends on their inputs at this place alone.
_ELEMENTWISE = frozenset({*elementwise, *activation, "cast", "select"}) - {"softmax", "prelu", "softplus_parametric"}


def operands_of(
    step: Step, values: Mapping[str, Any], dtypes: Mapping[str, str], index: tuple[int, ...] | None
) -> tuple[Operand, ...]:
    """The op's inputs, and what is at ``index`` in those of an elementwise op; ``dtypes`` are declared, by input name.

    ``index`` is None if it is not one of the result. Inputs that are no numbers are left out, but for lists and states.
    """
    at = index if step.op_type in _ELEMENTWISE else None
    made: list[Operand] = []
    for name, value in _named({**values, **step.call.keywords}):
        dtype = dtypes.get(name.split("[")[0], "")
        if isinstance(value, (torch.Tensor, Elements, Cell)):
            made.append(Operand(name, summarize(value, dtype), None if at is None else _number(value, at)))
        elif isinstance(value, (int, float)) and "[" not in name and not isinstance(value, bool):
            made.append(Operand(name, summarize(torch.tensor(value, dtype=torch.float64), dtype)))
    return tuple(made)


def _named(values: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, tuple):
            yield from ((f"{name}[{index}]", each) for index, each in enumerate(cast("tuple[object, ...]", value)))
        else:
            yield name, value


def _number(value: object, index: tuple[int, ...]) -> float | None:
    """The number that is broadcast to ``index``; None if the shapes don't tell."""
    if not isinstance(value, torch.Tensor) or value.dim() > len(index) or value.dtype is torch.bool:
        return None
    last = index[len(index) - value.dim() :]
    if any(size != 1 and place >= size for place, size in zip(last, value.shape, strict=True)):
        return None
    return float(value[tuple(0 if size == 1 else place for place, size in zip(last, value.shape, strict=True))])
