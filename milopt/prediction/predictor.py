"""A function of a model, compiled once, that answers as ``MLModel.predict`` does on macOS."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from coremltools.models import MLModel

from milopt.errors import EvaluationError
from milopt.interpreter import compile
from milopt.interpreter.state import State, make_state
from milopt.interpreter.values import Precision, to_numpy
from milopt.mil import Program
from milopt.package import Model, load
from milopt.prediction.describing import inputs_of, outputs_of

__all__ = ["Predictor", "predict"]


class Predictor:
    """One function of a model (the default one if None), ready to predict; later changes of the model don't matter.

    ``model`` is a :class:`milopt.Model`, a path, a coremltools ``MLModel`` or a PyMIL program. ``inputs`` and
    ``outputs`` say by name what is taken and given; ``plan`` is the function as the interpreter runs it.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | MLModel | Program | Model,
        function: str | None = None,
        *,
        precision: Precision = "declared",
        device: str = "cpu",
    ) -> None:
        model = load(model)
        self.plan = compile(model, function, precision=precision, device=device)
        self.inputs = inputs_of(model, self.plan.function)
        self.outputs = outputs_of(model, self.plan.function)
        self._model = model

    def make_state(self) -> State:
        """A new state for the model's functions, all zeros, as ``MLModel.make_state`` gives for one."""
        return make_state(self._model)

    def predict(
        self, inputs: Mapping[str, Any], state: State | None = None, listeners: Iterable[object] = ()
    ) -> dict[str, Any]:
        """The outputs by name; ``state`` is updated.

        Multi-arrays are given as anything numpy makes an array of, numbers of any type, and come as arrays of the
        described type; images are PIL images; a classifier gives a label and a dictionary from label to probability.
        Optional inputs may be left out. EvaluationError says what was expected.
        """
        outputs = self.plan.run(self.arrays(inputs), state, listeners)
        return {
            name: output.write(to_numpy(outputs[name], self.plan.outputs[name], self.plan.precision))
            for name, output in self.outputs.items()
        }

    def arrays(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What ``plan.run`` takes for these inputs: images and numbers as arrays, defaults filled in."""
        unknown = [name for name in inputs if name not in self.inputs]
        missing = [name for name, each in self.inputs.items() if name not in inputs and not each.optional]
        if unknown or missing:
            wanted = ", ".join(map(str, self.inputs.values())) or "no inputs"
            wrong = f"there is no input {unknown[0]!r}" if unknown else f"input {missing[0]!r} is missing"
            raise EvaluationError(f"{wrong}; function {self.plan.function!r} takes {wanted}")
        return {
            name: each.read(inputs[name]) if name in inputs else each.default() for name, each in self.inputs.items()
        }


def predict(
    model: str | os.PathLike[str] | MLModel | Program | Model,
    inputs: Mapping[str, Any],
    *,
    state: State | None = None,
    function: str | None = None,
    precision: Precision = "declared",
) -> dict[str, Any]:
    """One prediction of a model; see :meth:`Predictor.predict`. To predict often, make a :class:`Predictor` once."""
    return Predictor(model, function, precision=precision).predict(inputs, state)
