"""States: tensors that a program reads and writes, and that outlive a call."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from milopt import mil
from milopt.errors import EvaluationError
from milopt.interpreter.source import Source, function_name, program_of
from milopt.interpreter.values import Precision, ValueInfo, held_dtype, info_of, is_float, rounded, to_numpy, to_tensor

__all__ = ["Cell", "State", "make_state"]


def make_state(source: Source, function: str | None = None) -> State:
    """A state of zeros for a function; with None, for all functions of the model, which can then share it."""
    functions = program_of(source).functions
    chosen = functions if function is None else {name: functions[name] for name in [function_name(source, function)]}
    infos: dict[str, ValueInfo] = {}
    for name, each in chosen.items():
        for var in each.inputs.values():
            if not mil.is_state(var):
                continue
            info = info_of(var)
            if infos.setdefault(info.name, info) != info:
                raise EvaluationError(f"function {name!r} has state {info.name!r} as {info}, not {infos[info.name]}")
    return State(infos)


class State:
    """The states of a model by name, zeros at first; every run of a stateful program reads and changes it.

    One State serves all functions of a model, and follows the precision of the plan it is given to. Indexing copies:
    ``state["k"]`` is a numpy array of the declared dtype (float64 after runs in that precision), and
    ``state["k"] = array`` replaces the value after checking its shape and kind.
    """

    def __init__(self, infos: Mapping[str, ValueInfo]) -> None:
        for info in infos.values():
            if info.shape is None or not all(isinstance(dim, int) for dim in info.shape):
                raise EvaluationError(f"state {info.name!r} is {info}; a state must have a fixed shape")
        self.infos = dict(infos)
        self._tensors: dict[str, torch.Tensor] = {}
        self.reset()

    def reset(self) -> None:
        """Set all states to zero."""
        self._tensors = {name: _zeros(info) for name, info in self.infos.items()}

    def copy(self) -> State:
        """An independent state with the same values."""
        twin = copy.copy(self)
        twin._tensors = {name: tensor.clone() for name, tensor in self._tensors.items()}
        return twin

    def numpy(self, name: str) -> np.ndarray[Any, Any]:
        """A copy of the state's value, of its declared dtype; of float64 after a run in that precision."""
        tensor = self._tensors[self._known(name)]
        return to_numpy(tensor, self.infos[name], "float64" if tensor.dtype == torch.float64 else "declared")

    def bind(
        self, infos: Mapping[str, ValueInfo], precision: Precision, device: torch.device | None = None
    ) -> dict[str, Cell]:
        """Cells for the states a function declares, their tensors in the dtype of ``precision`` and on ``device``."""
        cells: dict[str, Cell] = {}
        for name, info in infos.items():
            if name not in self.infos:
                raise EvaluationError(f"the state given has no {name!r}; make it with milopt.make_state(model)")
            if (self.infos[name].shape, self.infos[name].dtype) != (info.shape, info.dtype):
                raise EvaluationError(f"state {name!r} must be {info}, the state given has {self.infos[name]}")
            if self._tensors[name].dtype != held_dtype(info.dtype, precision):
                self._tensors[name] = rounded(self._tensors[name], info.dtype, precision)
            if device is not None and self._tensors[name].device != device:
                self._tensors[name] = self._tensors[name].to(device)
            cells[name] = Cell(self._tensors, name)
        return cells

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        return self.numpy(name)

    def __setitem__(self, name: str, value: np.ndarray[Any, Any] | torch.Tensor) -> None:
        info = self.infos[self._known(name)]
        double = is_float(info.dtype) and self._tensors[name].dtype == torch.float64
        self._tensors[name] = to_tensor(value, info, "float64" if double else "declared", "state").clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)

    def __contains__(self, name: object) -> bool:
        return name in self.infos

    def _known(self, name: str) -> str:
        if name not in self.infos:
            raise EvaluationError(f"there is no state {name!r}; the states are {', '.join(self.infos) or 'none'}")
        return name


class Cell:
    """One state as the ops see it during a run."""

    __slots__ = ("_name", "_tensors")

    def __init__(self, tensors: dict[str, torch.Tensor], name: str) -> None:
        self._tensors = tensors
        self._name = name

    def read(self) -> torch.Tensor:
        return self._tensors[self._name]

    def write(self, value: torch.Tensor, own: bool) -> None:
        """Replace the value; unless ``own``, by a copy. Always dense, so that it can be written in place later."""
        self._tensors[self._name] = value.contiguous() if own else value.clone(memory_format=torch.contiguous_format)


def _zeros(info: ValueInfo) -> torch.Tensor:
    shape = [dim for dim in info.shape or () if isinstance(dim, int)]
    return torch.zeros(shape, dtype=held_dtype(info.dtype, "declared"))
