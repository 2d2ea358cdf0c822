"""Runs a model and listens to what its weights are multiplied with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

from milopt.calibration.accumulating import Products
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

    With ``hessian`` the products of all pairs of input channels are collected too: 4·I² bytes on disk (``TMPDIR``) for
    the weights that share a value of I channels, 0.4 GB in SmolLM2-135M, 5 GB in a model of 1.2B parameters with 16
    layers of 2,048 and 8,192 channels. Weights of ``gather`` have no input channels; grouped convolutions are left out.
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
    return listener.finish()


class _Source(NamedTuple):
    """Whose vectors an op multiplies with a weight: a value, by its id, and how they lie in it.

    Ops of one block with equal sources hear the same vectors, and as often; one of another block may be in a loop.
    """

    block: int
    value: int
    lie: str


class _Listener:
    """Knows which op takes which weight, in all functions.

    Weights that are multiplied with the same values, as those of queries, keys and values are, have one sum of them.
    """

    def __init__(self, model: Model, hessian: bool) -> None:
        self._sums: dict[str, Moments] = {}
        self._products = Products() if hessian else None
        self._takes: dict[tuple[str, str], tuple[str, str, str]] = {}
        self._of: dict[str, str] = {}  # the weight whose sums another has too
        uses: dict[str, list[tuple[_Source, tuple[str, str], str]]] = {}
        for weight in weights_again(model):
            for place, name, op in weight.users():
                inputs = _inputs_of(op, name)
                if inputs is not None:
                    argument, lie = inputs
                    layout = layout_at(shape_of(place.var), INPUT_AXES[op.op_type, name](op))
                    source = _Source(id(op.enclosing_block), id(op.inputs[argument]), lie)
                    uses.setdefault(key_of(weight.array, layout), []).append(
                        (source, (place.function, op.name), argument)
                    )
        firsts: dict[tuple[_Source, ...], str] = {}
        for key, each in uses.items():
            first = firsts.setdefault(tuple(sorted(source for source, _, _ in each)), key)
            self._of[key] = first
            if first == key:
                self._takes.update({op: (key, argument, source.lie) for source, op, argument in each})

    def of(self, function: str) -> _InFunction:
        return _InFunction(self, function)

    def hear(self, function: str, name: str, values: Mapping[str, Tensor]) -> None:
        taken = self._takes.get((function, name))
        if taken is None:
            return
        key, argument, lie = taken
        rows = _LIE[lie](values[argument])
        moments = self._sums.setdefault(key, Moments(0.0))
        moments.count += len(rows)
        moments.squares = moments.squares + rows.double().square().sum(0).cpu().numpy()
        if self._products is not None:
            self._products.add(key, rows)

    def finish(self) -> Statistics:
        """What was heard."""
        for key, products in self._products.finish().items() if self._products is not None else ():
            self._sums[key].products = products
        return Statistics({key: self._sums[first] for key, first in self._of.items() if first in self._sums})


class _InFunction:
    """What the interpreter calls."""

    def __init__(self, listener: _Listener, function: str) -> None:
        self._listener = listener
        self._function = function

    def before(self, step: Any, values: Mapping[str, Tensor]) -> None:
        self._listener.hear(self._function, step.name, values)


def _inputs_of(op: Any, name: str) -> tuple[str, str] | None:
    """The op's input that a weight is multiplied with, and how its vectors lie there."""
    if (op.op_type, name) == ("linear", "weight"):
        return "x", "last"
    if op.op_type in ("conv", "conv_transpose") and name == "weight" and int(constant(op.groups)) == 1:
        return "x", "second"
    if (op.op_type, name) == ("matmul", "y"):
        return "x", "last but one" if bool(constant(op.transpose_x)) else "last"
    if (op.op_type, name) == ("matmul", "x"):
        return "y", "last" if bool(constant(op.transpose_y)) else "last but one"
    return None


# the axis along which a vector lies -> all of them, (n, I)
_LIE: dict[str, Callable[[Tensor], Tensor]] = {
    "last": lambda x: _last(x),
    "second": lambda x: _last(x.movedim(1, -1)),
    "last but one": lambda x: _last(_turned(x)),
}


def _turned(tensor: Tensor) -> Tensor:
    return tensor.mT if tensor.ndim > 1 else tensor


def _last(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])
