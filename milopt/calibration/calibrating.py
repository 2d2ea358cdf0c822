"""Runs a model and listens to what its weights are multiplied with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np

from milopt.calibration.running import Runs, sample_runs, text_runs
from milopt.calibration.statistics import Moments, Statistics, key_of
from milopt.mil import constant, shape_of
from milopt.package import Model
from milopt.passes.decompression import weights_again
from milopt.passes.uses import INPUT_AXES, layout_at
from milopt.precisions import Precision

__all__ = ["calibrate", "calibrate_text", "collect"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow
Tensor: TypeAlias = Any  # torch.Tensor, which is not imported before a model runs


def calibrate(
    model: Model,
    samples: Iterable[Mapping[str, Array]],
    *,
    function: str | None = None,
    hessian: bool = False,
    precision: Precision = "declared",
) -> Statistics:
    """Run ``function`` (the default one if None) on every sample of its inputs, by name, and collect moments.

    With ``hessian`` the products of all pairs of input channels are collected too, which takes 4·I² bytes for a weight
    of I inputs. Weights of ``gather`` have no input channels, and grouped convolutions are left out.
    """
    return collect(model, sample_runs(model, samples, function=function, precision=precision), hessian=hessian)


def calibrate_text(
    model: Model,
    tokens: Iterable[int],
    *,
    window: int | None = None,
    hessian: bool = False,
    precision: Precision = "declared",
) -> Statistics:
    """Feed a language model ``tokens`` in windows (of its context if None) and collect moments as :func:`calibrate`."""
    return collect(model, text_runs(model, tokens, window=window, precision=precision), hessian=hessian)


def collect(model: Model, runs: Runs, *, hessian: bool = False) -> Statistics:
    """The moments of all weights of ``model`` in ``runs`` of it."""
    listener = _Listener(model, hessian)
    for _ in runs.outputs(listener.of):
        pass
    return listener.found


class _Listener:
    """Knows which op takes which weight, in all functions."""

    def __init__(self, model: Model, hessian: bool) -> None:
        self.found = Statistics()
        self.hessian = hessian
        self._last: tuple[Tensor, tuple[int, Array, Array]] | None = None
        self._takes: dict[tuple[str, str], tuple[str, Callable[[Mapping[str, Tensor]], Tensor]]] = {}
        for weight in weights_again(model):
            for place, name, op in weight.users():
                rows = _rows_of(op, name)
                if rows is not None:
                    inputs = layout_at(shape_of(place.var), INPUT_AXES[op.op_type, name](op))
                    self._takes[place.function, op.name] = key_of(weight.array, inputs), rows

    def of(self, function: str) -> _InFunction:
        return _InFunction(self, function)

    def hear(self, function: str, name: str, values: Mapping[str, Tensor]) -> None:
        taken = self._takes.get((function, name))
        if taken is None:
            return
        key, rows_of = taken
        count, squares, products = self._sums(rows_of(values))
        moments = self.found.moments.setdefault(key, Moments(0.0))
        moments.count += count
        moments.squares = moments.squares + squares
        if self.hessian:
            moments.products = np.array(products) if moments.products is None else moments.products + products

    def _sums(self, rows: Tensor) -> tuple[int, Array, Array]:
        """What vectors ``(n, I)`` add to moments; of the same as the last time, as several weights take, what it was.

        The last vectors are kept, so that no others can be in their place in memory.
        """
        if self._last is None or not _same_memory(self._last[0], rows):
            products = (rows.float().mT @ rows.float()).cpu().numpy() if self.hessian else None
            self._last = rows, (len(rows), rows.double().square().sum(0).cpu().numpy(), products)
        return self._last[1]


class _InFunction:
    """What the interpreter calls."""

    def __init__(self, listener: _Listener, function: str) -> None:
        self._listener = listener
        self._function = function

    def before(self, step: Any, values: Mapping[str, Tensor]) -> None:
        self._listener.hear(self._function, step.name, values)


def _rows_of(op: Any, name: str) -> Callable[[Mapping[str, Tensor]], Tensor] | None:
    """How the vectors ``(n, I)`` that a weight is multiplied with are found among the op's inputs."""
    if (op.op_type, name) == ("linear", "weight"):
        return lambda values: _last(values["x"])
    if op.op_type in ("conv", "conv_transpose") and name == "weight" and int(constant(op.groups)) == 1:
        return lambda values: _last(values["x"].movedim(1, -1))
    if (op.op_type, name) == ("matmul", "y"):
        across = bool(constant(op.transpose_x))
        return lambda values: _last(_turned(values["x"]) if across else values["x"])
    if (op.op_type, name) == ("matmul", "x"):
        along = bool(constant(op.transpose_y))
        return lambda values: _last(values["y"] if along else _turned(values["y"]))
    return None


def _same_memory(one: Tensor, other: Tensor) -> bool:
    found = [(each.data_ptr(), each.shape, each.stride(), each.dtype) for each in (one, other)]
    return found[0] == found[1]


def _turned(tensor: Tensor) -> Tensor:
    return tensor.mT if tensor.ndim > 1 else tensor


def _last(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])
