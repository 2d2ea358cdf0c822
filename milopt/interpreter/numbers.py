"""Values of one element, computed as numbers.

The norms of a single token are mostly arithmetic on values of one element, for which a tensor costs ten times what the
number does. numpy's and torch's fp32 arithmetic are both IEEE 754's, so the bits are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from operator import itemgetter
from typing import Any

import numpy as np
import torch

from milopt.interpreter.ops import core
from milopt.interpreter.result import Result
from milopt.interpreter.steps import Fetch, Frame, Step
from milopt.interpreter.values import is_float
from milopt.interpreter.weights import Weight

__all__ = ["with_numbers"]

Number = Any  # numpy.float32 or numpy.float64


def _maximum(x: Number, y: Number) -> Number:
    """NaN where either is. Which zero is the greater one is torch's to say."""
    if x == 0 and y == 0:
        return type(x)(torch.maximum(torch.tensor(x), torch.tensor(y)).item())
    return x if x > y or x != x else y


def _add(x: Number, y: Number) -> Number:
    return x + y


def _sub(x: Number, y: Number) -> Number:
    return x - y


def _mul(x: Number, y: Number) -> Number:
    return x * y


def _div(x: Number, y: Number) -> Number:
    return x / y


_ARITHMETIC: dict[str, Callable[[Number, Number], Number]] = {
    "add": _add,
    "maximum": _maximum,
    "mul": _mul,
    "real_div": _div,
    "sub": _sub,
}
# What torch computes of a tensor and a number as it does of two tensors, and whether the two may be swapped.
_MIXED = {"add": True, "mul": True, "sub": False}


def with_numbers(steps: Sequence[Step], tensors: Collection[int]) -> list[Step]:
    """The steps with arithmetic on numbers where all values have one element; slots in ``tensors`` stay tensors."""
    made = {result.slot: result for step in steps for result in step.results}
    single = {slot for slot, result in made.items() if _is_single(result)}
    fixed = set(tensors).union(*(_read_otherwise(step) for step in steps))
    scalar = {step.results[0].slot for step in steps if _is_arithmetic(step, single)} - fixed
    elsewhere = frozenset[int]().union(*(step.reads for step in steps if step.results[0].slot not in scalar))
    numbers = {slot for slot in single - fixed if slot in scalar or slot not in elsewhere}
    return [
        _scalar(step, numbers) if step.results[0].slot in scalar else _among_tensors(step, numbers, made)
        for step in steps
    ]


class _Number(Result):
    """A result that is kept as a number; ``settle`` takes a number, or a tensor of one element."""

    __slots__ = ("_kind_of",)

    def __init__(self, result: Result) -> None:
        for name in Result.__slots__:
            setattr(self, name, getattr(result, name))
        self._kind_of = _kind(result)

    def settle(self, value: Any, sizes: dict[str, int]) -> Number:
        if isinstance(value, torch.Tensor):
            return self._kind_of(super().settle(value, sizes).item())
        return np.float32(np.float16(value)) if self._rounds else value


class _Item:
    """The number in a tensor of one element; that of a constant is looked up once."""

    __slots__ = ("_constant", "_fetch", "_kind", "_number")

    def __init__(self, fetch: Fetch, kind: Any) -> None:
        self._fetch = fetch
        self._kind = kind
        self._constant = isinstance(fetch, Weight)
        self._number: Number = None

    def __call__(self, frame: Frame) -> Number:
        if self._number is not None:
            return self._number
        number = self._kind(self._fetch(frame).item())
        if self._constant:
            self._number = number
        return number


def _kind(result: Result) -> Any:
    return np.float64 if result.held is torch.float64 else np.float32


def _is_single(result: Result) -> bool:
    return result.is_static and is_float(result.info.dtype) and prod(result.sizes) == 1


def _read_otherwise(step: Step) -> frozenset[int]:
    """The slots that the step reads in another way than as one tensor each."""
    if step.bodies or step.many:
        return step.reads
    plain = {name for name, fetch in step.arguments if isinstance(fetch, itemgetter)}
    return frozenset(slot for name, slot in step.slots if name not in plain)


def _is_arithmetic(step: Step, single: Collection[int]) -> bool:
    """Whether the step computes a number of numbers that are at hand in the plan."""
    if not _is_core(step, _ARITHMETIC) or step.results[0].slot not in single:
        return False
    weights = [fetch for _, fetch in step.arguments if isinstance(fetch, Weight)]
    return (
        len(weights) + len(step.slots) == len(step.arguments) == 2
        and all(prod(weight.shape) == 1 for weight in weights)
        and all(slot in single for _, slot in step.slots)
    )


def _is_core(step: Step, op_types: Collection[str]) -> bool:
    known = step.op_type in op_types and not step.call.keywords
    return known and step.call.func is core[step.op_type].function


def _scalar(step: Step, numbers: Collection[int]) -> Step:
    kind, slots = _kind(step.results[0]), dict(step.slots)
    arguments = tuple(
        (name, fetch if slots.get(name) in numbers else _Item(fetch, kind)) for name, fetch in step.arguments
    )
    results = (_Number(step.results[0]),)
    return replace(step, call=partial(_ARITHMETIC[step.op_type]), arguments=arguments, results=results)


def _among_tensors(step: Step, numbers: Collection[int], made: Mapping[int, Result]) -> Step:
    """A step on tensors, which may read numbers, or make some."""
    slots = dict(step.slots)
    read = {name: made[slot] for name, slot in slots.items() if slot in numbers}
    if any(result.slot in numbers for result in step.results):
        results = tuple(_Number(each) if each.slot in numbers else each for each in step.results)
        step = replace(step, results=results)
    if not read:
        return step
    arguments = dict(step.arguments)
    if (name := _mixed(step, read, made)) is not None:
        other = "y" if name == "x" else "x"
        mixed = (("x", arguments[other]), ("y", partial(_plain, read[name].slot)))
        return replace(step, arguments=mixed)
    for name, result in read.items():
        arguments[name] = partial(_filled, result.slot, result.sizes, result.held)
    return replace(step, arguments=tuple(arguments.items()))


def _mixed(step: Step, read: Mapping[str, Result], made: Mapping[int, Result]) -> str | None:
    """The input of the step that may stay a number, because the other one is a tensor of the result's shape."""
    if len(read) != 1 or not _is_core(step, _MIXED):
        return None
    (name,) = read
    if name == "x" and not _MIXED[step.op_type]:
        return None
    other = dict(step.arguments)["y" if name == "x" else "x"]
    source = made.get(dict(step.slots).get("y" if name == "x" else "x", -1))
    shape = other.shape if isinstance(other, Weight) else source.sizes if source and source.is_static else None
    return name if step.results[0].is_static and shape == step.results[0].sizes else None


def _plain(slot: int, frame: Frame) -> float:
    return float(frame[slot])


def _filled(slot: int, shape: tuple[int, ...], dtype: torch.dtype | None, frame: Frame) -> torch.Tensor:
    return torch.full(shape, float(frame[slot]), dtype=dtype)
