"""The outputs of a classifier: a label, and the probability of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from milopt.interpreter.values import Array

__all__ = ["LabelOutput", "ProbabilitiesOutput"]


@dataclass(frozen=True)
class LabelOutput:
    """The label of the greatest probability, a string or an int."""

    name: str

    def write(self, value: Array) -> str | int:
        label: str | int = value.item()
        return label


@dataclass(frozen=True)
class ProbabilitiesOutput:
    """A dictionary from label to probability, in the order of the classes."""

    name: str
    classes: tuple[str | int, ...]

    def write(self, value: Array) -> dict[str | int, float]:
        probabilities: list[float] = value.astype(np.float64).ravel().tolist()
        return dict(zip(self.classes, probabilities, strict=True))
