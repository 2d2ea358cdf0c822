"""Composite ops on small inputs, with the steps of their documentation written out in numpy's own float16.

numpy rounds every operation on float16 arrays. Sums, and functions like exp, are taken in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import erf, pi, sqrt
from typing import Any, TypeAlias, cast

import numpy as np

from milopt.interpreter.values import Array
from milopt.mil import Target, mb, target
from tests.interpreter.support import Build, normals

__all__ = ["CASES", "Case", "sigmoid"]

F16: Any = np.float16
Kind: TypeAlias = Any  # np.float16 or np.float32, as a function that converts


@dataclass(frozen=True)
class Case:
    """``build(kind)`` makes the program, its constants of that type; ``steps`` are its float16 results from inputs."""

    build: Callable[[Kind], Build]
    inputs: Mapping[str, Array]
    steps: Build
    opset: Target = target.iOS18

    def results(self) -> Sequence[Array]:
        with np.errstate(over="ignore", invalid="ignore"):
            made = cast("Callable[..., Any]", self.steps)(**self.inputs)
        return cast("Sequence[Array]", made) if isinstance(made, tuple) else (made,)


def once(function: Build, *values: Any) -> Any:
    """The function in float64, rounded once."""
    return cast("Callable[..., Any]", function)(*(np.asarray(each, np.float64) for each in values)).astype(F16)


def times(x: Any, number: float) -> Any:
    """A product with a constant of a formula, which float32 holds."""
    return (x.astype(np.float32) * np.float32(number)).astype(F16)


def total(x: Any, *axes: int) -> Any:
    return once(lambda x: x.sum(axes or None, keepdims=True), x)


def mean(x: Any, *axes: int) -> Any:
    whole = total(x, *axes)
    return whole / F16(x.size // whole.size)


def eighths(*shape: int, seed: int = 0) -> Any:
    """Multiples of 1/8 up to 4: sums of some products are exact in fp32, and take more digits than fp16 has."""
    return (np.random.default_rng(seed).integers(-32, 33, shape) / 8).astype(F16)


X = (normals(60, 3, 4, 8) * 3).astype(F16)
ROW = np.abs(normals(1024, seed=1)).astype(F16)
SPREAD = (normals(4096, seed=7) * 2).astype(F16)
ALPHA, BETA, VARIANCE = F16([0.3, 1.7, -2.1]), F16([0.7, 1.1, 1.9]), F16([0.568359375, 1.10546875, 2.673828125])
EPS = float(F16(1e-2))


def channels(values: Any) -> Any:
    return values.reshape(-1, 1, 1)


def normalized(x: Any, *axes: int) -> Any:
    centred = x - mean(x, *axes)
    return centred / np.sqrt(mean(centred * centred, *axes) + F16(EPS))


def softmax(x: Any) -> Any:
    powers = once(np.exp, x - x.max(-1, keepdims=True))
    return powers / total(powers, -1)


def gelu_tanh(x: Any) -> Any:
    inner = x + times(once(lambda x: x**3, x), 0.044715)
    return F16(0.5) * x * (F16(1) + once(np.tanh, times(inner, sqrt(2 / pi))))


def gelu_exact(x: Any) -> Any:
    ratio = (x.astype(np.float32) / np.float32(sqrt(2))).astype(F16)
    return F16(0.5) * x * (F16(1) + once(np.vectorize(erf), ratio))


def batch_norm(x: Any) -> Any:
    return (x - channels(ALPHA)) / channels(np.sqrt(VARIANCE + F16(EPS))) * channels(ALPHA) + channels(BETA)


def response(x: Any) -> Any:
    squares = np.pad(x * x, [(0, 0), (1, 1), (0, 0), (0, 0)])
    sums = once(lambda s: s[:, :-2] + s[:, 1:-1] + s[:, 2:], squares)
    return x / once(lambda base: base**0.75, F16(1) + times(sums, float(F16(0.5)) / 3))


QUERY, KEY, VALUE = eighths(2, 30, 12), eighths(2, 20, 12, seed=1) / F16(2), eighths(2, 20, 4, seed=2)
MASK = normals(30, 20, seed=3, dtype=F16)


def attention(query: Any, key: Any, mask: Any) -> Any:
    scores = once(lambda q, k: q @ np.swapaxes(k, -1, -2), query, key)
    scores = (scores.astype(np.float32) / np.float32(sqrt(12))).astype(F16)
    return once(lambda w, v: w @ v, softmax(scores + mask), VALUE)


WEIGHT, OFFSET = eighths(6, 8, seed=4), normals(6, seed=5, dtype=F16)
IMAGE, KERNEL, STAMP = eighths(1, 2, 4, 5), eighths(3, 2, 2, 2, seed=1), eighths(2, 2, 2, 2, seed=2)


def windows(x: Any, size: int) -> Any:
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))


def conv(x: Any, kernel: Any, offset: Any) -> Any:
    return once(lambda x, k: np.einsum("nchwij,ocij->nohw", windows(x, 2), k), x, kernel) + channels(offset)


def conv_transpose(x: Any) -> Any:
    """Every pixel stamps its kernel onto the result."""
    result = np.zeros((1, 2, 5, 6))
    for row, column in product(range(4), range(5)):
        stamps = np.einsum("c,coij->oij", x[0, :, row, column].astype(float), STAMP)
        result[0, :, row : row + 2, column : column + 2] += stamps
    return result.astype(F16) + channels(OFFSET[:2])


CODES = np.random.default_rng(6).integers(0, 256, (3, 2, 2, 2)).astype(np.uint8)
SCALES, SHIFTS = F16([0.013, 0.021, 0.017]), F16([-1.3, -2.9, -2.2])


def conv_quantized(x: Any) -> Any:
    scale, shift = (each.reshape(-1, 1, 1, 1) for each in (SCALES, SHIFTS))
    return conv(x, CODES.astype(F16) * scale + shift, np.arange(3, dtype=F16))


STEPS, H0, C0 = eighths(6, 40, 4), eighths(40, 2, seed=1) / F16(4), eighths(40, 2, seed=2) / F16(4)
W_IN, W_HIDDEN = eighths(8, 4, seed=3) / F16(4), normals(8, 2, seed=4, dtype=F16)
GATES, PEEP = normals(8, seed=5, dtype=F16), normals(6, seed=6, dtype=F16)


def times_weight(x: Any, weight: Any) -> Any:
    return once(lambda x, w: x @ w.T, x, weight)


def elu(x: Any) -> Any:
    return np.maximum(x, F16(0)) + np.minimum(A * (once(np.exp, x) - F16(1)), F16(0))


def clipped(x: Any, low: float, high: float) -> Any:
    return np.minimum(np.maximum(x, F16(low)), F16(high))


def sigmoid(x: Any) -> Any:
    return once(lambda x: 1 / (1 + np.exp(-x)), x)


def tanh(x: Any) -> Any:
    return once(np.tanh, x)


def rnn(x: Any, activation: Callable[[Any], Any] = tanh) -> Any:
    h, outputs = H0, list[Any]()
    for row in x:
        h = activation(times_weight(row, W_IN[:2]) + GATES[:2] + times_weight(h, W_HIDDEN[:2]))
        outputs.append(h)
    return np.stack(outputs), h


def gru(x: Any, reset_after: bool) -> Any:
    h, outputs = H0, list[Any]()
    w_reset, w_new, w_update = np.split(W_HIDDEN[:6], 3)
    b_reset, b_new, b_update = np.split(GATES[:6], 3)
    for row in x:
        i_reset, i_new, i_update = np.split(times_weight(row, W_IN[:6]), 3, -1)
        r = sigmoid(i_reset + (times_weight(h, w_reset) + b_reset))
        z = sigmoid(i_update + (times_weight(h, w_update) + b_update))
        inner = r * (times_weight(h, w_new) + b_new) if reset_after else times_weight(r * h, w_new) + b_new
        h = (F16(1) - z) * tanh(i_new + inner) + z * h
        outputs.append(h)
    return np.stack(outputs), h


def lstm(x: Any) -> Any:
    h, c, outputs = H0, C0, list[Any]()
    p_input, p_forget, p_output = np.split(PEEP, 3)
    for row in x[::-1]:
        i, f, o, z = np.split(times_weight(row, W_IN) + GATES + times_weight(h, W_HIDDEN), 4, -1)
        i, f = sigmoid(i + c * p_input), sigmoid(f + c * p_forget)
        c = clipped(f * c + i * tanh(z), -0.75, 0.75)
        h = sigmoid(o + c * p_output) * tanh(c)
        outputs.append(h)
    return np.stack(outputs), h, c


def _lstm(t: Kind) -> Build:
    return lambda x: mb.lstm(
        x=x,
        initial_h=t(H0),
        initial_c=t(C0),
        weight_ih=t(W_IN),
        weight_hh=t(W_HIDDEN),
        bias=t(GATES),
        peephole=t(PEEP),
        direction="reverse",
        output_sequence=True,
        clip=t(0.75),
    )


def _gru(t: Kind, **more: Any) -> Build:
    return lambda x: mb.gru(
        x=x,
        initial_h=t(H0),
        weight_ih=t(W_IN[:6]),
        weight_hh=t(W_HIDDEN[:6]),
        bias=t(GATES[:6]),
        output_sequence=True,
        **more,
    )


def _rnn(t: Kind, **more: Any) -> Build:
    return lambda x: mb.rnn(
        x=x,
        initial_h=t(H0),
        weight_ih=t(W_IN[:2]),
        weight_hh=t(W_HIDDEN[:2]),
        bias=t(GATES[:2]),
        output_sequence=True,
        **more,
    )


def _conv_transpose(t: Kind) -> Build:
    return lambda x: mb.conv_transpose(x=x, weight=t(STAMP), bias=t(OFFSET[:2]))


def _conv_quantized(t: Kind) -> Build:
    return lambda x: mb.conv_quantized(
        x=x,
        weight=CODES,
        bias=np.arange(3, dtype=np.uint8),
        quantization_type="linear",
        nbits=8,
        quant_scale=t(SCALES),
        quant_bias=t(SHIFTS),
        pad_type="valid",
    )


PAIR = {"alpha": float(F16(0.3)), "beta": float(F16(0.7))}
A, B = F16(0.3), F16(0.7)

# fmt: off
CASES: dict[str, Case] = {
    "silu": Case(lambda t: lambda x: mb.silu(x=x), {"x": SPREAD}, lambda x: x * sigmoid(x)),
    "gelu": Case(lambda t: lambda x: mb.gelu(x=x, mode="EXACT"), {"x": SPREAD}, gelu_exact),
    "gelu tanh": Case(lambda t: lambda x: mb.gelu(x=x, mode="TANH_APPROXIMATION"), {"x": SPREAD}, gelu_tanh),
    "gelu sigmoid": Case(
        lambda t: lambda x: mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"), {"x": SPREAD},
        lambda x: x * sigmoid(times(x, 1.702))),
    "softmax": Case(lambda t: lambda x: mb.softmax(x=x, axis=-1), {"x": X}, softmax),
    "elu": Case(
        lambda t: lambda x: mb.elu(x=x, alpha=t(A)), {"x": SPREAD},
        elu),
    "linear_activation": Case(
        lambda t: lambda x: mb.linear_activation(x=x, alpha=t(A), beta=t(B)), {"x": SPREAD}, lambda x: A * x + B),
    "scaled_tanh": Case(
        lambda t: lambda x: mb.scaled_tanh(x=x, alpha=t(A), beta=t(B)), {"x": SPREAD}, lambda x: A * tanh(B * x)),
    "sigmoid_hard": Case(
        lambda t: lambda x: mb.sigmoid_hard(x=x, alpha=t(A), beta=t(B)), {"x": SPREAD},
        lambda x: clipped(A * x + B, 0, 1)),
    "softplus": Case(
        lambda t: lambda x: mb.softplus(x=x), {"x": SPREAD},
        lambda x: once(np.log, F16(1) + once(np.exp, -np.abs(x))) + np.maximum(x, 0)),
    "softplus_parametric": Case(
        lambda t: lambda x: mb.softplus_parametric(x=x, alpha=t(ALPHA), beta=t(BETA)), {"x": X / F16(4)},
        lambda x: channels(ALPHA) * once(np.log, F16(1) + once(np.exp, channels(BETA) * x))),
    "softsign": Case(lambda t: lambda x: mb.softsign(x=x), {"x": SPREAD}, lambda x: x / (F16(1) + np.abs(x))),
    "inverse": Case(
        lambda t: lambda x: mb.inverse(x=x, epsilon=t(EPS)), {"x": ROW}, lambda x: F16(1) / (x + F16(EPS))),
    "log": Case(lambda t: lambda x: mb.log(x=x, epsilon=t(EPS)), {"x": ROW}, lambda x: once(np.log, x + F16(EPS))),
    "rsqrt": Case(
        lambda t: lambda x: mb.rsqrt(x=x, epsilon=t(EPS)), {"x": ROW}, lambda x: F16(1) / np.sqrt(x + F16(EPS))),
    "layer_norm": Case(
        lambda t: lambda x: mb.layer_norm(x=x, axes=[1, -1], gamma=t(X[0, :, 0]), beta=t(X[1, :, 0]), epsilon=t(EPS)),
        {"x": X}, lambda x: normalized(x, 1, 3) * X[0, :, :1] + X[1, :, :1]),
    "instance_norm": Case(
        lambda t: lambda x: mb.instance_norm(x=x, gamma=t(ALPHA), beta=t(BETA), epsilon=t(EPS)), {"x": X},
        lambda x: normalized(x, 2, 3) * channels(ALPHA) + channels(BETA)),
    "batch_norm": Case(
        lambda t: lambda x: mb.batch_norm(
            x=x, mean=t(ALPHA), variance=t(VARIANCE), gamma=t(ALPHA), beta=t(BETA), epsilon=t(EPS)),
        {"x": X}, batch_norm),
    "l2_norm": Case(
        lambda t: lambda x: mb.l2_norm(x=x, epsilon=t(EPS)), {"x": X},
        lambda x: x / np.sqrt(total(x * x, 1, 2, 3) + F16(EPS))),
    "local_response_norm": Case(
        lambda t: lambda x: mb.local_response_norm(x=x, size=3, alpha=t(0.5), beta=t(0.75), k=t(1)), {"x": X},
        response),
    "linear": Case(
        lambda t: lambda x: mb.linear(x=x, weight=t(WEIGHT), bias=t(OFFSET)), {"x": eighths(40, 8)},
        lambda x: times_weight(x, WEIGHT) + OFFSET),
    "scaled_dot_product_attention": Case(
        lambda t: lambda query, key, mask: mb.scaled_dot_product_attention(
            query=query, key=key, value=t(VALUE), attn_mask=mask),
        {"query": QUERY, "key": KEY, "mask": MASK}, attention),
    "conv": Case(
        lambda t: lambda x: mb.conv(x=x, weight=t(KERNEL), bias=t(OFFSET[:3]), pad_type="valid"), {"x": IMAGE},
        lambda x: conv(x, KERNEL, OFFSET[:3])),
    "conv_transpose": Case(_conv_transpose, {"x": IMAGE}, conv_transpose),
    "conv_quantized": Case(_conv_quantized, {"x": IMAGE}, conv_quantized, target.iOS15),
    "avg_pool": Case(
        lambda t: lambda x: mb.avg_pool(x=x, kernel_sizes=[3, 3], pad_type="valid"), {"x": X[:, :, :, :5]},
        lambda x: once(lambda x: windows(x, 3).sum((-2, -1)), x) / F16(9)),
    "avg_pool of what is inside": Case(
        lambda t: lambda x: mb.avg_pool(
            x=x, kernel_sizes=[3, 3], pad_type="same", exclude_padding_from_average=True), {"x": X[:, :, :, :5]},
        lambda x: once(lambda x: windows(np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)]), 3).sum((-2, -1)), x)
        / once(lambda x: windows(np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)]), 3).sum((-2, -1)), np.ones_like(x))),
    "l2_pool": Case(
        lambda t: lambda x: mb.l2_pool(x=x, kernel_sizes=[2, 2], pad_type="valid"), {"x": X},
        lambda x: np.sqrt(once(lambda s: windows(s, 2).sum((-2, -1)), x * x))),
    "rnn": Case(_rnn, {"x": STEPS}, lambda x: rnn(x)),
    "rnn of hard sigmoids": Case(
        lambda t: _rnn(t, activation="sigmoid_hard"), {"x": STEPS},
        lambda x: rnn(x, lambda x: clipped(times(x, 0.2) + F16(0.5), 0, 1))),
    "gru": Case(_gru, {"x": STEPS}, lambda x: gru(x, False)),
    "gru with the reset after": Case(
        lambda t: _gru(t, reset_after=True), {"x": STEPS}, lambda x: gru(x, True)),
    "lstm": Case(_lstm, {"x": STEPS}, lstm),
    "reduce_mean": Case(
        lambda t: lambda x: mb.reduce_mean(x=x, axes=[1, 3]), {"x": X}, lambda x: mean(x, 1, 3)[:, 0, :, 0]),
    "reduce_sum_square": Case(
        lambda t: lambda x: mb.reduce_sum_square(x=x, axes=[-1], keep_dims=True), {"x": X}, lambda x: total(x * x, -1)),
    "reduce_l2_norm": Case(
        lambda t: lambda x: mb.reduce_l2_norm(x=x, axes=[1, 2, -1]), {"x": X},
        lambda x: np.sqrt(total(x * x, 1, 2, 3)).reshape(-1)),
    "reduce_log_sum": Case(
        lambda t: lambda x: mb.reduce_log_sum(x=x, axes=[-1]), {"x": np.abs(X)},
        lambda x: once(np.log, total(x, -1))[..., 0]),
    "reduce_log_sum_exp": Case(
        lambda t: lambda x: mb.reduce_log_sum_exp(x=x, axes=[-1], keep_dims=True), {"x": X},
        lambda x: once(np.log, total(once(np.exp, x - x.max(-1, keepdims=True)), -1)) + x.max(-1, keepdims=True)),
}
# fmt: on
