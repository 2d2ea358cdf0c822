"""A step as one function of the frame."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from milopt.interpreter.steps import Fetch, Frame, Run, Step

__all__ = ["call"]


def call(step: Step, frees: tuple[int, ...]) -> Run:
    """The step as one function without loops, as far as its form allows."""
    function, fetches = _positional(step)
    if function is None or step.many or len(fetches) >= len(_BY_COUNT):
        return partial(_general, step, frees)
    result = step.results[0]
    slot, settle = result.slot, result.settle
    return _BY_COUNT[len(fetches)](function, fetches, frees, slot, settle)


def _positional(step: Step) -> tuple[Callable[..., Any] | None, list[Fetch]]:
    """The implementation and its arguments by position; None where they are not its first ones."""
    names = _parameters(step.call.func)[: len(step.arguments)]
    fetches = dict(step.arguments)
    if set(names) != set(fetches):
        return None, []
    return step.call if step.call.keywords else step.call.func, [fetches[name] for name in names]


@cache
def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def _of_none(call: Any, fetches: list[Fetch], frees: tuple[int, ...], slot: int, settle: Any) -> Run:
    def run(frame: Frame) -> None:
        frame[slot] = settle(call(), frame.sizes)
        for each in frees:
            frame[each] = None

    return run


def _of_one(call: Any, fetches: list[Fetch], frees: tuple[int, ...], slot: int, settle: Any) -> Run:
    (x,) = fetches

    def run(frame: Frame) -> None:
        frame[slot] = settle(call(x(frame)), frame.sizes)
        for each in frees:
            frame[each] = None

    return run


def _of_two(call: Any, fetches: list[Fetch], frees: tuple[int, ...], slot: int, settle: Any) -> Run:
    x, y = fetches

    def run(frame: Frame) -> None:
        frame[slot] = settle(call(x(frame), y(frame)), frame.sizes)
        for each in frees:
            frame[each] = None

    return run


def _of_three(call: Any, fetches: list[Fetch], frees: tuple[int, ...], slot: int, settle: Any) -> Run:
    x, y, z = fetches

    def run(frame: Frame) -> None:
        frame[slot] = settle(call(x(frame), y(frame), z(frame)), frame.sizes)
        for each in frees:
            frame[each] = None

    return run


def _of_four(call: Any, fetches: list[Fetch], frees: tuple[int, ...], slot: int, settle: Any) -> Run:
    x, y, z, w = fetches

    def run(frame: Frame) -> None:
        frame[slot] = settle(call(x(frame), y(frame), z(frame), w(frame)), frame.sizes)
        for each in frees:
            frame[each] = None

    return run


_BY_COUNT = (_of_none, _of_one, _of_two, _of_three, _of_four)


def _general(step: Step, frees: tuple[int, ...], frame: Frame) -> None:
    value = step.call(**{name: fetch(frame) for name, fetch in step.arguments})
    if step.many:
        for result, each in zip(step.results, value, strict=True):
            frame[result.slot] = result.settle(each, frame.sizes)
    else:
        result = step.results[0]
        frame[result.slot] = result.settle(value, frame.sizes)
    for slot in frees:
        frame[slot] = None
