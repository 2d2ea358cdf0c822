"""Recurrent layers: every product, sum, gate and state of every step is rounded.

The formulas are those of the documentation of ``rnn``, ``gru`` and ``lstm``; biases come after their products. What
the documentation leaves open (directions, orders of gates) is as in :mod:`milopt.interpreter.ops.recurrent`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from milopt.interpreter.impls import Impls, Rounding, Tensor

__all__ = ["recurrent"]

recurrent = Impls("strict recurrent")


def _activation(name: str, r: Rounding) -> Callable[[Tensor], Tensor]:
    """The activation by its name; the parametric ones have Core ML's defaults, (1, 1) and (0.2, 0.5)."""

    def hard(x: Tensor) -> Tensor:
        return r(r(0.2 * x) + 0.5).clamp(0, 1)

    known: dict[str, Callable[[Tensor], Tensor]] = {
        "hard_sigmoid": hard,
        "linear": lambda x: x,
        "relu": torch.relu,
        "scaled_tanh": lambda x: r.of(torch.tanh, x),
        "sigmoid": lambda x: r.of(torch.sigmoid, x),
        "sigmoid_hard": hard,
        "tanh": lambda x: r.of(torch.tanh, x),
    }
    return known[name.lower()]


@recurrent("rnn")
def _(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    activation: str = "tanh",
    *,
    r: Rounding,
) -> tuple[Tensor, Tensor]:
    """``h = activation(W_ih x + b + W_hh h)``."""
    act = _activation(activation, r)
    h, outputs = initial_h, list[Tensor]()
    for row in _inputs(x, weight_ih, bias, direction, r):
        h = act(r(row + r(h @ weight_hh.mT)))
        outputs.append(h)
    return _sequence(outputs, output_sequence), h


@recurrent("gru")
def _(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
    reset_after: bool = False,
    input_bias: Tensor | None = None,
    *,
    r: Rounding,
) -> tuple[Tensor, Tensor]:
    """``h = (1 - z) * o + z * h``, gates in the order reset, new, update."""
    inner, outer = _activation(recurrent_activation, r), _activation(activation, r)
    w_reset, w_new, w_update = weight_hh.chunk(3)
    b_reset, b_new, b_update = (None, None, None) if bias is None else bias.chunk(3)
    h, outputs = initial_h, list[Tensor]()
    for row in _inputs(x, weight_ih, input_bias, direction, r):
        reset, new, update = row.chunk(3, -1)
        reset = inner(r(reset + _product(h, w_reset, b_reset, r)))
        update = inner(r(update + _product(h, w_update, b_update, r)))
        hidden = r(reset * _product(h, w_new, b_new, r)) if reset_after else _product(r(reset * h), w_new, b_new, r)
        new = outer(r(new + hidden))
        h = r(r(r(1 - update) * new) + r(update * h))
        outputs.append(h)
    return _sequence(outputs, output_sequence), h


@recurrent("lstm")
def _(
    x: Tensor,
    initial_h: Tensor,
    initial_c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    peephole: Tensor | None = None,
    weight_ih_back: Tensor | None = None,
    weight_hh_back: Tensor | None = None,
    bias_back: Tensor | None = None,
    peephole_back: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    cell_activation: str = "tanh",
    activation: str = "tanh",
    clip: float | None = None,
    *,
    r: Rounding,
) -> tuple[Tensor, Tensor, Tensor]:
    """``c = f * c + i * z`` and ``h = o * activation(c)``, gates in the order input, forget, output, cell."""
    acts = [_activation(each, r) for each in (recurrent_activation, cell_activation, activation)]
    if direction != "bidirectional":
        steps = _inputs(x, weight_ih, bias, direction, r)
        outputs, h, c = _lstm(steps, initial_h, initial_c, weight_hh, peephole, acts, clip, r)
        return _sequence(outputs, output_sequence), h, c
    if weight_ih_back is None or weight_hh_back is None:
        raise ValueError("a bidirectional lstm needs weight_ih_back and weight_hh_back")
    (h0, h1), (c0, c1) = initial_h.chunk(2, -1), initial_c.chunk(2, -1)
    ahead = _inputs(x, weight_ih, bias, "forward", r)
    back = _inputs(x, weight_ih_back, bias_back, "reverse", r)
    forward, h0, c0 = _lstm(ahead, h0, c0, weight_hh, peephole, acts, clip, r)
    backward, h1, c1 = _lstm(back, h1, c1, weight_hh_back, peephole_back, acts, clip, r)
    if output_sequence:
        backward.reverse()
    sequence = torch.cat([_sequence(forward, output_sequence), _sequence(backward, output_sequence)], -1)
    return sequence, torch.cat([h0, h1], -1), torch.cat([c0, c1], -1)


def _lstm(
    steps: Tensor,
    h: Tensor,
    c: Tensor,
    weight: Tensor,
    peephole: Tensor | None,
    acts: list[Callable[[Tensor], Tensor]],
    clip: float | None,
    r: Rounding,
) -> tuple[list[Tensor], Tensor, Tensor]:
    inner, cell, outer = acts
    p_input, p_forget, p_output = (None, None, None) if peephole is None else peephole.chunk(3)
    outputs: list[Tensor] = []
    for row in steps:
        i, f, o, z = r(row + r(h @ weight.mT)).chunk(4, -1)
        kept = r(inner(_peeped(f, c, p_forget, r)) * c)
        c = r(kept + r(inner(_peeped(i, c, p_input, r)) * cell(z)))
        if clip is not None:
            c = c.clamp(-clip, clip)
        h = r(inner(_peeped(o, c, p_output, r)) * outer(c))
        outputs.append(h)
    return outputs, h, c


def _peeped(gate: Tensor, c: Tensor, peephole: Tensor | None, r: Rounding) -> Tensor:
    return gate if peephole is None else r(gate + r(c * peephole))


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, r: Rounding) -> Tensor:
    product = r(x @ weight.mT)
    return product if bias is None else r(product + bias)


def _inputs(x: Tensor, weight: Tensor, bias: Tensor | None, direction: str, r: Rounding) -> Tensor:
    """What the input adds to the gates at each step, all steps at once."""
    return _product(x.flip(0) if direction == "reverse" else x, weight, bias, r)


def _sequence(outputs: list[Tensor], whole: bool) -> Tensor:
    return torch.stack(outputs if whole else outputs[-1:])
