"""1x1 convolutions with constant weights -> products with a matrix that is prepared once.

A token on its own is one row of numbers, in whatever shape: the transposes and reshapes around its convolutions move
nothing, and the product reads and writes past them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from torch.nn import functional as F

from milopt.interpreter.ops.convolution import conv, is_pointwise, pointwise
from milopt.interpreter.result import Result
from milopt.interpreter.steps import Step
from milopt.interpreter.weights import Weight

__all__ = ["with_products"]

# of a row, that is
_KEEPS_ORDER = frozenset({"expand_dims", "squeeze", "reshape", "transpose"})


def with_products(steps: Sequence[Step], kept: Collection[int]) -> list[Step]:
    """The steps with products for 1x1 convolutions, without the reshapes of single rows that nobody else reads."""
    makers = {step.results[0].slot: step for step in steps}
    readers = Counter(slot for step in steps for slot in step.reads)
    users = {slot: step for step in steps for slot in step.reads}
    chosen: list[Step] = []
    passed: set[int] = set()
    for step in steps:
        if not _is_product(step):
            chosen.append(step)
            continue
        if not _is_token(step):
            chosen.append(_with_matrix(step))
            continue
        end = step
        while readers[slot := end.results[0].slot] == 1 and slot not in kept and _is_reshape(users[slot]):
            end = users[slot]
            passed.add(end.results[0].slot)
        chosen.append(_product(step, end.results[0], makers))
    return [step for step in chosen if step.results[0].slot not in passed or not step.is_view]


def _is_product(step: Step) -> bool:
    arguments = dict(step.arguments)
    weight = arguments.get("weight")
    return (
        step.call.func is conv
        and isinstance(weight, Weight)
        and arguments.keys() <= {"x", "weight", "bias"}
        and is_pointwise(weight.shape, **step.call.keywords)
    )


def _with_matrix(step: Step) -> Step:
    weight: Any = dict(step.arguments)["weight"]
    others = tuple((name, fetch) for name, fetch in step.arguments if name != "weight")
    return replace(step, call=partial(pointwise), arguments=(*others, ("matrix", weight.viewed(weight.shape[:2]))))


def _product(step: Step, end: Result, makers: Mapping[int, Step]) -> Step:
    """The product in the place of ``step``, its result in the slot and shape of ``end``."""
    source = dict(step.slots)["x"]
    while (maker := makers.get(source)) is not None and _is_reshape(maker):
        source = maker.slots[0][1]
    slots = tuple((name, source if name == "x" else slot) for name, slot in step.slots)
    arguments = dict(_with_matrix(step).arguments) | {"x": itemgetter(source)}
    return replace(
        step,
        call=partial(_of_row, shape=end.sizes),
        arguments=tuple(arguments.items()),
        results=(step.results[0].at(end),),
        slots=slots,
        reads=frozenset(slot for _, slot in slots),
    )


def _of_row(
    x: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None = None, *, shape: tuple[int, ...]
) -> torch.Tensor:
    return F.linear(x.reshape(1, -1), matrix, bias).view(shape)


def _is_token(step: Step) -> bool:
    """Whether a convolution computes the channels of a single position."""
    batch, _, *positions = step.results[0].info.shape or (0, 0)
    return {batch, *positions} == {1} and "x" in dict(step.slots)


def _is_reshape(step: Step) -> bool:
    """Whether the step leaves the order of elements as it is."""
    return step.is_view and step.op_type in _KEEPS_ORDER and _is_row(step.results[0])


def _is_row(result: Result) -> bool:
    """Whether at most one dimension is larger than 1, so that elements have one order."""
    return result.is_static and sum(size != 1 for size in result.info.shape or ()) <= 1
