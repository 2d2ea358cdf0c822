"""A weight with tables of values: how it is cut into groups, clustered, and written as the iOS16 or the iOS18 op."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from milopt.building import Builder
from milopt.clustering import Palette, integer_tables, nearest, packed, palettize
from milopt.estimating import squares
from milopt.feedback import with_feedback
from milopt.mil import Var, opset_of, shape_of, target
from milopt.package.weights import Packed
from milopt.passes.compressing import Encoded, Plan, constant_of
from milopt.passes.uses import Layout, Place
from milopt.refining import refined
from milopt.vectors import palettize_vectors

__all__ = [
    "PalettePlan",
    "axis_of",
    "encode_palette",
    "encode_vectors",
    "importance_of",
    "nearest_divisor",
]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow


@dataclass(frozen=True)
class PalettePlan(Plan):
    """One weight to be stored in ``bits`` each, with a table for every ``group`` output channels of ``layout``.

    With ``scaled``, numbers are divided by the largest magnitude of their channel first, and the table is for what
    comes of that. With ``integers`` the entries of a table are int8, with one scale.
    """

    layout: Layout
    group: int
    bits: int
    scaled: bool = False
    importance: Array = None
    vector: int = 1
    products: Array = None
    integers: bool = False

    @property
    def tables(self) -> int:
        return self.layout.channels // self.group

    @property
    def form(self) -> str:
        what = "a table" if self.tables == 1 else f"a table per {self.group} channels"
        vectors = f" for vectors of {self.vector}" if self.vector > 1 else ""
        more = f"{' in int8' if self.integers else ''}{', a scale per channel' if self.scaled else ''}"
        return f"{self.bits} bits{vectors}, {what}{more}"

    @property
    def element_bits(self) -> int:
        return self.bits

    @property
    def nbytes(self) -> int:
        array = self.weight.array
        scales = self.layout.channels * array.itemsize if self.scaled else 0
        entry = 1 if self.integers else array.itemsize
        tables = (self.tables * self.vector * entry << self.bits) + (
            self.tables * array.itemsize if self.integers else 0
        )
        return int((array.size // self.vector * self.bits + 7) // 8 + tables + scales)

    def rows(self) -> Array:
        """The weights ``(tables, outer, group, inner)``, a view."""
        outer, _, inner = self.layout
        return self.weight.array.reshape(outer, self.tables, self.group, inner).transpose(1, 0, 2, 3)

    def job(self) -> tuple[Callable[..., Encoded], tuple[Any, ...]]:
        if self.vector > 1:
            return encode_vectors, (self.rows(), self.bits, self.vector)
        return encode_palette, (self.rows(), self.bits, self.scaled, self.importance, self.products, self.integers)

    def write(self, op: Builder, place: Place, tensors: dict[str, Array | Packed]) -> Var:
        shape = shape_of(place.var)
        if opset_of(place.op) < target.iOS18:
            dense: Var = op.constexpr_lut_to_dense(
                indices=_bytes_of(tensors["indices"]), lut=tensors["lut"], shape=np.array(shape, np.uint32)
            )
            return dense
        blocks = [1] * len(shape)
        if self.tables > 1:
            blocks[axis_of(self.layout, shape)] = self.tables
        indexed, vector = list(shape), {}
        if self.vector > 1:
            axis = axis_of(self.layout, shape)
            indexed[axis] //= self.vector
            vector = {"vector_axis": np.int32(axis)}
        lut: Any = tensors["lut"].reshape(*blocks, 1 << self.bits, self.vector)
        if self.integers:
            scales = tensors["lut_scale"].reshape(*blocks, 1, 1)
            lut = op.constexpr_blockwise_shift_scale(data=lut, scale=scales)
        dense = op.constexpr_lut_to_dense(
            indices=constant_of(op, "indices", tensors["indices"], tuple(indexed)), lut=lut, **vector
        )
        if not self.scaled:
            return dense
        counts = [1] * len(shape)
        counts[axis_of(self.layout, shape)] = self.layout.channels
        scaled: Var = op.constexpr_blockwise_shift_scale(data=dense, scale=tensors["scale"].reshape(*counts))
        return scaled


def _bytes_of(indices: Array | Packed) -> Array:
    """The iOS16 op takes its indices packed, as bytes."""
    if not isinstance(indices, Packed):
        return indices
    assert indices.piece is not None
    return indices.piece.view()


def encode_palette(
    rows: Array,
    bits: int,
    scaled: bool = False,
    importance: Array = None,
    products: Array = None,
    integers: bool = False,
) -> Encoded:
    """Tables of ``2**bits`` entries and packed indices for weights ``(tables, outer, group, inner)``.

    The indices lie in the order of ``(outer, tables, group, inner)``. With ``scaled``, the error of a number counts
    with the square of its channel's scale, as it does in the decoded weights. ``products (I, I)`` of inputs that run
    along all of a channel have indices chosen with feedback (:mod:`milopt.feedback`), and then tables and indices in
    turn (:mod:`milopt.refining`). With ``integers`` entries are rounded to int8 in the end, and indices chosen again.
    """
    scale: Array = None
    values = rows
    if scaled:
        scale = np.maximum(rows.max(axis=(1, 3), keepdims=True), -rows.min(axis=(1, 3), keepdims=True))
        divisor = np.where(scale == 0, np.float32(1), scale.astype(np.float32))  # 0 * anything stays 0
        with np.errstate(invalid="ignore"):  # NaN and infinity are counted below
            values = (rows.astype(np.float32) / divisor).astype(rows.dtype)
        square = scale.astype(np.float64) ** 2
        importance = square if importance is None else square * importance
    found = palettize(values, bits, importance)
    error, power = found.error, found.power
    if products is not None and not found.wrong:
        found = _fed_back(values, found, products, scale)
    whole, steps = found.lut, None
    if integers and not found.wrong:
        whole, steps, entries = integer_tables(found.lut)
        found = nearest(values, entries) if products is None else _chosen_again(values, entries, found, products)
        error, power = found.error, found.power
    if (scaled or products is not None) and not found.wrong:
        error, power = squares(rows, found.decoded() * scale if scaled else found.decoded())
    indices: Array = found.indices.transpose(1, 0, 2, 3).reshape(-1)
    kind = "fp16" if rows.dtype == np.float16 else "fp32"
    tensors = {
        "indices": (packed(indices, bits), f"uint{bits}", indices.size),
        "lut": (whole, "int8" if integers else kind, whole.size),
    }
    if steps is not None:
        tensors["lut_scale"] = (steps, kind, steps.size)
    if scaled:
        tensors["scale"] = (scale, kind, scale.size)
    return Encoded(tensors, error, power, found.wrong)


def _fed_back(values: Array, found: Palette, products: Array, scale: Array) -> Palette:
    """Tables and indices for the least error of outputs, of rows that count with the squares of their scales."""
    tables, outer, group, inner = values.shape
    rows = values.transpose(0, 2, 1, 3).reshape(tables * group, outer * inner)
    weights = None if scale is None else scale.astype(np.float64).reshape(-1) ** 2
    lut, indices = refined(rows, found.lut, with_feedback(rows, found.lut, products), products, weights=weights)
    return replace(found, lut=lut, indices=indices.reshape(tables, group, outer, inner).transpose(0, 2, 1, 3))


def _chosen_again(values: Array, entries: Array, found: Palette, products: Array) -> Palette:
    """Indices with feedback for other entries."""
    tables, outer, group, inner = values.shape
    rows = values.transpose(0, 2, 1, 3).reshape(tables * group, outer * inner)
    indices = with_feedback(rows, entries, products).reshape(tables, group, outer, inner)
    return replace(found, lut=entries, indices=indices.transpose(0, 2, 1, 3))


def encode_vectors(rows: Array, bits: int, vector: int) -> Encoded:
    """As :func:`encode_palette`, with an index for every ``vector`` neighbouring channels."""
    tables, outer, group, inner = rows.shape
    split = rows.reshape(tables, outer, group // vector, vector, inner).transpose(0, 1, 2, 4, 3)
    found = palettize_vectors(split.reshape(tables, -1, vector), bits)
    order = found.indices.reshape(tables, outer, group // vector, inner).transpose(1, 0, 2, 3)
    kind = "fp16" if rows.dtype == np.float16 else "fp32"
    tensors = {
        "indices": (packed(np.ravel(order), bits), f"uint{bits}", order.size),
        "lut": (found.lut, kind, found.lut.size),
    }
    return Encoded(tensors, found.error, found.power, found.wrong)


def importance_of(moments: Array, plan: PalettePlan, inputs: Layout) -> Array:
    """Second moments ``(I,)`` of inputs that lie as ``inputs`` says, in a shape that goes with the plan's rows."""
    outer, channels, inner = plan.layout
    if plan.layout == inputs:  # a table for some inputs
        return moments.reshape(plan.tables, 1, plan.group, 1)
    first = np.arange(outer)[:, None] * (channels * inner) + np.arange(inner)  # the numbers of channel 0
    return moments[first // inputs.inner % inputs.channels][None, :, None, :]


def axis_of(layout: Layout, shape: tuple[int, ...]) -> int:
    """The axis of ``shape`` that holds the channels of ``layout``."""
    outer = 1
    for axis, size in enumerate(shape):
        if outer == layout.outer and size == layout.channels:
            return axis
        outer *= size
    raise AssertionError(f"{shape} has no {layout}")


def nearest_divisor(number: int, wanted: int) -> int:
    """The divisor of ``number`` whose ratio to ``wanted`` is nearest to 1."""
    divisors = [each for each in range(1, number + 1) if number % each == 0]
    # no two are as near: a * b = wanted² makes wanted itself a divisor
    return min(divisors, key=lambda each: max(each / wanted, wanted / each))
