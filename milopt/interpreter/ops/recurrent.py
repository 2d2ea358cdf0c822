"""Recurrent layers, step by step as coremltools documents them.

``x (S,B,I)``; with ``output_sequence`` the hidden states of all steps are returned, else those of the last.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from milopt.interpreter.impls import Impls, Tensor

__all__ = ["recurrent"]

recurrent = Impls("recurrent")

# The parametric ones have the default parameters of Core ML: scaled_tanh(1, 1), sigmoid_hard(0.2, 0.5).
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "hard_sigmoid": lambda x: (0.2 * x + 0.5).clamp(0, 1),
    "linear": lambda x: x,
    "relu": torch.relu,
    "scaled_tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "sigmoid_hard": lambda x: (0.2 * x + 0.5).clamp(0, 1),
    "tanh": torch.tanh,
}


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
) -> tuple[Tensor, Tensor]:
    """``h = activation(W_ih x + W_hh h + b)``."""
    act = _ACTIVATIONS[activation.lower()]
    h, outputs = initial_h, list[Tensor]()
    for row in _inputs(x, weight_ih, bias, direction):
        h = act(row + h @ weight_hh.mT)
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
) -> tuple[Tensor, Tensor]:
    """``h = (1 - z) * o + z * h``, gates in the order reset, new, update.

    The new gate multiplies ``h`` by the reset gate before the matrix product (coremltools' reference of its tests);
    with ``reset_after`` the product and its bias are multiplied, torch's way.
    """
    inner, outer = _ACTIVATIONS[recurrent_activation.lower()], _ACTIVATIONS[activation.lower()]
    hidden_bias = weight_hh.new_zeros(len(weight_hh)) if bias is None else bias
    w_reset, w_new, w_update = weight_hh.chunk(3)
    b_reset, b_new, b_update = hidden_bias.chunk(3)
    h, outputs = initial_h, list[Tensor]()
    for row in _inputs(x, weight_ih, input_bias, direction):
        reset, new, update = row.chunk(3, -1)
        r = inner(reset + h @ w_reset.mT + b_reset)
        z = inner(update + h @ w_update.mT + b_update)
        o = outer(new + (r * (h @ w_new.mT + b_new) if reset_after else (r * h) @ w_new.mT + b_new))
        h = (1 - z) * o + z * h
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Both directions side by side in the last dimension; the backward one is put back into the order of ``x``.

    A single reversed layer keeps the order in which it went through ``x``.
    """
    acts = [_ACTIVATIONS[each.lower()] for each in (recurrent_activation, cell_activation, activation)]
    if direction != "bidirectional":
        steps = _inputs(x, weight_ih, bias, direction)
        outputs, h, c = _lstm(steps, initial_h, initial_c, weight_hh, peephole, acts, clip)
        return _sequence(outputs, output_sequence), h, c
    if weight_ih_back is None or weight_hh_back is None:
        raise ValueError("a bidirectional lstm needs weight_ih_back and weight_hh_back")
    (h0, h1), (c0, c1) = initial_h.chunk(2, -1), initial_c.chunk(2, -1)
    forward, h0, c0 = _lstm(_inputs(x, weight_ih, bias, "forward"), h0, c0, weight_hh, peephole, acts, clip)
    backward, h1, c1 = _lstm(
        _inputs(x, weight_ih_back, bias_back, "reverse"), h1, c1, weight_hh_back, peephole_back, acts, clip
    )
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
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Gates in the order input, forget, output, cell; the peepholes of input and forget look at the old cell."""
    inner, cell, outer = acts
    look = weight.new_zeros(3 * h.shape[-1]) if peephole is None else peephole
    p_input, p_forget, p_output = look.chunk(3)
    outputs: list[Tensor] = []
    for row in steps:
        i, f, o, z = (row + h @ weight.mT).chunk(4, -1)
        c = inner(f + c * p_forget) * c + inner(i + c * p_input) * cell(z)
        if clip is not None:
            c = c.clamp(-clip, clip)
        h = inner(o + c * p_output) * outer(c)
        outputs.append(h)
    return outputs, h, c


def _inputs(x: Tensor, weight: Tensor, bias: Tensor | None, direction: str) -> Tensor:
    """What the input adds to the gates at each step, all steps at once."""
    return F.linear(x.flip(0) if direction == "reverse" else x, weight, bias)


def _sequence(outputs: list[Tensor], whole: bool) -> Tensor:
    return torch.stack(outputs if whole else outputs[-1:])
