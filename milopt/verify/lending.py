"""Working copies of weights for the time of a comparison."""

from __future__ import annotations

from collections.abc import Generator, Hashable
from contextlib import contextmanager

import torch

from milopt.interpreter import Precision, Weights
from milopt.interpreter.weights import Constant

__all__ = ["LentWeights"]

# Two programs are compared one after the other beside the original weights and the values of a run; with this much
# for copies, verifying a model of 135M parameters stays below 3 GB.
_BUDGET = 1 << 30


class LentWeights(Weights):
    """Keeps working copies while :meth:`lent` is entered, up to ``budget`` bytes, and drops them on leaving it.

    Of what does not fit, copies are made at each use. Plans made with these weights hold no copies themselves.
    """

    def __init__(self, precision: Precision, *, budget: int = _BUDGET) -> None:
        super().__init__(precision, keep=False)
        self._budget = budget
        self._lent: dict[Hashable, torch.Tensor] | None = None

    @contextmanager
    def lent(self) -> Generator[None]:
        self._lent = {}
        try:
            yield
        finally:
            self._lent = None

    def prepare(self, constant: Constant) -> torch.Tensor:
        if self._lent is None or self.keeps(constant):
            return super().prepare(constant)
        key = constant.key()
        if (tensor := self._lent.get(key)) is None:
            tensor = super().prepare(constant)
            if sum(each.nbytes for each in self._lent.values()) + tensor.nbytes <= self._budget:
                self._lent[key] = tensor
        return tensor.view(constant.shape)
