"""The steps of a plan: ops that read and write numbered slots of a frame, run one after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeAlias, cast

import torch

from milopt.errors import EvaluationError
from milopt.interpreter.result import Result

__all__ = ["BORROWED", "Body", "Fetch", "Frame", "Instruction", "Listener", "Run", "Step", "explained"]

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
# Reads and writes slots of a frame.
Run: TypeAlias = Callable[[Frame], None]


@dataclass(frozen=True)
class Step:
    """One op of the plan. ``outputs`` are the names of its values, ``name`` is the op's own.

    ``slots`` are the inputs that are values of the program, by MIL input name; ``reads`` all slots that the step or
    its nested blocks read; ``frees`` those nobody reads after it; ``shared`` those whose memory a result may share,
    with ``BORROWED`` for that of constants. ``moves``: the results are elements of the inputs.
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
    moves: bool = False
    bodies: tuple[Body, ...] = ()
    frees: tuple[int, ...] = ()

    @property
    def is_view(self) -> bool:
        """Whether the step only looks at its one input in another way, or copies it when strides can't say that."""
        return (
            self.moves
            and [name for name, _ in self.arguments] == ["x"]
            and len(self.slots) == len(self.results) == 1
            and bool(self.shared - {BORROWED})
        )

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(result.info.name for result in self.results)


class Instruction(NamedTuple):
    """What is executed for one step or several; ``step`` is the last of them."""

    run: Run
    step: Step


@dataclass(frozen=True)
class Body:
    """The steps of a block: the function's own, or one nested in a ``cond`` or ``while_loop``.

    ``instructions`` do the same faster, for runs that nobody observes. ``reads`` are the slots of outer blocks.
    """

    inputs: tuple[int, ...]
    steps: tuple[Step, ...]
    instructions: tuple[Instruction, ...]
    outputs: tuple[Fetch, ...]
    reads: frozenset[int]

    def run(self, frame: Frame, *values: Any) -> list[Any]:
        for slot, value in zip(self.inputs, values, strict=True):
            frame[slot] = value
        if frame.listeners:
            _observe(self.steps, frame)
        else:
            _execute(self.instructions, frame)
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


def _execute(instructions: tuple[Instruction, ...], frame: Frame) -> None:
    step = None
    try:
        for run, step in instructions:  # noqa: B007
            run(frame)
    except Exception as error:
        if _is_explained(error):
            raise
        raise explained(error, cast("Step", step), frame) from error


def _observe(steps: tuple[Step, ...], frame: Frame) -> None:
    for step in steps:
        try:
            values = {name: fetch(frame) for name, fetch in step.arguments}
        except Exception as error:
            raise explained(error, step, frame) from error
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
            raise explained(error, step, frame) from error
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


def explained(error: Exception, step: Step, frame: Frame, values: Mapping[str, Any] | None = None) -> EvaluationError:
    """What went wrong in which op on which inputs; ``values`` are its inputs, else they are fetched from the frame."""
    message = str(error).strip().split("\n")[0]
    if values is None:
        inputs = [f"{name} {_delivered(fetch, frame)}" for name, fetch in step.arguments]
    else:
        inputs = [f"{name} {_described(value)}" for name, value in values.items()]
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
