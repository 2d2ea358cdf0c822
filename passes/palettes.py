"""How a weight with a table of values is written: the iOS16 and the iOS18 op."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from milopt.building import Builder
from milopt.clustering import Palette
from milopt.mil import Var, opset_of, remove_ops, replace_uses, shape_of, target, types
from milopt.passes.uses import Layout, Place, Weight

__all__ = ["PalettePlan", "axis_of", "nearest_divisor", "pack", "put_in_place"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow

_PACKED_AT_ONCE = 1 << 20  # a multiple of 8, so that every piece but the last ends with a whole byte


@dataclass(frozen=True)
class PalettePlan:
    """One weight to be stored in ``bits`` each, with a table for every ``group`` output channels of ``layout``."""

    weight: Weight
    layout: Layout
    group: int
    bits: int

    @property
    def tables(self) -> int:
        return self.layout.channels // self.group

    @property
    def nbytes(self) -> int:
        """The size on disk, without the header of 64 bytes that each array has there."""
        array = self.weight.array
        return int((array.size * self.bits + 7) // 8 + (self.tables * array.itemsize << self.bits))

    def rows(self) -> Array:
        """The weights ``(tables, numbers per table)``; a view of the array where groups lie together in memory."""
        outer, _, inner = self.layout
        split = self.weight.array.reshape(outer, self.tables, self.group, inner)
        return split.transpose(1, 0, 2, 3).reshape(self.tables, -1)

    def place(self, palette: Palette, taken: dict[str, set[str]]) -> None:
        """Put ``palette`` where the weight stands. ``taken`` holds the names of each function's values."""
        outer, _, inner = self.layout
        rows: Array = palette.indices
        split = rows.reshape(self.tables, outer, self.group, inner)
        indices: Array = split.transpose(1, 0, 2, 3).reshape(-1)
        packed: Array | None = None
        for place in self.weight.places:
            op = Builder(place.op, taken[place.function])
            if opset_of(place.op) >= target.iOS18:
                new = self._ios18(op, place, indices, palette.lut)
            else:
                packed = pack(indices, self.bits) if packed is None else packed
                new = _ios16(op, place, packed, palette.lut[0])
            put_in_place(place, new)

    def _ios18(self, op: Builder, place: Place, indices: Array, lut: Array) -> Var:
        """Indices of the weight's shape; a table per block, of a rank two higher: constraints W2."""
        shape = shape_of(place.var)
        blocks = [1] * len(shape)
        if self.tables > 1:
            blocks[axis_of(self.layout, shape)] = self.tables
        kind = types.nptype_from_builtin(types.string_to_builtin(f"uint{self.bits}"))
        dense: Var = op.constexpr_lut_to_dense(
            indices=indices.view(kind).reshape(shape), lut=lut.reshape(*blocks, 1 << self.bits, 1)
        )
        return dense


def _ios16(op: Builder, place: Place, packed: Array, lut: Array) -> Var:
    """One table, indices packed into bytes, the shape beside them."""
    shape = np.array(shape_of(place.var), np.uint32)
    dense: Var = op.constexpr_lut_to_dense(indices=packed, lut=lut, shape=shape)
    return dense


def axis_of(layout: Layout, shape: tuple[int, ...]) -> int:
    """The axis of ``shape`` that holds the channels of ``layout``."""
    outer = 1
    for axis, size in enumerate(shape):
        if outer == layout.outer and size == layout.channels:
            return axis
        outer *= size
    raise AssertionError(f"{shape} has no {layout}")


def put_in_place(place: Place, new: Var) -> None:
    """Let ``new`` have the name and the uses of the constant at ``place``, which goes."""
    old, name = place.var, place.var.name
    replace_uses(old, new)
    remove_ops([place.op])
    new.name = name
    assert new.op is not None
    new.op.name = name


def pack(indices: Array, bits: int) -> Array:
    """``indices`` (flat, uint8) in ``bits`` each, the least significant bit of the first byte first."""
    if bits == 8:
        return indices
    pieces = (indices[at : at + _PACKED_AT_ONCE, None] for at in range(0, len(indices), _PACKED_AT_ONCE))
    flags = (np.unpackbits(piece, axis=1, count=bits, bitorder="little") for piece in pieces)
    return np.concatenate([np.packbits(each, bitorder="little") for each in flags])


def nearest_divisor(number: int, wanted: int) -> int:
    """The divisor of ``number`` whose ratio to ``wanted`` is nearest to 1."""
    divisors = [each for each in range(1, number + 1) if number % each == 0]
    # no two are as near: a * b = wanted² makes wanted itself a divisor
    return min(divisors, key=lambda each: max(each / wanted, wanted / each))
