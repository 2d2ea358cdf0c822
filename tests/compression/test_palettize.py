"""palettize: forms, axes, sharing, what it stays away from, and that decoding gives the numbers it reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milopt.clustering import packed, palettize
from milopt.errors import PassError
from milopt.interpreter import evaluate
from milopt.metrics import Lossy
from milopt.mil import Program, constant, mb, operations, target, types, weight_key
from milopt.package import load
from milopt.passes.compression import Palettize
from milopt.passes.palettes import nearest_divisor
from milopt.pipeline import Pipeline
from milopt.text import text
from milopt.verify import compare

from .support import (
    conv_program,
    decoded_by_coremltools,
    linear_program,
    loaded_by_coremltools,
    palettized,
    tables,
    two_functions,
    weights,
)

FORMS = [
    *((target.iOS18, bits, kind) for bits in (1, 2, 3, 4, 6, 8) for kind in ("tensor", "grouped-channel")),
    *((opset, bits, "tensor") for bits in (1, 2, 4, 6, 8) for opset in (target.iOS16, target.iOS17)),
]


def snr(original: Any, changed: Any) -> float:
    original, changed = original.astype(np.float64), changed.astype(np.float64)
    return float(10 * np.log10(np.sum(original**2) / np.sum((original - changed) ** 2)))


@pytest.mark.parametrize(("opset", "bits", "granularity"), FORMS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_every_form_decodes_to_the_table_values(
    opset: Any, bits: int, granularity: str, dtype: Any, tmp_path: Path
) -> None:
    weight = weights((48, 90), dtype=dtype)
    model, report = palettized(linear_program(weight, opset=opset), bits=bits, granularity=granularity, min_elements=1)
    assert report.applied == 1
    (op,) = tables(model.function())
    rows = weight.reshape(3 if granularity == "grouped-channel" else 1, -1)
    expected = palettize(rows, bits).decoded().reshape(weight.shape)
    np.testing.assert_array_equal(decoded_by_coremltools(op), expected)

    path = model.save(tmp_path / "m.mlpackage")
    (loaded,) = tables(loaded_by_coremltools(path))
    np.testing.assert_array_equal(decoded_by_coremltools(loaded), expected)
    assert loaded.outputs[0].dtype == (types.fp16 if dtype == np.float16 else types.fp32)


@pytest.mark.parametrize("opset", [target.iOS16, target.iOS18])
@pytest.mark.parametrize("bits", [4, 6, 8])
def test_indices_take_their_bits_on_disk(opset: Any, bits: int, tmp_path: Path) -> None:
    weight = weights((64, 512))
    model, _ = palettized(linear_program(weight, opset=opset), bits=bits, granularity="tensor")
    path = model.save(tmp_path / "m.mlpackage")
    (file,) = path.rglob("weight.bin")
    # besides: the file's header, an entry of 64 bytes per array, each padded to 64, and the bias of the linear
    assert weight.size * bits / 8 < file.stat().st_size < weight.size * bits / 8 + 2 * (1 << bits) + 64 * 16


def test_the_report_tells_the_error_that_was_made() -> None:
    weight = weights((64, 100))
    model, report = palettized(linear_program(weight), bits=4)
    (op,) = tables(model.function())
    made = snr(weight, decoded_by_coremltools(op))
    assert f"SNR of the weights {made:.1f} dB, the lowest {made:.1f} dB (w)" in report.notes
    assert "6,400 numbers in 1 weights: 12,800 -> 3,328 bytes" in report.notes  # 6400/2 + 4 tables of 16 fp16 values


def test_the_metric_follows_from_the_error() -> None:
    bounds = [palettized(linear_program(weights((64, 100))), bits=bits)[1].metric for bits in (1, 4, 6)]
    assert bounds[0] == Lossy(min_snr_db=0.5)
    assert isinstance(bounds[2], Lossy)
    assert 8 < bounds[2].min_snr_db < 18  # 6 bits keep 28-38 dB of normal weights
    few = np.random.default_rng(0).choice(np.array([-1, 0, 1], np.float16), (64, 100))
    lossless = palettized(linear_program(few), bits=4)[1].metric
    assert lossless == Lossy(min_snr_db=30.0)  # nothing is lost but by fp16 itself


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_a_palettized_program_passes_its_own_metric_and_a_wrong_one_does_not(bits: int) -> None:
    weight = weights((64, 128))
    model, report = palettized(linear_program(weight), bits=bits)
    assert report.metric is not None
    assert compare(linear_program(weight), model, metric=report.metric)
    shuffled, _ = palettized(linear_program(np.roll(weight, 1, axis=1)), bits=bits)
    assert not compare(linear_program(weight), shuffled, metric=report.metric)


def test_evaluation_is_that_of_the_decoded_weights() -> None:
    weight = weights((32, 128))
    model, _ = palettized(linear_program(weight), bits=4)
    (op,) = tables(model.function())
    decoded = linear_program(decoded_by_coremltools(op))
    x = np.random.default_rng(1).standard_normal((1, 3, 128)).astype(np.float16)
    for precision in ("float64", "declared"):
        first = evaluate(model, {"x": x}, precision=precision)["out"]
        np.testing.assert_array_equal(first, evaluate(decoded, {"x": x}, precision=precision)["out"])
    assert not np.array_equal(first, evaluate(linear_program(weight), {"x": x})["out"])


def test_golden_text() -> None:
    model, _ = palettized(linear_program(weights((32, 128))), bits=6)
    assert text(model) == GOLDEN


GOLDEN = """\
main[CoreML8](%x: fp16[1, 3, 128]) {
  %0: fp16[32, 128] = constexpr_lut_to_dense(indices=w0, lut=w1)
  %1: fp16[1, 3, 32] = linear(x=%x, weight=%0)
} -> (out=%1)
w0: uint6[32, 128]
w1: fp16[2, 1, 64, 1]
"""


def test_names_survive() -> None:
    model, _ = palettized(linear_program(weights((32, 128))))
    (op,) = tables(model.function())
    assert (op.name, op.outputs[0].name) == ("w", "w")
    assert [var.name for var in model.function().outputs] == ["out"]


# --- which axis


def matmul_program(weight: Any, *, as_x: bool, transposed: bool) -> Program:
    inner = weight.shape[-1] if transposed != as_x else weight.shape[-2]

    @mb.program(input_specs=[mb.TensorSpec((inner, 5) if as_x else (5, inner), types.fp16)], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        held = mb.const(val=weight, name="w")
        if as_x:
            return mb.matmul(x=held, y=x, transpose_x=transposed)
        return mb.matmul(x=x, y=held, transpose_y=transposed)

    return program


@pytest.mark.parametrize(
    ("as_x", "transposed", "axis"), [(False, False, 1), (False, True, 0), (True, False, 0), (True, True, 1)]
)
def test_matmul_groups_its_output_channels(as_x: bool, transposed: bool, axis: int) -> None:
    weight = np.ascontiguousarray(np.moveaxis(weights((64, 80)), 0, axis))  # scales differ along the channels
    model, _ = palettized(matmul_program(weight, as_x=as_x, transposed=transposed), bits=4, group_size=8)
    (op,) = tables(model.function())
    assert op.lut.shape[axis] == 8
    right, wrong = decoded_by_coremltools(op), _grouped(weight, 1 - axis)
    quiet = [slice(None), slice(None)]
    quiet[axis] = slice(0, 8)  # the channels with the smallest weights
    # dB: in groups of their own they keep as much as all others; tables across all scales hardly tell them from zero
    assert snr(weight[tuple(quiet)], right[tuple(quiet)]) > snr(weight[tuple(quiet)], wrong[tuple(quiet)]) + 6


def _grouped(weight: Any, axis: int) -> Any:
    rows = np.moveaxis(weight, axis, 0)
    decoded = palettize(np.reshape(rows, (rows.shape[0] // 8, -1)), 4).decoded()
    return np.moveaxis(decoded.reshape(rows.shape), 0, axis)


def test_conv_transpose_has_its_channels_on_axis_one() -> None:
    weight = np.ascontiguousarray(np.moveaxis(weights((32, 24, 1, 4)), 0, 1))

    @mb.program(input_specs=[mb.TensorSpec((1, 24, 1, 6), types.fp16)], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        return mb.conv_transpose(x=x, weight=mb.const(val=weight, name="w"))

    model, _ = palettized(program, bits=4, group_size=8)
    (op,) = tables(model.function())
    assert op.lut.shape == (1, 4, 1, 1, 16, 1)


def test_gather_has_a_table_per_rows() -> None:
    model, _ = palettized(embedding_program(), bits=4)
    (op,) = tables(model.function())
    assert op.lut.shape == (6, 1, 16, 1)
    assert tuple(op.outputs[0].shape) == (96, 64)


# --- one weight, many places


def test_linear_and_conv_give_the_same_bytes() -> None:
    weight = weights((48, 64))
    linear, _ = palettized(linear_program(weight), bits=4)
    conv, _ = palettized(conv_program(weight.reshape(48, 64, 1, 1)), bits=4)
    (first,), (second,) = tables(linear.function()), tables(conv.function())
    assert second.indices.shape == (48, 64, 1, 1)
    assert second.lut.shape == (3, 1, 1, 1, 16, 1)
    for name in ("indices", "lut"):
        np.testing.assert_array_equal(constant(getattr(first, name)).ravel(), constant(getattr(second, name)).ravel())


@pytest.mark.parametrize("passes", ["palettize{bits=4},linear-to-conv", "linear-to-conv,palettize{bits=4}"])
def test_before_or_after_linear_to_conv_gives_the_same_bytes(passes: str) -> None:
    weight = weights((48, 64))
    model = load(linear_program(weight))
    Pipeline.parse(passes).run(model)
    (op,) = tables(model.function())
    assert op.outputs[0].child_ops[0].op_type == "conv"
    rows = palettize(weight.reshape(3, -1), 4)
    np.testing.assert_array_equal(constant(op.indices).ravel(), rows.indices.ravel())
    np.testing.assert_array_equal(constant(op.lut).ravel(), rows.lut.ravel())


def test_functions_and_shapes_share_one_clustering_and_are_stored_once(tmp_path: Path) -> None:
    weight = weights((64, 96))
    model = two_functions(linear_program(weight), conv_program(weight.reshape(64, 96, 1, 1)))
    _, report = palettized(model, bits=4)
    assert report.applied == 2
    assert report.notes[0].startswith("6,144 numbers in 1 weights")
    first, second = (tables(function)[0] for function in model.functions.values())
    for name in ("indices", "lut"):
        assert weight_key(constant(getattr(first, name))) == weight_key(constant(getattr(second, name)))

    path = model.save(tmp_path / "m.mlpackage")
    (file,) = path.rglob("weight.bin")
    assert file.stat().st_size < 6144 / 2 + 4 * 16 * 2 + 64 * 16  # one copy and its entries, not two
    again = load(path)
    x = np.random.default_rng(0).standard_normal((1, 3, 96)).astype(np.float16)
    linear = evaluate(again, {"x": x}, function="decode", precision="float64")["out"]
    conv = evaluate(again, {"x": np.transpose(x, (0, 2, 1))[:, :, None]}, function="prefill", precision="float64")[
        "out"
    ]
    # 1e-12: the same 96 products, added in another order
    np.testing.assert_allclose(np.transpose(conv[:, :, 0], (0, 2, 1)), linear, rtol=1e-12, atol=1e-12)


def test_weights_read_again_from_a_package_share_too(tmp_path: Path) -> None:
    weight = weights((64, 96))
    path = two_functions(linear_program(weight), linear_program(weight, length=5)).save(tmp_path / "m.mlpackage")
    _, report = palettized(load(path), bits=4)
    assert report.applied == 2
    assert report.notes[0].startswith("6,144 numbers in 1 weights")


def embedding_program(*, tied: bool = False, across: bool = False, scaling: bool = False) -> Program:
    """ids -> rows of a table; ``tied``: the table is the head's weight too; ``across``: with its channels elsewhere."""
    table = weights((96, 64))

    @mb.program(
        input_specs=[mb.TensorSpec((1, 5), types.int32), mb.TensorSpec((1, 5, 64), types.fp16)],
        opset_version=target.iOS18,
    )
    def program(ids: Any, x: Any) -> Any:
        held = mb.const(val=table, name="table")
        rows = mb.gather(x=held, indices=ids, axis=0, validate_indices=False)
        if scaling:
            return mb.mul(x=x, y=mb.expand_dims(x=mb.reshape(x=rows, shape=(5, 64)), axes=[0]))
        y = mb.add(x=rows, y=x)
        if across:
            wide = mb.tile(x=mb.slice_by_size(x=y, begin=[0, 0, 0], size=[1, 5, 32]), reps=[1, 1, 3])
            return mb.matmul(x=wide, y=held)
        return mb.linear(x=y, weight=held) if tied else y

    return program


def test_a_tied_embedding_is_one_weight() -> None:
    model, report = palettized(embedding_program(tied=True))
    (op,) = tables(model.function())
    assert sorted(user.op_type for user in op.outputs[0].child_ops) == ["gather", "linear"]
    assert report.applied == 1


# --- what is left alone


def reasons(source: Any, **options: Any) -> list[str]:
    """The reasons for leaving everything alone; the program must then be as it was, to the letter."""
    model = load(source)
    before = text(model, weights="hash")
    report = Palettize(**options).run(model)
    assert not report
    assert text(model, weights="hash") == before
    return [str(miss) for miss in report.misses]


def test_small_weights() -> None:
    assert reasons(linear_program(weights((32, 63)))) == ["w: too small: 2016 of 2048 numbers"]
    assert reasons(linear_program(weights((2, 4))), min_elements=0, bits=8) == ["w: 16 bytes would become 520"]


def test_weights_that_are_not_finite() -> None:
    weight = weights((48, 64))
    weight[3, 5], weight[4, :2] = np.nan, np.inf
    assert reasons(linear_program(weight)) == ["w: holds 3 values that are not finite"]


def test_old_opsets() -> None:
    old = linear_program(weights((48, 64)), opset=target.iOS15)
    assert reasons(old) == ["w: needs iOS16, the function is iOS15"]
    between = linear_program(weights((48, 64)), opset=target.iOS17)
    assert reasons(between, bits=3) == ["w: needs iOS18, the function is iOS17"]


def test_before_ios18_groups_become_one_table() -> None:
    model, report = palettized(linear_program(weights((48, 64)), opset=target.iOS17))
    (op,) = tables(model.function())
    assert op.lut.shape == (64,)
    assert "one table for 48 channels instead of groups of 16 (1 weights)" in report.notes


def test_channels_on_different_axes() -> None:
    (reason,) = reasons(embedding_program(across=True))
    assert reason.startswith("table: its uses have their channels on different axes: gather.x of ")
    assert ", matmul.y of " in reason
    model, _ = palettized(embedding_program(across=True), granularity="tensor")
    assert len(tables(model.function())) == 1


def test_tables_of_factors() -> None:
    (reason,) = reasons(embedding_program(scaling=True))
    assert reason.endswith("looks up factors, not weights")


def test_embeddings_on_request() -> None:
    assert reasons(embedding_program(tied=True), embedding=False) == ["table: an embedding, and embedding=False"]


def test_operands_of_other_ops() -> None:
    weight = weights((48, 64))

    @mb.program(input_specs=[mb.TensorSpec((48, 64), types.fp16)], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        held = mb.const(val=weight, name="w")
        return mb.linear(x=mb.add(x=x, y=held, name="sum"), weight=held)

    assert reasons(program) == ["w: add.y of sum holds it too, which is no weight of a layer"]


def test_outputs() -> None:
    weight = weights((48, 64))

    @mb.program(input_specs=[mb.TensorSpec((1, 64), types.fp16)], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        held = mb.const(val=weight, name="w")
        return mb.linear(x=x, weight=held), held

    assert reasons(program) == ["w: it is an output"]


def test_compressed_already() -> None:
    model, _ = palettized(linear_program(weights((48, 64))))
    assert reasons(model) == ["w: compressed already, as constexpr_lut_to_dense"]


def test_transposed_views_of_the_same_bytes_are_different_weights() -> None:
    weight = weights((64, 64))

    @mb.program(input_specs=[mb.TensorSpec((1, 64), types.fp16)], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        first = mb.linear(x=x, weight=mb.const(val=weight, name="w"))
        return mb.linear(x=first, weight=mb.const(val=np.transpose(weight), name="wt"))

    model, _ = palettized(program, bits=8)
    first, second = tables(model.function())
    # 8 bits: 40 dB and more; the wrong order would be below 0 dB
    assert snr(weight, decoded_by_coremltools(first)) > 30
    assert snr(np.transpose(weight), decoded_by_coremltools(second)) > 30


# --- groups that don't divide, options


@pytest.mark.parametrize(
    ("channels", "wanted", "used"),
    [(64, 16, 16), (120, 16, 15), (50257, 16, 29), (151, 16, 151), (7, 16, 7), (1, 16, 1), (96, 1, 1), (12, 5, 6)],
)
def test_the_nearest_group_that_divides(channels: int, wanted: int, used: int) -> None:
    assert nearest_divisor(channels, wanted) == used


def test_another_group_is_used_and_told() -> None:
    model, report = palettized(linear_program(weights((120, 64))), bits=4)
    (op,) = tables(model.function())
    assert op.lut.shape == (8, 1, 16, 1)
    assert "groups of 15 for 120 channels instead of groups of 16 (1 weights)" in report.notes


def test_options() -> None:
    assert str(Palettize()) == "palettize"
    assert str(Palettize(bits=4, group_size=8)) == "palettize{bits=4,group_size=8}"
    (parsed,) = Pipeline.parse("palettize{bits=4,granularity=tensor,embedding=false}").passes
    assert parsed == Palettize(bits=4, granularity="tensor", embedding=False)
    with pytest.raises(PassError, match="palettize: bits is one of 1, 2, 3, 4, 6, 8, not '5'"):
        Pipeline.parse("palettize{bits=5}")
    with pytest.raises(PassError, match="palettize: group_size must be at least 1, not 0"):
        Pipeline.parse("palettize{group_size=0}")


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200), st.sampled_from([1, 2, 4, 6, 8]), st.integers(0, 2**32 - 1))
def test_packed_bits_are_read_back_by_coremltools(count: int, bits: int, seed: int) -> None:
    from coremltools.optimize._utils import restore_elements_from_packed_bits

    indices = np.random.default_rng(seed).integers(0, 1 << bits, count).astype(np.uint8)
    made = packed(indices, bits)
    assert len(made) == (count * bits + 7) // 8
    np.testing.assert_array_equal(restore_elements_from_packed_bits(made, bits, count), indices)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([1, 4, 6]),
    st.sampled_from(["tensor", "grouped-channel"]),
    st.integers(1, 20),
    st.sampled_from([target.iOS15, target.iOS16, target.iOS18]),
)
def test_every_weight_is_compressed_or_has_a_reason(
    outputs: int, inputs: int, bits: int, granularity: str, group: int, opset: Any
) -> None:
    program = linear_program(weights((outputs, inputs)), opset=opset)
    model, report = palettized(program, bits=bits, granularity=granularity, group_size=group, min_elements=1)
    held = [op.name for op in operations(model.function()) if op.name == "w"]
    assert held == ["w"]
    assert (report.applied, len(report.misses)) in ((1, 0), (0, 1))
    assert len(tables(model.function())) == report.applied
