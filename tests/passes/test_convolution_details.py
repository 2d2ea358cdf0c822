"""linear-to-conv in detail: the moves of every form, names, refusals and their places, biases, and shared kernels."""

# The bodies of programs are lambdas of as many parameters as they have inputs, for which no one type can be written.
# The methods of numpy arrays whose element type is not told have types that are not known either.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from milopt.mil import Program, Var, get_new_symbol, mb, operations, types
from milopt.package import load
from milopt.passes import convolution
from milopt.passes.channels import Form
from milopt.passes.convolution import EinsumAsConv, LinearAsConv, LinearToConv, MatmulAsConv
from milopt.passes.sharing import share_moves
from milopt.passes.tying import share_kernels, tie
from milopt.reports import Report
from milopt.rewrites import Rewrites
from milopt.rules import apply

from .refusals import body, declined, program_of, refusals
from .support import assert_same, op_types, twice
from .test_convolution import EINSUMS, product, tied

FP32, FP16, INT32 = types.fp32, types.fp16, types.int32
WEIGHT: Any = np.arange(24, dtype=np.float32).reshape(4, 6)
BIAS: Any = np.array([0.5, 1, 2, 3], np.float32)


def run(program: Program, **options: Any) -> Report:
    report = LinearToConv(**options).run(load(program))
    program.validate()
    return report


def layer(shape: tuple[Any, ...]) -> Program:
    return program_of(lambda x: mb.linear(x=x, weight=WEIGHT, bias=BIAS, name="out"), (shape, FP32))


def moves(program: Program) -> list[str]:
    """What is done, with its argument: ``expand_dims [0, 3]``."""
    lines = [line.partition(" = ")[2] for line in body(program)]
    return [
        line if line.startswith("conv") else line.replace("(", " ").split(" ")[0] + _argument(line) for line in lines
    ]


def _argument(line: str) -> str:
    return " " + line[line.index("[") : -1] if "[" in line else ""


ROWS = ["transpose [0, 2, 3, 1]", "conv(x=%1, weight=w0{})", "transpose [0, 3, 1, 2]"]
COLUMNS = ["transpose [0, 1, 3, 2]", "conv(x=%1, weight=w0)", "transpose [0, 1, 3, 2]"]


def between(axes: list[int], inside: list[str], bias: str = "") -> list[str]:
    return [f"expand_dims {axes}", *(each.format(bias) for each in inside), f"squeeze {axes}"]


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((6,), between([0, 1, 3], ROWS, ", bias=[0.5, 1.0, 2.0, 3.0]")),
        ((5, 6), between([0, 3], ROWS, ", bias=[0.5, 1.0, 2.0, 3.0]")),
        ((2, 5, 6), between([3], ROWS, ", bias=[0.5, 1.0, 2.0, 3.0]")),
        (
            (2, 3, 5, 6),
            ["transpose [0, 3, 1, 2]", "conv(x=%0, weight=w0, bias=[0.5, 1.0, 2.0, 3.0])", "transpose [0, 2, 3, 1]"],
        ),
        (
            (2, 7, 3, 5, 6),
            [
                "reshape [14, 3, 5, 6]",
                "transpose [0, 3, 1, 2]",
                "conv(x=%1, weight=w0, bias=[0.5, 1.0, 2.0, 3.0])",
                "transpose [0, 2, 3, 1]",
                "reshape [2, 7, 3, 5, 4]",
            ],
        ),
    ],
)
def test_moves_around_a_linear(shape: tuple[int, ...], wanted: list[str]) -> None:
    program = layer(shape)
    assert apply(LinearAsConv(), program).applied == 1
    assert moves(program) == wanted


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("vector", between([0, 1, 3], ROWS)),
        ("matrix", between([0, 3], ROWS)),
        ("matrix, left", between([0, 3], COLUMNS)),
        ("rows", between([3], ROWS)),
        ("left", between([3], COLUMNS)),
        ("columns", between([3], [COLUMNS[0], *ROWS[1:]])),
        ("left, x turned", between([3], [ROWS[0], *COLUMNS[1:]])),
        ("rank 4, left", ["transpose [0, 2, 1, 3]", "conv(x=%0, weight=w0)", "transpose [0, 2, 1, 3]"]),
        (
            "rank 5",
            [
                "reshape [2, 3, 5, 6]",
                "transpose [0, 3, 1, 2]",
                "conv(x=%1, weight=w0)",
                "transpose [0, 2, 3, 1]",
                "reshape [2, 1, 3, 5, 4]",
            ],
        ),
    ],
)
def test_moves_around_a_product(name: str, wanted: list[str]) -> None:
    program = product(name)
    assert apply(MatmulAsConv(), program).applied == 1
    assert moves(program) == wanted


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("right", between([3], ROWS)),
        ("left", ["expand_dims [0]", "conv(x=%0, weight=w0)", "squeeze [0]"]),
        ("right, batch", ["transpose [0, 3, 1, 2]", "conv(x=%0, weight=w0)", "transpose [0, 2, 3, 1]"]),
        ("left, batch", ["conv(x=%x, weight=w0)"]),
    ],
)
def test_moves_around_an_einsum(name: str, wanted: list[str]) -> None:
    shape, wide, left = EINSUMS[name]
    weight = np.ones(wide, np.float32)

    def build(x: Any) -> Any:
        equation = "nchw,nwhr->nchr" if len(shape) == 4 else "chw,whr->chr"
        return mb.einsum(values=(weight, x) if left else (x, weight), equation=equation, name="out")

    program = program_of(build, (shape, FP32))
    assert apply(EinsumAsConv(), program).applied == 1
    assert moves(program) == wanted


def test_where_forms_have_their_channels() -> None:
    assert [Form(order, 3).axis for order in ("rows", "columns", "channels")] == [-1, -2, -3]
    assert [Form(order, 4).perm for order in ("rows", "columns", "channels")] == [
        (0, 3, 1, 2),
        (0, 2, 1, 3),
        (0, 1, 2, 3),
    ]
    assert [Form(order, 3).inverse for order in ("rows", "columns", "channels")] == [
        (0, 3, 1, 2),
        (0, 1, 3, 2),
        (0, 1, 2, 3),
    ]
    assert hash(Form("rows", 3)) == hash(Form("rows", 3))


def test_sizes_that_are_not_known() -> None:
    """Their symbols are those from before, at every step; of rank 4 all may be unknown, of rank 5 none."""
    length = get_new_symbol()
    program = layer((length, 6))
    assert apply(LinearAsConv(), program).applied == 1
    shapes = [op.outputs[0].shape for op in program.functions["main"].operations if op.op_type == "conv"]
    assert shapes == [(1, 4, 1, length)]
    assert program.functions["main"].outputs[0].shape == (length, 4)
    assert run(layer((get_new_symbol(), get_new_symbol(), get_new_symbol(), 6))).applied == 1
    reason = "its operand has rank 5 and unknown sizes"
    assert refusals(LinearAsConv(), layer((2, 1, 2, get_new_symbol(), 6))) == [(reason, "x")]


def held_by(program: Program) -> list[str]:
    return [op.inputs["weight"].name for op in program.functions["main"].operations if op.op_type == "conv"]


def test_kernels_are_named_for_their_weights() -> None:
    def one(x: Any) -> Any:
        return mb.linear(x=x, weight=mb.const(val=WEIGHT, name="table"), name="out")

    def two(x: Any) -> Any:
        return mb.matmul(x=x, y=mb.const(val=WEIGHT.T.copy(), name="table"), name="out")

    for build in (one, two):
        program = program_of(build, ((5, 6), FP32))
        assert run(program).applied == 1
        assert held_by(program) == ["table_1x1"]


def test_biases_that_are_zeros_or_computed() -> None:
    """Zeros go, also half of them stay; a computed bias is one too."""

    def build(bias: Any) -> Program:
        return program_of(lambda x: mb.linear(x=x, weight=WEIGHT, bias=bias, name="out"), ((5, 6), FP32))

    for bias, wanted in ((np.zeros(4, np.float32), ""), (BIAS * [0, 0, 0, 1], ", bias=[0.0, 0.0, 0.0, 3.0]")):
        program = build(np.float32(bias))
        assert run(program).applied == 1
        assert moves(program) == between([0, 3], ROWS, wanted)

    def computed(x: Any) -> Any:
        bias = mb.constexpr_blockwise_shift_scale(data=np.zeros(4, np.int8), scale=np.ones(1, np.float32))
        return mb.linear(x=x, weight=WEIGHT, bias=bias, name="out")

    program = program_of(computed, ((5, 6), FP32))
    assert run(program).applied == 1
    assert "bias" in next(op for op in program.functions["main"].operations if op.op_type == "conv").inputs


def matmul(weight: Any, shape: tuple[int, ...] = (2, 5, 6), *, left: bool = False, dtype: type = FP32) -> Program:
    def build(x: Any) -> Any:
        held = mb.const(val=weight, name="w")
        return mb.matmul(x=held, y=x, name="out") if left else mb.matmul(x=x, y=held, name="out")

    return program_of(build, (shape, dtype))


def test_products_that_stay_and_where() -> None:
    several = "its weight has {} matrices"
    rule = MatmulAsConv()
    assert refusals(rule, matmul(np.ones((2, 6, 4), np.float32))) == [(several.format(2), "w")]
    assert refusals(rule, matmul(np.ones((2, 3, 6, 4), np.float32), (2, 3, 5, 6))) == [(several.format(6), "w")]
    assert refusals(rule, matmul(np.ones((1, 3, 6, 4), np.float32), (2, 3, 5, 6))) == [(several.format(3), "w")]
    assert refusals(rule, matmul(np.ones(5, np.float32), left=True)) == [("its weight is a vector", "w")]
    assert refusals(rule, matmul(np.ones((1, 4), np.float32), (2, 5, 1))) == [("an outer product", "out")]
    assert refusals(rule, matmul(np.ones((6, 4), np.int32), dtype=INT32)) == [("conv takes no int32", "x")]
    assert run(matmul(np.ones((2, 4), np.float32), (2, 5, 2))).applied == 1
    biased = program_of(
        lambda x: mb.add(x=mb.matmul(x=x, y=np.ones((1, 4), np.float32), name="product"), y=BIAS, name="out"),
        ((2, 5, 1), FP32),
    )
    assert ("an outer product", "product") in refusals(rule, biased)


def test_unit_axes_of_weights_stand_in_front() -> None:
    """Of rows in rank 2 the form has them, of batches in rank 3 they come before the batch."""
    weight: Any = np.ones((1, 6, 4), np.float32)
    program = matmul(weight, (5, 6))
    assert run(program).applied == 1
    assert moves(program) == ["expand_dims [0, 3]", *(line.format("") for line in ROWS), "squeeze [3]"]
    program = matmul(weight[None], (2, 5, 6))
    assert run(program).applied == 1
    assert moves(program)[:2] == ["expand_dims [0]", "transpose [0, 3, 1, 2]"]


def test_a_linear_of_integers_stays() -> None:
    program = program_of(
        lambda x: mb.linear(x=x, weight=np.ones((4, 6), np.int32), bias=np.ones(4, np.int32)), ((5, 6), INT32)
    )
    assert refusals(LinearAsConv(), program) == [("conv takes no int32", "x")]
    half = program_of(lambda x: mb.linear(x=x, weight=np.float16(WEIGHT), name="out"), ((5, 6), FP16))
    assert run(half).applied == 1


def compressed(rows: int, columns: int) -> Any:
    return mb.constexpr_affine_dequantize(
        quantized_data=np.ones((rows, columns), np.int8), scale=np.float32(1), zero_point=np.int8(0), axis=np.int32(0)
    )


def test_products_of_two_weights_stay_and_where() -> None:
    def right(x: Any) -> Any:
        return mb.add(x=x, y=mb.matmul(x=compressed(6, 6), y=np.ones((6, 6), np.float32), name="both"), name="out")

    def biased(x: Any) -> Any:
        both = mb.matmul(x=compressed(6, 6), y=np.ones((6, 6), np.float32), name="both")
        return mb.relu(x=mb.add(x=both, y=x, name="sum"), name="out")

    for build in (right, biased):
        places = {("both of its operands are weights", "both")}
        assert {*refusals(MatmulAsConv(), program_of(build, ((6, 6), FP32)))} == places

    def einsum(x: Any) -> Any:
        other = mb.constexpr_affine_dequantize(
            quantized_data=np.ones((3, 1, 6), np.int8),
            scale=np.float32(1),
            zero_point=np.int8(0),
            axis=np.int32(0),
        )
        both = mb.einsum(values=(other, np.ones((6, 1, 4), np.float32)), equation="chw,whr->chr", name="both")
        return mb.add(x=x, y=both, name="out")

    assert {*refusals(EinsumAsConv(), program_of(einsum, ((3, 1, 4), FP32)))} == {
        ("both of its operands are weights", "both")
    }


def summed(make: Any, *, shape: tuple[int, ...] = (2, 5, 6), left: bool = False) -> Program:
    """A product, and what ``make`` does to it."""

    def build(x: Any) -> Any:
        weight: Any = np.arange(24, dtype=np.float32).reshape(4, 6)
        y = mb.matmul(x=weight, y=x, name="product") if left else mb.matmul(x=x, y=weight.T.copy(), name="product")
        return make(y)

    return program_of(build, (shape, FP32))


def test_what_is_added_first_or_second_is_the_bias() -> None:
    for build in (lambda y: mb.add(x=y, y=BIAS, name="out"), lambda y: mb.add(x=BIAS, y=y, name="out")):
        program = summed(build)
        assert run(program).applied == 1
        assert moves(program) == between([3], ROWS, ", bias=[0.5, 1.0, 2.0, 3.0]")


def test_one_number_is_a_bias_of_all_channels() -> None:
    program = summed(lambda y: mb.add(x=y, y=np.float32(2), name="out"))
    assert run(program).applied == 1
    assert moves(program) == between([3], ROWS, ", bias=[2.0, 2.0, 2.0, 2.0]")


@pytest.mark.parametrize(
    "behind",
    [
        lambda y: mb.mul(x=y, y=BIAS, name="out"),
        lambda y: mb.sub(x=y, y=BIAS, name="out"),
        lambda y: mb.add(x=y, y=y, name="out"),
        lambda y: mb.add(x=y, y=np.ones((5, 4), np.float32), name="out"),
        lambda y: mb.add(x=y, y=np.ones((2, 1, 1), np.float32), name="out"),
        lambda y: mb.add(x=y, y=np.ones((3, 2, 5, 4), np.float32)[:, :1, :1], name="out"),
        lambda y: (mb.add(x=y, y=BIAS, name="out"), mb.mul(x=y, y=BIAS, name="other")),
        lambda y: (mb.add(x=y, y=BIAS, name="out"), mb.identity(x=y, name="other")),
        lambda y: mb.add(x=y, y=mb.exp(x=y), name="out"),
        lambda y: mb.add(x=mb.identity(x=y), y=mb.exp(x=np.ones(4, np.float32)), name="out"),
    ],
)
def test_what_is_no_bias_stays_behind(behind: Any) -> None:
    before, after = twice(lambda: summed(behind))
    report = run(after)
    assert (report.applied, op_types(after).count("conv")) == (1, 1)
    assert op_types(after)[-1] == op_types(before)[-1]
    assert all(reason != "its bias comes behind it" for reason, _ in declined(report))
    assert_same(before, after)


def test_a_product_that_is_an_output_keeps_its_bias() -> None:
    program = summed(lambda y: (y, mb.add(x=y, y=BIAS, name="out")))
    report = run(program)
    assert (report.applied, op_types(program)[-1], declined(report)) == (1, "add", [])


@pytest.mark.parametrize(
    ("equation", "wanted"),
    [
        ("chw,whr->chr", True),
        ("nchw,nwhr->nchr", True),
        (" abc , cbd -> abd ", True),
        ("chw,hwr->chr", False),
        ("chw,wkr->chr", False),
        ("chw,whr->crh", False),
        ("nchw,whr->nchr", False),
        ("nchw,mwhr->nchr", False),
        ("chw,nwhr->chr", False),
        ("nchw,nwhr->cnhr", False),
    ],
)
def test_which_equations_are_products(equation: str, wanted: bool) -> None:
    assert convolution._is_product(equation) == wanted  # pyright: ignore[reportPrivateUsage]


def einsum(weight: Any, shape: tuple[int, ...] = (5, 3, 6), *, left: bool = False, dtype: type = FP32) -> Program:
    def build(x: Any) -> Any:
        held = mb.const(val=weight, name="w")
        equation = "nchw,nwhr->nchr" if len(shape) == 4 else "chw,whr->chr"
        return mb.einsum(values=(held, x) if left else (x, held), equation=equation, name="out")

    return program_of(build, (shape, dtype))


def test_einsums_that_stay_and_where() -> None:
    several, rule = "its weight has {} matrices", EinsumAsConv()
    assert refusals(rule, einsum(np.ones((6, 3, 4), np.float32))) == [(several.format(3), "w")]
    assert refusals(rule, einsum(np.ones((2, 6, 3, 4), np.float32), (2, 5, 3, 6))) == [(several.format(6), "w")]
    assert refusals(rule, einsum(np.ones((1, 6, 3, 4), np.float32), (1, 5, 3, 6))) == [(several.format(3), "w")]
    assert refusals(rule, einsum(np.ones((4, 3, 6), np.float32), (6, 3, 5), left=True)) == [(several.format(3), "w")]
    assert refusals(rule, einsum(np.ones((6, 1, 4), np.int32), (5, 1, 6), dtype=INT32)) == [
        ("conv takes no int32", "x")
    ]
    assert refusals(rule, einsum(np.ones((4, 1, 6), np.int32), (6, 1, 5), left=True, dtype=INT32)) == [
        ("conv takes no int32", "x")
    ]
    other = einsum(np.ones((6, 1, 4), np.float32), (5, 1, 6))
    held: Any = next(op for op in other.functions["main"].operations if op.op_type == "einsum").inputs["equation"]
    held._sym_val.val = "chw,whr->rhc"
    assert refusals(rule, other) == [("its equation is chw,whr->rhc", held.name)]


def long_program(weight: Any) -> Program:
    return program_of(lambda x: mb.linear(x=x, weight=weight, name="out"), ((5, 2), FP16))


def test_notes_of_bytes_and_lengths() -> None:
    """One output channel less than too many is not pointed out; the note on bytes is for those that move."""
    long = "a conv has 16385 output channels; some Neural Engines end at 16384"
    for count, notes in ((16384, []), (16385, [long])):
        weight = np.ones((count, 2), np.float16)
        program = long_program(weight)
        assert run(program).notes == notes
    report = run(matmul(WEIGHT.T.copy()))
    assert report.notes == ["weights with their output channels last are transposed: those bytes are written anew"]
    assert report.name == "linear-to-conv"


def test_rows_are_lifted_unless_no_more_may_be_rewritten() -> None:
    """What makes (B, S, C) of rows again counts as a rewrite, and is left out where none may be made."""

    def build(x: Any) -> Any:
        rows = mb.reshape(x=x, shape=[10, 6])
        return mb.exp(x=mb.reshape(x=mb.linear(x=rows, weight=WEIGHT, bias=BIAS), shape=[2, 5, 4]), name="out")

    program = program_of(build, ((2, 5, 6), FP32))
    assert run(program).applied == 2
    assert moves(program) == [*between([3], ROWS, ", bias=[0.5, 1.0, 2.0, 3.0]"), "exp"]
    for limit, applied in ((0, 0), (1, 2)):
        model = load(program_of(build, ((2, 5, 6), FP32)))
        model.rewrites = Rewrites(limit)
        assert LinearToConv().run(model).applied == applied


def twins(*, other: bool = False, output: bool = False) -> Program:
    """Two layers of equal bytes, or of unequal ones; the first kernel may be an output too."""

    def build(x: Any) -> Any:
        weight: Any = WEIGHT.copy()
        first = mb.const(val=weight, name="first")
        second = mb.const(val=weight + 1 if other else weight, name="second")
        made = [mb.linear(x=x, weight=first, name="one"), mb.linear(x=mb.relu(x=x), weight=second, name="two")]
        return (*made, mb.identity(x=first, name="held")) if output else tuple(made)

    return program_of(build, ((5, 6), FP32))


def test_equal_kernels_become_one() -> None:
    program = twins()
    assert share_kernels(program.functions) == 1
    held = [op.inputs["weight"].name for op in program.functions["main"].operations if op.op_type == "linear"]
    assert held == ["first", "first"]
    assert share_kernels(program.functions) == 0
    assert share_kernels(twins(other=True).functions) == 0


def test_equal_compressed_kernels_become_one() -> None:
    data: Any = np.ones((4, 6), np.int8)
    scales: list[Any] = [np.full((4, 1), scale, np.float32) for scale in (2, 3)]

    def build(x: Any) -> Any:
        held = [
            mb.constexpr_blockwise_shift_scale(data=data, scale=scales[at], name=name)
            for at, name in ((0, "first"), (0, "second"), (1, "third"))
        ]
        return tuple(mb.linear(x=x, weight=each) for each in held)

    program = program_of(build, ((5, 6), FP32))
    assert share_kernels(program.functions) == 3  # with its numbers and its scales
    held = [op.inputs["weight"].name for op in program.functions["main"].operations if op.op_type == "linear"]
    assert held == ["first", "first", "third"]


def test_weights_that_are_outputs_or_lie_outside_are_not_shared() -> None:
    def outputs(x: Any) -> Any:
        first, second = (mb.const(val=WEIGHT, name=name) for name in ("first", "second"))
        return mb.linear(x=x, weight=first, name="one"), mb.linear(x=x, weight=second, name="two"), second

    program = program_of(outputs, ((5, 6), FP32))
    assert share_kernels(program.functions) == 0

    def nested(x: Any) -> Any:
        weight: Any = WEIGHT[:, :4].copy()
        first, second = (mb.const(val=weight, name=name) for name in ("first", "second"))
        flag = mb.less(x=mb.reduce_sum(x=x, axes=[0, 1], keep_dims=False), y=np.float32(1))
        return mb.cond(
            pred=flag,
            _true_fn=lambda: mb.linear(x=x, weight=first, name="one"),
            _false_fn=lambda: mb.linear(x=x, weight=second, name="two"),
            name="out",
        )

    assert share_kernels(program_of(nested, ((5, 4), FP32)).functions) == 0


def lookup(*, axis: int = 0, batched: int = 0, table: tuple[int, ...] = (10, 6)) -> Program:
    """A table that is looked up in, and is a kernel too."""

    def build(ids: Any, x: Any) -> Any:
        weight: Any = np.arange(np.prod(table), dtype=np.float16).reshape(table)
        kernel = mb.const(val=weight.reshape(10, 6, 1, 1), name="kernel")
        rows = mb.gather(x=mb.const(val=weight, name="table"), indices=ids, axis=axis, batch_dims=batched, name="rows")
        return rows, mb.conv(x=x, weight=kernel, name="out")

    return program_of(build, ((10, 2) if batched else (3,), INT32), ((1, 6, 1, 5), FP16))


def test_tables_that_are_kernels() -> None:
    note = "120 bytes are an embedding and a kernel: {}"
    program = lookup()
    assert tie(program.functions, gather=False) == [note.format("two constants of one place in the package")]
    assert body(program) == body(lookup())
    before, after = twice(lookup)
    assert tie(after.functions, gather=True) == [note.format("rows are looked up in the kernel")]
    assert body(after) == [
        "%0: fp16[3, 6, 1, 1] = gather(x=w0, indices=%ids)",
        "%1: fp16[3, 6] = squeeze(x=%0, axes=[2, 3])",
        "%2: fp16[1, 10, 1, 5] = conv(x=%x, weight=w0)",
    ]
    main = after.functions["main"]
    assert [var.name for var in main.outputs] == ["rows", "out"]
    assert [op.name for op in main.operations if op.op_type == "squeeze"] == ["rows"]
    assert [op.inputs["weight"].name for op in main.operations if op.op_type == "conv"] == ["table_1x1"]
    assert_same(before, after)


@pytest.mark.parametrize(
    "program",
    [
        lambda: lookup(axis=1),
        lambda: lookup(batched=1, axis=1),
        lambda: lookup(table=(10, 6, 1)),
        lambda: lookup(table=(6, 10)),
        lambda: program_of(
            lambda ids, x: (
                mb.gather(x=x, indices=ids, axis=0, name="rows"),
                mb.linear(x=x, weight=WEIGHT, name="out"),
            ),
            ((3,), INT32),
            ((5, 6), FP32),
        ),
    ],
)
@pytest.mark.parametrize("gather", [False, True])
def test_tables_that_are_none(program: Any, gather: bool) -> None:
    made = program()
    before = body(made)
    assert tie(made.functions, gather=gather) == []
    assert body(made) == before


def test_several_tables_that_are_kernels() -> None:
    """Bytes are added up, each table's once; the second look-up in a table reads the kernel of the first."""

    def build(ids: Any, x: Any) -> Any:
        tables = [np.full(shape, 2, np.float16) for shape in ((10, 6), (20, 6))]
        rows = [mb.gather(x=table, indices=ids, axis=0) for table in (*tables, tables[0])]
        return (*rows, *(mb.conv(x=x, weight=table[:, :, None, None]) for table in tables))

    program = program_of(build, ((2, 3), INT32), ((1, 6, 1, 5), FP16))
    notes = tie(program.functions, gather=True)
    assert notes == ["360 bytes are an embedding and a kernel: rows are looked up in the kernel"]
    kinds = op_types(program)
    assert (kinds.count("gather"), kinds.count("squeeze")) == (3, 3)
    outputs = program.functions["main"].outputs
    assert [tuple(var.shape) for var in outputs[:3]] == [(2, 3, 6)] * 3


def test_a_tied_model_that_gathers_in_its_kernel_keeps_one_table() -> None:
    program = tied()
    run(program, tied="gather")
    consts = [op for op in operations(program.functions["main"]) if op.op_type == "const"]
    assert [op.name for op in consts if np.size(op.outputs[0].val) == 60] == ["tied_1x1_1"]


def shared(*, axes: list[int], other: list[int], output: bool = False) -> Program:
    def build(x: Any) -> Any:
        first = mb.transpose(x=x, perm=axes, name="first")
        second = mb.transpose(x=x, perm=other, name="second")
        made = (mb.relu(x=first, name="one"), mb.exp(x=second, name="two"))
        return (*made, second) if output else made

    return program_of(build, ((2, 3, 3), FP32))


def test_equal_moves_become_one() -> None:
    program = shared(axes=[0, 2, 1], other=[0, 2, 1])
    assert share_moves(program) == 1
    users: list[Var] = [op.inputs["x"] for op in program.functions["main"].operations if op.op_type in ("relu", "exp")]
    assert [var.name for var in users] == ["first", "first"]
    assert share_moves(program) == 0


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("transpose", {"perm": [1, 0]}),
        ("expand_dims", {"axes": [1]}),
        ("squeeze", {"axes": [0]}),
        ("reshape", {"shape": [5, 1]}),
        ("relu", {}),
    ],
)
def test_which_ops_are_moves(kind: str, given: Any) -> None:
    def build(x: Any) -> Any:
        made = [getattr(mb, kind)(x=x, **given) for _ in range(3)]
        users = (mb.exp, mb.square, mb.sign)
        return tuple(user(x=each, name=f"out{at}") for at, (user, each) in enumerate(zip(users, made, strict=True)))

    before, after = twice(lambda: program_of(build, ((1, 5), FP32)))
    assert share_moves(after) == (0 if kind == "relu" else 2)
    assert op_types(after).count(kind) == (3 if kind == "relu" else 1)
    assert_same(before, after)


def test_moves_that_nothing_uses_are_not_counted() -> None:
    def build(x: Any) -> Any:
        mb.transpose(x=x, perm=[1, 0])
        return mb.relu(x=x)

    program = program_of(build, ((1, 5), FP32))
    assert (share_moves(program), op_types(program)) == (0, ["transpose", "relu"])


def test_moves_that_are_not_equal_or_are_outputs_stay() -> None:
    assert share_moves(shared(axes=[0, 2, 1], other=[0, 1, 2])) == 0
    assert share_moves(shared(axes=[0, 2, 1], other=[0, 2, 1], output=True)) == 0

    def ops(x: Any) -> Any:
        return mb.relu(x=x, name="one"), mb.relu(x=x, name="two")

    assert share_moves(program_of(ops, ((2, 3), FP32))) == 0

    def others(x: Any, y: Any) -> Any:
        made = [mb.expand_dims(x=x, axes=[0]), mb.expand_dims(x=y, axes=[0]), mb.squeeze(x=x, axes=[0])]
        return tuple(mb.relu(x=each) for each in made)

    assert share_moves(program_of(others, ((1, 3), FP32), ((1, 3), FP32))) == 0

    def computed(x: Any, shape: Any) -> Any:
        return mb.relu(x=mb.reshape(x=x, shape=shape)), mb.exp(x=mb.reshape(x=x, shape=shape))

    assert share_moves(program_of(computed, ((2, 3), FP32), ((2,), INT32))) == 0
