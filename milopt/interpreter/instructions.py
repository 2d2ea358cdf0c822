"""What a run executes when nobody listens: the steps, their calls prepared, and chains of views taken in one stride.

A tenth of a decoder's time for a token goes into kernels that compute something; most of its other ops are transposes,
reshapes and slices of a few numbers, and what they cost is being called. Results are the same bits either way.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache, partial
from typing import Any

import torch

from milopt.interpreter.grouping import grouped
from milopt.interpreter.products import with_products
from milopt.interpreter.steps import Fetch, Frame, Instruction, Run, Step, explained

__all__ = ["lowered"]

# Layouts of its input that a chain of views remembers; a program of static shapes meets one or two.
_LAYOUTS = 64
_NEVER_COPY = frozenset({"transpose", "expand_dims", "squeeze", "identity", "slice_by_size", "sliding_windows", "crop"})


def lowered(steps: Sequence[Step], mine: Collection[int], kept: Collection[int]) -> tuple[Instruction, ...]:
    """Instructions that leave the same values in the slots ``kept`` as the steps do.

    ``mine`` are the slots of this block, which are freed after their last use. Views that only other views look at are
    left out: these start from where the first one does. So are repetitions that :func:`grouped` does without.
    """
    steps = with_products(grouped(steps, kept), kept)
    chains = _Chains(steps)
    needed = {slot for step in steps if not step.is_view for slot in step.reads}.union(kept)
    needed |= chains.roots_of(needed)
    chosen: list[tuple[Step, tuple[Step, ...]]] = []
    for step in steps:
        if not step.is_view:
            chosen.append((step, ()))
        elif step.results[0].slot in needed:
            chosen.append((step, chains.of(step)))
    frees = _frees(chosen, set(mine), set(kept))
    return tuple(
        Instruction(_view(chain, free) if chain else _call(step, free), step)
        for (step, chain), free in zip(chosen, frees, strict=True)
    )


class _Chains:
    """Which views follow which."""

    def __init__(self, steps: Iterable[Step]) -> None:
        steps = list(steps)
        self._views = {step.results[0].slot: step for step in steps if step.is_view}
        self._readers = Counter(slot for step in steps for slot in step.reads)

    def of(self, step: Step) -> tuple[Step, ...]:
        """The views from a value that is at hand to the result of ``step``, in order."""
        chain, forks = [step], False
        while (parent := self._views.get(chain[-1].slots[0][1])) is not None:
            forks = forks or self._readers[parent.results[0].slot] > 1
            if forks and _may_copy(parent):  # else every branch would copy
                break
            chain.append(parent)
        return tuple(reversed(chain))

    def roots_of(self, needed: Iterable[int]) -> set[int]:
        """The views that the chains of the ``needed`` ones start from, and those that these need."""
        roots: set[int] = set()
        waiting = [slot for slot in needed if slot in self._views]
        while waiting:
            root = self.of(self._views[waiting.pop()])[0].slots[0][1]
            if root in self._views and root not in roots:
                roots.add(root)
                waiting.append(root)
        return roots


def _may_copy(step: Step) -> bool:
    if step.op_type == "slice_by_index":
        return min(step.call.keywords.get("stride") or (1,)) < 0
    return step.op_type not in _NEVER_COPY


def _frees(chosen: Sequence[tuple[Step, tuple[Step, ...]]], mine: set[int], kept: set[int]) -> list[tuple[int, ...]]:
    """For each instruction, the slots of this block that nobody reads after it."""
    live = set(kept)
    frees: list[tuple[int, ...]] = []
    for step, chain in reversed(chosen):
        reads = chain[0].reads if chain else step.reads
        touched = reads.union(result.slot for result in step.results) & mine
        frees.append(tuple(sorted(touched - live)))
        live |= reads
    return frees[::-1]


def _view(chain: tuple[Step, ...], frees: tuple[int, ...]) -> Run:
    """The chain's result as one view, once it is known that its result is a view for this layout of the input."""
    root, result = chain[0].slots[0][1], chain[-1].results[0]
    slot, static, settle = result.slot, result.is_static, result.settle
    known: dict[Any, tuple[torch.Size, tuple[int, ...], int] | None] = {}

    def run(frame: Frame) -> None:
        x: torch.Tensor = frame[root]
        layout = x.shape, x.stride()
        if layout not in known:
            y = _walk(chain, x, frame)
            if len(known) >= _LAYOUTS:
                known.clear()
            known[layout] = _strides(x, y)
        elif (view := known[layout]) is None:
            y = _walk(chain, x, frame)
        else:
            size, stride, offset = view
            y = x.as_strided(size, stride, x.storage_offset() + offset)
            if not static:
                y = settle(y, frame.sizes)
        frame[slot] = y
        for each in frees:
            frame[each] = None

    return run


def _walk(chain: tuple[Step, ...], x: torch.Tensor, frame: Frame) -> torch.Tensor:
    value, step = x, chain[0]
    try:
        for step in chain:
            value = step.results[0].settle(step.call(value), frame.sizes)
    except Exception as error:
        raise explained(error, step, frame, {"x": value}) from error
    return value


def _strides(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Size, tuple[int, ...], int] | None:
    """How ``y`` looks at the memory of ``x``: size, strides, and how much later it begins; None if it is a copy."""
    if x.numel() == 0 or x.untyped_storage().data_ptr() != y.untyped_storage().data_ptr():
        return None
    return y.shape, y.stride(), int(y.storage_offset() - x.storage_offset())


def _call(step: Step, frees: tuple[int, ...]) -> Run:
    """The step as one function without loops, as far as its form allows."""
    call, fetches = _positional(step)
    if call is None or step.many or len(fetches) >= len(_BY_COUNT):
        return partial(_general, step, frees)
    result = step.results[0]
    slot, settle = result.slot, result.settle
    return _BY_COUNT[len(fetches)](call, fetches, frees, slot, settle)


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
