"""The steps of a plan: ops that read and write numbered slots of a frame, run one after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias, cast

import torch

from milopt.errors import EvaluationError
from milopt.interpreter.result import Result

__all__ = ["BORROWED", "Body", "Fetch", "Frame", "Listener", "Step"]

# Stands for memory that belongs to others, where the slots of values are meant that may share memory.
BORROWED = -1


class Frame(list[Any]):
    """The values of one run by slot, the sizes its symbols have taken, and who listens."""

    __slots__ = ("listeners", "sizes")

    def __init__(self, slots: int, listeners: tuple[Listener, ...]) -> None:
        super().__init__([None] * slots)
        self.sizes: dict[str, int] = {}
        self.listeners = listeners


class Listener(Protocol):
    """Observes a run. Either method may be left out.

    ``before(step, values)`` gets the delivered inputs by MIL input name, ``after(step, outputs)`` the results by value
    name. The tensors are the run's own: read them, keep clones.
    """

    def before(self, step: Step, values: Mapping[str, Any]) -> None: ...
    def after(self, step: Step, outputs: Mapping[str, torch.Tensor]) -> None: ...


# Reads a value, or several, from a frame, and delivers it as an implementation wants it.
Fetch: TypeAlias = Callable[[Frame], Any]


@dataclass(frozen=True)
class Step:
    """One op of the plan. ``outputs`` are the names of its values, ``name`` is the op's own.

    ``slots`` are the inputs that are values of the program, by MIL input name; ``reads`` all slots that the step or
    its nested blocks read; ``frees`` those nobody reads after it; ``shared`` those whose memory a result may share,
    with ``BORROWED`` for that of constants.
    """

    op_type: str
    name: str
    call: partial[Any]
    arguments: tuple[tuple[str, Fetch], ...]
    results: tuple[Result, ...]
    many: bool
    slots: tuple[tuple[str, int], ...]
    reads: frozenset[int]
    shared: frozenset[int]
    bodies: tuple[Body, ...] = ()
    frees: tuple[int, ...] = ()

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(result.info.name for result in self.results)


@dataclass(frozen=True)
class Body:
    """The steps of a block: the function's own, or one nested in a ``cond`` or ``while_loop``.

    ``reads`` are the slots of outer blocks that it reads.
    """

    inputs: tuple[int, ...]
    steps: tuple[Step, ...]
    outputs: tuple[Fetch, ...]
    reads: frozenset[int]

    def run(self, frame: Frame, *values: Any) -> list[Any]:
        for slot, value in zip(self.inputs, values, strict=True):
            frame[slot] = value
        if frame.listeners:
            _observe(self.steps, frame)
        else:
            _execute(self.steps, frame)
        return [fetch(frame) for fetch in self.outputs]

    def call_in(self, frame: Frame) -> Callable[..., list[Any]]:
        """The nested block as a function. Symbols it binds are its own: they may differ from turn to turn of a loop."""

        def call(*values: Any) -> list[Any]:
            outer, frame.sizes = frame.sizes, dict(frame.sizes)
            try:
                return self.run(frame, *values)
            finally:
                frame.sizes = outer

        return call


def _execute(steps: tuple[Step, ...], frame: Frame) -> None:
    step = None
    sizes = frame.sizes
    try:
        for step in steps:
            value = step.call(**{name: fetch(frame) for name, fetch in step.arguments})
            if step.many:
                for result, each in zip(step.results, value, strict=True):
                    frame[result.slot] = result.settle(each, sizes)
            else:
                result = step.results[0]
                frame[result.slot] = result.settle(value, sizes)
            for slot in step.frees:
                frame[slot] = None
    except Exception as error:
        if _is_explained(error):
            raise
        raise _explained(error, cast("Step", step), frame) from error


def _observe(steps: tuple[Step, ...], frame: Frame) -> None:
    for step in steps:
        try:
            values = {name: fetch(frame) for name, fetch in step.arguments}
        except Exception as error:
            raise _explained(error, step, frame) from error
        for listener in frame.listeners:
            if hasattr(listener, "before"):
                listener.before(step, values)
        try:
            value = step.call(**values)
            settled = [
                result.settle(each, frame.sizes)
                for result, each in zip(step.results, value if step.many else (value,), strict=True)
            ]
        except Exception as error:
            if _is_explained(error):
                raise
            raise _explained(error, step, frame) from error
        for result, each in zip(step.results, settled, strict=True):
            frame[result.slot] = each
        for listener in frame.listeners:
            if hasattr(listener, "after"):
                listener.after(step, dict(zip(step.outputs, settled, strict=True)))
        for slot in step.frees:
            frame[slot] = None


def _is_explained(error: Exception) -> bool:
    """Whether an op of a nested block has already said what happened where."""
    return isinstance(error, EvaluationError) and error.__cause__ is not None


def _explained(error: Exception, step: Step, frame: Frame) -> EvaluationError:
    message = str(error).strip().split("\n")[0]
    inputs = [f"{name} {_delivered(fetch, frame)}" for name, fetch in step.arguments]
    inputs += [f"{name} {_described(value)}" for name, value in step.call.keywords.items()]
    kind = "" if isinstance(error, EvaluationError) else f"{type(error).__name__}: "
    return EvaluationError(f"{step.op_type} {step.name!r}: {kind}{message} (inputs: {', '.join(inputs)})")


def _delivered(fetch: Fetch, frame: Frame) -> str:
    try:
        return _described(fetch(frame))
    except Exception:  # a weight that can't be decoded is what went wrong
        return "?"


def _described(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_described, cast('Sequence[Any]', value)))}]"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
