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
from milopt.pipeline import Pipeline
from milopt.reports import Report
from milopt.rules import apply
from milopt.text import text

from .support import assert_same, op_types, twice

SHAPES = {1: (6,), 2: (5, 6), 3: (2, 5, 6), 4: (2, 3, 5, 6)}
RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((4, 6)).astype(np.float32)  # not square: a transposed kernel can't go unseen
BIAS = RNG.standard_normal(4).astype(np.float32)
TURNED: Any = np.ascontiguousarray(np.transpose(WEIGHT))


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


def test_sizes_that_are_not_known_of_rank_5() -> None:
    before, after = twice(lambda: linear((2, 1, 2, 5, 6)))
    assert converted(after).applied == 1
    assert_same(before, after)
    program = linear((2, 1, 2, get_new_symbol(), 6))
    report = converted(program)
    assert [miss.reason for miss in report.misses] == ["its operand has rank 5 and unknown sizes"]


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


def tied(*, compressed: bool = False) -> Program:
    """A model whose head is the table of its embedding."""
    rng = np.random.default_rng(2)

    @mb.program(input_specs=[mb.TensorSpec((1, 5), types.int32)], opset_version=target.iOS18)
    def program(ids: Any) -> Any:
        if compressed:
            weight = mb.constexpr_blockwise_shift_scale(
                data=rng.integers(-8, 8, (10, 6)).astype(np.int8), scale=rng.random((10, 2)).astype(np.float16)
            )
        else:
            weight = mb.const(val=rng.standard_normal((10, 6)).astype(np.float16), name="tied")
        rows = mb.gather(x=weight, indices=ids, axis=0, name="rows")
        return mb.linear(x=mb.relu(x=rows), weight=weight, name="out"), mb.linear(x=rows, weight=weight, name="again")

    return program


def weights_of(program: Program) -> list[Any]:
    consts = [op.outputs[0].val for op in operations(program.functions["main"]) if op.op_type == "const"]
    return [value for value in consts if np.size(value) == 60]


def test_tied_weight_stays_one_array() -> None:
    """The head of a tied model shares its bytes with the embedding, before and after."""
    before, after = twice(tied)
    report = converted(after)
    assert report.applied == 2
    assert report.notes == ["120 bytes are an embedding and a kernel: two constants of one place in the package"]
    assert_same(before, after)
    tables = weights_of(after)
    assert sorted(value.shape for value in tables) == [(10, 6), (10, 6, 1, 1)]
    assert len({weight_key(value) for value in tables}) == 1


@pytest.mark.parametrize("compressed", [False, True])
def test_rows_are_looked_up_in_the_kernel(compressed: bool) -> None:
    before, after = twice(lambda: tied(compressed=compressed))
    report = LinearToConv(tied="gather").run(load(after))
    after.validate()
    size = 60 + 40 if compressed else 120
    assert report.notes == [f"{size} bytes are an embedding and a kernel: rows are looked up in the kernel"]
    assert_same(before, after)
    gather, conv, other = [op for op in operations(after.functions["main"]) if op.op_type in ("gather", "conv")]
    assert gather.inputs["x"] is conv.inputs["weight"] is other.inputs["weight"]
    assert [value.shape for value in weights_of(after)] == [(10, 6, 1, 1)]


def test_rows_that_are_no_rows_stay() -> None:
    """A look-up along the other axis, and one in a table of which no kernel is made."""

    @mb.program(input_specs=[mb.TensorSpec((1, 5), types.int32)], opset_version=target.iOS18)
    def program(ids: Any) -> Any:
        weight = mb.const(val=np.ones((6, 6), np.float16), name="weight")
        other = mb.const(val=np.ones((8, 6), np.float16), name="other")
        columns = mb.gather(x=weight, indices=ids, axis=1)
        return mb.linear(x=mb.transpose(x=columns, perm=[1, 2, 0]), weight=weight), mb.gather(x=other, indices=ids)

    report = LinearToConv(tied="gather").run(load(program))
    assert (report.applied, report.notes) == (1, [])
    tables = [op.inputs["x"].shape for op in operations(program.functions["main"]) if op.op_type == "gather"]
    assert tables == [(6, 6), (8, 6)]


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


@pytest.mark.parametrize("left", [False, True])
def test_coremltools_does_not_turn_it_back(left: bool) -> None:
    """``common::compose_conv1d`` makes convolutions of rank 3 of those that it finds between two moves of rank 3."""

    def build() -> Program:
        @mb.program(input_specs=[mb.TensorSpec((2, 6, 6))], opset_version=target.iOS17)
        def program(x: Any) -> Any:
            return mb.matmul(x=WEIGHT, y=x, name="out") if left else mb.linear(x=x, weight=WEIGHT, name="out")

        return program

    before, after = twice(build)
    assert converted(after).applied == 1
    kinds, model = op_types(after), load(after)
    Pipeline.parse("ct:common::compose_conv1d").run(model)
    assert op_types(model.program) == kinds
    assert_same(before, model.program)


GOLDEN = """\
main[CoreML7](%x: fp32[1, 5, 6]) {
  %0: fp32[1, 5, 6, 1] = expand_dims(x=%x, axes=[3])
  %1: fp32[1, 6, 1, 5] = transpose(x=%0, perm=[0, 2, 3, 1])
  %2: fp32[1, 4, 1, 5] = conv(x=%1, weight=w0, bias=[0.90347016, 0.0940123, -0.7434993, -0.9217254])
  %3: fp32[1, 5, 4, 1] = transpose(x=%2, perm=[0, 3, 1, 2])
  %4: fp32[1, 5, 4] = squeeze(x=%3, axes=[3])
} -> (out=%4)
w0: fp32[4, 6, 1, 1]
"""


# (shape of x, shape of the weight, transpose_x, transpose_y, weight on the left)
PRODUCTS: dict[str, tuple[tuple[int, ...], tuple[int, ...], bool, bool, bool]] = {
    "rows": ((2, 5, 6), (6, 4), False, False, False),
    "rows, weight turned": ((2, 5, 6), (4, 6), False, True, False),
    "columns": ((2, 6, 5), (6, 4), True, False, False),
    "columns, weight turned": ((2, 6, 5), (4, 6), True, True, False),
    "left": ((2, 6, 5), (4, 6), False, False, True),
    "left, x turned": ((2, 5, 6), (4, 6), False, True, True),
    "left, weight turned": ((2, 6, 5), (6, 4), True, False, True),
    "left, both turned": ((2, 5, 6), (6, 4), True, True, True),
    "matrix": ((5, 6), (6, 4), False, False, False),
    "matrix, left": ((6, 5), (4, 6), False, False, True),
    "rank 4": ((2, 3, 5, 6), (6, 4), False, False, False),
    "rank 4, left": ((2, 3, 6, 5), (4, 6), False, False, True),
    "rank 5": ((2, 1, 3, 5, 6), (6, 4), False, False, False),
    "unit axes": ((2, 5, 6), (1, 6, 4), False, False, False),
    "unit axes, rank 4": ((2, 3, 5, 6), (1, 1, 4, 6), False, True, False),
    "unit axes, left": ((2, 3, 6, 5), (1, 1, 4, 6), False, False, True),
    "more unit axes": ((5, 6), (1, 1, 6, 4), False, False, False),
    "more unit axes, left": ((6, 5), (1, 4, 6), False, False, True),
    "a batch and more unit axes": ((2, 5, 6), (1, 1, 6, 4), False, False, False),
    "a batch and more unit axes, x turned": ((2, 6, 5), (1, 1, 6, 4), True, False, False),
    "a batch and more unit axes, left": ((2, 6, 5), (1, 1, 1, 4, 6), False, False, True),
    "vector": ((6,), (6, 4), False, False, False),
    "vector, unit axis": ((6,), (1, 6, 4), False, False, False),
}


def product(name: str, *, bias: tuple[int, ...] | None = None, dtype: type = types.fp32) -> Program:
    shape, wide, turned_x, turned_y, left = PRODUCTS[name]
    number = np.int32 if dtype is types.int32 else np.float32

    @mb.program(input_specs=[mb.TensorSpec(shape, dtype)], opset_version=target.iOS17)
    def program(x: Any) -> Any:
        rng = np.random.default_rng(3)
        weight: Any = rng.standard_normal(wide).astype(number)
        operands = {"x": weight, "y": x} if left else {"x": x, "y": weight}
        y = mb.matmul(**operands, transpose_x=turned_x, transpose_y=turned_y, name="out" if bias is None else "product")
        return y if bias is None else mb.add(x=y, y=rng.standard_normal(bias).astype(np.float32), name="out")

    return program


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_with_a_constant(name: str) -> None:
    before, after = twice(lambda: product(name))
    report = converted(after)
    assert report.applied == 1, str(report)
    kinds = op_types(after)
    assert ("matmul" in kinds, kinds.count("conv")) == (False, 1)
    assert_same(before, after)
    turned = "written anew" in str(report)
    *_, turned_x, turned_y, left = PRODUCTS[name]
    assert turned == (turned_x if left else not turned_y)


@pytest.mark.parametrize(
    ("name", "bias"),
    [("rows", (4,)), ("rows", (1, 4)), ("rows", (1, 1, 4)), ("rows", (1,)), ("left", (4, 1)), ("vector", (4,))],
)
def test_what_is_added_becomes_the_bias(name: str, bias: tuple[int, ...]) -> None:
    before, after = twice(lambda: product(name, bias=bias))
    assert converted(after).applied == 1
    assert_same(before, after)
    assert "add" not in op_types(after)


@pytest.mark.parametrize(
    ("name", "bias"), [("rows", (5, 4)), ("rows", (2, 1, 1)), ("left", (5,)), ("rows", (1, 1, 1, 4))]
)
def test_other_sums_stay(name: str, bias: tuple[int, ...]) -> None:
    before, after = twice(lambda: product(name, bias=bias))
    assert converted(after).applied == 1
    assert_same(before, after)
    kinds = op_types(after)
    assert (kinds.count("add"), kinds.count("conv"), "matmul" in kinds) == (1, 1, False)


def test_a_product_that_is_used_twice_keeps_its_sum() -> None:
    def build() -> Program:
        @mb.program(input_specs=[mb.TensorSpec((1, 5, 6))])
        def program(x: Any) -> Any:
            y = mb.matmul(x=x, y=TURNED)
            return mb.relu(x=y, name="positive"), mb.add(x=y, y=BIAS, name="sum"), mb.add(x=BIAS, y=y, name="other")

        return program

    before, after = twice(build)
    assert converted(after).applied == 1
    assert_same(before, after)
    assert op_types(after).count("add") == 2


def test_a_sum_in_a_nested_block_stays_there() -> None:
    def build() -> Program:
        @mb.program(input_specs=[mb.TensorSpec((1, 5, 6)), mb.TensorSpec((1, 5, 4))])
        def program(x: Any, z: Any) -> Any:
            y = mb.matmul(x=x, y=TURNED)
            positive = mb.greater(x=mb.reduce_sum(x=z, keep_dims=False), y=np.float32(0))
            return mb.cond(
                pred=positive,
                _true_fn=lambda: mb.add(x=y, y=BIAS),
                _false_fn=lambda: mb.relu(x=z),
                name="out",
            )

        return program

    before, after = twice(build)
    assert converted(after).applied == 1
    assert_same(before, after)
    kinds = [op.op_type for op in operations(after.functions["main"])]
    assert (kinds.count("add"), kinds.count("conv"), "matmul" in kinds) == (1, 1, False)


def test_a_product_that_is_an_output_keeps_its_sum() -> None:
    def build() -> Program:
        @mb.program(input_specs=[mb.TensorSpec((1, 5, 6))])
        def program(x: Any) -> Any:
            y = mb.matmul(x=x, y=TURNED, name="product")
            return y, mb.add(x=BIAS, y=y, name="sum")

        return program

    before, after = twice(build)
    assert converted(after).applied == 1
    assert_same(before, after)
    assert "add" in op_types(after)


def refused(build: Any, shape: tuple[int, ...] = (2, 5, 6), dtype: type = types.fp32) -> list[str]:
    program = mb.program(input_specs=[mb.TensorSpec(shape, dtype)], opset_version=target.iOS17)(build)
    before = text(program)
    report = converted(program)
    assert (report.applied, text(program)) == (0, before)
    return [miss.reason for miss in report.misses if miss.declined]


def by(weight: Any, *, left: bool = False) -> Any:
    """A product of x and a weight, as a program's body."""

    def body(x: Any) -> Any:
        return mb.matmul(x=weight, y=x) if left else mb.matmul(x=x, y=weight)

    return body


def itself(x: Any) -> Any:
    return mb.matmul(x=x, y=x, transpose_y=True)


def test_products_that_stay() -> None:
    assert refused(by(np.ones((2, 6, 4), np.float32))) == ["its weight has 2 matrices"]
    assert refused(by(np.ones(5, np.float32), left=True)) == ["its weight is a vector"]
    assert refused(by(np.ones((6, 4), np.int32)), dtype=types.int32) == ["conv takes no int32"]
    assert refused(by(np.ones((1, 4), np.float32)), shape=(2, 5, 1)) == ["an outer product"]
    assert refused(itself) == []


def test_products_of_two_weights_stay() -> None:
    """Neither is folded where one is compressed."""

    def build(x: Any) -> Any:
        data = np.ones((6, 6), np.int8)
        weight = mb.constexpr_affine_dequantize(
            quantized_data=data, scale=np.float32(1), zero_point=np.int8(0), axis=np.int32(0)
        )
        return mb.add(x=x, y=mb.matmul(x=weight, y=np.ones((6, 6), np.float32)))

    assert refused(build, shape=(6, 6)) == ["both of its operands are weights"]


EINSUMS: dict[str, tuple[tuple[int, ...], tuple[int, ...], bool]] = {
    "right": ((5, 3, 6), (6, 1, 4), False),
    "left": ((6, 3, 5), (4, 1, 6), True),
    "right, batch": ((2, 5, 3, 6), (1, 6, 1, 4), False),
    "left, batch": ((2, 6, 3, 5), (1, 4, 1, 6), True),
}


@pytest.mark.parametrize("name", EINSUMS)
def test_einsum(name: str) -> None:
    shape, wide, left = EINSUMS[name]
    equation = "nchw,nwhr->nchr" if len(shape) == 4 else "chw,whr->chr"

    def build() -> Program:
        @mb.program(input_specs=[mb.TensorSpec(shape)], opset_version=target.iOS17)
        def program(x: Any) -> Any:
            weight: Any = np.random.default_rng(4).standard_normal(wide).astype(np.float32)
            return mb.einsum(values=(weight, x) if left else (x, weight), equation=equation, name="out")

        return program

    before, after = twice(build)
    report = converted(after)
    assert report.applied == 1, str(report)
    assert_same(before, after)
    assert "einsum" not in op_types(after)


def test_einsums_that_stay() -> None:
    def several(x: Any) -> Any:
        return mb.einsum(values=(x, np.ones((6, 3, 4), np.float32)), equation="chw,whr->chr")

    def batched(x: Any) -> Any:
        return mb.einsum(values=(x, np.ones((2, 6, 1, 4), np.float32)), equation="nchw,nwhr->nchr")

    assert refused(several, shape=(5, 3, 6)) == ["its weight has 3 matrices"]
    assert refused(batched, shape=(2, 5, 3, 6)) == ["its weight has 2 matrices"]


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
