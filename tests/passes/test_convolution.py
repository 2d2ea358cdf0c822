"""linear-to-conv: the same numbers, transposes that cancel, weights whose bytes stay, and what it stays away from."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milopt.interpreter import evaluate
from milopt.mil import Program, get_new_symbol, mb, operations, target, types, weight_key
from milopt.package import load
from milopt.passes.convolution import LinearAsConv, LinearToConv
from milopt.reports import Report
from milopt.rules import apply
from milopt.text import text

from .support import assert_same, op_types, twice

SHAPES = {1: (6,), 2: (5, 6), 3: (2, 5, 6)}
RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((4, 6)).astype(np.float32)  # not square: a transposed kernel can't go unseen
BIAS = RNG.standard_normal(4).astype(np.float32)


def linear(shape: tuple[Any, ...], *, bias: bool = True, dtype: type = types.fp32) -> Program:
    number = {types.fp32: np.float32, types.fp16: np.float16, types.int32: np.int32}[dtype]

    @mb.program(input_specs=[mb.TensorSpec(shape, dtype)], opset_version=target.iOS17)
    def program(x: Any) -> Any:
        given = {"bias": BIAS.astype(number)} if bias else {}
        return mb.linear(x=x, weight=WEIGHT.astype(number), **given, name="out")

    return program


def converted(program: Program) -> Report:
    report = LinearToConv().run(load(program))
    program.validate()
    return report


@pytest.mark.parametrize("rank", SHAPES)
@pytest.mark.parametrize("bias", [False, True])
def test_every_rank(rank: int, bias: bool) -> None:
    before, after = twice(lambda: linear(SHAPES[rank], bias=bias))
    assert converted(after).applied == 1
    assert_same(before, after)
    kinds = op_types(after)
    assert "linear" not in kinds
    assert kinds.count("conv") == 1


def test_zero_bias_is_left_out() -> None:
    program = linear(SHAPES[3], bias=False)
    converted(program)
    (conv,) = [op for op in program.functions["main"].operations if op.op_type == "conv"]
    assert "bias" not in conv.inputs


def test_integers_are_refused() -> None:
    program = linear(SHAPES[3], dtype=types.int32)
    before = text(program)
    report = converted(program)
    assert [miss.reason for miss in report.misses] == ["conv takes no int32"]
    assert text(program) == before


def test_ranks_that_linear_does_not_have_are_refused() -> None:
    program = linear((1, 2, 5, 6))
    report = converted(program)
    assert [miss.reason for miss in report.misses] == ["its operand has rank 4"]


def test_symbolic_length() -> None:
    program = linear((1, get_new_symbol(), 6))
    assert converted(program).applied == 1
    x = RNG.standard_normal((1, 7, 6)).astype(np.float32)
    result = evaluate(program, {"x": x}, precision="float64")["out"]
    # float64 throughout; the weights are the same fp32 numbers
    np.testing.assert_allclose(
        result, np.matmul(x, np.transpose(WEIGHT), dtype=np.float64) + BIAS, rtol=1e-12, atol=1e-12
    )


def test_neighbours_cancel_and_siblings_share() -> None:
    """Two linears of one value share its transpose; one that feeds another needs none in between."""
    square = RNG.standard_normal((6, 6)).astype(np.float32)

    def build() -> Program:
        @mb.program(input_specs=[mb.TensorSpec((1, 5, 6))])
        def program(x: Any) -> Any:
            first = mb.linear(x=x, weight=square, name="first")
            chained = mb.linear(x=first, weight=square, name="chained")
            sibling = mb.linear(x=x, weight=WEIGHT, bias=BIAS, name="sibling")
            return chained, sibling

        return program

    before, after = twice(build)
    assert converted(after).applied == 3
    assert_same(before, after)
    kinds = op_types(after)
    assert (kinds.count("conv"), kinds.count("transpose"), kinds.count("expand_dims")) == (3, 3, 1)


def test_value_between_two_linears_that_is_an_output_stays() -> None:
    def build() -> Program:
        @mb.program(input_specs=[mb.TensorSpec((1, 5, 6))])
        def program(x: Any) -> Any:
            first = mb.linear(x=x, weight=WEIGHT, name="first")
            return first, mb.linear(x=first, weight=np.ascontiguousarray(np.transpose(WEIGHT)[:3]), name="second")

        return program

    before, after = twice(build)
    assert converted(after).applied == 2
    assert_same(before, after)
    assert [var.name for var in after.functions["main"].outputs] == ["first", "second"]


def test_tied_weight_stays_one_array() -> None:
    """The head of a tied model shares its bytes with the embedding, before and after."""
    table = RNG.standard_normal((10, 6)).astype(np.float16)

    @mb.program(input_specs=[mb.TensorSpec((1, 5), types.int32)], opset_version=target.iOS17)
    def program(ids: Any) -> Any:
        weight = mb.const(val=table, name="tied")
        return mb.linear(x=mb.gather(x=weight, indices=ids, axis=0), weight=weight, name="out")

    assert converted(program).applied == 1
    consts: list[Any] = [op.outputs[0].val for op in operations(program.functions["main"]) if op.op_type == "const"]
    tables = [value for value in consts if np.size(value) == table.size]
    assert {value.shape for value in tables} == {(10, 6), (10, 6, 1, 1)}
    assert len({weight_key(value) for value in tables}) == 1


def compressed(form: str) -> Program:
    """A linear whose weight is compressed in one of MIL's forms; the same at every call."""
    rng = np.random.default_rng(1)
    opset = target.iOS16 if form.endswith("16") else target.iOS18
    indices = rng.integers(0, 16, (4, 6)).astype(np.uint8)

    @mb.program(input_specs=[mb.TensorSpec((1, 5, 6), types.fp16)], opset_version=opset)
    def program(x: Any) -> Any:
        if form == "lut18":
            lut = rng.standard_normal((2, 1, 16, 1)).astype(np.float16)
            kind = types.nptype_from_builtin(types.string_to_builtin("uint4"))
            weight = mb.constexpr_lut_to_dense(indices=indices.astype(kind), lut=lut)
        elif form == "block18":
            weight = mb.constexpr_blockwise_shift_scale(
                data=rng.integers(-8, 8, (4, 6)).astype(np.int8), scale=rng.random((4, 2)).astype(np.float16)
            )
        elif form == "affine16":
            weight = mb.constexpr_affine_dequantize(
                quantized_data=rng.integers(-8, 8, (4, 6)).astype(np.int8),
                zero_point=np.int8(1),
                scale=rng.random(4).astype(np.float16),
                axis=0,
            )
        else:
            weight = mb.constexpr_lut_to_dense(
                indices=rng.integers(0, 256, 12).astype(np.uint8),
                lut=rng.standard_normal(16).astype(np.float16),
                shape=np.array([4, 6], np.uint32),
            )
        return mb.linear(x=x, weight=weight, name="out")

    return program


@pytest.mark.parametrize("form", ["lut18", "block18", "affine16", "lut16"])
def test_compressed_weights_stay_compressed(form: str) -> None:
    before, after = twice(lambda: compressed(form))
    kinds = [kind for kind in op_types(after) if kind.startswith("constexpr")]
    report = converted(after)
    assert report.applied == 1, str(report)
    assert [kind for kind in op_types(after) if kind.startswith("constexpr")] == kinds
    assert_same(before, after)


def test_weight_decompressed_from_computed_parts_is_refused() -> None:
    @mb.program(input_specs=[mb.TensorSpec((1, 5, 6), types.fp16)], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        lut = mb.constexpr_blockwise_shift_scale(
            data=RNG.integers(-8, 8, (1, 1, 16, 1)).astype(np.int8), scale=np.ones((1, 1, 1, 1), np.float16)
        )
        kind = types.nptype_from_builtin(types.string_to_builtin("uint4"))
        weight = mb.constexpr_lut_to_dense(indices=RNG.integers(0, 16, (4, 6)).astype(kind), lut=lut)
        return mb.linear(x=x, weight=weight, name="out")

    report = converted(program)
    assert not report
    assert [miss.reason for miss in report.misses] == ["its weight is constexpr_lut_to_dense of computed parts"]


def test_long_axes_are_pointed_out() -> None:
    @mb.program(input_specs=[mb.TensorSpec((1, 1, 2), types.fp16)], opset_version=target.iOS17)
    def program(x: Any) -> Any:
        return mb.linear(x=x, weight=np.ones((20_000, 2), np.float16), name="out")

    report = converted(program)
    assert report.notes == ["a conv has 20000 output channels; some Neural Engines end at 16384"]


def test_golden() -> None:
    program = linear((1, 5, 6))
    apply(LinearAsConv(), program)
    assert text(program) == GOLDEN


GOLDEN = """\
main[CoreML7](%x: fp32[1, 5, 6]) {
  %0: fp32[1, 6, 5] = transpose(x=%x, perm=[0, 2, 1])
  %1: fp32[1, 6, 1, 5] = expand_dims(x=%0, axes=[2])
  %2: fp32[1, 4, 1, 5] = conv(x=%1, weight=w0, bias=[0.90347016, 0.0940123, -0.7434993, -0.9217254])
  %3: fp32[1, 4, 5] = squeeze(x=%2, axes=[2])
  %4: fp32[1, 5, 4] = transpose(x=%3, perm=[0, 2, 1])
} -> (out=%4)
w0: fp32[4, 6, 1, 1]
"""


@settings(max_examples=30, deadline=None)
@given(
    lead=st.lists(st.integers(1, 4), min_size=0, max_size=2),
    widths=st.lists(st.integers(1, 5), min_size=2, max_size=5),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_chain_agrees(lead: list[int], widths: list[int], bias: bool, seed: int) -> None:
    def build() -> Program:
        rng = np.random.default_rng(seed)

        @mb.program(input_specs=[mb.TensorSpec((*lead, widths[0]))])
        def program(x: Any) -> Any:
            for size, width in pairwise(widths):
                given = {"bias": rng.standard_normal(width).astype(np.float32)} if bias else {}
                x = mb.linear(x=x, weight=rng.standard_normal((width, size)).astype(np.float32), **given)
            return mb.relu(x=x, name="out")

        return program

    before, after = twice(build)
    assert converted(after).applied == len(widths) - 1
    assert_same(before, after)
