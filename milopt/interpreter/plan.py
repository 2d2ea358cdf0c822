"""The plan: one function of a program, ready to run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from milopt.errors import EvaluationError
from milopt.interpreter.devices import values_on
from milopt.interpreter.state import State
from milopt.interpreter.steps import Body, Frame, Listener
from milopt.interpreter.values import Precision, ValueInfo, to_tensor

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """A function of a program, ready to run. Later changes of the program don't change it.

    ``inputs``, ``outputs`` and ``states`` give the declared types by name. Made by :func:`milopt.interpreter.compile`.
    """

    function: str
    precision: Precision
    inputs: dict[str, ValueInfo]
    outputs: dict[str, ValueInfo]
    states: dict[str, ValueInfo]
    body: Body
    slots: int
    input_slots: dict[str, int]
    state_slots: dict[str, int]
    copied_outputs: frozenset[str]
    device: torch.device

    def run(
        self,
        inputs: Mapping[str, np.ndarray[Any, Any] | torch.Tensor],
        state: State | None = None,
        listeners: Iterable[object] = (),
    ) -> dict[str, torch.Tensor]:
        """The outputs by name, as torch tensors of the run's dtypes (fp16 is held as float32); ``state`` is updated.

        A classifier's label comes as a Python string, if its classes are strings. EvaluationError when the inputs or
        the state don't fit the declaration, or when an op fails or breaks its declared type.
        """
        frame = Frame(self.slots, tuple(cast("Listener", each) for each in listeners))
        with torch.inference_mode(), values_on(self.device), np.errstate(all="ignore"):
            self._bind_inputs(inputs, frame)
            self._bind_states(state, frame)
            values = self.body.run(frame)
            return {
                name: value.clone() if name in self.copied_outputs and isinstance(value, torch.Tensor) else value
                for name, value in zip(self.outputs, values, strict=True)
            }

    def _bind_inputs(self, inputs: Mapping[str, Any], frame: Frame) -> None:
        if inputs.keys() != self.inputs.keys():
            wanted = ", ".join(f"{info.name} {info}" for info in self.inputs.values()) or "no inputs"
            missing = [name for name in self.inputs if name not in inputs]
            wrong = f"lacks {missing[0]!r}" if missing else f"has no {next(iter(inputs.keys() - self.inputs.keys()))!r}"
            whose = "the call" if missing else f"function {self.function!r}"
            raise EvaluationError(f"{whose} {wrong}; {self.function!r} takes {wanted}")
        for name, info in self.inputs.items():
            tensor = to_tensor(inputs[name], info, self.precision, "input").to(self.device)
            self._agree(tensor, info, frame.sizes)
            frame[self.input_slots[name]] = tensor

    def _agree(self, tensor: torch.Tensor, info: ValueInfo, sizes: dict[str, int]) -> None:
        for have, want in zip(tensor.shape, info.shape or (), strict=False):
            if isinstance(want, str) and want != "?" and sizes.setdefault(want, have) != have:
                raise EvaluationError(
                    f"input {info.name!r} is {info}: {want} is {have} here but {sizes[want]} before it"
                )

    def _bind_states(self, state: State | None, frame: Frame) -> None:
        if not self.states:
            return
        if state is None:
            raise EvaluationError(
                f"function {self.function!r} has states ({', '.join(self.states)}): pass state=milopt.make_state(model)"
            )
        for name, cell in state.bind(self.states, self.precision, self.device).items():
            frame[self.state_slots[name]] = cell
