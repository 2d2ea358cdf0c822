"""What layout-bc1s reports, line by line, what it leaves as it is, and what it declares of other layouts."""

# The bodies of programs are lambdas of as many parameters as they have inputs, for which no one type can be written.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from coremltools.proto import Model_pb2

from milopt.errors import PassError
from milopt.layout.relations import OneByOne
from milopt.mil import Function, Program, get_new_symbol, mb, target, types
from milopt.package import Model, load
from milopt.passes.layout import LayoutBc1s
from milopt.passes.layout_advice import moved_if_written_out
from milopt.passes.layout_choice import Settled, settle
from milopt.passes.layout_reading import read, read_free
from milopt.reports import Report
from milopt.signature import METADATA_KEY, CacheSignature, CacheSlot, Combined
from milopt.signature_layout import LAYOUT_KEY
from milopt.text import text
from milopt.verify import compare

from .programs import Build, fp16, program_of
from .test_layout_disputes import declare

SYMBOL = get_new_symbol()
RANGE: Any = np.arange(64, dtype=np.float16)


def convolved(x: Any, channels: int = 5, name: str = "out") -> Any:
    """That many channels of (1, S, 8), as linear-to-conv leaves a layer."""
    wide = mb.transpose(x=mb.expand_dims(x=x, axes=[3]), perm=[0, 2, 3, 1])
    kernel = RANGE[: 8 * channels].reshape(channels, 8, 1, 1) / np.float16(64)
    made = mb.conv(x=wide, weight=kernel, name=f"{name}_conv")
    return mb.squeeze(x=mb.transpose(x=made, perm=[0, 3, 1, 2]), axes=[3], name=name)


def state(*shape: int) -> Any:
    return mb.state_tensor_placeholder(shape=shape, dtype=types.fp16)


def model_of(build: Build, **inputs: Any) -> Model:
    return load(program_of(build, **inputs))


def functions_of(**functions: tuple[Callable[..., Any], dict[str, Any]]) -> Model:
    program = Program()
    for name, (build, inputs) in functions.items():
        with Function(inputs, opset_version=target.iOS18) as function:
            function.set_outputs([build(**dict(function.inputs))])
        program.add_function(name, function)
    return load(program)


def laid_out(model: Model, **options: Any) -> Report:
    before = model.clone()
    report = LayoutBc1s(**options).run(model)
    model.program.validate()
    assert compare(before, model, trials=1)
    return report


def told(report: Report) -> list[str]:
    """The misses, those of the moves that remain without a mark."""
    assert all(miss.declined for miss in report.misses)
    return [
        f"{miss.function} {miss}" if miss.rule == "move" else f"{miss.function} declined {miss}"
        for miss in report.misses
    ]


def test_options() -> None:
    assert LayoutBc1s() == LayoutBc1s(sequence=64, io="public")
    assert LayoutBc1s(sequence=1).sequence == 1
    with pytest.raises(PassError, match=r"^layout-bc1s: sequence is a length of at least 1, not 0$"):
        LayoutBc1s(sequence=0)


def test_a_layer_between_others() -> None:
    """Of two transposes, of an input and an output, none can go; of the four between two layers all do."""
    model = model_of(lambda x: convolved(mb.relu(x=convolved(x, 8, "inner"), name="relu")), x=fp16(1, 6, 8))
    report = laid_out(model)
    assert report.notes == ["main: 174 elements moved are 78 now, a minimum by elimination"]
    assert told(report) == [
        "main x: 48 elements move by transpose and expand_dims: an input makes (1, 6, 8), conv needs (1, 8, 1, 6)",
        "main out_conv: 30 elements move by transpose and squeeze: conv makes (1, 5, 1, 6), an output needs (1, 6, 5)",
    ]
    assert (report.tried, report.applied) == (8, 1)


def test_moves_between_ops() -> None:
    """Who makes what is moved, and all that need it, each kind once."""

    def build(x: Any) -> Any:
        given = mb.gather(x=x, indices=[3, 1, 4, 1, 5], axis=1, name="given")
        one, other = convolved(given, 8, "one"), convolved(given, 8, "other")
        y = mb.add(x=one, y=other, name="sum")
        return mb.mul(x=y, y=given), mb.topk(x=y, k=2, axis=1)[0]

    report = laid_out(model_of(build, x=fp16(1, 6, 8)))
    assert told(report) == [
        "main given: 40 elements move by transpose and expand_dims: gather makes (1, 5, 8), conv needs (1, 8, 1, 5)",
        "main sum: 40 elements move by transpose and squeeze: add makes (1, 8, 1, 5), mul and topk needs (1, 5, 8)",
    ]


def test_lengths_that_are_not_known() -> None:
    for sequence in (10, 64):
        model = model_of(lambda x: convolved(mb.relu(x=convolved(x, 8, "inner"))), x=fp16(1, SYMBOL, 8))
        assert told(LayoutBc1s(sequence=sequence).run(model)) == [
            f"main x: {8 * sequence} elements move by transpose and expand_dims: "
            "an input makes (1, s, 8), conv needs (1, 8, 1, s)",
            f"main out_conv: {5 * sequence} elements move by transpose and squeeze: "
            "conv makes (1, 5, 1, s), an output needs (1, s, 5)",
        ]


def test_what_moves_nothing_is_not_told() -> None:
    """One position: all moves are of unit axes."""
    report = laid_out(model_of(lambda x: convolved(mb.relu(x=convolved(x, 8, "inner"))), x=fp16(1, 1, 8)))
    assert report.notes == ["main: 29 elements moved are 0 now, a minimum by elimination"]
    assert report.misses == []


def test_what_has_no_layer_is_not_told() -> None:
    """Nor is it changed: the transposes of z stay, though they undo each other."""

    def build(x: Any, z: Any) -> Any:
        turned = mb.exp(x=mb.transpose(x=z, perm=[1, 0], name="turned"), name="exp")
        again = mb.transpose(x=mb.transpose(x=z, perm=[1, 0], name="there"), perm=[1, 0], name="here")
        return convolved(mb.relu(x=convolved(x, 8, "inner"))), mb.transpose(x=turned, perm=[1, 0], name="back"), again

    model = model_of(build, x=fp16(1, 6, 8), z=fp16(3, 4))
    report = laid_out(model)
    assert [each.partition(":")[0] for each in told(report)] == ["main x", "main out_conv"]
    assert report.tried == 12
    names = [op.name for op in model.function().operations]
    assert [name for name in names if name in ("turned", "exp", "there", "here", "back")] == [
        "turned",
        "exp",
        "there",
        "here",
        "back",
    ]


def test_nothing_to_do() -> None:
    model = model_of(lambda x: convolved(x), x=fp16(1, 6, 8))
    assert laid_out(model).applied == 1  # its spelling: common::compose_conv1d takes expand_dims, transpose, conv
    before = text(model)
    report = laid_out(model)
    assert (report.applied, report.notes, report.misses, text(model)) == (0, [], [], before)
    assert report.tried == 4


def caching(x: Any, held: Any) -> Any:
    """Two layers, of which one reads and one writes a state that other ops want as it is."""
    read = mb.read_state(input=held, name="read")
    y = mb.matmul(x=mb.matmul(x=read, y=read, transpose_y=True), y=read)
    y = mb.add(x=mb.add(x=convolved(read, 8, "one"), y=y), y=x, name="sum")
    written = mb.coreml_update_state(state=held, value=convolved(y, 8, "two"), name="written")
    return [mb.gather(x=each, indices=[5, 4, 3, 2, 1, 0], axis=1) for each in (written, read)]


@pytest.mark.parametrize(
    ("io", "lines"),
    [
        (
            "public",
            [
                "x: 48 elements move by transpose and expand_dims: an input makes (1, 6, 8), add needs (1, 8, 1, 6)",
                "read: 48 elements move by transpose and expand_dims: read_state makes (1, 6, 8), "
                "matmul and conv needs (1, 8, 1, 6)",
                "two_conv: 48 elements move by transpose and squeeze: conv makes (1, 8, 1, 6), "
                "coreml_update_state needs (1, 6, 8)",
            ],
        ),
        (
            "free",
            [
                "read: 48 elements move by transpose and expand_dims: a state makes (1, 6, 8), "
                "matmul and conv needs (1, 8, 1, 6)",
                "two_conv: 48 elements move by transpose and squeeze: conv makes (1, 8, 1, 6), a state needs (1, 6, 8)",
            ],
        ),
    ],
)
def test_states_that_are_moved(io: str, lines: list[str]) -> None:
    report = laid_out(model_of(caching, x=fp16(1, 6, 8), held=state(1, 6, 8)), io=io)
    assert told(report) == [f"main {line}" for line in lines]


def test_types_that_disagree_are_told() -> None:
    model = model_of(lambda x: mb.softmax(x=convolved(x), axis=1, name="shares"), x=fp16(1, 6, 8))
    (op,) = [op for op in model.function().operations if op.name == "shares"]
    declare(op.outputs[0], (1, 6, 7))
    assert told(LayoutBc1s().run(model))[0] == (
        "main declined shares: its types disagree, so it keeps its layouts: "
        "out has 5 on axis 2 where shares has 7 on axis 2"
    )


def test_functions_one_by_one_and_as_one_graph() -> None:
    def two() -> Model:
        return functions_of(main=(convolved, {"x": fp16(1, 6, 8)}), other=(convolved, {"x": fp16(1, 2, 8)}))

    public, free = two(), two()
    report = laid_out(public)
    assert report.notes == [
        "main: 78 elements moved are 78 now, the only choice",
        "other: 26 elements moved are 26 now, the only choice",
    ]
    assert [(miss.function, miss.place) for miss in report.misses] == [
        ("main", "x"),
        ("main", "out_conv"),
        ("other", "x"),
        ("other", "out_conv"),
    ]
    assert (report.tried, report.applied) == (8, 2)
    report = laid_out(free, io="free")
    assert report.notes == [
        "main, other: 104 elements moved are 0 now, a minimum by elimination",
        "main: x is 1 x 8 x 1 x 6, no longer 1 x 6 x 8",
        "main: out is 1 x 5 x 1 x 6, no longer 1 x 6 x 5",
        "other: x is 1 x 8 x 1 x 2, no longer 1 x 2 x 8",
        "other: out is 1 x 5 x 1 x 2, no longer 1 x 2 x 5",
    ]
    assert (report.tried, report.applied, report.misses) == (8, 4, [])
    assert json.loads(free.metadata[LAYOUT_KEY])["other"]["x"] == [[1, 2, 8], [2, 8], [1, 0], [1, 8, 1, 2]]
    assert METADATA_KEY not in free.metadata


def test_nothing_is_declared_where_none_has_another_layout() -> None:
    """Of lengths that are not known inputs and outputs stay; what is between them is laid out."""
    model = model_of(lambda x: convolved(mb.relu(x=convolved(x, 8, "inner"))), x=fp16(1, SYMBOL, 8))
    report = LayoutBc1s(io="free").run(model)
    assert report.applied
    assert model.metadata == {}


# What keeps all inputs, outputs and states as they are.


def slots(**more: Any) -> CacheSignature:
    return CacheSignature((CacheSlot("past_x", "present_x", "held", 0, 1),), "", (), 6, 1, **more)


STAY = ": inputs, outputs and states keep their layouts"


def kept_as_it_is(model: Model) -> list[str]:
    """What the report declines; the rest is done in public layouts."""
    names = {name: var.shape for name, var in model.function().inputs.items()}
    report = LayoutBc1s(io="free").run(model)
    assert report.applied
    assert {name: var.shape for name, var in model.function().inputs.items()} == names
    return [each for each in told(report) if "declined" in each]


def test_other_layouts_are_declared_once() -> None:
    model = model_of(convolved, x=fp16(1, 6, 8))
    model.metadata[LAYOUT_KEY] = "{}"
    assert kept_as_it_is(model) == [f"main declined : some have other layouts already{STAY}"]
    assert model.metadata == {LAYOUT_KEY: "{}"}


def test_some_functions_alone() -> None:
    model = functions_of(main=(convolved, {"x": fp16(1, 6, 8)}), other=(convolved, {"x": fp16(1, 2, 8)}))
    with model.only(["main"]):
        assert kept_as_it_is(model) == [f"main declined : the pass runs on some functions only{STAY}"]


@pytest.mark.parametrize(
    "more", [{"stacked": True}, {"combined": (Combined("past", "present", (1, 0, 10), (1, 0, 5)),)}]
)
def test_a_cache_of_which_several_tensors_are_one(more: dict[str, Any]) -> None:
    model = model_of(convolved, x=fp16(1, 6, 8))
    model.metadata[METADATA_KEY] = slots(**more).to_json()
    assert kept_as_it_is(model) == [f"main declined : several tensors of the cache are one{STAY}"]


def test_a_cache_in_states_that_take_another_order() -> None:
    def build(x: Any, held: Any) -> Any:
        y = mb.add(x=convolved(x), y=mb.read_state(input=held))
        return mb.coreml_update_state(state=held, value=y, name="written")

    model = model_of(build, x=fp16(1, 6, 8), held=state(1, 6, 5))
    model.metadata[METADATA_KEY] = slots().to_json()
    report = LayoutBc1s(io="free").run(model)
    assert "main: held is 1 x 5 x 6, no longer 1 x 6 x 5" in report.notes
    signature = CacheSignature.from_metadata(model.metadata)
    assert signature is not None
    assert signature.axis_of(signature.slots[0]) == 2
    assert set(json.loads(model.metadata[LAYOUT_KEY])["main"]) == {"x", "held", "written"}


def test_images_stay() -> None:
    """Of the default function, whose description is the package's own, and of others."""
    for function in ("main", "other"):
        model = functions_of(main=(convolved, {"x": fp16(1, 6, 8)}), other=(convolved, {"x": fp16(1, 2, 8)}))
        description = Model_pb2.ModelDescription()
        section = description if function == "main" else description.functions.add(name="other")
        section.input.add(name="x").type.imageType.width = 8
        section.output.add(name="out").type.multiArrayType.shape.extend([1, 6, 5])
        model.description = description
        report = LayoutBc1s(io="free").run(model)
        relaid = {name: [*each] for name, each in json.loads(model.metadata[LAYOUT_KEY]).items()}
        both = {"main": ["x", "out"], "other": ["x", "out"]}
        assert relaid == {**both, function: ["out"]}
        assert [miss.function for miss in report.misses] == [function]


def test_an_image_that_is_given_stays() -> None:
    model = model_of(convolved, x=fp16(1, 6, 8))
    model.description = Model_pb2.ModelDescription()
    model.description.input.add(name="x").type.multiArrayType.shape.extend([1, 6, 8])
    model.description.output.add(name="out").type.imageType.width = 8
    LayoutBc1s(io="free").run(model)
    assert [*json.loads(model.metadata[LAYOUT_KEY])["main"]] == ["x"]


# The choice.


def settled_of(model: Model, **options: Any) -> tuple[Settled, int]:
    reading = read(model.function(), 64)
    settled = settle([reading], **options)
    return settled, settled.moved(reading.graph)


def test_what_is_settled() -> None:
    model = model_of(lambda x: convolved(mb.relu(x=convolved(x, 8, "inner"))), x=fp16(1, 6, 8))
    settled, moved = settled_of(model)
    assert (settled.before, settled.after, moved, settled.methods, settled.excess) == (174, 78, 78, ("elimination",), 0)
    assert settled.touched == {0, 1, 2, 3}
    assert settled.proof == "a minimum by elimination"
    assert (
        Settled([], frozenset(), 0, 0, ("branch and bound", "elimination"), 1234).proof
        == "at most 1,234 above the minimum, which branch and bound, elimination did not reach within its limit of work"
    )


def test_what_moves_in_parts_that_stay_counts_too() -> None:
    def build(x: Any, z: Any) -> Any:
        return convolved(mb.relu(x=convolved(x, 8, "inner"))), mb.transpose(x=z, perm=[1, 0], name="turned")

    settled, moved = settled_of(model_of(build, x=fp16(1, 6, 8), z=fp16(3, 4)))
    assert (settled.before, settled.after, moved) == (174, 78, 90)


def single(rank: int, turned: bool) -> Build:
    """A layer that moves nothing it need not: its input becomes (1, 8, 1, 6) by expand_dims and perhaps a transpose."""
    kernel = RANGE[:40].reshape(5, 8, 1, 1) / np.float16(64)

    def build(x: Any) -> Any:
        axes = {(3, False): [2], (3, True): [3], (2, False): [0, 2], (2, True): [0, 3]}[rank, turned]
        wide = mb.expand_dims(x=x, axes=axes)
        wide = mb.transpose(x=wide, perm=[0, 2, 3, 1]) if turned else wide
        y = mb.conv(x=wide, weight=kernel)
        y = mb.transpose(x=y, perm=[0, 3, 1, 2]) if turned else y
        return mb.squeeze(x=y, axes=[3] if turned else [2], name="out")

    return build


@pytest.mark.parametrize("turned", [False, True])
def test_what_coremltools_would_make_rows_of_is_spelled_otherwise(turned: bool) -> None:
    """``common::compose_conv1d`` looks for expand_dims of rank 3, and squeeze."""
    shape = (1, 6, 8) if turned else (1, 8, 6)
    settled, _ = settled_of(model_of(single(3, turned), x=fp16(*shape)))
    assert len(settled.touched) == 2
    settled, _ = settled_of(model_of(single(2, turned), x=fp16(*shape[1:])))
    assert settled.touched == frozenset()


def test_what_it_would_not_stays() -> None:
    kernel = RANGE[:40].reshape(5, 8, 1, 1) / np.float16(64)
    builds: list[Build] = [
        lambda x: mb.conv(x=mb.expand_dims(x=x, axes=[2]), weight=kernel),
        lambda x: mb.squeeze(x=mb.conv(x=mb.reshape(x=x, shape=[1, 8, 1, 8]), weight=kernel), axes=[2]),
        lambda x: mb.squeeze(x=mb.conv(x=mb.relu(x=mb.expand_dims(x=x, axes=[2])), weight=kernel), axes=[2]),
        lambda x: mb.transpose(x=mb.conv(x=mb.expand_dims(x=x, axes=[2]), weight=kernel), perm=[0, 3, 1, 2]),
        lambda x: mb.squeeze(x=mb.conv(x=turned(x), weight=kernel), axes=[2]),
    ]

    def turned(x: Any) -> Any:
        wide = mb.expand_dims(x=mb.gather(x=x, indices=[*range(8)], axis=2), axes=[3])
        return mb.transpose(x=wide, perm=[0, 2, 3, 1])

    for build in builds:
        model = model_of(build, x=fp16(1, 8, 8))
        assert settled_of(model)[0].touched == frozenset(), text(model)
    direct = model_of(lambda x: mb.squeeze(x=mb.conv(x=x, weight=kernel), axes=[2]), x=fp16(1, 8, 1, 6))
    assert settled_of(direct)[0].touched == frozenset()


def test_what_it_would_not_is_laid_out_where_that_saves_moves() -> None:
    def layer(x: Any) -> Any:
        wide = mb.transpose(x=mb.reshape(x=x, shape=[1, 6, 8, 1]), perm=[0, 2, 3, 1])
        kernel = RANGE.reshape(8, 8, 1, 1) / np.float16(64)
        return mb.reshape(x=mb.transpose(x=mb.conv(x=wide, weight=kernel), perm=[0, 3, 1, 2]), shape=[1, 6, 8])

    settled, moved = settled_of(model_of(lambda x: layer(mb.relu(x=layer(x))), x=fp16(1, 6, 8)))
    assert (len(settled.touched), settled.before, settled.after, moved) == (4, 192, 96, 96)
    settled, moved = settled_of(model_of(layer, x=fp16(1, 6, 8)))
    assert (settled.touched, settled.before, moved) == (frozenset(), 0, 96)


def test_two_functions_are_one_graph() -> None:
    model = functions_of(main=(convolved, {"x": fp16(1, 6, 8)}), other=(convolved, {"x": fp16(1, 2, 8)}))
    readings = [*read_free(model.functions, 64, {}).values()]
    settled = settle(readings)
    assert (settled.before, settled.after) == (104, 0)
    assert sum(isinstance(each, OneByOne) for each in readings[0].graph.relations) == 2


# Advice.


def attended(heads: int = 2, turned: bool = True) -> Build:
    """Attention of heads that a layer makes; with ``turned``, what it gives is used by another."""

    def build(x: Any) -> Any:
        y = convolved(x, 8, "heads")
        y = mb.transpose(x=mb.reshape(x=y, shape=[1, 6, heads, 8 // heads]), perm=[0, 2, 1, 3])
        y = mb.scaled_dot_product_attention(query=y, key=y, value=y, name="attended")
        y = mb.reshape(x=mb.transpose(x=y, perm=[0, 2, 1, 3]), shape=[1, 6, 8])
        return convolved(y)

    return build


def test_what_attention_would_move_written_out() -> None:
    model = model_of(attended(), x=fp16(1, 6, 8))
    before = text(model)
    assert moved_if_written_out(model, "main", 64) is not None
    assert text(model) == before
    assert moved_if_written_out(model_of(convolved, x=fp16(1, 6, 8)), "main", 64) is None


ADVICE = "scaled_dot_product_attention takes and gives (..., S, D) only; decompose-sdpa before this pass would save "


@pytest.mark.parametrize(
    ("other", "notes"),
    [
        (None, []),
        (79, []),
        (78, []),
        (70, [f"main: {ADVICE}8 of 78 elements"]),
        (0, [f"main: {ADVICE}78 of 78 elements"]),
    ],
)
def test_advice_is_given_where_it_saves_moves(
    other: int | None, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    def written_out(model: Model, name: str, sequence: int) -> int | None:
        asked.append((name, sequence))
        return other

    monkeypatch.setattr("milopt.passes.layout.moved_if_written_out", written_out)
    report = LayoutBc1s(sequence=32).run(model_of(convolved, x=fp16(1, 6, 8)))
    assert report.notes[1:] == notes
    assert asked == [("main", 32)]
    report = LayoutBc1s(sequence=32, io="free").run(model_of(convolved, x=fp16(1, 6, 8)))
    assert not [note for note in report.notes if ADVICE in note]
    two = functions_of(main=(convolved, {"x": fp16(1, 6, 8)}), other=(convolved, {"x": fp16(1, 2, 8)}))
    report = LayoutBc1s(sequence=32, io="free").run(two)
    assert not [note for note in report.notes if ADVICE in note]
    assert asked == [("main", 32)]


def test_no_advice_where_it_can_not_be_written_out() -> None:
    """Heads whose size is not known stay fused."""
    unknown = get_new_symbol()
    fused: Build = lambda x: mb.scaled_dot_product_attention(query=x, key=x, value=x)  # noqa: E731
    assert moved_if_written_out(model_of(fused, x=fp16(1, 2, 6, unknown)), "main", 64) is None
    assert moved_if_written_out(model_of(fused, x=fp16(1, 2, 6, 4)), "main", 64) == 0
