"""Predictors that are wrong on purpose: a test that they pass tests nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from milopt.interpreter.state import State
from milopt.testing.coremltools_adapter import milopt_predictor

__all__ = ["WRONG"]


class _Wrong:
    def __init__(self, mlmodel: Any, change: Callable[[Any], Any]) -> None:
        self._right = milopt_predictor(mlmodel)
        self._change = change

    def predict(self, inputs: Mapping[str, Any], state: State | None = None) -> dict[str, Any]:
        outputs = self._right.predict(inputs, state)
        return {name: self._changed(value) for name, value in outputs.items()}

    def make_state(self) -> State:
        return self._right.make_state()

    def _changed(self, value: Any) -> Any:
        return self._change(value) if isinstance(value, np.ndarray) else value


def _adds_one(mlmodel: Any) -> _Wrong:
    return _Wrong(mlmodel, lambda value: value + 1)


def _negates(mlmodel: Any) -> _Wrong:
    return _Wrong(mlmodel, lambda value: -value)


WRONG: dict[str, Callable[[Any], _Wrong]] = {"adds-one": _adds_one, "negates": _negates}
