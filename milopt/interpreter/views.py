"""Chains of views, taken in one stride."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch

from milopt.interpreter.steps import Frame, Run, Step, explained

__all__ = ["Chains", "view"]

# Layouts of its input that a chain of views remembers; a program of static shapes meets one or two.
_LAYOUTS = 64
_NEVER_COPY = frozenset({"transpose", "expand_dims", "squeeze", "identity", "slice_by_size", "sliding_windows", "crop"})


class Chains:
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


def view(chain: tuple[Step, ...], frees: tuple[int, ...]) -> Run:
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
