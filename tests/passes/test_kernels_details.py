"""Weights read otherwise, in detail: shapes, axes, groups, names, keys, and the bytes that they take."""

# The methods of numpy arrays whose element type is not told have types that are not known either.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milopt.building import Builder
from milopt.mil import (
    Operation,
    Var,
    constant,
    is_constant,
    mb,
    shape_of,
    target,
    types,
)
from milopt.package import load
from milopt.package.weights import packed_of
from milopt.passes import kernels
from milopt.passes.kernels import Cut, Reform, bytes_of, form_of, grain_of, key_of, reformed
from milopt.reports import NoMatch

from .test_kernels import FORMS, NEW, OLD, first_builder, mask_of, program_of, typed

KERNEL = Reform(2, (0, 1), 2)
TURNED = Reform(2, (1, 0), 2)


def weight_and_builder(form: str) -> tuple[Var, Builder]:
    op = first_builder(program_of(form, "linear"))
    return op.anchor.inputs["weight"], op


def weight_among(*made: Any, opset: Any = target.iOS18) -> tuple[Var, Builder]:
    """What ``made[0]`` builds, a weight of (rows, columns), inside a program with one layer of it."""

    @mb.program(input_specs=[mb.TensorSpec((1, 5, 6), types.fp16)], opset_version=opset)
    def program(x: Any) -> Any:
        return mb.linear(x=x, weight=made[0](), name="out")

    op = first_builder(program)
    return op.anchor.inputs["weight"], op


def blocks(rows: int, columns: int, scales: tuple[int, int]) -> Any:
    rng = np.random.default_rng(0)
    data: Any = rng.integers(-8, 8, (rows, columns)).astype(np.int8)
    return mb.constexpr_blockwise_shift_scale(data=data, scale=rng.random(scales).astype(np.float16))


def test_readings_are_values() -> None:
    assert not KERNEL.moves
    assert len({Reform(2, (0, 1)), Reform(2, (0, 1)), Reform(2, (0, 1), 0), Cut(0, 1, 2, 3), Cut(0, 1, 2, 3)}) == 2
    with pytest.raises(FrozenInstanceError):
        KERNEL.rank = 3  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        Cut(0, 0, 1, 2).at = 1  # type: ignore[misc]


def test_a_reform_of_shapes_and_arrays() -> None:
    array: Any = np.arange(2 * 3 * 1 * 5).reshape(2, 3, 1, 5)
    assert (KERNEL.moves, TURNED.moves, Reform(3, (0, 2)).moves, Reform(3, (2, 0)).moves) == (False, True, False, True)
    assert (KERNEL.shape((4, 6)), TURNED.shape((4, 6))) == ((4, 6, 1, 1), (6, 4, 1, 1))
    # what lies behind the axes of the weight, a look-up table's entries, stays behind
    turned = Reform(3, (1, 0), 1)
    assert turned.shape((2, 3, 1, 5)) == (3, 2, 1, 5)
    np.testing.assert_array_equal(turned(array), array[:, :, 0].transpose(1, 0, 2).reshape(3, 2, 1, 5))
    last: Any = np.arange(6).reshape(1, 2, 3)
    np.testing.assert_array_equal(Reform(3, (2, 1))(last), last[0].T)


def test_where_a_reform_puts_an_axis() -> None:
    turned = Reform(3, (2, 0), 1)
    assert [turned.axis(axis) for axis in (0, 2, -1, -3)] == [1, 0, 0, 1]
    for axis in (1, -2):
        with pytest.raises(NoMatch, match=f"^its numbers are grouped along axis {axis}, which goes$"):
            turned.axis(axis)


def test_a_cut_of_shapes_and_arrays() -> None:
    cut = Cut(1, 2, 6, 8)
    assert (cut.moves, Cut(1, 0, 8, 8).moves, Cut(1, 0, 7, 8).moves, Cut(1, 1, 8, 8).moves) == (True, False, True, True)
    assert [cut.shape(shape) for shape in ((3, 8), (3, 4, 5), (3, 1))] == [(3, 4), (3, 2, 5), (3, 1)]
    assert (cut.axis(1), cut.axis(-1)) == (1, -1)
    array: Any = np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(cut(array), array[:, 1:3])  # one number for two channels
    wide: Any = np.arange(24).reshape(3, 8)
    np.testing.assert_array_equal(cut(wide), wide[:, 2:6])
    one: Any = np.arange(3).reshape(3, 1)
    assert cut(one) is one
    assert Cut(0, 0, 3, 3)(array) is array
    np.testing.assert_array_equal(Cut(0, 1, 3, 3)(array), array[1:])


@pytest.mark.parametrize(("begin", "end"), [(2, 5), (1, 4), (3, 5)])
def test_a_cut_ends_where_groups_do(begin: int, end: int) -> None:
    with pytest.raises(NoMatch, match=r"^its groups of 2 channels don't end where a slice does$"):
        Cut(0, begin, end, 8).shape((4, 3))
    assert Cut(0, begin, end, 8).shape((8, 3)) == (end - begin, 3)


# what a compressed weight is made of, read as a kernel, turned, and cut: `part: shape`, by the op that has it
PARTS = {
    "affine16": (
        "axis=1 quantized_data=4,6,1,1 scale=6 zero_point=",
        "axis=0 quantized_data=6,4,1,1 scale=6 zero_point=",
        "axis=1 quantized_data=4,2 scale=2 zero_point=",
    ),
    "affine16-rows": (
        "axis=0 quantized_data=4,6,1,1 scale=4 zero_point=",
        "axis=1 quantized_data=6,4,1,1 scale=4 zero_point=",
        "axis=0 quantized_data=4,2 scale=4 zero_point=",
    ),
    "lut16": (
        "indices=12 lut=16 shape=(4,6,1,1)",
        "indices=12 lut=16 shape=(6,4,1,1)",
        "indices=4 lut=16 shape=(4,2)",
    ),
    "sparse16": (
        "mask=3 nonzero_data=12 shape=(4,6,1,1)",
        "mask=3 nonzero_data=12 shape=(6,4,1,1)",
        "mask=1 nonzero_data=3 shape=(4,2)",
    ),
    "lut": (
        "indices=4,6,1,1 lut=2,1,1,1,16,1",
        "indices=6,4,1,1 lut=1,2,1,1,16,1",
        "indices=4,2 lut=2,1,16,1",
    ),
    "lut-vector": (
        "indices=4,3,1,1 lut=2,1,1,1,16,2 vector_axis=1",
        "indices=3,4,1,1 lut=1,2,1,1,16,2 vector_axis=0",
        "indices=4,1 lut=2,1,16,2 vector_axis=-1",
    ),
    "block": (
        "data=4,6,1,1 scale=4,3,1,1",
        "data=6,4,1,1 scale=3,4,1,1",
        "data=4,2 scale=4,1",
    ),
    "block-offset": (
        "data=4,6,1,1 offset=4,3,1,1 scale=4,3,1,1",
        "data=6,4,1,1 offset=3,4,1,1 scale=3,4,1,1",
        "data=4,2 offset=4,1 scale=4,1",
    ),
    "sparse": (
        "mask=4,6,1,1 nonzero_data=12",
        "mask=6,4,1,1 nonzero_data=12",
        "mask=4,2 nonzero_data=3",
    ),
    "cast": (
        "output_dtype='fp32' source_val=4,6,1,1",
        "output_dtype='fp32' source_val=6,4,1,1",
        "output_dtype='fp32' source_val=4,2",
    ),
}


def told(op: Operation) -> str:
    return " ".join(f"{key}={_told(key, var)}" for key, var in sorted(op.inputs.items()) if var is not None)


def _told(key: str, var: Var) -> str:
    value: Any = constant(var)
    if key in ("axis", "vector_axis", "output_dtype"):
        return repr(value if isinstance(value, str) else int(value))
    sizes = ",".join(map(str, np.asarray(value).tolist() if key == "shape" else np.shape(value)))
    return f"({sizes})" if key == "shape" else sizes


@pytest.mark.parametrize("form", PARTS)
@pytest.mark.parametrize(("at", "reading"), [*enumerate((KERNEL, TURNED, Cut(1, 2, 4, 6)))])
def test_parts_have_the_shapes_of_the_reading(form: str, at: int, reading: Reform | Cut) -> None:
    weight, op = weight_and_builder(form)
    made = reformed(op, weight, reading, "made")
    assert made.op is not None
    assert weight.op is not None
    assert (told(made.op), made.op.op_type, made.dtype) == (PARTS[form][at], weight.op.op_type, weight.dtype)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reading", [KERNEL, TURNED, Cut(1, 2, 4, 6)])
def test_parts_are_named_for_what_they_are(form: str, reading: Reform | Cut) -> None:
    """``made`` is of ``made_data`` and ``made_scale``; what is as it was keeps its name."""
    weight, op = weight_and_builder(form)
    todo, found = [(weight, reformed(op, weight, reading, "made"), "made")], 0
    while todo:
        was, var, name = todo.pop()
        if var is was:
            continue
        assert var.op is not None
        assert was.op is not None
        assert var.dtype == was.dtype
        if len(var.op.outputs) > 1:
            name = var.op.name  # of the first of its results that was asked for
        assert var.op.name == name
        found += 1
        if not is_constant(var):
            parts = {key: part for key, part in var.op.inputs.items() if isinstance(part, Var)}
            given = {key: part for key, part in was.op.inputs.items() if isinstance(part, Var)}
            assert parts.keys() == given.keys()
            # numbers that are given as such get their names from PyMIL
            own = {key for key in parts if key not in ("axis", "vector_axis", "shape", "output_dtype")}
            packed = "shape" in parts and reading.moves
            todo += [(given[key], parts[key], f"{name}_{key}") for key in own if not packed]
    assert found >= (1 if form in OLD else 2)


def test_a_constant_is_read_by_its_elements() -> None:
    array: Any = np.arange(24, dtype=np.float16).reshape(4, 6)
    weight, op = weight_among(lambda: mb.const(val=array, name="held"))
    for reading, wanted in ((KERNEL, array[:, :, None, None]), (TURNED, array.T[:, :, None, None])):
        made = reformed(op, weight, reading, "made")
        assert made.name.startswith("made")
        np.testing.assert_array_equal(constant(made), wanted)
    assert bytes_of(weight) == 48


@pytest.mark.parametrize("form", ["lut16", "sparse16"])
def test_packed_bits_are_packed_again(form: str) -> None:
    """iOS16 has indices of 4 bits and masks of one in bytes: turned, they are those of the turned matrix."""
    weight, op = weight_and_builder(form)
    made = reformed(op, weight, TURNED, "made")
    assert weight.op is not None
    assert made.op is not None
    given, parts = ({key: constant(var) for key, var in each.inputs.items()} for each in (weight.op, made.op))
    bits = np.unpackbits(given["indices" if form == "lut16" else "mask"], bitorder="little")
    own = np.unpackbits(parts["indices" if form == "lut16" else "mask"], bitorder="little")
    size = 4 if form == "lut16" else 1
    np.testing.assert_array_equal(own.reshape(6, 4, size), bits.reshape(4, 6, size).transpose(1, 0, 2))
    if form == "lut16":
        np.testing.assert_array_equal(parts["lut"], given["lut"])
        assert parts["shape"].dtype == given["shape"].dtype
        return
    full: Any = np.zeros((4, 6), np.float16)
    full[bits.reshape(4, 6) == 1] = given["nonzero_data"]
    np.testing.assert_array_equal(parts["nonzero_data"], full.T[own.reshape(6, 4) == 1])


def test_numbers_that_are_one_or_lie_along_another_axis_stay() -> None:
    def affine(size: int, axis: int) -> Any:
        return mb.constexpr_affine_dequantize(
            quantized_data=np.arange(24, dtype=np.int8).reshape(4, 6),
            scale=np.arange(1, size + 1).astype(np.float16) if size else np.float16(2),
            zero_point=np.int8(0),
            axis=np.int32(axis),
        )

    for size, axis, cut, kept in [
        (6, 1, Cut(1, 2, 4, 6), [3, 4]),
        (6, -1, Cut(1, 2, 4, 6), [3, 4]),
        (4, 0, Cut(1, 2, 4, 6), [1, 2, 3, 4]),
        (4, -2, Cut(0, 1, 2, 4), [2]),
        (0, 1, Cut(1, 2, 4, 6), 2),
    ]:
        weight, op = weight_among(lambda size=size, axis=axis: affine(size, axis), opset=target.iOS17)
        made = reformed(op, weight, cut, "made")
        assert made.op is not None
        assert constant(made.op.inputs["scale"]).tolist() == kept


@pytest.mark.parametrize("form", FORMS)
def test_keys_and_forms_of_readings(form: str) -> None:
    """The key is that of the bytes, and the form is the one that the reading would have."""
    weight, op = weight_and_builder(form)
    made = reformed(op, weight, KERNEL, "made")
    assert key_of(made) == key_of(weight)
    assert form_of(made) == form_of(weight, KERNEL) != form_of(weight)
    assert hash((key_of(made), form_of(made))) == hash((key_of(weight), form_of(weight, KERNEL)))
    again, _ = weight_and_builder(form)
    assert form_of(again) == form_of(weight)
    assert key_of(again) != key_of(weight)  # equal bytes of another place: nothing is read
    shape = 2 * 4 if form in ("lut16", "sparse16") else 0  # written beside the bits, two numbers more
    assert bytes_of(made) == bytes_of(weight) + shape


def test_what_tells_forms_apart() -> None:
    forms = {form: form_of(weight_and_builder(form)[0]) for form in FORMS}
    assert forms["lut16"] == forms["sparse16"] == (4, 6)
    assert forms["affine16"] == ((4, 6), (1, (4, 6)))
    assert forms["affine16-rows"] == ((4, 6), (0, (4, 6)))
    assert forms["lut"] == ((4, 6), ((4, 6), (2, 1, 16, 1)))
    assert forms["lut-vector"] == ((4, 6), ((4, 3), (2, 1, 16, 2), 1))
    assert forms["block"] == ((4, 6), ((4, 6), (4, 3)))
    assert forms["lut-of-int8"] == ((4, 6), ((4, 6), ((2, 1, 16, 1), ((2, 1, 16, 1), (2, 1, 1, 1)))))
    assert form_of(weight_and_builder("lut-vector")[0], TURNED) == (
        (6, 4, 1, 1),
        ((3, 4, 1, 1), (1, 2, 1, 1, 16, 2), 0),
    )


def test_what_tells_keys_apart() -> None:
    keys = [key_of(weight_and_builder(form)[0]) for form in FORMS]
    assert len(set(keys)) == len(FORMS)
    two, _ = weight_among(lambda: blocks(4, 6, (4, 3)))
    other, _ = weight_among(lambda: blocks(4, 6, (4, 1)))
    assert key_of(two) != key_of(other)
    single, _ = weight_among(lambda: mb.const(val=np.float16(np.ones((4, 6)))))
    double, _ = weight_among(lambda: mb.const(val=np.float16(np.ones((4, 6)) * 2)))
    assert key_of(single) != key_of(double)


@pytest.mark.parametrize(
    ("form", "rows", "columns"),
    [
        ("affine16", 1, 1),
        ("lut16", 1, 1),
        ("lut", 2, 1),
        ("lut-vector", 2, 2),
        ("block", 1, 2),
        ("sparse", 1, 1),
        ("lut-of-int8", 2, 1),
        ("scaled-lut", 1, 2),
        ("sparse-lut", 2, 1),
    ],
)
def test_grains(form: str, rows: int, columns: int) -> None:
    weight, _ = weight_and_builder(form)
    assert (grain_of(weight, 0), grain_of(weight, 1)) == (rows, columns)


def test_grains_of_several_parts_are_their_least_common_multiple() -> None:
    def build() -> Any:
        rng = np.random.default_rng(0)
        indices: Any = rng.integers(0, 4, (12, 6)).astype(np.uint8).astype(typed("uint2"))
        entries: Any = rng.integers(-8, 8, (6, 1, 4, 1)).astype(np.int8)
        data = mb.constexpr_lut_to_dense(indices=indices, lut=entries)
        return mb.constexpr_blockwise_shift_scale(data=data, scale=rng.random((4, 1)).astype(np.float16))

    weight, _ = weight_among(build)
    assert (grain_of(weight, 0), grain_of(weight, 1)) == (6, 1)  # groups of 2 rows and of 3
    whole, _ = weight_among(lambda: mb.const(val=np.ones((4, 6), np.float16)))
    assert (grain_of(whole, 0), grain_of(whole, 1)) == (1, 1)


BYTES = {
    "affine16": 24 + 6 * 2,  # a number that is given as one lies in the program
    "affine16-rows": 24 + 4 * 2,
    "lut16": 12 + 16 * 2 + 2 * 4,
    "sparse16": 3 + 12 * 2 + 2 * 4,
    "lut": 12 + 2 * 16 * 2,
    "lut-vector": 6 + 2 * 16 * 2 * 2,
    "block": 24 + 12 * 2,
    "block-offset": 24 + 12 * 2 + 12,
    "sparse": 3 + 12 * 2,
    "cast": 48,
    "lut-of-int8": 12 + 2 * 16 + 2 * 2,
    "scaled-lut": 12 + 16 + 12 * 2,
}


@pytest.mark.parametrize("form", BYTES)
def test_bytes(form: str) -> None:
    assert bytes_of(weight_and_builder(form)[0]) == BYTES[form]


def test_bytes_of_odd_bits_are_whole() -> None:
    """Five elements of 4 bits are three bytes."""
    weight, _ = weight_among(lambda: blocks(4, 6, (4, 3)))
    assert weight.op is not None

    @mb.program(input_specs=[mb.TensorSpec((1, 5), types.fp16)], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        data: Any = np.ones((1, 5), np.int8).astype(typed("int4"))
        return mb.linear(x=x, weight=mb.constexpr_blockwise_shift_scale(data=data, scale=np.ones((1, 1), np.float16)))

    assert bytes_of(first_builder(program).anchor.inputs["weight"]) == 3 + 2


@pytest.mark.parametrize("form", ["lut", "sparse", "block"])
def test_packed_elements_stay_in_the_file(form: str, tmp_path: Path) -> None:
    """Where their order stays nothing is unpacked: the kernel's elements are the same bytes of the file."""
    load(program_of(form, "linear")).save(tmp_path / "model.mlpackage")
    program = load(tmp_path / "model.mlpackage").program
    op = first_builder(program)
    weight: Var = op.anchor.inputs["weight"]
    assert weight.op is not None
    key = {"lut": "indices", "sparse": "mask", "block": "data"}[form]
    held: Var = weight.op.inputs[key]
    box = packed_of(held)
    assert form_of(weight) == form_of(weight_and_builder(form)[0])
    assert bytes_of(weight) == BYTES[form]
    made = reformed(op, weight, KERNEL, "made")
    assert made.op is not None
    part: Var = made.op.inputs[key]
    assert (shape_of(part), part.dtype, part.name) == ((4, 6, 1, 1), held.dtype, f"made_{key}")
    assert key_of(made) == key_of(weight)
    turned = reformed(op, weight, TURNED, "turned")
    assert turned.op is not None
    other: Var = turned.op.inputs[key]
    assert (packed_of(other), other.dtype) == (None, held.dtype)
    np.testing.assert_array_equal(constant(other), np.transpose(np.asarray(constant(held)))[:, :, None, None])
    if form != "block":  # bytes are not packed
        own = packed_of(part)
        assert box is not None
        assert own is not None
        assert own.piece == box.piece
        assert key_of(held) == box.piece.key  # type: ignore[union-attr]


def test_elements_let_through_by_a_mask_that_is_computed_are_not_cut() -> None:
    def build() -> Any:
        rng = np.random.default_rng(0)
        mask, count = mask_of(rng, (4, 6))
        bits, _ = mb.constexpr_sparse_blockwise_shift_scale(
            data_mask=mask.astype(typed("uint1")),
            nonzero_data=rng.integers(-8, 8, count).astype(np.int8),
            scale=np.ones((1, 1), np.float16),
        )
        return mb.constexpr_sparse_to_dense(nonzero_data=rng.standard_normal(count).astype(np.float16), mask=bits)

    weight, op = weight_among(build)
    with pytest.raises(NoMatch, match=r"^its weight would have to be cut, and its mask is computed$") as refused:
        reformed(op, weight, Cut(0, 0, 2, 4), "part")
    assert refused.value.at is weight.op
    assert shape_of(reformed(op, weight, KERNEL, "kernel")) == (4, 6, 1, 1)


def test_two_results_of_one_part_are_made_once() -> None:
    weight, op = weight_and_builder("sparse-lut")
    before = len(op.built)
    made = reformed(op, weight, KERNEL, "made")
    assert made.op is not None
    bits, values = made.op.inputs["mask"], made.op.inputs["nonzero_data"]
    assert bits.op is values.op
    assert (bits.op_output_idx, values.op_output_idx) == (0, 1)
    assert [each.op_type for each in op.built[before:] if each.op_type != "const"] == [
        "constexpr_lut_to_sparse",
        "constexpr_sparse_to_dense",
    ]


def test_every_form_is_among_those_looked_at() -> None:
    assert {*PARTS} == {*OLD, *NEW}


def test_parts_that_joint_forms_may_have() -> None:
    """Offsets beside scales, and tables of vectors, in weights that are sparse too."""
    rng = np.random.default_rng(0)
    mask, count = mask_of(rng, (4, 6))

    def offset() -> Any:
        bits, values = mb.constexpr_sparse_blockwise_shift_scale(
            data_mask=mask.astype(typed("uint1")),
            nonzero_data=np.ones(count, np.int8),
            scale=np.ones((4, 1), np.float16),
            offset=np.ones((4, 1), np.int8),
        )
        return mb.constexpr_sparse_to_dense(nonzero_data=values, mask=bits)

    def vectors() -> Any:
        bits, values = mb.constexpr_lut_to_sparse(
            indices_mask=mask.astype(typed("uint1")),
            indices_nonzero_data=np.zeros(count, np.uint8).astype(typed("uint1")),
            lut=np.ones((1, 1, 2, 2), np.float16),
            vector_axis=np.int32(-2),
        )
        return mb.constexpr_sparse_to_dense(nonzero_data=values, mask=bits)

    for make, wanted in (
        (offset, f"data_mask=6,4,1,1 nonzero_data={count} offset=1,4,1,1 scale=1,4,1,1"),
        (vectors, f"indices_mask=6,4,1,1 indices_nonzero_data={count} lut=1,1,1,1,2,2 vector_axis=1"),
    ):
        weight, op = weight_among(make)
        made = reformed(op, weight, TURNED, "made")
        assert made.op is not None
        part: Var = made.op.inputs["mask"]
        assert part.op is not None
        assert told(part.op) == wanted


def test_unknown_forms_and_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(kernels._PARTS, "constexpr_blockwise_shift_scale")  # pyright: ignore[reportPrivateUsage]
    weight, op = weight_and_builder("block")
    with pytest.raises(
        NoMatch, match=r"^its weight is constexpr_blockwise_shift_scale, which is not known$"
    ) as refused:
        reformed(op, weight, KERNEL, "made")
    assert refused.value.at is weight.op


def test_the_axis_of_the_scales_is_no_part_of_the_key() -> None:
    """It says how the bytes are read, as the shape does; the form tells them apart."""
    data: Any = np.ones((6, 6), np.int8)
    scale: Any = np.arange(1, 7).astype(np.float16)

    def affine(axis: int) -> Any:
        return mb.constexpr_affine_dequantize(
            quantized_data=data, scale=scale, zero_point=np.int8(0), axis=np.int32(axis)
        )

    @mb.program(input_specs=[mb.TensorSpec((1, 5, 6), types.fp16)], opset_version=target.iOS17)
    def program(x: Any) -> Any:
        return mb.linear(x=mb.linear(x=x, weight=affine(0)), weight=affine(1), name="out")

    one, other = (op.inputs["weight"] for op in program.functions["main"].operations if op.op_type == "linear")
    assert (key_of(one) == key_of(other), form_of(one) == form_of(other)) == (True, False)
