"""split-head in detail: which layer is the head, what is written for each output, names, lengths and refusals."""

# The bodies of programs are lambdas of as many parameters as they have inputs, for which no one type can be written.
# The methods of numpy arrays whose element type is not told have types that are not known either.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

from milopt.mil import Program, get_new_symbol, is_output, mb, types
from milopt.package import load
from milopt.passes.head import SplitHead
from milopt.passes.head_finding import find_head
from milopt.passes.head_writing import build_slices
from milopt.reports import NoMatch
from milopt.signature_head import HEAD_KEY, HeadSignature
from milopt.signature_layout import LAYOUT_KEY
from milopt.text import text

from .refusals import body, program_of
from .support import op_types
from .test_head import BIAS, HEADS, TYPED, WEIGHT, blocks, palette, program, softcap, split

FP32, INT32 = types.fp32, types.int32

# the argument that is the weight, the axis of the vocabulary there, and in the result and behind each op of the path
FOUND: dict[str, tuple[str, int, tuple[int, ...], list[str]]] = {
    "linear": ("weight", 0, (2,), []),
    "matmul": ("y", 1, (2,), []),
    "matmul, turned": ("y", 0, (2,), []),
    "matmul, left": ("x", 0, (1,), []),
    "matmul, left and turned": ("x", 1, (1,), []),
    "conv": ("weight", 0, (1, 1, 2, 3, 2), ["squeeze", "transpose", "expand_dims", "squeeze"]),
    "softcap": ("weight", 0, (2, 2, 2, 2, 2), ["real_div", "tanh", "mul", "add"]),
    "palette": ("weight", 0, (2,), []),
}


@pytest.mark.parametrize("name", FOUND)
def test_the_head_that_is_found(name: str) -> None:
    head = find_head(program(HEADS[name]).functions["main"])
    path = [op.op_type for op in head.path]
    assert (head.argument, head.weight_axis, head.axes, path) == FOUND[name]
    assert (head.size, head.tied, head.output.name) == (24, None, "logits")
    with pytest.raises(FrozenInstanceError):
        head.tied = "rows"  # type: ignore[misc]


def test_axes_that_are_squeezed_without_being_named() -> None:
    def build(x: Any) -> Any:
        y = mb.expand_dims(x=mb.linear(x=x, weight=WEIGHT), axes=[0, -1])
        return mb.squeeze(x=mb.transpose(x=y, perm=[-1, 0, 3, 2, 1]), name="logits")

    head = find_head(program(build).functions["main"])
    assert head.axes == (2, 3, 2, 0)
    _, after, _ = split(program(build), slices=2, output="top-k", k=3)
    assert [tuple(var.shape) for var in after.function().outputs] == [(3, 5), (3, 5)]


def lookup(x: Any, *, other: bool = False) -> Any:
    """A tied head, or one whose table has other bytes."""
    table = mb.const(val=WEIGHT, name="table")
    looked = mb.const(val=WEIGHT + 1, name="looked") if other else table
    ids = mb.cast(x=mb.reduce_sum(x=x, axes=[-1]), dtype="int32")
    rows = mb.gather(x=looked, indices=ids, axis=0, name="rows")
    return mb.linear(x=mb.add(x=mb.gather(x=x, indices=[0], axis=0), y=rows), weight=table, name="logits")


def test_tied_heads() -> None:
    assert find_head(program(lookup).functions["main"]).tied == "rows"
    assert find_head(program(lambda x: lookup(x, other=True)).functions["main"]).tied is None
    note = "the head is also the table of rows: 576 bytes are stored a second time"
    assert split(program(lookup), slices=2)[2].notes == ["24 entries of logits: 2 slices of 12", note]
    assert note not in split(program(lookup), slices=1, output="argmax")[2].notes


ARGMAX = [
    "%0: fp32[1, 5, 8] = linear(x=%x, weight=w0)",
    "%1: fp32[1, 5, 8] = linear(x=%x, weight=w1)",
    "%2: fp32[1, 5, 8] = linear(x=%x, weight=w2)",
    "%3: int32[1, 5, 1] = reduce_argmax(x=%0, axis=2, keep_dims=true)",
    "%4: int32[1, 5, 1] = reduce_argmax(x=%1, axis=2, keep_dims=true)",
    "%5: int32[1, 5, 1] = reduce_argmax(x=%2, axis=2, keep_dims=true)",
    "%6: int32[1, 5, 1] = add(x=%4, y=8)",
    "%7: int32[1, 5, 1] = add(x=%5, y=16)",
    "%8: int32[1, 5, 3] = concat(values=(%3, %6, %7), axis=2)",
    "%9: fp32[1, 5, 1] = reduce_max(x=%0, axes=[2], keep_dims=true)",
    "%10: fp32[1, 5, 1] = reduce_max(x=%1, axes=[2], keep_dims=true)",
    "%11: fp32[1, 5, 1] = reduce_max(x=%2, axes=[2], keep_dims=true)",
    "%12: fp32[1, 5, 3] = concat(values=(%9, %10, %11), axis=2)",
    "%13: int32[1, 5, 1] = reduce_argmax(x=%12, axis=2, keep_dims=true)",
    "%14: int32[1, 5, 1] = gather_along_axis(x=%8, indices=%13, axis=2)",
    "%15: int32[1, 5] = squeeze(x=%14, axes=[2])",
    "%16: fp32[1, 5] = reduce_max(x=%12, axes=[2])",
]
TOP_K = [
    *ARGMAX[:3],
    "%3: fp32[1, 5, 8], %4: int32[1, 5, 8] = topk(x=%0, k=8, axis=2)",
    "%5: fp32[1, 5, 8], %6: int32[1, 5, 8] = topk(x=%1, k=8, axis=2)",
    "%7: fp32[1, 5, 8], %8: int32[1, 5, 8] = topk(x=%2, k=8, axis=2)",
    "%9: fp32[1, 5, 24] = concat(values=(%3, %5, %7), axis=2)",
    "%10: int32[1, 5, 8] = add(x=%6, y=8)",
    "%11: int32[1, 5, 8] = add(x=%8, y=16)",
    "%12: int32[1, 5, 24] = concat(values=(%4, %10, %11), axis=2)",
    "%13: fp32[1, 5, 9], %14: int32[1, 5, 9] = topk(x=%9, k=9, axis=2)",
    "%15: int32[1, 5, 9] = gather_along_axis(x=%12, indices=%14, axis=2)",
]
WRITTEN: dict[tuple[str, int], list[str]] = {
    ("argmax", 3): ARGMAX,
    ("argmax", 1): [
        "%0: fp32[1, 5, 24] = linear(x=%x, weight=w0)",
        "%1: int32[1, 5] = reduce_argmax(x=%0, axis=2)",
        "%2: fp32[1, 5] = reduce_max(x=%0, axes=[2])",
    ],
    ("top-k", 3): TOP_K,
    ("top-k", 1): [
        "%0: fp32[1, 5, 24] = linear(x=%x, weight=w0)",
        "%1: fp32[1, 5, 9], %2: int32[1, 5, 9] = topk(x=%0, k=9, axis=2)",
    ],
    ("slices", 3): ARGMAX[:3],
    ("logits", 3): [*ARGMAX[:3], "%3: fp32[1, 5, 24] = concat(values=(%0, %1, %2), axis=2)"],
}


@pytest.mark.parametrize(("output", "slices"), WRITTEN)
def test_what_is_written(output: str, slices: int) -> None:
    """Columns would be (24, 5): the ops behind the slices are those of the vocabulary's axis."""
    after = split(program(HEADS["linear"]), slices=slices, output=output, k=9)[1]
    lines = [line.replace(", keep_dims=false", "") for line in body(after.program)]
    assert lines == WRITTEN[output, slices]


def test_what_is_done_to_each_logit_is_done_in_the_slices() -> None:
    after = split(program(softcap), slices=2)[1]
    lines = [line.partition(" = ")[2] for line in body(after.program)]
    numbers = [str([float(each) for each in range(begin, begin + 12)]) for begin in (0, 12)]
    rest = ["real_div(x=%1, y=30.0)", "tanh(x=%2)", "mul(x=%3, y=30.0)", f"add(x=%4, y={numbers[0]})"]
    other = ["real_div(x=%6, y=30.0)", "tanh(x=%7)", "mul(x=%8, y=30.0)", f"add(x=%9, y={numbers[1]})"]
    assert lines[2:6] == rest
    assert [*lines[7:11], lines[11]] == [*other, "concat(values=(%5, %10), axis=2)"]
    layers = [op for op in after.function().operations if op.op_type == "linear"]
    for op, begin in zip(layers, (0, 12), strict=True):
        np.testing.assert_array_equal(op.inputs["weight"].val, WEIGHT[begin : begin + 12])
        np.testing.assert_array_equal(op.inputs["bias"].val, BIAS[begin : begin + 12])


@pytest.mark.parametrize(
    ("output", "names"),
    [
        ("logits", ["logits"]),
        ("slices", ["logits1", "logits2"]),
        ("argmax", ["argmax_idx", "argmax_val"]),
        ("top-k", ["topk_idx", "topk_val"]),
    ],
)
def test_names(output: str, names: list[str]) -> None:
    """Outputs are named for what they are, their ops too; parts of a weight for where they begin."""

    def build(x: Any) -> Any:
        head = mb.linear(x=x, weight=mb.const(val=WEIGHT, name="table"), name="logits")
        return mb.relu(x=x, name="before"), head, mb.exp(x=x, name="behind")

    after = split(program(build), slices=2, output=output, k=2)[1]
    outputs = after.function().outputs
    assert [var.name for var in outputs] == ["before", *names, "behind"]
    assert all(is_output(var) for var in outputs)
    for var in outputs:
        assert var.op is not None
        assert (var.op.name == var.name) == (len(var.op.outputs) == 1)
    layers = [op for op in after.function().operations if op.op_type == "linear"]
    assert [op.inputs["weight"].name for op in layers] == ["table_0", "table_12"]
    assert len({op.name for op in after.function().operations}) == len(list(after.function().operations))


def test_operands_that_are_no_logits_stay_whole() -> None:
    """One number, one for all entries, one for each position, and as many positions as entries."""

    def build(x: Any) -> Any:
        y = mb.mul(x=mb.linear(x=x, weight=WEIGHT), y=np.float32(2))
        y = mb.sub(x=np.full((1, 1, 1), 3, np.float32), y=y)
        y = mb.maximum(x=y, y=np.arange(24, dtype=np.float32).reshape(24, 1))
        y = mb.clip(x=y, alpha=np.float32(-1), beta=np.float32(24))
        return mb.add(x=y, y=np.arange(24, dtype=np.float32).reshape(1, 24), name="logits")

    made = program(build, shape=(1, 24, 6))
    after = split(made, slices=2)[1]
    lines = [line.partition(" = ")[2] for line in body(after.program)]
    for wanted in ("mul(x=%0, y=2.0)", "sub(x=[[[3.0]]], y=%1)", "clip(x=%3, alpha=-1.0, beta=24.0)"):
        assert wanted in lines
    shapes = [op.inputs["y"].shape for op in after.function().operations if op.op_type in ("maximum", "add")]
    assert shapes == [(24, 1), (1, 12), (24, 1), (1, 12)]


def test_numbers_along_the_vocabulary_of_a_conv() -> None:
    def build(x: Any) -> Any:
        y = mb.conv(x=mb.transpose(x=x, perm=[0, 2, 1]), weight=WEIGHT[..., None], bias=BIAS)
        return mb.add(x=y, y=np.arange(24, dtype=np.float32).reshape(24, 1), name="logits")

    _, after, report = split(program(build), slices=2)
    assert report.applied == 1
    shapes = [op.inputs["y"].shape for op in after.function().operations if op.op_type == "add"]
    assert shapes == [(12, 1), (12, 1)]
    assert "axis=1)" in body(after.program)[-1]


def test_lengths_that_are_not_known_keep_their_symbols() -> None:
    length = get_new_symbol()
    made = program(HEADS["linear"], shape=(1, length, 6))
    given = made.functions["main"].outputs[0].shape
    after = split(made, slices=2)[1]
    shapes = [op.outputs[0].shape for op in after.function().operations if op.op_type in ("linear", "concat")]
    assert shapes == [(1, length, 12), (1, length, 12), given]


def sizes(rows: int, *, made: Callable[[Any], Any] | None = None, **options: Any) -> tuple[int, ...]:
    def plain(x: Any) -> Any:
        return mb.linear(x=x, weight=np.zeros((rows, 6), np.float32), name="logits")

    model = load(program(made or plain))
    SplitHead(output="slices", **options).run(model)
    said = HeadSignature.from_metadata(model.metadata)
    return () if said is None else said.sizes


def test_lengths_at_their_limits() -> None:
    assert sizes(24, limit=24) == ()
    assert sizes(24, limit=23) == (12, 12)
    assert sizes(25, limit=24) == (13, 12)  # five slices of five are more than twice as many
    assert sizes(9, limit=4) == (3, 3, 3)
    assert sizes(22, limit=3) == (2,) * 11  # of eight the next that divides is eleven, less than sixteen
    assert sizes(23, limit=4) == (4, 4, 4, 4, 4, 3)
    assert sizes(24, limit=1) == (1,) * 24
    assert sizes(24, slices=24) == (1,) * 24
    assert sizes(24, slices=2, limit=3) == (12, 12)  # the number that is asked for is the number
    assert sizes(24, made=palette, limit=4) == (4,) * 6
    assert sizes(24, made=palette, limit=3) == ()  # a group is longer
    assert sizes(24, made=palette, limit=23) == (12, 12)
    assert sizes(32768) == (16384, 16384)
    assert sizes(32770) == (6554,) * 5
    assert sizes(24, made=blocks, slices=5) == (5, 5, 5, 5, 4)


def test_one_slice_is_enough_for_the_largest() -> None:
    for output in ("argmax", "top-k"):
        model = load(program(HEADS["linear"]))
        report = SplitHead(output=output).run(model)
        assert (report.applied, report.tried) == (1, 1)
        assert report.notes[0] == "24 entries of logits: 1 slices of 24"


def refused(build: Callable[[Any], Any], **options: Any) -> list[tuple[str, str]]:
    made = program(build)
    before = text(made)
    model = load(made)
    report = SplitHead(**options).run(model)
    assert (report.applied, report.notes, text(model.program), HEAD_KEY in model.metadata) == (0, [], before, False)
    return [(miss.reason, miss.place) for miss in report.misses]


def layer(x: Any, **given: Any) -> Any:
    return mb.linear(x=x, weight=WEIGHT, **given)


def test_refusals_and_where() -> None:
    two: dict[str, Any] = {"slices": 2}
    wide: Any = np.ones((2, 1, 1, 1), np.float32)
    assert refused(HEADS["linear"]) == [("its 24 entries are within 16384", "logits")]
    assert refused(palette, slices=7) == [("it has 6 groups of 4, which are no 7 slices", "logits")]
    assert refused(HEADS["linear"], slices=25) == [("it has 24 groups of 1, which are no 25 slices", "logits")]
    assert refused(lambda x: mb.softmax(x=layer(x, name="y"), name="logits"), **two) == [
        ("softmax comes before it, and no layer", "logits")
    ]
    assert refused(lambda x: (y := layer(x, name="y"), mb.relu(x=y, name="logits")), **two) == [
        ("a value before the output is an output too", "y")
    ]
    assert refused(
        lambda x: (y := layer(x, name="y"), mb.relu(x=y, name="logits"), mb.exp(x=y, name="z"))[1:], **two
    ) == [("a value before the output is used otherwise", "y")]
    assert refused(lambda x: mb.mul(x=(y := layer(x)), y=y, name="logits"), **two) == [
        ("mul of 2 computed values comes before it", "logits")
    ]
    assert refused(lambda x: mb.mul(x=layer(x), y=wide, name="logits"), **two) == [("it is enlarged", "logits")]
    assert refused(lambda x: mb.relu(x=x, name="logits"), **two) == [("it is an input", "logits")]
    assert refused(lambda x: mb.linear(x=x, weight=WEIGHT[:1], name="logits"), **two) == [
        ("it is a single number", "logits")
    ]
    assert refused(lambda x: mb.reshape(x=layer(x, name="y"), shape=[1, 10, 12], name="logits"), **two) == [
        ("reshape comes before it, and no layer", "logits")
    ]
    assert refused(lambda x: mb.relu(x=x, name="out"), **two) == [
        ("no output comes from a layer with a constant weight", "")
    ]
    assert refused(
        lambda x: (layer(x, name="logits2"), mb.linear(x=x, weight=WEIGHT, name="logits")), slices=2, output="slices"
    ) == [("there is a value named logits2 already", "logits")]
    assert refused(
        lambda x: mb.exp(x=layer(mb.relu(x=x, name="argmax_val")), name="logits"), slices=2, output="argmax"
    ) == [("exp comes before it, and no layer", "logits")]
    assert refused(
        lambda x: mb.relu(x=layer(mb.relu(x=x, name="argmax_val")), name="logits"), slices=2, output="argmax"
    ) == [("there is a value named argmax_val already", "logits")]


def test_layers_that_are_no_heads() -> None:
    """A product of two computed values or with a vector, and a convolution in groups."""
    none = "matmul comes before it, and no layer"
    assert refused(lambda x: mb.matmul(x=WEIGHT[0], y=x, transpose_y=True, name="logits"), slices=2)[0][0] == none
    assert refused(lambda x: mb.matmul(x=x, y=x, transpose_y=True, name="logits"), slices=2)[0][0] == none
    grouped: Any = np.ones((24, 1, 1), np.float32)
    assert refused(
        lambda x: mb.conv(x=mb.transpose(x=x, perm=[0, 2, 1]), weight=grouped, groups=6, name="logits"), slices=2
    ) == [("conv comes before it, and no layer", "logits")]


def test_a_computed_kernel_is_no_weight() -> None:
    def build(x: Any) -> Any:
        kernel = mb.mul(x=np.ones((24, 5, 1), np.float32), y=mb.reduce_sum(x=x, axes=[0, 1, 2], keep_dims=True))
        return mb.conv(x=x, weight=kernel, name="logits")

    assert refused(build, slices=2) == [("conv comes before it, and no layer", "logits")]


def test_an_output_that_is_not_the_logits_is_chosen_by_its_length() -> None:
    def several(x: Any) -> Any:
        return (
            mb.linear(x=x, weight=WEIGHT, name="long"),
            mb.linear(x=x, weight=WEIGHT[:8], name="short"),
            mb.softmax(x=x, name="none"),
        )

    assert find_head(program(several).functions["main"]).output.name == "long"

    def named(x: Any) -> Any:
        return mb.softmax(x=x, name="logits"), mb.linear(x=x, weight=WEIGHT, name="long")

    with pytest.raises(NoMatch, match="softmax comes before it, and no layer"):
        find_head(program(named).functions["main"])


def test_slices_that_are_built_and_not_used_leave_no_trace() -> None:
    made = program(softcap)
    before, function = text(made), made.functions["main"]
    head = find_head(function)
    taken = {var.name for op in function.operations for var in op.outputs}
    built = build_slices(function, head, HeadSignature("logits", "slices", -1, (12, 12), 1), taken)
    assert len(built.made) == 2
    assert text(made) != before
    built.undo()
    assert text(made) == before
    with pytest.raises(FrozenInstanceError):
        built.made = ()  # type: ignore[misc]


def test_a_program_of_two_functions() -> None:
    def two(*, length: int) -> Any:
        model = load(program(HEADS["linear"]))
        other = program(HEADS["linear"], shape=(1, length, 6))
        model.program.add_function("other", other.functions["main"])
        return model

    model = two(length=1)
    report = SplitHead(slices=2, output="argmax").run(model)
    assert (report.applied, report.tried, report.misses) == (2, 2, [])
    assert report.notes[0] == "24 entries of logits: 2 slices of 12"
    assert len(report.notes) == 2
    assert HEAD_KEY in model.metadata
    model = two(length=1)
    assert SplitHead(slices=2).run(model).applied == 2
    assert HEAD_KEY not in model.metadata


def test_functions_whose_heads_differ() -> None:
    model = load(program(HEADS["linear"]))
    model.program.add_function("other", program(HEADS["matmul, left"]).functions["main"])
    before = text(model.program)
    report = SplitHead(slices=2, output="argmax").run(model)
    assert [(miss.reason, miss.function) for miss in report.misses] == [
        ("not every function of the program has this head", "main")
    ]
    assert (report.applied, text(model.program)) == (0, before)


def test_not_twice_and_where() -> None:
    model = load(program(HEADS["linear"]))
    SplitHead(slices=2, output="slices").run(model)
    report = SplitHead(slices=2).run(model)
    assert [(miss.reason, miss.function, miss.place) for miss in report.misses] == [
        ("its logits are given back otherwise already", "main", "")
    ]
    assert (report.tried, report.name) == (0, "split-head")


def test_the_hazards_of_top_k() -> None:
    for k, more in ((2, 0), (3, 1), (4, 1), (5, 0)):
        notes = split(program(HEADS["linear"]), output="top-k", k=k)[2].notes
        assert len(notes) == 2 + more
        assert f"topk of {k} fails on some Neural Engines (constraints L15)" in notes or not more
    assert len(split(program(HEADS["linear"]), output="argmax", k=3)[2].notes) == 2


def test_a_message_of_wrong_options() -> None:
    message = "slices is 0 or more, limit and k 1 or more, not -1, 16384, 8"
    with pytest.raises(ValueError, match=message):
        SplitHead(slices=-1)
    assert (SplitHead().slices, SplitHead().limit, SplitHead().output, SplitHead().k) == (0, 16384, "logits", 8)


def test_k_is_no_more_than_the_entries() -> None:
    model = load(program(HEADS["linear"]))
    SplitHead(slices=2, output="top-k", k=99).run(model)
    said = HeadSignature.from_metadata(model.metadata)
    assert said == HeadSignature("logits", "top-k", -1, (12, 12), 24)
    kinds = op_types(model.program)
    assert kinds.count("topk") == 3


def test_the_axis_is_counted_from_the_end() -> None:
    model = load(program(HEADS["matmul, left"]))
    SplitHead(slices=2, output="argmax").run(model)
    assert HeadSignature.from_metadata(model.metadata) == HeadSignature("logits", "argmax", -2, (12, 12), 8)


def test_a_table_of_integers_is_no_head() -> None:
    made: Program = program_of(
        lambda ids: mb.gather(x=mb.const(val=WEIGHT), indices=ids, axis=0, name="logits"), ((3,), INT32)
    )
    with pytest.raises(NoMatch, match="gather comes before it, and no layer"):
        find_head(made.functions["main"])


def test_axes_of_length_one_alone_are_squeezed() -> None:
    """(2, 1, 24) becomes (2, 24), and (1, 1, 24) by a reshape (1, 24)."""
    made = program(lambda x: mb.squeeze(x=layer(x), name="logits"), shape=(2, 1, 6))
    assert find_head(made.functions["main"]).axes == (2, 1)
    moved = find_head(
        program(lambda x: mb.reshape(x=layer(x), shape=[1, 24], name="logits"), shape=(1, 1, 6)).functions["main"]
    )
    assert ([op.op_type for op in moved.path], moved.axes) == (["reshape"], (2, 1))


def test_the_vocabulary_of_a_weight_of_rank_3() -> None:
    made = program(lambda x: mb.matmul(x=x, y=WEIGHT[None], transpose_y=True, name="logits"))
    head = find_head(made.functions["main"])
    assert (head.argument, head.weight_axis, head.size) == ("y", 1, 24)


def test_lengths_that_differ_are_told_from_the_longest_to_the_shortest() -> None:
    assert split(program(HEADS["linear"]), slices=5)[2].notes == ["24 entries of logits: 5 slices of 5 to 4"]
    assert split(program(HEADS["linear"]), slices=9)[2].notes == ["24 entries of logits: 9 slices of 3 to 2"]


def test_other_layouts_are_told_of_the_default_function() -> None:
    model = load(program(HEADS["linear"]))
    model.metadata[LAYOUT_KEY] = "{}"
    report = SplitHead(slices=2, output="argmax").run(model)
    assert (report.applied, report.tried) == (0, 0)
    assert [(miss.function, miss.place, miss.reason) for miss in report.misses] == [
        ("main", "", "its outputs have other layouts: split-head knows public ones")
    ]


def test_slices_of_groups_within_a_limit() -> None:
    """Six groups of four within nine entries: three slices of two groups."""
    assert split(program(palette), limit=9)[2].notes == ["24 entries of logits: 3 slices of 8"]
    assert split(program(palette), limit=5)[2].notes == ["24 entries of logits: 6 slices of 4"]

    def eleven(x: Any) -> Any:
        """Of eleven groups no slices are alike, and three groups are more than nine entries."""
        indices = np.zeros((44, 6), np.uint8).astype(TYPED)
        tables: Any = np.arange(176, dtype=np.float32).reshape(11, 1, 16, 1)
        return mb.linear(x=x, weight=mb.constexpr_lut_to_dense(indices=indices, lut=tables), name="logits")

    assert split(program(eleven), limit=9)[2].notes == ["44 entries of logits: 6 slices of 8 to 4"]


def alone(kind: str) -> Callable[[Any], Any]:
    return lambda y: getattr(mb, kind)(x=y, name="logits")


def with_two(kind: str) -> Callable[[Any], Any]:
    return lambda y: getattr(mb, kind)(x=y, y=np.float32(2), name="logits")


ONE: dict[str, Callable[[Any], Any]] = {
    "cast": lambda y: mb.cast(x=y, dtype="fp16", name="logits"),
    "clip": lambda y: mb.clip(x=y, alpha=np.float32(-1), beta=np.float32(1), name="logits"),
    **{kind: alone(kind) for kind in ("gelu", "relu", "sigmoid", "silu", "softplus", "tanh", "identity")},
    **{kind: with_two(kind) for kind in ("add", "maximum", "minimum", "mul", "pow", "real_div", "sub")},
}


@pytest.mark.parametrize("kind", ONE)
def test_what_may_be_done_to_each_logit(kind: str) -> None:
    head = find_head(program(lambda x: ONE[kind](layer(x))).functions["main"])
    assert ([op.op_type for op in head.path], head.axes) == ([kind], (2, 2))
