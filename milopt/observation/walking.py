"""Where a run is: in which op, nested in which others, and how long each took."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from milopt.interpreter import Step

__all__ = ["Walk", "Walker", "wait"]

_BLOCKS = {"while_loop": ("condition", "body"), "cond": ("true", "false")}


@dataclass
class Walk:
    """An op while it runs. ``depth`` is 0 for ops of the function itself; ``block`` is the nested block it is in.

    ``first`` says that it begins a turn of its block.
    """

    step: Step
    depth: int
    block: str
    first: bool
    begun: float
    nested: float = 0.0
    parent: Walk | None = None
    blocks: dict[int, tuple[str, bool]] = field(default_factory=dict[int, tuple[str, bool]])


class Walker:
    """A listener that keeps the nesting of ops and a clock that stands still while it, or its subclass, works.

    Subclasses say what to do when a run begins (:meth:`began`), an op begins (:meth:`entered`) and has ended
    (:meth:`left`). A run begins when an op of the function comes that the last run had already: listeners are not told.

    An op's time lasts from the end of the op before it: its inputs are fetched, and its weights prepared, in that time.
    Whatever other listeners of the run do is counted as well. On other devices than the CPU each op is waited for.
    """

    def __init__(self) -> None:
        self._stack: list[Walk] = []
        self._seen: dict[int, Step] = {}
        self._own = 0.0
        self._mark: float | None = None

    def before(self, step: Step, values: Mapping[str, Any]) -> None:
        """The interpreter calls this before every op."""
        entry = time.perf_counter()
        now = entry - self._own
        self._return_to(step)
        parent = self._stack[-1] if self._stack else None
        if parent is None and (id(step) in self._seen or not self._seen):
            self._seen.clear()
            self._mark = None
            self.began()
        if parent is None:
            self._seen[id(step)] = step
        block, first = parent.blocks[id(step)] if parent is not None else ("", False)
        begun = now if self._mark is None else self._mark
        walk = Walk(step, len(self._stack), block, first, begun, parent=parent, blocks=_children(step))
        self._stack.append(walk)
        self._mark = now
        self.entered(walk, values)
        self._own += time.perf_counter() - entry

    def after(self, step: Step, outputs: Mapping[str, Any]) -> None:
        """The interpreter calls this after every op."""
        wait(outputs)
        entry = time.perf_counter()
        now = entry - self._own
        while self._stack[-1].step is not step:  # ops in which an error ended an earlier run
            self._stack.pop()
        walk = self._stack.pop()
        seconds = now - walk.begun
        if walk.parent is not None:
            walk.parent.nested += seconds
        self._mark = now
        self.left(walk, outputs, seconds)
        self._own += time.perf_counter() - entry

    def began(self) -> None:
        """A run begins."""

    def entered(self, walk: Walk, values: Mapping[str, Any]) -> None:
        """An op begins; ``values`` are its inputs, by MIL input name."""

    def left(self, walk: Walk, outputs: Mapping[str, Any], seconds: float) -> None:
        """An op has ended; ``seconds`` include the ops nested in it, which took ``walk.nested``."""

    def _return_to(self, step: Step) -> None:
        """Leave the ops that ``step`` is not nested in: those in which an error ended an earlier run."""
        while self._stack and id(step) not in self._stack[-1].blocks:
            self._stack.pop()


def _children(step: Step) -> dict[int, tuple[str, bool]]:
    """The ops of the nested blocks, with their block's name, and whether they are its first."""
    names = _BLOCKS.get(step.op_type, ())
    return {
        id(each): (names[index] if index < len(names) else f"block {index}", each is body.steps[0])
        for index, body in enumerate(step.bodies)
        for each in body.steps
    }


def wait(outputs: Mapping[str, Any]) -> None:
    """Until the device has computed the outputs."""
    for value in outputs.values():
        if isinstance(value, torch.Tensor) and value.device.type == "cuda":
            torch.cuda.synchronize(value.device)
        elif isinstance(value, torch.Tensor) and value.device.type == "mps":
            torch.mps.synchronize()
