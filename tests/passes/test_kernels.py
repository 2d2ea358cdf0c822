"""Weights in every form of MIL, read as kernels: the same numbers, the same form, and what can't be transposed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milopt.building import Builder
from milopt.mil import Program, Var, constant, mb, operations, remove_if_dead, shape_of, target, types, value_names
from milopt.package import load
from milopt.passes import kernels
from milopt.passes.convolution import LinearToConv
from milopt.passes.head import SplitHead
from milopt.passes.kernels import Cut, Reform, bytes_of, key_of, reformed
from milopt.reports import NoMatch, Report

from .support import assert_same, op_types, twice

OLD = ("affine16", "affine16-rows", "lut16", "sparse16")
NEW = ("lut", "lut-vector", "block", "block-offset", "sparse", "cast")
JOINT = ("lut-of-int8", "scaled-lut", "sparse-lut", "sparse-block")
RNG = np.random.default_rng(0)
FORMS = (*OLD, *NEW, *JOINT)


def typed(name: str) -> Any:
    return types.nptype_from_builtin(types.string_to_builtin(name))


def mask_of(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Any, int]:
    mask: Any = (rng.random(shape) < 0.5).astype(np.uint8)
    mask.flat[:2] = [0, 1]
    return mask, int(mask.sum())


def weight_in(form: str, shape: tuple[int, int] = (4, 6)) -> Var:
    """A weight of ``shape`` in a compressed form; the same at every call. Blocks lie along one axis only."""
    rng = np.random.default_rng(1)
    rows, columns = shape
    indices = rng.integers(0, 16, shape).astype(np.uint8)
    lut = rng.standard_normal((rows // 2, 1, 16, 1)).astype(np.float16)
    integers = rng.integers(-8, 8, shape).astype(np.int8)
    scale = rng.random((rows, columns // 2)).astype(np.float16)
    mask, count = mask_of(rng, shape)
    if form.startswith("affine16"):
        by_row = form.endswith("rows")
        axis = 0 if by_row else 1
        given = {"scale": rng.random(shape[axis]).astype(np.float16), "zero_point": np.int8(1), "axis": axis}
        made: Any = mb.constexpr_affine_dequantize(quantized_data=integers, **given)
    elif form == "lut16":
        packed = rng.integers(0, 256, rows * columns // 2).astype(np.uint8)
        made = mb.constexpr_lut_to_dense(indices=packed, lut=lut[0, 0, :, 0], shape=np.array(shape, np.uint32))
    elif form == "sparse16":
        bits = np.packbits(mask.ravel(), bitorder="little")
        data = rng.standard_normal(count).astype(np.float16)
        made = mb.constexpr_sparse_to_dense(nonzero_data=data, mask=bits, shape=np.array(shape, np.uint32))
    elif form == "lut":
        made = mb.constexpr_lut_to_dense(indices=indices.astype(typed("uint4")), lut=lut)
    elif form == "lut-vector":
        pairs = rng.standard_normal((rows // 2, 1, 16, 2)).astype(np.float16)
        half = np.ascontiguousarray(indices[:, ::2]).astype(typed("uint4"))
        made = mb.constexpr_lut_to_dense(indices=half, lut=pairs, vector_axis=np.int32(-1))
    elif form.startswith("block"):
        given = {"offset": rng.integers(-3, 4, scale.shape).astype(np.int8)} if form.endswith("offset") else {}
        made = mb.constexpr_blockwise_shift_scale(data=integers, scale=scale, **given)
    elif form == "sparse":
        data = rng.standard_normal(count).astype(np.float16)
        made = mb.constexpr_sparse_to_dense(nonzero_data=data, mask=mask.astype(typed("uint1")))
    elif form == "cast":
        made = mb.constexpr_cast(source_val=rng.standard_normal(shape).astype(np.float16), output_dtype="fp32")
    elif form == "lut-of-int8":
        entries = rng.integers(-8, 8, (rows // 2, 1, 16, 1)).astype(np.int8)
        table = mb.constexpr_blockwise_shift_scale(
            data=entries, scale=rng.random((rows // 2, 1, 1, 1)).astype(np.float16)
        )
        made = mb.constexpr_lut_to_dense(indices=indices.astype(typed("uint4")), lut=table)
    elif form == "scaled-lut":
        entries = rng.integers(-8, 8, (1, 1, 16, 1)).astype(np.int8)
        data = mb.constexpr_lut_to_dense(indices=indices.astype(typed("uint4")), lut=entries)
        made = mb.constexpr_blockwise_shift_scale(data=data, scale=scale)
    elif form == "sparse-lut":
        data = rng.integers(0, 16, count).astype(np.uint8).astype(typed("uint4"))
        bits, values = mb.constexpr_lut_to_sparse(
            indices_mask=mask.astype(typed("uint1")), indices_nonzero_data=data, lut=lut
        )
        made = mb.constexpr_sparse_to_dense(nonzero_data=values, mask=bits)
    else:
        data = rng.integers(-8, 8, count).astype(np.int8)
        bits, values = mb.constexpr_sparse_blockwise_shift_scale(
            data_mask=mask.astype(typed("uint1")), nonzero_data=data, scale=scale
        )
        made = mb.constexpr_sparse_to_dense(nonzero_data=values, mask=bits)
    weight: Var = made
    return weight


def program_of(form: str, op: str) -> Program:
    """A layer of 6 inputs and 4 outputs."""
    opset = target.iOS16 if form in OLD else target.iOS18
    dtype = types.fp32 if form == "cast" else types.fp16

    @mb.program(input_specs=[mb.TensorSpec((1, 5, 6), dtype)], opset_version=opset)
    def program(x: Any) -> Any:
        if op == "linear":
            return mb.linear(x=x, weight=weight_in(form), name="out")
        return mb.matmul(x=x, y=weight_in(form, (6, 4)), name="out")

    return program


def converted(program: Program) -> Report:
    report = LinearToConv().run(load(program))
    program.validate()
    return report


def forms_in(program: Program) -> list[str]:
    return [kind for kind in op_types(program) if kind.startswith("constexpr")]


@pytest.mark.parametrize("form", FORMS)
def test_kernels_keep_the_form(form: str) -> None:
    before, after = twice(lambda: program_of(form, "linear"))
    report = converted(after)
    assert report.applied == 1, str(report)
    assert (forms_in(after), "linear" in op_types(after)) == (forms_in(before), False)
    assert report.notes == []
    assert_same(before, after)


@pytest.mark.parametrize("form", FORMS)
def test_kernels_are_transposed_in_their_form(form: str) -> None:
    before, after = twice(lambda: program_of(form, "matmul"))
    report = converted(after)
    assert report.applied == 1, str(report)
    assert (forms_in(after), "matmul" in op_types(after)) == (forms_in(before), False)
    assert report.notes == ["weights with their output channels last are transposed: those bytes are written anew"]
    assert_same(before, after)


def test_a_mask_that_is_computed_is_not_transposed() -> None:
    """Elements written out that lie where a computed mask says: MIL allows it, nobody does it."""

    @mb.program(input_specs=[mb.TensorSpec((1, 5, 6), types.fp16)], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        rng = np.random.default_rng(0)
        mask, count = mask_of(rng, (6, 4))
        bits, _ = mb.constexpr_sparse_blockwise_shift_scale(
            data_mask=mask.astype(typed("uint1")),
            nonzero_data=rng.integers(-8, 8, count).astype(np.int8),
            scale=np.ones((1, 1), np.float16),
        )
        weight = mb.constexpr_sparse_to_dense(nonzero_data=rng.standard_normal(count).astype(np.float16), mask=bits)
        return mb.matmul(x=x, y=weight, name="out")

    report = converted(program)
    assert [miss.reason for miss in report.misses] == [
        "its weight would have to be transposed, and its mask is computed"
    ]


def test_forms_that_are_not_known_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(kernels._PARTS, "constexpr_lut_to_dense")  # pyright: ignore[reportPrivateUsage]
    program = program_of("lut", "linear")
    report = converted(program)
    assert [miss.reason for miss in report.misses] == ["its weight is constexpr_lut_to_dense, which is not known"]


@pytest.mark.parametrize("form", ["lut", "block", "sparse-lut", "lut-vector"])
@pytest.mark.parametrize("op", ["linear", "matmul"])
def test_packed_weights_of_a_package(form: str, op: str, tmp_path: Path) -> None:
    """Elements of less than a byte come packed from a file; where they keep their order they are not looked at."""
    load(program_of(form, op)).save(tmp_path / "before.mlpackage")
    model = load(tmp_path / "before.mlpackage")
    assert LinearToConv().run(model).applied == 1
    model.save(tmp_path / "after.mlpackage")
    before, after = (load(tmp_path / f"{name}.mlpackage") for name in ("before", "after"))
    assert_same(before.program, after.program)
    files = [tmp_path / f"{name}.mlpackage/Data/com.apple.CoreML/weights/weight.bin" for name in ("before", "after")]
    blocks = [-(-file.stat().st_size // 64) for file in files]  # tensors begin at multiples of 64
    assert blocks[0] == blocks[1]


def first_builder(program: Program) -> Builder:
    function = program.functions["main"]
    layer = next(op for op in function.operations if op.op_type in ("linear", "matmul"))
    return Builder(layer, value_names(function))


def test_the_reading_back_is_the_weight() -> None:
    program = program_of("lut", "linear")
    op = first_builder(program)
    weight: Var = op.anchor.inputs["weight"]
    there = reformed(op, weight, Reform(2, (0, 1), 2), "there")
    back = reformed(op, there, Reform(4, (0, 1)), "back")
    assert (shape_of(there), shape_of(back)) == ((4, 6, 1, 1), (4, 6))
    assert key_of(weight) == key_of(there) == key_of(back)
    assert bytes_of(weight) == bytes_of(there) == 4 * 6 // 2 + 2 * 16 * 2


def test_keys_tell_bytes_apart() -> None:
    @mb.program(input_specs=[mb.TensorSpec((1, 6))], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        table: Any = RNG.standard_normal((4, 6)).astype(np.float32)
        one = mb.linear(x=x, weight=table)
        two = mb.linear(x=x, weight=table)
        return one, two, mb.linear(x=x, weight=table + 1)

    first, second, other = (
        op.inputs["weight"] for op in operations(program.functions["main"]) if op.op_type == "linear"
    )
    assert key_of(first) == key_of(second) != key_of(other)
    assert bytes_of(first) == 96


def test_numbers_among_the_parts() -> None:
    """Scalars are part of the key by what they are, not by where they lie."""
    made = [program_of("affine16", "linear") for _ in range(2)]
    builders = [first_builder(each) for each in made]
    weights = [each.anchor.inputs["weight"] for each in builders]
    points = [weight.op.inputs["zero_point"] for weight in weights if weight.op is not None]
    assert key_of(points[0]) == key_of(points[1])
    assert bytes_of(points[0]) == 0
    assert constant(points[0]) == 1


def test_refusals_leave_nothing_behind() -> None:
    program = program_of("block", "linear")
    op = first_builder(program)
    with pytest.raises(NoMatch, match="its groups of 2 channels don't end where a slice does"):
        reformed(op, op.anchor.inputs["weight"], Cut(1, 0, 3, 6), "part")
    op.undo()
    assert op_types(program) == op_types(program_of("block", "linear"))


@pytest.mark.parametrize("form", FORMS)
def test_parts(form: str) -> None:
    """Two rows of four, in the form of the whole: the two linears give the whole's columns."""

    def parts() -> Program:
        program = program_of(form, "linear")
        op = first_builder(program)
        layer = op.anchor
        made = [
            op.linear(x=layer.inputs["x"], weight=reformed(op, layer.inputs["weight"], Cut(0, at, at + 2, 4), "part"))
            for at in (0, 2)
        ]
        whole = op.concat(values=made, axis=-1, name="whole")
        program.functions["main"].set_outputs([whole])
        remove_if_dead([layer])
        whole.name = "out"
        return program

    assert_same(program_of(form, "linear"), parts())
    assert forms_in(parts()) == forms_in(program_of(form, "linear")) * 2


def halves(*, table: bool = False) -> Program:
    """Two square weights whose scales, of rows and of columns, are the same bytes; the first may be a table."""
    rng = np.random.default_rng(5)
    integers: Any = rng.integers(-8, 8, (6, 6)).astype(np.int8)
    scale: Any = rng.random(6).astype(np.float16)
    given = mb.TensorSpec((1, 5), types.int32) if table else mb.TensorSpec((1, 5, 6), types.fp16)

    @mb.program(input_specs=[given], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        rows, columns = (
            mb.constexpr_blockwise_shift_scale(data=integers, scale=scale.reshape(shape)) for shape in ((6, 1), (1, 6))
        )
        first = mb.gather(x=rows, indices=x, axis=0) if table else mb.linear(x=x, weight=rows)
        return mb.linear(x=first, weight=columns, name="out")

    return program


@pytest.mark.parametrize("table", [False, True])
def test_equal_bytes_grouped_otherwise_are_not_shared(table: bool) -> None:
    before, after = twice(lambda: halves(table=table))
    report = LinearToConv(tied="gather").run(load(after))
    assert report.applied == (1 if table else 2)
    assert not any("embedding" in note for note in report.notes)
    assert_same(before, after)


def test_scales_along_an_axis_counted_from_the_end_are_cut() -> None:
    def build(axis: int) -> Program:
        rng = np.random.default_rng(6)
        integers, scale = rng.integers(0, 9, (6, 4)).astype(np.uint8), rng.random(6).astype(np.float16)

        @mb.program(input_specs=[mb.TensorSpec((1, 5, 4), types.fp16)], opset_version=target.iOS16)
        def program(x: Any) -> Any:
            weight = mb.constexpr_affine_dequantize(
                quantized_data=integers, scale=scale, zero_point=np.uint8(2), axis=np.int32(axis)
            )
            return mb.linear(x=x, weight=weight, name="logits")

        return program

    after = build(-2)
    assert SplitHead(slices=2).run(load(after)).applied == 1
    assert_same(build(0), after)
