"""Runs a model and listens to what its weights are multiplied with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from milopt.calibration.statistics import Moments, Statistics
from milopt.errors import MiloptError
from milopt.mil import constant, digest
from milopt.package import Model
from milopt.passes.decompression import weights_again
from milopt.precisions import Precision

__all__ = ["calibrate", "calibrate_text"]

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
    from milopt.interpreter import compile

    listener = _Listener(model, hessian)
    plan = compile(model, function, precision=precision)
    for sample in samples:
        plan.run(sample, listeners=(listener.of(plan.function),))
    return listener.found


def calibrate_text(
    model: Model,
    tokens: Iterable[int],
    *,
    window: int | None = None,
    hessian: bool = False,
    precision: Precision = "declared",
) -> Statistics:
    """Feed a language model ``tokens`` in windows (of its context if None) and collect moments as :func:`calibrate`."""
    from milopt.session import Plans, Session

    listener = _Listener(model, hessian)
    plans = Plans(model, precision=precision)
    for each in plans.functions.values():
        heard: Any = _Heard(each.plan, listener.of(each.plan.function))
        each.plan = heard
    every = list(tokens)
    size = min(window or plans.context, plans.context)
    if size < 1 or not every:
        raise MiloptError("calibration needs at least one token, and windows of at least one")
    for start in range(0, len(every), size):
        Session(plans).feed(every[start : start + size])
    return listener.found


class _Heard:
    """A plan that is run with a listener."""

    def __init__(self, plan: Any, listener: object) -> None:
        self._plan = plan
        self._listener = listener

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plan, name)

    def run(self, inputs: Any, state: Any = None, listeners: Iterable[object] = ()) -> Any:
        return self._plan.run(inputs, state, (*listeners, self._listener))


class _Listener:
    """Knows which op takes which weight, in all functions."""

    def __init__(self, model: Model, hessian: bool) -> None:
        self.found = Statistics()
        self.hessian = hessian
        self._takes: dict[tuple[str, str], tuple[str, Callable[[Mapping[str, Tensor]], Tensor]]] = {}
        for weight in weights_again(model):
            key = digest(weight.array).hex()
            for place, name, op in weight.users():
                rows = _rows_of(op, name)
                if rows is not None:
                    self._takes[place.function, op.name] = key, rows

    def of(self, function: str) -> _InFunction:
        return _InFunction(self, function)

    def hear(self, function: str, name: str, values: Mapping[str, Tensor]) -> None:
        taken = self._takes.get((function, name))
        if taken is None:
            return
        key, rows_of = taken
        rows = rows_of(values).double()
        moments = self.found.moments.setdefault(key, Moments(0.0))
        moments.count += len(rows)
        moments.squares = moments.squares + rows.square().sum(0).cpu().numpy()
        if self.hessian:
            products = (rows.mT @ rows).float().cpu().numpy()
            moments.products = products if moments.products is None else moments.products + products


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
        return lambda values: values["x"].reshape(-1, values["x"].shape[-1])
    if op.op_type in ("conv", "conv_transpose") and name == "weight" and int(constant(op.groups)) == 1:
        return lambda values: values["x"].movedim(1, -1).reshape(-1, values["x"].shape[1])
    if (op.op_type, name) == ("matmul", "y"):
        across = bool(constant(op.transpose_x))
        return lambda values: _last(values["x"].mT if across else values["x"])
    if (op.op_type, name) == ("matmul", "x"):
        along = bool(constant(op.transpose_y))
        return lambda values: _last(values["y"] if along else values["y"].mT)
    return None


def _last(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])
