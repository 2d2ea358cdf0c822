"""What a weight loses in each of several forms: measured, with feedback on some of its channels.

The squared error that counts with the second moments of inputs one by one is that of all channels. What indices with
feedback (:mod:`milopt.feedback`) make of the layer's outputs takes as long as to compress the weight in every form, so
that it is measured on a sample of channels, beside the other error of the same channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from milopt.clustering import Palette, palettize
from milopt.feedback import Compensation
from milopt.refining import output_error, refined

__all__ = ["Form", "Losses", "losses", "relative_error", "squares"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow

_CHANNELS = 192  # the ratio of SmolLM2-135M's weights is then within 9% of that of all channels
_AT_ONCE = 1 << 22  # numbers whose differences are held in float64 at a time


class Form(NamedTuple):
    """Weights ``(tables, outer, group, inner)``, the bits of an index, and what multiplies the squared errors."""

    rows: Array
    bits: int
    importance: Array = None


class Losses(NamedTuple):
    """The relative errors of forms, and how large that of a layer's outputs is for each unit of the weights' own."""

    errors: tuple[float, ...]
    outputs: float = 1.0


def losses(plain: Form, forms: Sequence[Form], products: Array = None) -> Losses:
    """The relative errors of exact tables for ``forms`` of one weight, NaN where one of its numbers is none.

    With ``products (I, I)`` of the inputs, which run along all of a channel, they are those of the layer's outputs, of
    indices chosen with feedback and tables made anew for them; and ``outputs`` is for the exact tables of ``plain``.
    """
    if products is None:
        return Losses(tuple(_error(form, palettize(*form)) for form in forms))
    feedback, errors = Compensation.of(products), list[float]()
    for form in forms:
        made = palettize(*form)
        error = _error(form, made)
        errors.append(error if made.wrong else error * _Sample(form, made).ratio(products, feedback))
    made = palettize(*plain)
    return Losses(tuple(errors), 1.0 if made.wrong else _Sample(plain, made).ratio(products) or 1.0)


def relative_error(rows: Array, decoded: Array, importance: Array = None) -> float:
    """Σ i·(w - decoded)² / Σ i·w², with importance i, or 1 where it is not given; 0 where all weights are."""
    error, power = squares(rows, decoded, importance)
    return error / power if power else 0.0


def squares(rows: Array, decoded: Array, importance: Array = None) -> tuple[float, float]:
    """Σ i·(w - decoded)² and Σ i·w², in float64, a part of the weights after the other."""
    if rows.size > _AT_ONCE:
        axis = int(np.argmax(rows.shape))
        weighing = np.broadcast_to(1.0 if importance is None else importance, rows.shape)
        parts = zip(*(np.array_split(each, 2, axis) for each in (rows, decoded, weighing)), strict=True)
        (one, first), (other, second) = (squares(*part) for part in parts)
        return one + other, first + second
    weights: Array = rows.astype(np.float64)
    changed: Array = weights - decoded
    weighing = np.float64(1) if importance is None else importance
    return float(np.sum(weighing * changed**2)), float(np.sum(weighing * weights**2))


def _error(form: Form, made: Palette) -> float:
    if made.wrong:
        return nan
    if form.importance is None:
        return made.error / made.power if made.power else 0.0
    return relative_error(form.rows, made.decoded(), form.importance)


class _Sample:
    """Some channels of a weight, and the entries that they have of the tables of all."""

    def __init__(self, form: Form, made: Palette) -> None:
        tables, _, group, _ = form.rows.shape
        chosen = _spread(tables, max(1, _CHANNELS // group))
        inside = _spread(group, max(1, _CHANNELS // len(chosen)))
        self._rows = _flat(form.rows[chosen][:, :, inside])
        self._lut = made.lut[chosen]
        self._indices = _flat(made.indices[chosen][:, :, inside])

    def ratio(self, products: Array, feedback: Compensation | None = None) -> float:
        """The relative error of the outputs over that of the weights in exact tables; 1 where these lose nothing.

        With ``feedback`` the outputs are those of indices chosen with it.
        """
        lut, indices = self._lut, self._indices
        exact = relative_error(self._rows, _looked_up(lut, indices), np.diagonal(products))
        if feedback is not None:
            lut, indices = refined(self._rows, lut, feedback.assigned(self._rows, lut), products)
        error, power = output_error(self._rows, _looked_up(lut, indices), products)
        return error / power / exact if exact and power else 1.0


def _looked_up(lut: Array, indices: Array) -> Array:
    """The entries ``(O, I)`` of tables ``(tables, k)``, each for as many rows."""
    tables: Array = np.arange(len(indices)) // (len(indices) // len(lut))
    return lut[tables[:, None], indices]


def _spread(count: int, most: int) -> Array:
    """At most ``most`` of ``count`` places, evenly spread."""
    wanted = min(count, most)
    return (2 * np.arange(wanted) + 1) * count // (2 * wanted)


def _flat(values: Array) -> Array:
    """``(tables, outer, group, inner)`` as ``(tables * group, outer * inner)``."""
    tables, outer, group, inner = values.shape
    return np.ascontiguousarray(np.reshape(values.transpose(0, 2, 1, 3), (tables * group, outer * inner)))
