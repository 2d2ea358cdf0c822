"""Compressed constants: the ``constexpr_*`` ops of iOS16 -> those of iOS18.

Nothing is decompressed. Packed indices and masks lie in a weight file bit for bit as iOS18's small integers do, the
first in the lowest bits, so their bytes are kept; scales and tables get other shapes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any, TypeAlias, cast

import numpy as np

from milopt.mil import Operation, Target, Var, constant, shape_of, types
from milopt.package.arguments import const_class, op_class
from milopt.package.blobs import Element, element_named
from milopt.package.making import new_constant
from milopt.package.origin import Origin, Role, origin_of
from milopt.package.packing import unpack
from milopt.package.weights import Packed, piece_of
from milopt.reports import require
from milopt.upgrading.editing import Edit, drop_unused, insert, move

__all__ = ["as_blocks", "as_inputs", "as_mask", "as_table"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow

_BITS = (1, 2, 4, 6, 8)  # of an index: the sizes of table that iOS16's documentation allows


def as_inputs(op: Operation, edit: Edit) -> bool:
    """``constexpr_cast``: the same op, its inputs written as inputs."""
    values = {name: _value(op, name) for name in ("source_val", "output_dtype")}
    _put(op, edit, "constexpr_cast", {name: (op.inputs[name].sym_type, value, name) for name, value in values.items()})
    return True


def as_blocks(op: Operation, edit: Edit) -> bool:
    """``constexpr_affine_dequantize``  ->  ``constexpr_blockwise_shift_scale``.

    There is one block along every axis but ``axis``. ``scale`` and ``offset`` have one shape, and an offset that is no
    float has the type of ``data``.
    """
    data, scale, zero = (_value(op, name) for name in ("quantized_data", "scale", "zero_point"))
    rank, axis = data.ndim, int(_value(op, "axis"))
    require(rank > 0, "it is a scalar")
    shape = [1] * rank
    if scale.ndim or zero.ndim:
        shape[axis] = data.shape[axis]
    offset = _offset(data, scale, zero)
    _put(
        op,
        edit,
        "constexpr_blockwise_shift_scale",
        {
            "data": (op.inputs["quantized_data"].sym_type, data, "quantized_data"),
            "scale": (*_shaped(scale, shape), "scale"),
            "offset": (*_shaped(offset, shape), "zero_point"),
        },
    )
    return True


def _shaped(values: Array, shape: list[int]) -> tuple[Any, Array]:
    """The type and the array of ``values``, a scalar repeated to fill the shape."""
    array: Array = np.reshape(values, shape) if values.size == prod(shape) else np.full(shape, values)
    return types.tensor(types.numpy_type_to_builtin_type(array.dtype), tuple(shape)), array


def _offset(data: Array, scale: Array, zero: Array) -> Array:
    """The zero point in a type that iOS18's op takes, which computes with it exactly what iOS16's does.

    The difference of two 8-bit integers is exact in fp16. One with a fraction may be rounded there: that is tried for
    every integer there is.
    """
    if zero.dtype == data.dtype:
        return zero
    offset: Array = zero.astype(scale.dtype)
    if zero.dtype.kind in "iu":
        return offset
    bounds = np.iinfo(data.dtype)
    codes: Array = np.arange(bounds.min, bounds.max + 1)[:, None]
    exact: Array = (scale.astype(np.float32) * (codes.astype(np.float32) - zero)).astype(scale.dtype)
    same = np.array_equal(exact, scale * (codes.astype(scale.dtype) - offset))
    require(same, "its zero points have fractions that {} does not hold", scale.dtype)
    return offset


def as_table(op: Operation, edit: Edit) -> bool:
    """``constexpr_lut_to_dense``: indices of ``log2`` of the table's size bits, and a table of two more dimensions."""
    lut: Array = _value(op, "lut")
    shape = _shape(op)
    bits = int(lut.size).bit_length() - 1
    require(lut.ndim == 1 and 1 << bits == lut.size and bits in _BITS, "its table has {} entries", lut.size)
    indices = _small(op, "indices", bits, shape, edit)
    _put(
        op,
        edit,
        "constexpr_lut_to_dense",
        {"indices": (*indices, "indices"), "lut": (*_shaped(lut, [*(1 for _ in shape), lut.size, 1]), "lut")},
    )
    return True


def as_mask(op: Operation, edit: Edit) -> bool:
    """``constexpr_sparse_to_dense``: a mask of 1-bit elements."""
    nonzero = op.inputs["nonzero_data"]
    mask = _small(op, "mask", 1, _shape(op), edit)
    values = {"nonzero_data": (nonzero.sym_type, _value(op, "nonzero_data"), "nonzero_data"), "mask": (*mask, "mask")}
    _put(op, edit, "constexpr_sparse_to_dense", values)
    return True


def _shape(op: Operation) -> tuple[int, ...]:
    shape = tuple(int(size) for size in np.ravel(_value(op, "shape")))
    require(shape and shape == shape_of(op.outputs[0]), "its shape is {}, its result's is another", shape)
    return shape


def _value(op: Operation, name: str) -> Any:
    """The numpy value of an input, a scalar as an array; a text as it is."""
    value = constant(op.inputs.get(name))
    require(value is not None, "its {} is no constant", name)
    return value if isinstance(value, str) else np.asarray(value)


def _small(op: Operation, name: str, bits: int, shape: tuple[int, ...], edit: Edit) -> tuple[Any, Any]:
    """The type and the value of bytes as elements of ``bits`` bits: the bytes themselves where a file has them."""
    packed: Array = _value(op, name)
    element = element_named(f"uint{bits}")
    assert element is not None
    count = prod(shape)
    require(packed.size == element.nbytes(count), "its {} have {} bytes for {} elements", name, packed.size, count)
    kind = types.tensor(types.string_to_builtin(element.name), shape)
    if bits == 8:
        return kind, packed.reshape(shape)
    return kind, _packed(packed, element, shape, edit) or unpack(packed, bits, count, signed=False).view(
        element.numpy
    ).reshape(shape)


def _packed(packed: Array, element: Element, shape: tuple[int, ...], edit: Edit) -> Packed | None:
    """The bytes in their weight file, if they view one and nothing is written in the bits left over."""
    piece = piece_of(packed)
    used = prod(shape) * element.bits % 8
    if piece is None or (used and int(packed[-1]) >> used):
        return None
    key = (piece.key, element.name, shape)
    box = edit.packed.setdefault(key, Packed.around(piece, element, shape))
    return copy.copy(box)


def _put(op: Operation, edit: Edit, op_type: str, values: Mapping[str, tuple[Any, Any, str]]) -> None:
    """A ``constexpr_*`` op of iOS18 in the place of ``op``; for each input its type, its value, and whose it was.

    What the package says of the op stays, and a value goes to the file that it came from.
    """
    kind = op_class(op_type, Target.iOS18)
    before = origin_of(op)
    origin = None if before is None else replace(before, inline=())
    inputs: dict[str, Var] = {}
    for name, (type_, value, source) in values.items():
        held = value if isinstance(value, (str, Packed)) or types.is_tensor(type_) else value[()]
        made = new_constant(const_class(), edit.unique(op)(f"{op.name}_{name}"), op.enclosing_block, type_, held)
        move(made, op)
        was = op.inputs[source].op
        assert was is not None
        place = origin_of(was)
        if origin is not None and place is not None:
            literal = Origin(role=Role.LITERAL, owner=origin, argument=name, path=place.path)
            cast("Any", made).package_origin = literal
        inputs[name] = made.outputs[0]
    new = insert(kind, edit.unique(op)(f"{op.name}_{op_type}"), op, inputs, op.outputs[0].sym_type)
    new.scopes = copy.copy(op.scopes)
    if origin is not None:
        cast("Any", new).package_origin = origin
    unused = op.get_flattened_inputs()
    edit.replace(op, new.outputs)
    drop_unused(unused)
