"""Weights read otherwise: the same bytes or compressed form, with axes moved, unit ones added, or a part cut out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import lcm, prod
from typing import Any, TypeAlias

import numpy as np

from milopt.building import Builder
from milopt.mil import Operation, Var, constant, flat, is_constant, shape_of, weight_key
from milopt.package.making import hold
from milopt.package.packing import pack, unpack
from milopt.package.weights import Packed, packed_of
from milopt.reports import require

__all__ = ["Cut", "Reform", "bytes_of", "form_of", "grain_of", "key_of", "reformed"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow


@dataclass(frozen=True)
class Reform:
    """A new reading of a weight of ``rank`` axes: those of ``order``, then ``units`` axes of length 1.

    Axes that ``order`` leaves out have length 1. What an array has behind the weight's axes, as a look-up table has its
    entries (constraints W3), stays behind.
    """

    rank: int
    order: tuple[int, ...]
    units: int = 0

    @property
    def moves(self) -> bool:
        """Whether the elements come in another order."""
        return list(self.order) != sorted(self.order)

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of an array that had ``shape``."""
        return (*(shape[axis] for axis in self.order), *(1,) * self.units, *shape[self.rank :])

    def axis(self, axis: int) -> int:
        """Where axis ``axis`` of the weight is. Raises NoMatch where it is left out."""
        require(axis % self.rank in self.order, "its numbers are grouped along axis {}, which goes", axis)
        return self.order.index(axis % self.rank)

    def __call__(self, array: Array) -> Array:
        """A view of ``array``."""
        left_out = [axis for axis in range(self.rank) if axis not in self.order]
        moved: Array = np.transpose(array, [*left_out, *self.order, *range(self.rank, array.ndim)])
        return moved.reshape(self.shape(array.shape))


@dataclass(frozen=True)
class Cut:
    """The part ``[begin, end)`` of axis ``at``, of ``size``, of a weight; groups of it must end where the part does."""

    at: int
    begin: int
    end: int
    size: int

    @property
    def moves(self) -> bool:
        """Whether it is not the whole."""
        return self.end - self.begin < self.size

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the part of an array of ``shape``. Raises NoMatch where it would cut a group."""
        if shape[self.at] == 1:
            return shape
        group = self.size // shape[self.at]
        whole = self.begin % group == self.end % group == 0
        require(whole, "its groups of {} channels don't end where a slice does", group)
        return (*shape[: self.at], (self.end - self.begin) // group, *shape[self.at + 1 :])

    def axis(self, axis: int) -> int:
        return axis

    def __call__(self, array: Array) -> Array:
        """A view of ``array``, which may hold one number for several channels."""
        count = self.shape(array.shape)[self.at]
        if count == array.shape[self.at]:
            return array
        first = self.begin * array.shape[self.at] // self.size
        part: Array = array[(slice(None),) * self.at + (slice(first, first + count),)]
        return part


Reading: TypeAlias = "Reform | Cut"


def reformed(op: Builder, weight: Var, reform: Reading, name: str) -> Var:
    """``weight``, a constant or a ``constexpr_*`` of such (joint forms too), as ``reform`` reads it.

    Nothing is decompressed nor clustered again: indices, tables, masks and scales are reshaped, or transposed, each by
    itself. Raises NoMatch where a form has parts that can't be.
    """
    return _Carrier(op, reform, {}).value(weight, name)


class _Carrier:
    def __init__(self, op: Builder, reform: Reading, made: dict[Operation, tuple[Var, ...]]) -> None:
        self._op = op
        self._reform = reform
        self._made = made
        self._done = "transposed" if isinstance(reform, Reform) else "cut"

    def value(self, var: Var, name: str) -> Var:
        if is_constant(var):
            return self._shaped(var, name)
        producer = var.op
        assert producer is not None
        if producer not in self._made:
            self._made[producer] = self._compressed(producer, name)
        return self._made[producer][producer.outputs.index(var)]

    def _compressed(self, producer: Operation, name: str) -> tuple[Var, ...]:
        kinds = _PARTS.get(producer.op_type)
        require(kinds is not None, "its weight is {}, which is not known", producer.op_type, at=producer)
        assert kinds is not None
        inputs: dict[str, Any] = dict(producer.inputs)
        packed = "shape" in inputs  # iOS16: bits in bytes, and the shape beside them
        if packed and self._reform.moves:
            return (self._repacked(producer, inputs, name),)
        parts: dict[str, Any] = {}
        for key, var in inputs.items():
            kind = "same" if packed and key != "shape" else kinds[key]
            parts[key] = _KINDS[kind](self, producer, var, f"{name}_{key}")
        return flat(getattr(self._op, producer.op_type)(**parts, name=name))

    def _repacked(self, producer: Operation, inputs: dict[str, Any], name: str) -> Var:
        """An iOS16 form, whose indices or mask are unpacked and packed again."""
        shape: Array = constant(inputs["shape"])
        sizes = tuple(int(size) for size in shape)
        key = "mask" if "mask" in inputs else "indices"
        bits = 1 if key == "mask" else int(np.log2(np.size(constant(inputs["lut"]))))
        elements: Array = unpack(constant(inputs[key]), bits, prod(sizes), signed=False).reshape(sizes)
        parts: dict[str, Any] = {**inputs, "shape": np.array(self._reform.shape(sizes), shape.dtype)}
        moved: Array = np.ascontiguousarray(self._reform(elements))
        parts[key] = pack(moved.ravel(), bits)
        if key == "mask":
            parts["nonzero_data"] = self._let_through(elements, constant(inputs["nonzero_data"]))
        made: Var = getattr(self._op, producer.op_type)(**parts, name=name)
        return made

    def _let_through(self, mask: Array, listed: Array) -> Array:
        """The elements that a mask lets through, ``listed`` in the order of its axes, in their new order."""
        bits = mask != 0
        places = np.zeros(bits.shape, np.int64)
        places[bits] = np.arange(int(np.count_nonzero(bits)))
        return listed[self._reform(places)[self._reform(bits)]]

    def _shaped(self, var: Var, name: str) -> Var:
        """A constant with the weight's axes."""
        box = packed_of(var)
        if box is None:
            return self._const(self._reform(constant(var)), name)
        if not self._reform.moves:
            return _held(self._op, box.reshape(*self._reform.shape(box.shape)), name)
        return self._const(_typed(self._reform(box.opened()), box.dtype), name)

    def _const(self, array: Array, name: str) -> Var:
        made: Var = self._op.const(val=array, name=name)
        return made

    def shaped(self, producer: Operation, var: Var, name: str) -> Any:
        return self.value(var, name)

    def listed(self, producer: Operation, var: Var, name: str) -> Any:
        """The elements that a mask lets through, in the order of its axes."""
        if not is_constant(var):
            return self.value(var, name)
        if not self._reform.moves:
            return self.same(producer, var, name)
        mask = next(each for key, each in producer.inputs.items() if key.endswith("mask"))
        require(is_constant(mask), "its weight would have to be {}, and its mask is computed", self._done, at=producer)
        array: Array = constant(var)
        return self._const(_typed(self._let_through(constant(mask), array), array.dtype), name)

    def same(self, producer: Operation, var: Var, name: str) -> Any:
        return var if (box := packed_of(var)) is None else _held(self._op, box, name)

    def vector(self, producer: Operation, var: Var, name: str) -> Any:
        """A number, or one for each entry of the axis that the op names."""
        array: Array = constant(var)
        axis = int(constant(producer.inputs["axis"])) % producer.outputs[0].rank
        if not isinstance(self._reform, Cut) or np.size(array) == 1 or axis != self._reform.at:
            return var
        return self._const(array[self._reform.begin : self._reform.end], name)

    def axis(self, producer: Operation, var: Var, name: str) -> Any:
        return np.int32(self._reform.axis(int(constant(var))))

    def extents(self, producer: Operation, var: Var, name: str) -> Any:
        shape: Array = constant(var)
        return np.array(self._reform.shape(tuple(int(size) for size in shape)), shape.dtype)


def _typed(array: Array, dtype: Any) -> Array:
    """A contiguous copy that keeps the mark by which PyMIL knows types of less than a byte."""
    copied: Array = np.ascontiguousarray(array)
    return copied.view(dtype)


def _held(op: Builder, box: Packed, name: str) -> Var:
    """A constant whose elements stay packed; what it is made with takes no memory."""
    zeros = np.broadcast_to(np.zeros((), box.dtype), box.shape)
    return hold(op.const(val=zeros, name=name), box)


_KINDS: dict[str, Callable[[_Carrier, Operation, Var, str], Any]] = {
    "shaped": _Carrier.shaped,
    "listed": _Carrier.listed,
    "same": _Carrier.same,
    "vector": _Carrier.vector,
    "axis": _Carrier.axis,
    "extents": _Carrier.extents,
}

# what each part of a compressed form has to do with the weight's axes; constraints W2, W3
_PARTS: dict[str, dict[str, str]] = {
    "constexpr_lut_to_dense": {"indices": "shaped", "lut": "shaped", "vector_axis": "axis", "shape": "extents"},
    "constexpr_sparse_to_dense": {"nonzero_data": "listed", "mask": "shaped", "shape": "extents"},
    "constexpr_blockwise_shift_scale": {"data": "shaped", "scale": "shaped", "offset": "shaped"},
    "constexpr_affine_dequantize": {
        "quantized_data": "shaped",
        "zero_point": "vector",
        "scale": "vector",
        "axis": "axis",
    },
    "constexpr_lut_to_sparse": {
        "indices_mask": "shaped",
        "indices_nonzero_data": "listed",
        "lut": "shaped",
        "vector_axis": "axis",
    },
    "constexpr_sparse_blockwise_shift_scale": {
        "data_mask": "shaped",
        "nonzero_data": "listed",
        "scale": "shaped",
        "offset": "shaped",
    },
    "constexpr_cast": {"source_val": "shaped", "output_dtype": "same"},
}

# parts that say how the others are read, and differ between two readings of the same bytes
_READING = frozenset({"shape", "axis", "vector_axis"})


def key_of(weight: Var) -> object:
    """The same for two weights made of the same bytes in the same form, whatever their shapes; nothing is read."""
    if is_constant(weight):
        if (box := packed_of(weight)) is None:
            array: Array = np.asarray(constant(weight))
            return weight_key(array) if array.ndim else (array.dtype.str, array.tobytes())
        assert box.piece is not None
        return box.piece.key
    producer = weight.op
    assert producer is not None
    parts = sorted(producer.inputs.keys() - _READING)
    return (producer.op_type, weight.op_output_idx, tuple((key, key_of(producer.inputs[key])) for key in parts))


def form_of(weight: Var, reform: Reform | None = None) -> object:
    """What :func:`key_of` leaves out: the shape, and those of the parts and their axes, as ``reform`` would have them.

    Scales (O, 1) and (1, I) of a square weight may be the same bytes. Weights equal in both have the same elements.
    """
    shape = tuple(int(size) for size in weight.shape)
    own = shape if reform is None else reform.shape(shape)
    producer = weight.op
    assert producer is not None
    if is_constant(weight) or "shape" in producer.inputs:  # iOS16: parts without axes
        return own
    kinds, parts = _PARTS.get(producer.op_type, {}), list[object]()
    for name, var in sorted(producer.inputs.items()):
        if kinds.get(name) == "axis":
            axis = int(constant(var)) % weight.rank
            parts.append(axis if reform is None else reform.axis(axis))
        elif kinds.get(name) == "shaped":
            parts.append(form_of(var, reform))
    return (own, tuple(parts))


def grain_of(weight: Var, axis: int) -> int:
    """The least number of channels on ``axis`` that a :class:`Cut` may begin or end at, and multiples of it."""
    if is_constant(weight):
        return 1
    assert weight.op is not None
    kinds = _PARTS.get(weight.op.op_type, {})
    size, grains = int(weight.shape[axis]), list[int]()
    for key, var in weight.op.inputs.items():
        if kinds.get(key) == "shaped":
            grains.append(grain_of(var, axis))
            if var.rank > axis and 1 < var.shape[axis] < size:
                grains.append(size // int(var.shape[axis]))
    return lcm(*grains)


def bytes_of(weight: Var) -> int:
    """The bytes that a package stores for a weight."""
    if is_constant(weight):
        element: Any = weight.dtype
        return (prod(shape_of(weight)) * element.get_bitwidth() + 7) // 8 if weight.rank else 0
    producer = weight.op
    assert producer is not None
    return sum(map(bytes_of, producer.inputs.values()))
