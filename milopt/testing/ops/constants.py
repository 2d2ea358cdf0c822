"""Compressed constants, decoded element by element: to the bit."""

from __future__ import annotations

from itertools import product
from typing import Any

from milopt.mil import target, types
from milopt.testing.ops.drawing import F16, F32, FLOATS, Draw
from milopt.testing.ops.framework import ALL, Call, Cases
from milopt.testing.ops.untyped import np

__all__ = ["cases"]

cases = Cases()

IOS16_ON = ALL[1:]
BEFORE_18 = (target.iOS16, target.iOS17)
NOT_INFERRED = "it is materialized only: see test_constexpr"


def _integers(d: Draw, shape: tuple[int, ...], kind: str) -> Any:
    """Integers of a MIL type, those below a byte included."""
    bits = int(kind.lstrip("uint"))
    low, high = (0, 2**bits - 1) if kind.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    drawn = np.random.default_rng(d.number(0, 9999)).integers(low, high + 1, shape)
    return drawn.astype(types.nptype_from_builtin(types.string_to_builtin(kind)))


def _packed(values: Any, bits: int) -> Any:
    """The lowest bits of each value, the least significant first, in one stream of bytes."""
    stream = 0
    for place, value in enumerate(np.ravel(values).tolist()):
        stream |= int(value) << (place * bits)
    return np.frombuffer(stream.to_bytes(-(-values.size * bits // 8), "little"), np.uint8)


@cases("constexpr_cast", opsets=IOS16_ON, not_inferred=NOT_INFERRED)
def _(d: Draw) -> Call:
    x = d.array(d.shape(1, empty=False), F16)
    return Call({}, {"source_val": x, "output_dtype": "fp32"}, lambda a: a.source_val)


@cases("constexpr_affine_dequantize", opsets=IOS16_ON, not_inferred=NOT_INFERRED)
def _(d: Draw) -> Call:
    dtype, kind = d.pick(*FLOATS), d.pick("int8", "uint8")
    data = _integers(d, d.shape(1, empty=False), kind)
    axis = d.axis(data.ndim)
    size = data.shape[axis : axis + 1] if axis >= 0 else (data.shape[axis],)
    shape = [-1 if i == axis % data.ndim else 1 for i in range(data.ndim)]
    parameters = {
        "scale": d.array(size if d.flag() else (), dtype, low=0.01, high=2),
        "zero_point": _integers(d, size if d.flag() else (), kind),
    }

    def oracle(a: Any) -> Any:
        scale, zero = (np.reshape(each, shape if np.ndim(each) else ()) for each in (a.scale, a.zero_point))
        return ((a.quantized_data - zero) * scale).astype(dtype).astype(np.float64)

    return Call({}, {"quantized_data": data, "axis": axis, **parameters}, oracle)


@cases("constexpr_lut_to_dense", opsets=BEFORE_18, not_inferred=NOT_INFERRED)
def _(d: Draw) -> Call:
    bits = d.pick(1, 2, 4, 6, 8)
    shape = d.shape(1, empty=False)
    indices = d.array(shape, np.uint8, low=0, high=2**bits - 1)
    lut = d.array((2**bits,), d.pick(F16, F32, np.dtype(np.uint8), np.dtype(np.int8)))
    given = {"indices": _packed(indices, bits), "lut": lut, "shape": np.array(shape, np.uint32)}
    return Call({}, given, lambda a: np.take(a.lut, indices))


def _sparse(d: Draw, shape: tuple[int, ...]) -> Any:
    mask = d.array(shape, bool)
    mask.flat[0] = True  # coremltools refuses an empty set of elements
    return mask


@cases("constexpr_sparse_to_dense", opsets=BEFORE_18, not_inferred=NOT_INFERRED)
def _(d: Draw) -> Call:
    mask = _sparse(d, d.shape(1, empty=False))
    values = d.array((int(mask.sum()),), d.pick(F16, F32, np.dtype(np.uint8), np.dtype(np.int8)))
    given = {"nonzero_data": values, "mask": _packed(mask, 1), "shape": np.array(mask.shape, np.uint32)}
    return Call({}, given, lambda a: _filled(mask, a.nonzero_data))


def _filled(mask: Any, values: Any) -> Any:
    dense = np.zeros(mask.shape, values.dtype)
    for place, value in zip(np.argwhere(mask), values, strict=True):
        dense[tuple(place)] = value
    return dense


def _blocks(d: Draw, shape: tuple[int, ...]) -> tuple[int, ...]:
    """How many blocks each axis is cut into."""
    return tuple(d.pick(*(count for count in range(1, size + 1) if size % count == 0)) for size in shape)


def _of_block(values: Any, shape: tuple[int, ...], counts: tuple[int, ...]) -> Any:
    """For every element of ``shape``, the value of its block."""
    for axis, (size, count) in enumerate(zip(shape, counts, strict=True)):
        values = np.take(values, [i * count // size for i in range(size)], axis)
    return values


def _shape(d: Draw) -> tuple[int, ...]:
    return tuple(d.pick(1, 2, 4, 6) for _ in range(d.number(1, 3)))


IOS18 = (target.iOS18,)


def _scaling(d: Draw, shape: tuple[int, ...], kind: str) -> tuple[tuple[int, ...], dict[str, Any]]:
    counts = _blocks(d, shape)
    given = {"scale": d.array(counts, d.pick(*FLOATS), low=0.01, high=2)}
    return counts, given | d.some(offset=_integers(d, counts, kind))


def _scaled(a: Any, data: Any, counts: tuple[int, ...], dtype: Any) -> Any:
    scale = _of_block(a.scale, data.shape, counts)
    offset = _of_block(a("offset", np.zeros(counts, np.int64)), data.shape, counts)
    return ((data - offset) * scale).astype(dtype).astype(np.float64)


@cases("constexpr_blockwise_shift_scale", opsets=IOS18, not_inferred=NOT_INFERRED)
def _(d: Draw) -> Call:
    kind = d.pick("int4", "uint4", "int8", "uint8")
    data = _integers(d, _shape(d), kind)
    counts, given = _scaling(d, data.shape, kind)
    dtype = given["scale"].dtype
    return Call({}, {"data": data} | given, lambda a: _scaled(a, a.data, counts, dtype))


@cases("constexpr_sparse_blockwise_shift_scale", opsets=IOS18, not_inferred=NOT_INFERRED)
def _(d: Draw) -> Call:
    kind = d.pick("int4", "uint4", "int8", "uint8")
    mask = _sparse(d, _shape(d))
    values = _integers(d, (int(mask.sum()),), kind)
    counts, given = _scaling(d, mask.shape, kind)
    dtype = given["scale"].dtype

    def oracle(a: Any) -> Any:
        return a.data_mask, _scaled(a, _filled(mask, a.nonzero_data), counts, dtype)[mask]

    return Call({}, {"data_mask": _bits(mask), "nonzero_data": values} | given, oracle)


def _bits(mask: Any) -> Any:
    return mask.astype(types.nptype_from_builtin(types.uint1))


def _table(d: Draw, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...], Any, int | None]:
    """The type of the indices, the blocks, their tables, and the axis along which entries are vectors."""
    bits = d.pick(1, 2, 3, 4, 6, 8)
    counts = _blocks(d, shape)
    vector = d.pick(None, *range(-len(shape), len(shape)))
    length = 1 if vector is None else d.number(1, 3)
    return f"uint{bits}", counts, d.array((*counts, 2**bits, length), d.pick(*FLOATS)), vector


def _looked_up(indices: Any, lut: Any, counts: tuple[int, ...], vector: int | None) -> Any:
    axis = (vector or 0) % indices.ndim
    length = lut.shape[-1]
    shape = [size * (length if i == axis else 1) for i, size in enumerate(indices.shape)]
    dense = np.zeros(shape)
    for place in product(*map(range, indices.shape)):
        block = tuple(i * count // size for i, count, size in zip(place, counts, indices.shape, strict=True))
        for part in range(length):
            where = list(place)
            where[axis] = where[axis] * length + part
            entry = *block, indices[place], part
            dense[tuple(where)] = lut[entry]
    return dense


def _vector_axis(vector: int | None) -> dict[str, Any]:
    return {} if vector is None else {"vector_axis": np.int32(vector)}


@cases("constexpr_lut_to_dense", opsets=IOS18, label="iOS18", not_inferred=NOT_INFERRED)
def _(d: Draw) -> Call:
    shape = _shape(d)
    kind, counts, lut, vector = _table(d, shape)
    given = {"indices": _integers(d, shape, kind), "lut": lut} | _vector_axis(vector)
    return Call({}, given, lambda a: _looked_up(a.indices, a.lut, counts, vector))


@cases("constexpr_sparse_to_dense", opsets=IOS18, label="iOS18", not_inferred=NOT_INFERRED)
def _(d: Draw) -> Call:
    mask = _sparse(d, _shape(d))
    values = d.array((int(mask.sum()),), d.pick(F16, F32, np.dtype(np.uint8), np.dtype(np.int8)))
    return Call({}, {"nonzero_data": values, "mask": _bits(mask)}, lambda a: _filled(mask, a.nonzero_data))


@cases("constexpr_lut_to_sparse", opsets=IOS18, not_inferred=NOT_INFERRED)
def _(d: Draw) -> Call:
    mask = _sparse(d, _shape(d))
    kind, counts, lut, vector = _table(d, mask.shape)
    values = _integers(d, (int(mask.sum()),), kind)

    def oracle(a: Any) -> Any:
        dense = _looked_up(_filled(mask, a.indices_nonzero_data), a.lut, counts, vector)
        wide = np.repeat(mask, lut.shape[-1], (vector or 0) % mask.ndim)
        return wide, dense[wide]

    given = {"indices_mask": _bits(mask), "indices_nonzero_data": values, "lut": lut} | _vector_axis(vector)
    return Call({}, given, oracle)
