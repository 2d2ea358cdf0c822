"""Activation functions, by their documented formulas."""

from __future__ import annotations

from typing import Any

from milopt.testing.ops.comparing import EXACT, Oracle, Within
from milopt.testing.ops.drawing import FLOATS, Draw
from milopt.testing.ops.elementwise import erf
from milopt.testing.ops.framework import Call, Cases
from milopt.testing.ops.untyped import np

__all__ = ["cases"]

cases = Cases()

# a few roundings around a function that is within 4 units in the last place
FORMULA = Within(16)


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def _softplus(x: Any) -> Any:
    return np.logaddexp(0, x)


# value inference adds 1 before it takes the logarithm
LOG_OF_ONE_MORE = Within(8, lambda a: 1 + np.abs(a.x))

PLAIN: dict[str, tuple[Oracle, Within]] = {
    "relu": (lambda a: np.maximum(a.x, 0), Within(1)),
    "relu6": (lambda a: np.clip(a.x, 0, 6), Within(1)),
    "sigmoid": (lambda a: _sigmoid(a.x), FORMULA),
    "silu": (lambda a: a.x * _sigmoid(a.x), FORMULA),
    "softplus": (lambda a: _softplus(a.x), FORMULA),
    "softsign": (lambda a: a.x / (1 + np.abs(a.x)), FORMULA),
}


def _plain(oracle: Oracle, within: Within, inferred: Within) -> Any:
    def draws(d: Draw) -> Call:
        return Call({"x": d.array(d.shape(0), d.pick(*FLOATS))}, {}, oracle, within, inferred)

    return draws


for _name, (_oracle, _within) in PLAIN.items():
    cases(_name)(_plain(_oracle, _within, LOG_OF_ONE_MORE if _name == "softplus" else _within))


def _line(a: Any) -> Any:
    return np.abs(a.alpha * a.x) + np.abs(a.beta)


WITH_ALPHA: dict[str, tuple[Oracle, Within]] = {
    "elu": (lambda a: np.where(a.x < 0, a.alpha * np.expm1(a.x), a.x), Within(16, lambda a: 1 + np.abs(a.x))),
    "leaky_relu": (lambda a: np.where(a.x < 0, a.alpha * a.x, a.x), Within(1)),
    # NaN stays NaN, as in value inference
    "thresholded_relu": (lambda a: np.where(a.x < a.alpha, 0, a.x), EXACT),
}
WITH_ALPHA_AND_BETA: dict[str, tuple[Oracle, Within]] = {
    "clamped_relu": (lambda a: np.minimum(np.where(a.x < 0, a.alpha * a.x, a.x), a.beta), Within(1)),
    "linear_activation": (lambda a: a.alpha * a.x + a.beta, Within(2, _line)),
    "scaled_tanh": (lambda a: a.alpha * np.tanh(a.beta * a.x), FORMULA),
    "sigmoid_hard": (lambda a: np.clip(a.alpha * a.x + a.beta, 0, 1), Within(2, _line)),
}


def _with(oracle: Oracle, within: Within, names: str) -> Any:
    def draws(d: Draw) -> Call:
        dtype = d.pick(*FLOATS)
        kind = d.other_float(dtype)
        given = {name: d.scalar(kind) for name in names.split()}
        # value inference adds beta twice where it is negative, against the documentation of clamped_relu
        inferred = given.get("beta", 0) >= 0 and kind == dtype
        return Call({"x": d.array(d.shape(0), dtype)}, given, oracle, within, inferred)

    return draws


for _name, (_oracle, _within) in WITH_ALPHA.items():
    cases(_name)(_with(_oracle, _within, "alpha"))
for _name, (_oracle, _within) in WITH_ALPHA_AND_BETA.items():
    cases(_name)(_with(_oracle, _within, "alpha beta"))


def _gelu(a: Any) -> Any:
    mode = a("mode", "EXACT")
    if mode == "TANH_APPROXIMATION":
        return 0.5 * a.x * (1 + np.tanh(np.sqrt(2 / np.pi) * (a.x + 0.044715 * a.x**3)))
    if mode == "SIGMOID_APPROXIMATION":
        return a.x * _sigmoid(1.702 * a.x)
    return 0.5 * a.x * (1 + erf(a.x / np.sqrt(2)))


@cases("gelu")
def _(d: Draw) -> Call:
    given = d.some(mode=d.pick("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"))
    x = d.array(d.shape(0), d.pick(*FLOATS))
    # 1 + erf cancels for negative x: the error is relative to x; value inference can't do without elements
    return Call({"x": x}, given, _gelu, Within(16, lambda a: a.x), inferred=x.size > 0)


@cases("softmax")
def _(d: Draw) -> Call:
    x = d.array(d.shape(1), d.pick(*FLOATS))
    inferred = x.size > 0  # numpy has no largest of no elements
    # the difference to the largest is rounded before its exponential is taken, and relative to itself
    within = Within(64 + x.size, lambda a: 1e-3 + _softmax(a))
    return Call({"x": x}, d.some(axis=d.axis(x.ndim)), _softmax, within, inferred)


def _softmax(a: Any) -> Any:
    if a.x.size == 0:
        return a.x
    terms = np.exp(a.x - a.x.max(a("axis", -1), keepdims=True))
    return terms / terms.sum(a("axis", -1), keepdims=True)


def _channels(values: Any, x: Any) -> Any:
    return np.reshape(values, (-1, *[1] * (x.ndim - 2)))


def _prelu(a: Any) -> Any:
    return np.where(a.x > 0, a.x, _channels(a.alpha, a.x) * a.x)


@cases("prelu")
def _(d: Draw) -> Call:
    x = d.array(d.shape(3, 5, max_size=3), d.pick(*FLOATS))
    kind = d.other_float(x.dtype)
    channels = x.shape[1]
    # with other ranks than 4, coremltools takes one number for all channels
    alpha = d.array((channels,), kind, low=-2, high=2) if x.ndim == 4 else np.full(channels, d.scalar(kind), kind)
    if not channels:
        x, alpha = np.ones((1, 2, 1, 3), x.dtype), np.ones(2, kind)
    return Call({"x": x}, {"alpha": alpha}, _prelu, Within(1), inferred=kind == x.dtype)


@cases("softplus_parametric")
def _(d: Draw) -> Call:
    x = d.array(d.shape(3, 5, max_size=3), d.pick(*FLOATS), edges="special", low=-50, high=50)
    kind = d.other_float(x.dtype)
    given = {name: d.array(x.shape[1:2], kind, low=-2, high=2) for name in ("alpha", "beta")}

    def oracle(a: Any) -> Any:
        return _channels(a.alpha, a.x) * _softplus(_channels(a.beta, a.x) * a.x)

    def scale(a: Any) -> Any:  # exp magnifies the rounding of its argument
        scaled = _channels(a.beta, a.x) * a.x
        return _channels(a.alpha, a.x) * _softplus(scaled) * (1 + np.abs(np.minimum(scaled, 0)))

    # value inference takes exp of large numbers as they are, and gets infinity
    small = kind == x.dtype and bool((np.abs(x) < 5).all())
    inferred = Within(32, lambda a: np.abs(_channels(a.alpha, a.x)) * (1 + np.abs(a.x))) if small else False
    return Call({"x": x}, given, oracle, Within(32, scale), inferred)
