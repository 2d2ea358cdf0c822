"""Normalizations, by their documented formulas."""

from __future__ import annotations

from typing import Any

from milopt.testing.ops.comparing import Within
from milopt.testing.ops.drawing import F32, FLOATS, Draw
from milopt.testing.ops.framework import Call, Cases
from milopt.testing.ops.untyped import np

__all__ = ["cases"]

cases = Cases()

# coremltools writes defaults as float32, whatever the type of the input
EPSILON, SMALLER_EPSILON, ALPHA = (float(F32.type(default)) for default in (1e-5, 1e-6, 1e-4))


def _x(d: Draw, min_rank: int, max_rank: int) -> Any:
    shape = d.shape(min_rank, max_rank, empty=False)
    return d.array(shape, d.pick(*FLOATS), low=-8, high=8, edges=d.pick("none", "finite"))


def _across(values: Any, x: Any) -> Any:
    return np.reshape(values, (-1, *[1] * (x.ndim - 2)))


def _scaled(a: Any, y: Any, shape: Any) -> Any:
    gamma, beta = a("gamma", None), a("beta", None)
    y = y if gamma is None else y * np.reshape(gamma, shape)
    return y if beta is None else y + np.reshape(beta, shape)


def _normalized(x: Any, axes: tuple[int, ...], epsilon: float) -> Any:
    centered = x - x.mean(axes, keepdims=True)
    return centered / np.sqrt((centered**2).mean(axes, keepdims=True) + epsilon)


def _rounding(x: Any, axes: tuple[int, ...], epsilon: float) -> Any:
    """How far the result may be off: by its own size, and by what the mean rounds away, over the deviation."""
    centered = x - x.mean(axes, keepdims=True)
    deviation = np.sqrt((centered**2).mean(axes, keepdims=True) + epsilon)
    # what is rounded below the smallest normal fp32 number is off by as much as at that number, whatever its size
    largest = np.maximum(np.abs(x).max(axes, keepdims=True), 2.0**-126)
    # the deviation itself is off by as much as the mean
    return (np.abs(centered) + largest) / deviation * (1 + largest / deviation * np.minimum(1, largest / deviation))


def _epsilon(d: Draw, kind: Any) -> dict[str, Any]:
    return d.some(epsilon=kind.type(d.pick(1e-5, 1e-3, 0.5)))


@cases("layer_norm")
def _(d: Draw) -> Call:
    x = _x(d, 1, 4)
    kind = d.other_float(x.dtype)
    axes = d.axes(x.ndim, 1)
    # coremltools can't write its own default for the axes
    given: dict[str, Any] = {"axes": np.array(axes, np.int32)}
    chosen = tuple(sorted(axis % x.ndim for axis in axes))
    shape = tuple(x.shape[axis] for axis in chosen)
    if d.flag():
        given["gamma"] = d.array(shape, kind, low=-2, high=2)
        given |= d.some(beta=d.array(shape, kind, low=-2, high=2))
    given |= _epsilon(d, kind)
    wide = [size if axis in chosen else 1 for axis, size in enumerate(x.shape)]

    def oracle(a: Any) -> Any:
        return _scaled(a, _normalized(a.x, chosen, a("epsilon", EPSILON)), wide)

    def scale(a: Any) -> Any:
        beta = a("beta", None)
        off = _rounding(a.x, chosen, a("epsilon", EPSILON))
        gamma = a("gamma", None)
        off = off if gamma is None else off * np.abs(np.reshape(gamma, wide))
        return off if beta is None else off + np.abs(np.reshape(beta, wide))

    # value inference rounds fp16 on the way
    return Call({"x": x}, given, oracle, Within(x.size + 8, scale), inferred=x.dtype.itemsize == 4)


def _channels(d: Draw, x: Any, kind: Any) -> dict[str, Any]:
    given = d.some(gamma=d.array(x.shape[1:2], kind, low=-2, high=2), beta=d.array(x.shape[1:2], kind, low=-2, high=2))
    return given | _epsilon(d, kind)


@cases("batch_norm", not_inferred="it has none")
def _(d: Draw) -> Call:
    x = _x(d, 3, 5)
    kind = d.other_float(x.dtype)
    given = _channels(d, x, kind)
    given |= {
        "mean": d.array(x.shape[1:2], kind, low=-2, high=2),
        "variance": d.array(x.shape[1:2], kind, low=0, high=4),
    }

    def factor(a: Any) -> Any:
        return 1 / np.sqrt(_across(a.variance, a.x) + a("epsilon", EPSILON))

    def oracle(a: Any) -> Any:
        return _scaled(a, (a.x - _across(a.mean, a.x)) * factor(a), (-1, *[1] * (a.x.ndim - 2)))

    def scale(a: Any) -> Any:
        wide = a.magnitudes()
        return _scaled(wide, (wide.x + _across(wide.mean, a.x)) * factor(a), (-1, *[1] * (a.x.ndim - 2)))

    return Call({"x": x}, given, oracle, Within(16, scale))


@cases("instance_norm", not_inferred="it has none")
def _(d: Draw) -> Call:
    x = _x(d, 3, 4)
    given = _channels(d, x, d.other_float(x.dtype))
    axes = tuple(range(2, x.ndim))
    shape = (-1, *[1] * (x.ndim - 2))

    def oracle(a: Any) -> Any:
        return _scaled(a, _normalized(a.x, axes, a("epsilon", EPSILON)), shape)

    def scale(a: Any) -> Any:
        return _scaled(a.magnitudes(), _rounding(a.x, axes, a("epsilon", EPSILON)), shape)

    return Call({"x": x}, given, oracle, Within(x.size + 8, scale))


def _l2_normalized(a: Any) -> Any:
    return a.x / np.sqrt((a.x**2).sum((-3, -2, -1), keepdims=True) + a("epsilon", SMALLER_EPSILON))


@cases("l2_norm")
def _(d: Draw) -> Call:
    x = _x(d, 3, 5)
    given = _epsilon(d, d.other_float(x.dtype))
    return Call({"x": x}, given, _l2_normalized, Within(x.size + 8), inferred=x.dtype.itemsize == 4)


def _local(a: Any) -> Any:
    """The documented sum over ``size`` neighbouring channels: half of them, rounded down, before the channel."""
    size = int(a.size)
    channels = a.x.shape[1]
    sums = np.zeros_like(a.x)
    for channel in range(channels):
        first, end = max(0, channel - size // 2), min(channels, channel + (size - 1) // 2 + 1)
        sums[:, channel] = (a.x[:, first:end] ** 2).sum(1)
    return a.x / (a("k", 1.0) + a("alpha", ALPHA) / size * sums) ** a("beta", 0.75)


@cases("local_response_norm", not_inferred="it has none")
def _(d: Draw) -> Call:
    x = _x(d, 3, 4)
    kind = d.other_float(x.dtype)
    given = d.some(alpha=d.scalar(kind, 0.01, 2), beta=d.scalar(kind, 0.1, 2), k=d.scalar(kind, 0.1, 2))
    return Call({"x": x}, {"size": d.number(1, 5)} | given, _local, Within(64))
