"""Compressed constants in iOS16's forms: every number of bits, sizes that fill no whole bytes, both signs."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from milopt.mil import mb, target, types
from milopt.package.packing import pack
from tests.upgrading.cases import Arrays, Build, Case, name_of, numbers

COMPRESSED: list[Case] = []


def _add(name: str, op_type: str, weight: Build, fixed: Arrays | None = None) -> None:
    """A program that returns the weight: a sum would hide where its elements lie."""

    def build(v: Any) -> Any:
        dense = weight(v)
        return mb.add(x=dense if dense.dtype == types.fp32 else mb.cast(x=dense, dtype="fp32"), y=v.x)

    inputs = {"x": np.zeros(1, np.float32)}
    COMPRESSED.append(Case(name, target.iOS16, inputs, build, (op_type,), fixed=fixed or {}))


def _integers(shape: tuple[int, ...], dtype: Any) -> Any:
    bounds = np.iinfo(dtype)
    return np.random.default_rng(1).integers(bounds.min, bounds.max + 1, shape).astype(dtype)


for _dtype in (np.int8, np.uint8):
    _data = _integers((3, 5, 2), _dtype)
    for _float in (np.float16, np.float32):
        _scale = np.abs(numbers(5, dtype=_float)) + _float(0.1)
        _zero = _integers((5,), _dtype)
        for _how, _given in {
            "vectors": {"scale": _scale, "zero_point": _zero, "axis": 1},
            "a vector of scales": {"scale": _scale, "zero_point": _zero[0], "axis": -2},
            "a vector of zero points": {"scale": _scale[0], "zero_point": _zero, "axis": 1},
            "scalars": {"scale": _scale[0], "zero_point": _zero[0], "axis": 0},
            "floating zero points": {"scale": _scale, "zero_point": np.float32(np.arange(5) - 2), "axis": 1},
        }.items():
            _add(
                f"constexpr_affine_dequantize of {name_of(_dtype)} to {name_of(_float)}, {_how}",
                "constexpr_affine_dequantize",
                lambda v: mb.constexpr_affine_dequantize(quantized_data=v.data, **v.given),
                fixed={"data": _data, "given": _given},
            )
_add(
    "constexpr_affine_dequantize with a zero point of the other sign",
    "constexpr_affine_dequantize",
    lambda v: mb.constexpr_affine_dequantize(
        quantized_data=_integers((3, 5), np.int8), scale=np.float16(0.3), zero_point=np.uint8(200), axis=0
    ),
)

for _bits in (1, 2, 4, 6, 8):
    # 105 elements fill no whole number of bytes but with 8 bits, 128 do with all, and 4 lie in the specification
    for _shape in ((3, 5, 7), (8, 16), (2, 2)):
        _add(
            f"constexpr_lut_to_dense of {_bits} bits, {prod(_shape)} elements",
            "constexpr_lut_to_dense",
            lambda v: mb.constexpr_lut_to_dense(
                indices=_packed(np.random.default_rng(2).integers(0, 1 << v.bits, prod(v.shape)), v.bits),
                lut=numbers(1 << v.bits, dtype=np.float16),
                shape=np.array(v.shape, np.uint32),
            ),
            fixed={"bits": _bits, "shape": _shape},
        )


def _packed(values: Any, bits: int) -> Any:
    flat = values.astype(np.uint8)
    return flat if bits == 8 else pack(flat, bits)


for _shape in ((3, 5, 7), (8, 16), (2, 2)):
    for _kind in (np.float16, np.float32):
        _mask = np.random.default_rng(3).random(prod(_shape)) < 0.4
        _add(
            f"constexpr_sparse_to_dense of {name_of(_kind)}, {prod(_shape)} elements",
            "constexpr_sparse_to_dense",
            lambda v: mb.constexpr_sparse_to_dense(
                nonzero_data=numbers(int(v.mask.sum()), dtype=v.kind),
                mask=np.packbits(v.mask, bitorder="little"),
                shape=np.array(v.shape, np.uint32),
            ),
            fixed={"mask": _mask, "shape": _shape, "kind": _kind},
        )
_add(
    "constexpr_cast",
    "constexpr_cast",
    lambda v: mb.constexpr_cast(source_val=numbers(4, 5, dtype=np.float16), output_dtype="fp32"),
)
