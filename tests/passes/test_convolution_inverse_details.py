"""conv1x1-to-linear in detail: the moves of every place, refusals and where, unit axes, and names of outputs."""

# The bodies of programs are lambdas of as many parameters as they have inputs, for which no one type can be written.
# The methods of numpy arrays whose element type is not told have types that are not known either.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from milopt.mil import Program, get_new_symbol, mb, types
from milopt.opaque import opaque_class
from milopt.package import load
from milopt.passes.convolution_inverse import Conv1x1ToLinear, ConvAsLinear, LiftExpandDims, MergeUnitAxes
from milopt.passes.layout_ops import ENTRIES, Entry
from milopt.reports import NoMatch, Report
from milopt.rules import apply
from milopt.text import text

from .refusals import body, program_of, refusals
from .support import assert_same, op_types, twice

FP32, FP16, INT32 = types.fp32, types.fp16, types.int32
RULE = ConvAsLinear(images=False)
BIAS: Any = np.array([0.5, 1, 2, 3], np.float32)


def conv(shape: tuple[Any, ...], *, side: tuple[int, ...] = (), dtype: type = FP32, **given: Any) -> Program:
    number = np.float16 if dtype is FP16 else np.float32
    kernel: Any = np.arange(24 // given.get("groups", 1) * int(np.prod(side or 1)), dtype=number)
    held = kernel.reshape(4, -1, *(side or (1,) * (len(shape) - 2)))

    def build(x: Any) -> Any:
        return mb.conv(x=x, weight=mb.const(val=held, name="kernel"), **given, name="out")

    return program_of(build, (shape, dtype))


def run(program: Program, **options: Any) -> Report:
    report = Conv1x1ToLinear(**options).run(load(program))
    program.validate()
    return report


def rewritten(program: Program, *, images: bool = False) -> list[str]:
    assert apply(ConvAsLinear(images), program).applied == 1
    program.validate()
    return body(program)


def test_a_sequence() -> None:
    assert rewritten(conv((2, 6, 5), bias=BIAS)) == [
        "%0: fp32[2, 5, 6] = transpose(x=%x, perm=[0, 2, 1])",
        "%1: fp32[2, 5, 4] = linear(x=%0, weight=w0, bias=[0.5, 1.0, 2.0, 3.0])",
        "%2: fp32[2, 4, 5] = transpose(x=%1, perm=[0, 2, 1])",
    ]


def test_a_row() -> None:
    assert rewritten(conv((2, 6, 1, 5))) == [
        "%0: fp32[2, 5, 6, 1] = transpose(x=%x, perm=[0, 3, 1, 2])",
        "%1: fp32[2, 5, 6] = squeeze(x=%0, axes=[3])",
        "%2: fp32[2, 5, 4] = linear(x=%1, weight=w0)",
        "%3: fp32[2, 5, 4, 1] = expand_dims(x=%2, axes=[3])",
        "%4: fp32[2, 4, 1, 5] = transpose(x=%3, perm=[0, 2, 3, 1])",
    ]


def test_a_column() -> None:
    assert rewritten(conv((2, 6, 5, 1), bias=BIAS)) == [
        "%0: fp32[2, 5, 1, 6] = transpose(x=%x, perm=[0, 2, 3, 1])",
        "%1: fp32[2, 5, 6] = squeeze(x=%0, axes=[2])",
        "%2: fp32[2, 5, 4] = linear(x=%1, weight=w0, bias=[0.5, 1.0, 2.0, 3.0])",
        "%3: fp32[2, 5, 1, 4] = expand_dims(x=%2, axes=[2])",
        "%4: fp32[2, 4, 5, 1] = transpose(x=%3, perm=[0, 3, 1, 2])",
    ]


def test_an_image() -> None:
    assert rewritten(conv((2, 6, 3, 5), bias=BIAS), images=True) == [
        "%0: fp32[2, 3, 5, 6] = transpose(x=%x, perm=[0, 2, 3, 1])",
        "%1: fp32[2, 15, 6] = reshape(x=%0, shape=[2, 15, 6])",
        "%2: fp32[2, 15, 4] = linear(x=%1, weight=w0, bias=[0.5, 1.0, 2.0, 3.0])",
        "%3: fp32[2, 3, 5, 4] = reshape(x=%2, shape=[2, 3, 5, 4])",
        "%4: fp32[2, 4, 3, 5] = transpose(x=%3, perm=[0, 3, 1, 2])",
    ]


@pytest.mark.parametrize("perm", [[0, 3, 1, 2], [0, -1, 1, 2]])
def test_an_image_with_its_channels_last(perm: list[int]) -> None:
    def build(x: Any) -> Any:
        return mb.conv(x=mb.transpose(x=x, perm=perm), weight=np.ones((4, 6, 1, 1), np.float32), name="out")

    program = program_of(build, ((2, 3, 5, 6), FP32))
    assert run(program).applied == 1
    assert [line.partition(" = ")[2] for line in body(program)] == [
        "reshape(x=%x, shape=[2, 15, 6])",
        "linear(x=%0, weight=w0)",
        "reshape(x=%1, shape=[2, 3, 5, 4])",
        "transpose(x=%2, perm=[0, 3, 1, 2])",
    ]


def test_lengths_that_are_not_known_keep_their_symbols() -> None:
    length = get_new_symbol()
    for shape in ((1, 6, 1, length), (1, 6, length), (1, 6, length, 1), (length, 6, 1, 5)):
        program = conv(shape)
        given = program.functions["main"].outputs[0].shape
        rewritten(program)
        assert program.functions["main"].outputs[0].shape == given
    image = conv((2, 6, 3, length))
    given = image.functions["main"].outputs[0].shape
    assert "reshape(x=%0, shape=[2, -1, 6])" in "\n".join(rewritten(image, images=True))
    assert image.functions["main"].outputs[0].shape == given
    batched = conv((length, 6, 3, 5))
    lines = "\n".join(rewritten(batched, images=True))
    assert "shape=[-1, 15, 6])" in lines
    assert "shape=[-1, 3, 5, 4])" in lines


def test_what_stays_and_where() -> None:
    images = "it is a convolution of images, where linear is not worth its transposes"
    cases: list[tuple[Program, tuple[str, str]]] = [
        (conv((2, 6, 5, 5), side=(3, 3)), ("its kernel is 3x3", "kernel")),
        (conv((2, 6, 5, 5), side=(1, 2)), ("its kernel is 1x2", "kernel")),
        (conv((2, 6, 5), side=(2,)), ("its kernel is 2", "kernel")),
        (conv((2, 6, 1, 5), strides=[1, 2]), ("its strides are [1 2]", "out")),
        (conv((2, 6, 1, 5), groups=2), ("it has 2 groups", "out")),
        (conv((2, 6, 1, 5), pad_type="custom", pad=[0, 0, 0, 1]), ("it pads by [0 0 0 1]", "out")),
        (conv((2, 6, 1, 1, 5)), ("its operand has rank 5", "x")),
        (conv((2, 6, 3, 5)), (images, "x")),
    ]
    for program, wanted in cases:
        assert refusals(RULE, program) == [wanted]
    height, width = get_new_symbol(), get_new_symbol()
    unknown = ("2 sizes of its image are not known", "x")
    assert refusals(ConvAsLinear(images=True), conv((1, 6, height, width))) == [unknown]
    assert refusals(ConvAsLinear(images=True), conv((height, 6, width, 3))) == [unknown]


def test_images_of_another_transpose_stay() -> None:
    def build(x: Any) -> Any:
        moved = mb.transpose(x=x, perm=[0, 2, 3, 1], name="moved")
        return mb.conv(x=moved, weight=np.ones((4, 6, 1, 1), np.float32), name="out")

    reason = "it is a convolution of images, where linear is not worth its transposes"
    assert refusals(RULE, program_of(build, ((2, 5, 6, 3), FP32))) == [(reason, "moved")]


def test_strides_groups_and_padding_that_change_nothing() -> None:
    for given in (
        {"strides": [1, 1], "groups": 1},
        {"pad_type": "custom", "pad": [0, 0, 0, 0]},
        {"pad_type": "valid", "pad": [1, 1, 1, 1]},
        {"pad_type": "same", "dilations": [2, 2]},
    ):
        before, after = twice(lambda given=given: conv((2, 6, 1, 5), **given))  # type: ignore[misc]
        assert run(after).applied == 1
        assert_same(before, after)
    half = conv((2, 6, 1, 5), dtype=FP16)
    assert run(half).applied == 1


def test_a_conv_of_integers_stays() -> None:
    """MIL builds none; a package may hold one."""
    program = conv((2, 6, 1, 5))
    value: Any = program.functions["main"].inputs["x"]
    value._sym_type = types.tensor(INT32, (2, 6, 1, 5))
    assert refusals(RULE, program) == [("linear takes no int32", "x")]


@pytest.mark.parametrize(
    ("left", "reason"),
    [((), "its strides are None"), (("strides",), "it has None groups")],
)
def test_an_op_of_which_not_all_is_known_stays(left: tuple[str, ...], reason: str) -> None:
    program = conv((2, 6, 1, 5))
    op: Any = next(op for op in program.functions["main"].operations if op.op_type == "conv")
    op.__class__ = opaque_class("conv")
    op._input_vars = {name: var for name, var in op._input_vars.items() if name in ("x", "weight", *left)}
    op.name_inputs(op._input_vars)
    assert refusals(RULE, program) == [(reason, "out")]


def test_weights_are_named_for_their_kernels() -> None:
    program = conv((2, 6, 1, 5))
    run(program)
    linear = next(op for op in program.functions["main"].operations if op.op_type == "linear")
    assert linear.inputs["weight"].name == "kernel_2d"


def units(build: Any, shape: tuple[Any, ...]) -> list[str]:
    before, after = (program_of(build, (shape, FP32)) for _ in range(2))
    apply(MergeUnitAxes(), after)
    after.validate()
    assert_same(before, after)
    return [line.partition(" = ")[2] for line in body(after)]


def both(first: str, axes: list[int] | None, second: str, others: list[int] | None) -> Any:
    """Two of ``squeeze`` and ``expand_dims`` in a row."""

    def build(x: Any) -> Any:
        y = getattr(mb, first)(x=x, **({} if axes is None else {"axes": axes}))
        return mb.relu(x=getattr(mb, second)(x=y, **({} if others is None else {"axes": others})), name="out")

    return build


@pytest.mark.parametrize(
    ("first", "axes", "second", "others", "shape", "wanted"),
    [
        ("expand_dims", [0, 1], "squeeze", [1], (3, 4), ["expand_dims(x=%x, axes=[0])"]),
        ("expand_dims", [0, 3], "squeeze", [0], (3, 4), ["expand_dims(x=%x, axes=[2])"]),
        ("expand_dims", [-1], "squeeze", [-1], (3, 4), []),
        ("expand_dims", [0], "squeeze", [1], (1, 4), []),
        ("expand_dims", [1], "squeeze", None, (3, 4), []),
        ("squeeze", [0, 2], "expand_dims", [0], (1, 3, 1, 4), ["squeeze(x=%x, axes=[2])"]),
        ("squeeze", None, "expand_dims", [1], (1, 3, 1, 4), ["squeeze(x=%x, axes=[0])"]),
        ("squeeze", [0], "squeeze", [-2], (1, 3, 1, 4), ["squeeze(x=%x, axes=[0, 2])"]),
        ("squeeze", [2], "squeeze", [0], (1, 3, 1, 4), ["squeeze(x=%x, axes=[0, 2])"]),
        ("expand_dims", [1], "expand_dims", [0], (3, 4), ["expand_dims(x=%x, axes=[0, 2])"]),
        ("expand_dims", [0], "expand_dims", [3], (3, 4), ["expand_dims(x=%x, axes=[0, 3])"]),
        (
            "squeeze",
            [0],
            "expand_dims",
            [-1],
            (1, 3, 4),
            ["squeeze(x=%x, axes=[0])", "expand_dims(x=%0, axes=[-1])"],
        ),
        (
            "expand_dims",
            [3],
            "squeeze",
            [0],
            (1, 3, 4),
            ["expand_dims(x=%x, axes=[3])", "squeeze(x=%0, axes=[0])"],
        ),
        ("squeeze", [1], "expand_dims", [1], (3, 1, 4), []),
        ("squeeze", [1], "expand_dims", [1, 2], (3, 1, 4), ["expand_dims(x=%x, axes=[2])"]),
        ("squeeze", [1, 2], "expand_dims", [1], (3, 1, 1, 4), ["squeeze(x=%x, axes=[2])"]),
    ],
)
def test_unit_axes_in_a_row(first: str, axes: Any, second: str, others: Any, shape: Any, wanted: list[str]) -> None:
    lines = units(both(first, axes, second, others), shape)
    assert lines[:-1] == wanted
    assert lines[-1] == f"relu(x=%{len(wanted) - 1 if wanted else 'x'})"


def test_unit_axes_that_go_where_others_come() -> None:
    program = program_of(both("squeeze", [0, 2], "expand_dims", [2]), ((1, 3, 1, 4), FP32))
    assert [reason for reason, _ in refusals(MergeUnitAxes(), program)] == ["axes (0, 2) go and others come"]


def test_a_value_with_a_unit_axis_that_is_used_otherwise_stays() -> None:
    def build(x: Any) -> Any:
        y = mb.expand_dims(x=x, axes=[0])
        return mb.relu(x=y, name="one"), mb.relu(x=mb.squeeze(x=y, axes=[0]), name="two")

    program = program_of(build, ((3, 4), FP32))
    assert apply(MergeUnitAxes(), program).applied == 1
    assert [line.partition(" = ")[2] for line in body(program)] == [
        "expand_dims(x=%x, axes=[0])",
        "relu(x=%0)",
        "relu(x=%x)",
    ]


def lifted(axes: list[int], shape: tuple[int, ...], weight: tuple[int, int] = (4, 6)) -> Program:
    def build(x: Any) -> Any:
        wide = mb.expand_dims(x=x, axes=mb.const(val=np.array(axes, np.int32), name="axes"))
        return mb.linear(x=wide, weight=np.ones(weight, np.float32), bias=BIAS, name="out")

    return program_of(build, (shape, FP32))


def test_expand_dims_behind_a_layer() -> None:
    for axes, told in (([0, -2], [0, 1]), ([0], [0]), ([1], [1])):
        shape = (6,) if axes != [1] else (5, 6)
        before, after = twice(lambda axes=axes, shape=shape: lifted(axes, shape))  # type: ignore[misc]
        assert apply(LiftExpandDims(), after).applied == 1
        lines = [line.partition(" = ")[2] for line in body(after)]
        assert lines == [
            "linear(x=%x, weight=w0, bias=[0.5, 1.0, 2.0, 3.0])",
            f"expand_dims(x=%0, axes={told})",
        ]
        assert_same(before, after)


def test_expand_dims_that_makes_the_channels_stays() -> None:
    for axes, shape in (([-1], (6,)), ([1], (6,)), ([0, 2], (6,)), ([2], (5, 6))):
        reason = ("its channels are a new axis", "axes")
        assert refusals(LiftExpandDims(), lifted(axes, shape, (4, 1))) == [reason]


def test_the_outputs_of_a_function_keep_their_names() -> None:
    """An identity that was there stays; one that the pass needed for a name goes."""

    def build(x: Any) -> Any:
        y = mb.conv(x=x, weight=np.ones((4, 6, 1, 1), np.float32))
        return mb.identity(x=y, name="kept"), mb.relu(x=y, name="other")

    program = program_of(build, ((2, 6, 1, 5), FP32))
    assert run(program).applied == 1
    assert (op_types(program).count("identity"), [var.name for var in program.functions["main"].outputs]) == (
        1,
        ["kept", "other"],
    )


def test_there_and_back_leaves_no_identity() -> None:
    def build(x: Any) -> Any:
        y = mb.transpose(x=mb.conv(x=x, weight=np.ones((4, 6, 1), np.float32)), perm=[0, 2, 1], name="out")
        return y, mb.relu(x=y, name="positive")

    program = program_of(build, ((2, 6, 5), FP32))
    assert run(program).applied == 1
    assert [line.partition(" = ")[2] for line in body(program)] == [
        "transpose(x=%x, perm=[0, 2, 1])",
        "linear(x=%0, weight=w0)",
        "relu(x=%1)",
    ]
    main = program.functions["main"]
    assert [(var.name, var.op.name if var.op else "") for var in main.outputs] == [
        ("out", "out"),
        ("positive", "positive"),
    ]


def test_options_and_a_program_without_convolutions() -> None:
    program = program_of(lambda x: mb.identity(x=mb.relu(x=x), name="out"), ((2, 6), FP32))
    before = text(program)
    assert (run(program).applied, text(program)) == (0, before)
    assert Conv1x1ToLinear() == Conv1x1ToLinear(images=False) != Conv1x1ToLinear(images=True)


def test_siblings_share_their_moves_and_kernels() -> None:
    def build(x: Any) -> Any:
        kernel: Any = np.arange(24, dtype=np.float32).reshape(4, 6, 1, 1)
        return tuple(
            mb.relu(x=mb.conv(x=x, weight=mb.const(val=kernel), name=name), name=f"{name}_out") for name in ("a", "b")
        )

    before, after = (program_of(build, ((2, 6, 1, 5), FP32)) for _ in range(2))
    assert run(after).applied == 2
    kinds = op_types(after)
    assert (kinds.count("transpose"), kinds.count("squeeze")) == (3, 1)
    weights = {op.inputs["weight"] for op in after.functions["main"].operations if op.op_type == "linear"}
    assert len(weights) == 1
    assert_same(before, after)


@pytest.mark.parametrize("source", ["an input", "one of several results", "an output itself", "a constant"])
def test_names_that_only_an_identity_can_give(source: str) -> None:
    """Two moves go, and what is left has a name of its own, or none to give up: an op of two results, an input."""

    def build(x: Any) -> Any:
        parts = mb.split(x=x, num_splits=2, axis=0, name="parts")
        given = {
            "an input": x,
            "one of several results": parts[0],
            "an output itself": mb.relu(x=x, name="first"),
            "a constant": mb.const(val=BIAS, name="held"),
        }
        kept = mb.squeeze(x=mb.expand_dims(x=given[source], axes=[0]), axes=[0], name="kept")
        made = mb.conv(x=parts[1], weight=np.ones((4, 6, 1), np.float32), name="out")
        return (given[source], kept, made) if source == "an output itself" else (kept, made)

    before, after = (program_of(build, ((2, 6, 5), FP32)) for _ in range(2))
    assert run(after).applied == 1
    names = [var.name for var in before.functions["main"].outputs]
    assert [var.name for var in after.functions["main"].outputs] == names
    assert op_types(after).count("identity") == 1
    assert {op.name for op in after.functions["main"].operations} >= {"kept"}
    assert_same(before, after)


def test_an_output_that_is_an_input_and_several_that_get_their_names_back() -> None:
    def build(x: Any) -> Any:
        made = [mb.conv(x=each(x=x), weight=np.ones((4, 6, 1), np.float32)) for each in (mb.relu, mb.exp)]
        return (x, *(mb.transpose(x=y, perm=[0, 2, 1], name=name) for y, name in zip(made, "ab", strict=True)))

    before, after = (program_of(build, ((2, 6, 5), FP32)) for _ in range(2))
    assert run(after).applied == 2
    main = after.functions["main"]
    assert [(var.name, var.op.op_type if var.op else "") for var in main.outputs] == [
        ("x", ""),
        ("a", "linear"),
        ("b", "linear"),
    ]
    assert "identity" not in op_types(after)
    assert_same(before, after)


KERNEL: Any = np.ones((6, 6, 1, 1), np.float32)
POOLED = "it sees what was pooled from an image"


def seen(between: Any, shape: tuple[int, ...] = (1, 6, 4, 4)) -> Program:
    """A layer on what ``between`` makes of an input, named ``between``."""
    return program_of(lambda x: mb.conv(x=between(x), weight=KERNEL, name="out"), (shape, FP32))


def mean(x: Any, *axes: int, name: str = "pooled") -> Any:
    return mb.reduce_mean(x=x, axes=list(axes), keep_dims=True, name=name)


@pytest.mark.parametrize(
    "pool", ["avg_pool", "l2_pool", "max_pool", "reduce_max", "reduce_mean", "reduce_min", "reduce_sum"]
)
def test_every_pool_of_an_image(pool: str) -> None:
    def pooled(x: Any) -> Any:
        if pool.startswith("reduce"):
            return getattr(mb, pool)(x=x, axes=[2, 3], keep_dims=True, name="pooled")
        return getattr(mb, pool)(x=x, kernel_sizes=[4, 4], pad_type="valid", name="pooled")

    assert refusals(RULE, seen(pooled)) == [(POOLED, "pooled")]
    assert apply(ConvAsLinear(images=True), seen(pooled)).applied == 1


def test_layers_behind_a_pool_stay_however_many() -> None:
    def build(x: Any) -> Any:
        return mb.relu(x=doubled(mb.conv(x=mean(x, 2, 3), weight=KERNEL, name="first")), name="last")

    assert refusals(RULE, seen(build)) == [(POOLED, "pooled"), (POOLED, "last")]


def doubled(x: Any) -> Any:
    y = mb.relu(x=x)
    for _ in range(40):
        y = mb.add(x=y, y=y)
    return y


@pytest.mark.parametrize(
    ("between", "shape"),
    [
        (lambda x: mb.relu(x=x), (1, 6, 1, 1)),
        (doubled, (1, 6, 1, 1)),
        (lambda x: mean(x, 3), (1, 6, 1, 4)),
        (lambda x: mean(x, 2), (1, 6, 4, 1)),
        (lambda x: mean(x, 2), (1, 6, 4, 4)),
        (lambda x: mean(mb.relu(x=x), 3), (1, 6, 4, 4)),
        (lambda x: mb.slice_by_size(x=x, begin=[0, 0, 0, 0], size=[1, 6, 1, 1]), (1, 6, 4, 4)),
        (lambda x: mean(mb.conv(x=mean(x, 2), weight=KERNEL), 3), (1, 6, 4, 4)),
        (lambda x: mean(x, 2, 3), (1, 6, 1, 1)),
        (lambda x: mean(mb.expand_dims(x=x, axes=[0, 3]), 2), (6, 4)),
        (lambda x: mb.expand_dims(x=mb.reduce_mean(x=x, axes=[2], keep_dims=True), axes=[3]), (1, 6, 4)),
    ],
)
def test_one_token_that_no_image_was_pooled_to(between: Any, shape: tuple[int, ...]) -> None:
    program = seen(between, shape)
    assert apply(RULE, program).applied == op_types(seen(between, shape)).count("conv")


def test_what_lies_in_a_list_is_no_image() -> None:
    def build(x: Any) -> Any:
        held = mb.make_list(init_length=2, elem_shape=(1, 6, 1, 1), dtype="fp32", dynamic_length=False)
        one = mb.list_read(ls=mb.list_write(ls=held, index=0, value=x), index=0)
        return mb.conv(x=one, weight=KERNEL, name="out")

    program = program_of(build, ((1, 6, 1, 1), FP32))
    assert run(program).applied == 1
    assert op_types(program) == ["make_list", "list_write", "list_read", "reshape", "linear", "reshape"]


def test_images_of_another_op_stay() -> None:
    reason = "it is a convolution of images, where linear is not worth its transposes"
    assert refusals(RULE, seen(lambda x: mb.relu(x=x, name="positive"))) == [(reason, "positive")]


def between_layers() -> Program:
    """Over channels, as a softmax there is, a linear layer's layout saves the moves between two."""

    def build(x: Any) -> Any:
        y = mb.silu(x=mb.conv(x=x, weight=KERNEL), name="gate")
        return mb.conv(x=mb.softmax(x=y, axis=1), weight=KERNEL, name="out")

    return program_of(build, ((1, 6, 1, 5), FP32))


def test_what_lies_between_layers_is_laid_out_for_them() -> None:
    before, after = twice(between_layers)
    report = run(after)
    assert (report.applied, report.misses) == (2, [])
    assert body(after) == [
        "%0: fp32[1, 1, 5, 6] = transpose(x=%x, perm=[0, 2, 3, 1])",
        "%1: fp32[1, 5, 6] = squeeze(x=%0, axes=[1])",
        "%2: fp32[1, 5, 6] = linear(x=%1, weight=w0)",
        "%3: fp32[1, 5, 6] = silu(x=%2)",
        "%4: fp32[1, 5, 6] = softmax(x=%3, axis=2)",
        "%5: fp32[1, 5, 6] = linear(x=%4, weight=w0)",
        "%6: fp32[1, 6, 5] = transpose(x=%5, perm=[0, 2, 1])",
        "%7: fp32[1, 6, 1, 5] = expand_dims(x=%6, axes=[2])",
    ]
    assert_same(before, after)


def test_what_cannot_be_laid_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(op: Any, *_: Any) -> Any:
        raise NoMatch("{} is refused", op.op_type, at=op)

    monkeypatch.setitem(ENTRIES, "silu", Entry(ENTRIES["silu"].read, refuse))
    before, after = twice(between_layers)
    report = run(after)
    told = [(miss.function, miss.place, miss.reason) for miss in report.misses]
    assert (report.applied, told) == (2, [("main", "gate", "silu is refused")])
    assert op_types(after).count("transpose") == 4
    assert_same(before, after)
