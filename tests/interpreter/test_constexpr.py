"""Compressed weights decode to what coremltools' own definitions decode them to, to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from milopt.interpreter.values import Array
from milopt.mil import Target, Var, flat, mb, target, types
from tests.interpreter.support import normals, run

RNG = np.random.default_rng(0)


def integers(low: int, high: int, *shape: int, dtype: str = "uint8") -> Array:
    return RNG.integers(low, high, shape).astype(types.nptype_from_builtin(types.string_to_builtin(dtype)))


def packed(indices: Array, bits: int) -> Array:
    """Indices as the iOS16 op stores them: the bits of each, the least significant first, in one stream."""
    flags = np.unpackbits(np.reshape(indices, (-1, 1)), axis=1, count=bits, bitorder="little")
    return np.packbits(np.ravel(flags), bitorder="little")


def sparse(mask: Array) -> Array:
    return mask.astype(types.nptype_from_builtin(types.uint1))


MASK = integers(0, 2, 4, 6)
ONES = int(MASK.sum())
IOS16: list[tuple[str, dict[str, Any]]] = [
    *(
        (
            "lut_to_dense",
            {
                "indices": packed(integers(0, 2**bits, 5, 7), bits),
                "lut": normals(2**bits, dtype=kind),
                "shape": np.array([5, 7], np.uint32),
            },
        )
        for bits in (1, 2, 4, 6, 8)
        for kind in (np.float16, np.float32)
    ),
    *(
        (
            "affine_dequantize",
            {
                "quantized_data": integers(-128, 128, 3, 4, 2, dtype="int8"),
                "zero_point": np.int8(3),
                "scale": kind(0.02),
                "axis": 0,
            },
        )
        for kind in (np.float16, np.float32)
    ),
    *(
        (
            "affine_dequantize",
            {
                "quantized_data": integers(0, 256, 3, 4, 2),
                "zero_point": integers(0, 256, 4),
                "scale": np.abs(normals(4, dtype=kind)),
                "axis": axis,
            },
        )
        for kind in (np.float16, np.float32)
        for axis in (1, -2)
    ),
    (
        "sparse_to_dense",
        {
            "nonzero_data": normals(ONES, dtype=np.float16),
            "mask": np.packbits(np.ravel(MASK), bitorder="little"),
            "shape": np.array([4, 6], np.uint32),
        },
    ),
    ("cast", {"source_val": normals(3, 4, dtype=np.float16), "output_dtype": "fp32"}),
]

IOS18: list[tuple[str, dict[str, Any]]] = [
    *(
        (
            "lut_to_dense",
            {
                "indices": integers(0, 2**bits, 8, 6, dtype=f"uint{bits}"),
                "lut": normals(*blocks, 2**bits, 1, dtype=np.float16),
            },
        )
        for bits in (1, 2, 3, 4, 6, 8)
        for blocks in ((1, 1), (4, 1), (8, 1), (1, 3), (2, 3))
    ),
    *(
        (
            "lut_to_dense",
            {
                "indices": integers(0, 4, 4, 6, 2, dtype="uint2"),
                "lut": normals(*blocks, 4, 3, dtype=np.float16),
                "vector_axis": np.int32(axis),
            },
        )
        for axis in (0, 1, 2, -2)
        for blocks in ((1, 1, 1), (2, 1, 1), (2, 3, 2))
    ),
    *(
        (
            "blockwise_shift_scale",
            {
                "data": integers(low, high, 8, 6, dtype=dtype),
                "scale": np.abs(normals(*blocks, dtype=kind)),
                **({"offset": integers(low, high, *blocks, dtype=dtype)} if shifted else {}),
            },
        )
        for dtype, low, high in (("int4", -8, 8), ("uint4", 0, 16), ("int8", -128, 128), ("uint8", 0, 256))
        for blocks in ((1, 1), (8, 3), (2, 6))
        for kind in (np.float16, np.float32)
        for shifted in (False, True)
    ),
    (
        "blockwise_shift_scale",
        {
            "data": integers(0, 16, 8, 6, dtype="uint4"),
            "scale": np.abs(normals(4, 1, dtype=np.float16)),
            "offset": normals(4, 1, dtype=np.float16) * 8,
        },
    ),
    ("sparse_to_dense", {"nonzero_data": normals(ONES, dtype=np.float16), "mask": sparse(MASK)}),
    ("cast", {"source_val": normals(3, 4, dtype=np.float16), "output_dtype": "fp32"}),
]


@pytest.mark.parametrize(
    ("opset", "op_type", "arguments"),
    [(target.iOS16, *case) for case in IOS16] + [(target.iOS18, *case) for case in IOS18],
)
def test_a_weight_decodes_as_in_coremltools(opset: Target, op_type: str, arguments: dict[str, Any]) -> None:
    expected: list[Array] = []

    def build() -> Any:
        weight = getattr(mb, f"constexpr_{op_type}")(**arguments)
        expected.append(weight.op.materialized_val_inference())
        return mb.mul(x=weight, y=np.ones((), expected[0].dtype))

    (declared,) = run(build, {}, precision="declared", opset=opset)
    np.testing.assert_array_equal(declared, expected[0], strict=True)
    (exact,) = run(build, {}, precision="float64", opset=opset)
    np.testing.assert_array_equal(exact, expected[0].astype(np.float64), strict=True)


def joint_lut(vector: int | None) -> tuple[Var, ...]:
    arguments: dict[str, Any] = {} if vector is None else {"vector_axis": np.int32(vector)}
    return flat(
        mb.constexpr_lut_to_sparse(
            indices_mask=sparse(MASK),
            indices_nonzero_data=integers(0, 4, ONES, dtype="uint2"),
            lut=normals(2, 1, 4, 1 if vector is None else 2, dtype=np.float16),
            **arguments,
        )
    )


def joint_scale() -> tuple[Var, ...]:
    return flat(
        mb.constexpr_sparse_blockwise_shift_scale(
            data_mask=sparse(MASK),
            nonzero_data=integers(-8, 8, ONES, dtype="int4"),
            scale=np.abs(normals(2, 3, dtype=np.float16)),
            offset=integers(-8, 8, 2, 3, dtype="int4"),
        )
    )


@pytest.mark.parametrize("joint", [lambda: joint_lut(None), lambda: joint_lut(0), lambda: joint_lut(1), joint_scale])
def test_sparse_and_palettized_or_quantized_weights_decode_as_in_coremltools(joint: Any) -> None:
    expected: list[Array] = []

    def build() -> Any:
        mask, nonzero = joint()
        weight = mb.constexpr_sparse_to_dense(nonzero_data=nonzero, mask=mask)
        expected.append(weight.op.materialized_val_inference())
        return mb.mul(x=weight, y=np.float16(1))

    np.testing.assert_array_equal(run(build, {}, precision="declared")[0], expected[0], strict=True)


def test_a_palettized_table_is_scaled_as_in_coremltools() -> None:
    """int8 tables with a scale (per-channel scales of palettization): lut_to_dense feeds blockwise_shift_scale."""
    expected: list[Array] = []

    def build() -> Any:
        table = integers(-128, 128, 2, 1, 4, 1, dtype="int8")
        data = mb.constexpr_lut_to_dense(indices=integers(0, 4, 8, 6, dtype="uint2"), lut=table)
        weight = mb.constexpr_blockwise_shift_scale(data=data, scale=np.abs(normals(8, 1, dtype=np.float16)))
        expected.append(weight.op.materialized_val_inference())
        return mb.mul(x=weight, y=np.float16(1))

    np.testing.assert_array_equal(run(build, {}, precision="declared")[0], expected[0], strict=True)
