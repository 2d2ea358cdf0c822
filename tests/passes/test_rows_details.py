"""Layers on rows, in detail: which ops treat each row alike, where groups begin and end, and what is written."""

# The bodies of programs are lambdas of as many parameters as they have inputs, for which no one type can be written.
# The methods of numpy arrays whose element type is not told have types that are not known either.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from milopt.mil import Program, get_new_symbol, mb, operations, types
from milopt.passes.rows import lift_rows
from milopt.text import text

from .refusals import body, program_of
from .support import assert_same, op_types, twice

FP32, FP16, INT32 = types.fp32, types.fp16, types.int32
WIDE: Any = np.arange(36, dtype=np.float32).reshape(6, 6) / 9
BIAS: Any = np.arange(6, dtype=np.float32)


def program(build: Callable[..., Any], *, shape: tuple[Any, ...] = (2, 5, 6), dtype: type = FP32) -> Program:
    return program_of(build, (shape, dtype))


def rows(x: Any) -> Any:
    return mb.reshape(x=x, shape=[10, 6])


def back(y: Any, name: str = "out") -> Any:
    return mb.reshape(x=y, shape=[2, 5, 6], name=name)


def layer(y: Any) -> Any:
    return mb.linear(x=y, weight=WIDE, bias=BIAS)


def lifted(build: Callable[..., Any], **given: Any) -> list[str]:
    before, after = twice(lambda: program(build, **given))
    assert lift_rows(after.functions["main"]) == 1
    after.validate()
    assert_same(before, after)
    assert lift_rows(after.functions["main"]) == 0
    return [line.partition(": ")[2].replace(", bias=[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]", "") for line in body(after)]


def stays(build: Callable[..., Any], **given: Any) -> None:
    made = program(build, **given)
    before = text(made)
    assert lift_rows(made.functions["main"]) == 0
    assert text(made) == before


LAYER = "fp32[2, 5, 6] = linear(x=%{}, weight=w0)"


def unary(kind: str) -> Callable[[Any], Any]:
    return lambda y: getattr(mb, kind)(x=y)


PLAIN = (
    *("abs", "erf", "exp", "gelu", "identity", "relu", "relu6", "rsqrt", "sigmoid", "silu"),
    *("softplus", "softsign", "sqrt", "square", "tanh", "log"),
)
UNARY: dict[str, Callable[[Any], Any]] = {
    **{kind: unary(kind) for kind in PLAIN},
    "cast": lambda y: mb.cast(x=mb.cast(x=y, dtype="fp16"), dtype="fp32"),
    "clip": lambda y: mb.clip(x=y, alpha=np.float32(0), beta=np.float32(1)),
    "elu": lambda y: mb.elu(x=y, alpha=np.float32(1)),
    "leaky_relu": lambda y: mb.leaky_relu(x=y, alpha=np.float32(0.1)),
    "sigmoid_hard": lambda y: mb.sigmoid_hard(x=y, alpha=np.float32(0.2), beta=np.float32(0.5)),
}


@pytest.mark.parametrize("kind", UNARY)
def test_ops_of_one_value(kind: str) -> None:
    made = program(lambda x: back(mb.exp(x=layer(UNARY[kind](rows(x))))))
    assert lift_rows(made.functions["main"]) == 1
    assert "reshape" not in op_types(made)
    assert all(op.outputs[0].rank == 3 for op in operations(made.functions["main"]) if op.op_type == kind)


@pytest.mark.parametrize("kind", ["add", "maximum", "minimum", "mul", "pow", "real_div", "sub"])
def test_ops_of_two_values(kind: str) -> None:
    def number(x: Any) -> Any:
        return back(getattr(mb, kind)(x=layer(rows(x)), y=np.float32(2)))

    def channels(x: Any) -> Any:
        return back(getattr(mb, kind)(x=BIAS.reshape(1, 6) + 1, y=layer(rows(mb.square(x=x)))))

    def values(x: Any) -> Any:
        y = rows(mb.square(x=x))
        return back(getattr(mb, kind)(x=y, y=layer(y)))

    def positions(x: Any) -> Any:
        return back(getattr(mb, kind)(x=layer(rows(x)), y=np.ones((10, 1), np.float32)))

    for build in (number, channels, values):
        made = program(build)
        assert lift_rows(made.functions["main"]) == 1
    stays(positions)


def test_a_layer_between_reshapes() -> None:
    assert lifted(lambda x: back(layer(rows(x)))) == [LAYER.format("x"), "fp32[2, 5, 6] = identity(x=%0)"]


def test_a_value_that_is_no_output_needs_no_identity() -> None:
    lines = lifted(lambda x: mb.exp(x=back(mb.relu(x=layer(rows(mb.tanh(x=x)))), "between"), name="out"))
    assert lines == [
        "fp32[2, 5, 6] = tanh(x=%x)",
        LAYER.format("0"),
        "fp32[2, 5, 6] = relu(x=%1)",
        "fp32[2, 5, 6] = exp(x=%2)",
    ]


def test_names_of_outputs() -> None:
    made = program(lambda x: (back(y := layer(rows(x)), "one"), back(mb.relu(x=y), "two")))
    assert lift_rows(made.functions["main"]) == 1
    assert [(var.name, var.op.name if var.op else "") for var in made.functions["main"].outputs] == [
        ("one", "one"),
        ("two", "two"),
    ]
    assert op_types(made) == ["linear", "identity", "relu", "identity"]


def norm_over(axes: list[int]) -> Callable[[Any], Any]:
    return lambda x: back(layer(mb.layer_norm(x=rows(x), axes=axes)))


def test_norms_of_channels() -> None:
    for axes in ([1], [-1]):
        lines = lifted(norm_over(axes))
        assert lines[0] == "fp32[2, 5, 6] = layer_norm(x=%x, axes=[-1])"
    stays(lambda x: back(layer(mb.layer_norm(x=rows(x), axes=[0]))))
    stays(lambda x: back(layer(mb.layer_norm(x=rows(x), axes=[0, 1]))))


def test_products() -> None:
    assert lifted(lambda x: back(mb.matmul(x=rows(x), y=WIDE)))[0] == "fp32[2, 5, 6] = matmul(x=%x, y=w0)"
    turned = lifted(lambda x: back(mb.matmul(x=rows(x), y=WIDE, transpose_y=True)))
    assert turned[0] == "fp32[2, 5, 6] = matmul(x=%x, y=w0, transpose_y=true)"
    stays(lambda x: back(mb.matmul(x=rows(x), y=np.eye(10, dtype=np.float32), transpose_x=True)), shape=(2, 3, 10))
    square: Any = np.ones((10, 10), np.float32)
    stays(lambda x: back(mb.matmul(x=square, y=layer(rows(x)))))
    stays(lambda x: back(mb.matmul(x=mb.matmul(x=(y := rows(x)), y=rows(x), transpose_y=True), y=layer(y))))


def transposed(x: Any) -> Any:
    y = mb.matmul(x=mb.reshape(x=x, shape=[6, 10]), y=WIDE, transpose_x=True)
    return mb.reshape(x=y, shape=[2, 5, 6], name="out")


def test_what_is_no_group() -> None:
    stays(lambda x: back(mb.relu(x=rows(x))))
    stays(lambda x: mb.linear(x=rows(x), weight=WIDE, name="out"))
    stays(lambda x: mb.reshape(x=layer(rows(x)), shape=[5, 2, 6], name="out"))
    stays(lambda x: (back(y := layer(rows(x))), mb.identity(x=y, name="y")))
    stays(lambda x: (y := layer(rows(x)), back(y)))
    stays(lambda x: back(mb.softmax(x=layer(rows(x)), axis=0)))
    stays(lambda x: back(mb.softmax(x=layer(rows(x)), axis=1)))
    stays(lambda x: back(layer(mb.reshape(x=x, shape=[10, 6]))), shape=(60,))
    stays(lambda x: back(layer(x)), shape=(10, 6))
    stays(lambda x: back(mb.relu(x=layer(mb.add(x=rows(x), y=mb.reduce_mean(x=rows(x), axes=[0], keep_dims=True))))))
    stays(lambda x: mb.reshape(x=layer(rows(x)), shape=[10, 2, 3], name="out"))
    stays(lambda x: mb.reshape(x=layer(rows(x)), shape=[60], name="out"))
    stays(transposed)
    integers: Any = np.ones((6, 6), np.int32)
    stays(lambda x: back(mb.linear(x=rows(x), weight=integers)), dtype=INT32)


def test_layers_of_integers_beside_one_of_floats() -> None:
    half: Any = WIDE.astype(np.float16)
    made = program(lambda x: back(mb.linear(x=rows(x), weight=half)), dtype=FP16)
    assert lift_rows(made.functions["main"]) == 1


def test_starts_of_another_lead_stay() -> None:
    def other(x: Any) -> Any:
        y = mb.reshape(x=mb.transpose(x=x, perm=[1, 0, 2]), shape=[10, 6])
        return back(mb.add(x=layer(rows(x)), y=y))

    stays(other)

    def split(x: Any) -> Any:
        return mb.reshape(x=layer(mb.reshape(x=x, shape=[20, 6])), shape=[4, 5, 6], name="out")

    stays(split, shape=(2, 10, 6))

    def cut(x: Any) -> Any:
        weight: Any = np.ones((6, 3), np.float32)
        return mb.reshape(x=mb.linear(x=mb.reshape(x=x, shape=[20, 3]), weight=weight), shape=[4, 5, 6], name="out")

    stays(cut)


def test_ends_that_differ() -> None:
    def build(x: Any) -> Any:
        y = layer(rows(x))
        return back(y), mb.reshape(x=mb.relu(x=y), shape=[5, 2, 6], name="other")

    stays(build)

    def several(x: Any) -> Any:
        y = layer(rows(x))
        return back(y, "one"), back(y, "two")

    made = program(several)
    assert lift_rows(made.functions["main"]) == 1
    assert op_types(made) == ["linear", "identity", "identity"]


def test_heads() -> None:
    """Axes behind (B, S) are joined at once; with sizes that are not known at most one of (B, S) may be."""

    def build(x: Any) -> Any:
        return mb.exp(x=back(layer(mb.reshape(x=x, shape=[10, 6]))), name="out")

    assert lifted(build, shape=(2, 5, 3, 2)) == [
        "fp32[2, 5, 6] = reshape(x=%x, shape=[2, 5, 6])",
        LAYER.format("0"),
        "fp32[2, 5, 6] = exp(x=%1)",
    ]
    assert lifted(build, shape=(2, 5, 3, 1, 2))[0] == "fp32[2, 5, 6] = reshape(x=%x, shape=[2, 5, 6])"

    def symbolic(x: Any) -> Any:
        y = layer(mb.reshape(x=x, shape=[-1, 6]))
        sizes = mb.concat(values=[mb.gather(x=mb.shape(x=x), indices=[0, 1]), np.array([6], np.int32)], axis=0)
        return mb.reshape(x=y, shape=sizes, name="out")

    length, batch = get_new_symbol(), get_new_symbol()
    for shape, wanted in (((1, length, 3, 2), [1, -1, 6]), ((batch, 4, 3, 2), [-1, 4, 6])):
        made = program(symbolic, shape=shape)
        assert lift_rows(made.functions["main"]) == 1
        made.validate()
        start = next(op for op in operations(made.functions["main"]) if op.op_type == "reshape")
        assert start.inputs["shape"].val.tolist() == wanted
        assert start.outputs[0].shape == (*shape[:2], 6)
        assert made.functions["main"].outputs[0].shape == (*shape[:2], 6)
    stays(symbolic, shape=(batch, length, 3, 2))
    made = program(symbolic, shape=(batch, length, 6))
    assert lift_rows(made.functions["main"]) == 1


def test_rank_4_on_both_sides() -> None:
    def build(x: Any) -> Any:
        return mb.reshape(x=layer(mb.reshape(x=x, shape=[20, 6])), shape=[2, 2, 5, 6], name="out")

    lines = lifted(build, shape=(2, 2, 5, 6))
    assert lines[0] == "fp32[2, 2, 5, 6] = linear(x=%x, weight=w0)"


def test_two_groups_and_two_starts() -> None:
    def build(x: Any, y: Any) -> Any:
        one = back(mb.mul(x=layer(rows(x)), y=rows(y)), "one")
        return one, back(layer(rows(mb.exp(x=y))), "two")

    made = program_of(build, ((2, 5, 6), FP32), ((2, 5, 6), FP32))
    assert lift_rows(made.functions["main"]) == 2
    assert op_types(made) == ["linear", "mul", "identity", "exp", "linear", "identity"]


def test_a_value_of_a_nested_block_stays() -> None:
    """What a block inside uses is no row of its own."""

    def build(x: Any) -> Any:
        y = layer(rows(x))
        flag = mb.greater(x=mb.reduce_sum(x=x, keep_dims=False), y=np.float32(0))
        return mb.cond(
            pred=flag, _true_fn=lambda: back(mb.relu(x=y), "then"), _false_fn=lambda: back(y, "otherwise"), name="out"
        )

    stays(build)


def test_scales_of_channels_that_are_compressed() -> None:
    def build(x: Any) -> Any:
        weight = mb.constexpr_blockwise_shift_scale(data=np.ones((6, 6), np.int8), scale=np.ones((1, 1), np.float32))
        return back(mb.linear(x=rows(x), weight=weight))

    made = program(build)
    assert lift_rows(made.functions["main"]) == 1


def test_rows_of_a_matrix_and_layers_that_nothing_uses_stay() -> None:
    """(2, 5) as ten rows of one is of no higher rank; a group without an end has nothing to give back."""
    narrow: Any = np.ones((6, 1), np.float32)
    stays(lambda x: back(mb.linear(x=mb.reshape(x=x, shape=[10, 1]), weight=narrow)), shape=(2, 5))

    def unused(x: Any) -> Any:
        layer(rows(x))
        return mb.exp(x=x, name="out")

    stays(unused)


def test_rows_that_are_given_as_such_stay() -> None:
    made = program_of(lambda x, y: back(mb.add(x=layer(rows(x)), y=y)), ((2, 5, 6), FP32), ((10, 6), FP32))
    before = text(made)
    assert lift_rows(made.functions["main"]) == 0
    assert text(made) == before


def test_one_row_for_all_stays() -> None:
    def build(x: Any, y: Any) -> Any:
        return back(mb.add(x=layer(rows(x)), y=mb.reshape(x=y, shape=[1, 6])))

    made = program_of(build, ((2, 5, 6), FP32), ((1, 1, 6), FP32))
    before = text(made)
    assert lift_rows(made.functions["main"]) == 0
    assert text(made) == before


def test_sizes_of_heads_that_are_not_known_stay() -> None:
    width = get_new_symbol()

    def build(x: Any) -> Any:
        y = layer(mb.reshape(x=x, shape=[-1, 6]))
        return mb.reshape(x=y, shape=mb.concat(values=[mb.gather(x=mb.shape(x=x), indices=[0, 1]), [6]], axis=0))

    made = program(build, shape=(2, 5, width, 2))
    before = text(made)
    assert lift_rows(made.functions["main"]) == 0
    assert text(made) == before


def test_operands_of_other_ranks_stay() -> None:
    made = program_of(lambda x, y: back(mb.add(x=layer(rows(x)), y=mb.exp(x=y))), ((2, 5, 6), FP32), ((6,), FP32))
    before = text(made)
    assert lift_rows(made.functions["main"]) == 0
    assert text(made) == before


def test_constants_of_a_higher_rank_stay() -> None:
    """(1, 1, 6) beside rows gives (1, 10, 6), which looks like what a reshape back gives, and (1, 1, 1, 6) more."""
    stays(lambda x: mb.add(x=layer(rows(x)), y=BIAS.reshape(1, 1, 6), name="out"), shape=(1, 10, 6))
    stays(lambda x: back(mb.add(x=layer(rows(x)), y=BIAS.reshape(1, 1, 1, 6))))
    stays(lambda x: back(mb.matmul(x=layer(rows(x)), y=WIDE.reshape(1, 6, 6))))


def test_rows_of_constants_stay() -> None:
    """They are not of (B, S), and nothing gives it to them."""
    given: Any = np.ones((10, 6), np.float32)
    stays(lambda x: back(mb.add(x=layer(rows(x)), y=mb.linear(x=given, weight=WIDE))))


def test_rows_that_stay_rows_are_no_end() -> None:
    stays(lambda x: mb.reshape(x=layer(rows(x)), shape=[10, 6], name="out"), shape=(10, 2, 3))


def test_what_mixes_rows_counts_wherever_it_is_found() -> None:
    def build(x: Any) -> Any:
        y = rows(x)
        mixed = mb.softmax(x=y, axis=0, name="mixed")
        return back(mb.add(x=layer(y), y=rows(mb.square(x=x)))), mixed

    stays(build)


def test_transposed_products_of_a_square_stay() -> None:
    def turned(x: Any) -> Any:
        y = mb.matmul(x=mb.reshape(x=x, shape=[6, 6]), y=WIDE, transpose_x=True)
        return mb.reshape(x=y, shape=[2, 3, 6], name="out")

    stays(turned, shape=(2, 3, 6))


def test_what_nothing_uses_keeps_no_rows() -> None:
    def build(x: Any) -> Any:
        y = layer(rows(x))
        mb.relu(x=y)
        return back(y)

    made = program(build)
    assert lift_rows(made.functions["main"]) == 1
    assert [op.outputs[0].rank for op in operations(made.functions["main"]) if op.op_type != "const"] == [3, 3, 3]


def test_other_reshapes_before_hide_no_group() -> None:
    def build(x: Any) -> Any:
        heads = mb.transpose(x=mb.reshape(x=x, shape=[2, 5, 2, 3]), perm=[0, 1, 3, 2])
        return back(layer(rows(mb.exp(x=mb.reshape(x=heads, shape=[2, 5, 6])))))

    assert [line.partition("(")[0].split()[-1] for line in lifted(build)][-3:] == ["exp", "linear", "identity"]
