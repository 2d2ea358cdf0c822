"""layout-bc1s: the fewest moves, the same numbers, and what it leaves to the letter."""

from __future__ import annotations

import re
from collections import Counter
from functools import partial
from itertools import product
from math import prod
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from benchmarks.layout import decoder
from milopt.coremltools_steps import step_class
from milopt.errors import PassError
from milopt.layout.branching import WORK
from milopt.layout.forms import Layout, axes_of
from milopt.layout.graphs import Graph
from milopt.layout.relations import Mode
from milopt.layout.solving import solve
from milopt.metrics import Exact
from milopt.mil import Program, get_new_symbol, mb, target, types, value_names
from milopt.package import Model, load
from milopt.passes.convolution import LinearToConv
from milopt.passes.layout import LayoutBc1s
from milopt.passes.layout_ops import ENTRIES, Entry
from milopt.passes.layout_reading import Reading, read, read_free
from milopt.passes.layout_writing import Writing
from milopt.pipeline import Pipeline
from milopt.reports import Report
from milopt.text import text
from milopt.verify import compare
from tests.layout.integers import integers
from tests.testing.layouts import attentions, weight

from .support import op_types
from .test_layout_ops import layouts

CHECKS = tuple(cast("Any", HealthCheck))
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)


def laid_out(program: Program, **options: Any) -> tuple[Model, Report]:
    """The program after linear-to-conv and layout-bc1s, compared with what it was."""
    before = load(program)
    LinearToConv().run(before)
    after = before.clone()
    report = LayoutBc1s(**options).run(after)
    after.program.validate()
    verdict = compare(before, after, trials=1)
    assert verdict, f"{verdict}\n{text(after)}"
    return after, report


def elements_of(report: Report) -> list[float]:
    """What each move that remains moves."""
    return [float(cast("Any", miss.arguments[0])) for miss in report.misses]


def kinds(model: Model) -> list[str]:
    return op_types(model.program)


def mlp(shape: tuple[Any, ...] = (1, 6, 8), *, width: int = 12) -> Program:
    @mb.program(input_specs=[mb.TensorSpec(shape, types.fp32)], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        mean = mb.reduce_mean(x=mb.mul(x=x, y=x), axes=[-1], keep_dims=True)
        y = mb.mul(x=mb.mul(x=x, y=mb.rsqrt(x=mean, epsilon=1e-5)), y=weight(shape[-1]))
        gate = mb.silu(x=mb.linear(x=y, weight=weight(width, shape[-1])))
        y = mb.mul(x=gate, y=mb.linear(x=y, weight=weight(width, shape[-1]), bias=weight(width)))
        return mb.add(x=x, y=mb.linear(x=y, weight=weight(shape[-1], width)), name="out")

    return program


def test_one_transpose_in_and_one_out() -> None:
    model, report = laid_out(mlp())
    assert kinds(model).count("transpose") == 2
    assert report.notes == ["main: 312 elements moved are 96 now, a minimum by elimination"]


def test_remaining_moves_are_explained() -> None:
    model, report = laid_out(single())
    assert kinds(model) == ["relu", "transpose", "expand_dims", "conv", "transpose", "squeeze"]
    assert [str(miss) for miss in report.misses] == [
        "given: 48 elements move by transpose and expand_dims: relu makes (1, 6, 8), conv needs (1, 8, 1, 6)",
        "out_conv: 24 elements move by transpose and squeeze: conv makes (1, 4, 1, 6), an output needs (1, 6, 4)",
    ]


def test_constants_are_laid_out_anew() -> None:
    """A row of weights becomes a column, a table is transposed, and numbers stay as they are."""
    table = weight(6, 8)

    @mb.program(input_specs=[mb.TensorSpec((1, 6, 8), types.fp32)], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        y = mb.linear(x=x, weight=weight(8, 8))
        y = mb.add(x=mb.mul(x=mb.add(x=y, y=table), y=weight(8)), y=np.float32(3))
        return mb.linear(x=y, weight=weight(4, 8))

    model, _ = laid_out(program)
    constants = [op.inputs["y"].shape for op in model.function("main").operations if op.op_type in ("add", "mul")]
    assert constants == [(8, 1, 6), (8, 1, 1), ()] or constants == [(1, 8, 1, 6), (1, 8, 1, 1), ()]


def test_the_report_says_what_writing_attention_out_would_save() -> None:
    model, report = laid_out(decoder(2, fused=True))
    (note,) = [each for each in report.notes if "decompose-sdpa" in each]
    before = load(decoder(2, fused=True))
    LinearToConv().run(before)
    Pipeline.parse("decompose-sdpa").run(before)
    written = LayoutBc1s().run(before)
    moved = [sum(int(each) for each in elements_of(each)) for each in (report, written)]
    assert note.startswith("main: scaled_dot_product_attention takes and gives (..., S, D) only; ")
    assert f"would save {moved[0] - moved[1]:,} of {moved[0]:,} elements" in note
    assert "scaled_dot_product_attention" in kinds(model)
    assert not [note for note in written.notes if "decompose-sdpa" in note]


@pytest.mark.parametrize("batch", [1, "b"])
def test_lengths_that_are_not_known(batch: Any) -> None:
    """Of two, MIL's reshape works out one by itself; the other is read off what is reshaped."""
    shape = (get_new_symbol() if batch == "b" else batch, get_new_symbol(), 8)

    @mb.program(input_specs=[mb.TensorSpec(shape, types.fp32)], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        def heads(y: Any) -> Any:
            lengths = mb.slice_by_index(x=mb.shape(x=y), begin=[0], end=[2])
            parts = mb.reshape(x=y, shape=mb.concat(values=(lengths, np.array([2, 4], np.int32)), axis=0))
            return mb.transpose(x=parts, perm=[0, 2, 1, 3])

        query, key = (heads(mb.linear(x=x, weight=weight(8, 8))) for _ in range(2))
        scores = mb.softmax(x=mb.matmul(x=query, y=key, transpose_y=True), axis=-1)
        mixed = mb.transpose(x=mb.matmul(x=scores, y=key), perm=[0, 2, 1, 3])
        lengths = mb.slice_by_index(x=mb.shape(x=x), begin=[0], end=[2])
        joined = mb.reshape(x=mixed, shape=mb.concat(values=(lengths, np.array([8], np.int32)), axis=0))
        return mb.linear(x=joined, weight=weight(8, 8))

    model, report = laid_out(program)
    assert not [miss for miss in report.misses if miss.rule != "move"]
    assert kinds(model).count("transpose") == 2
    assert "reshape" in kinds(model)


def modes_of(model: Model, op_type: str, layout: Layout) -> tuple[Reading, dict[int, list[Mode]]]:
    """The modes of ops of a type, where each of their results may have ``layout`` too."""
    reading = read(model.function("main"), 64)
    numbers = [at for at, node in enumerate(reading.nodes) if node.op is not None and node.op.op_type == op_type]
    also = [(reading.graph.relations[at].ports[-1].tensor, layout) for at in numbers]
    modes = reading.graph.modes(also)
    return reading, {at: modes[at] for at in numbers}


@pytest.mark.parametrize(("length", "joined"), [(5, True), (None, False)])
def test_a_constant_is_not_repeated_along_a_length_that_is_not_known(length: int | None, joined: bool) -> None:
    @mb.program(input_specs=[mb.TensorSpec((1, length or get_new_symbol(), 8), types.fp32)])
    def program(x: Any) -> Any:
        return mb.mul(x=mb.relu(x=x), y=weight(8))

    layout: Layout = ((), (0, 1))
    _, modes = modes_of(load(program), "mul", layout)
    (found,) = modes.values()
    assert any(mode.layouts[-1] == layout for mode in found) == joined
    _, modes = modes_of(load(program), "relu", layout)
    (found,) = modes.values()
    assert any(mode.layouts[-1] == layout for mode in found)


def test_one_constant_in_two_orders() -> None:
    """What is made of a constant once is used again only where it is needed in the same order."""
    table = weight(16, 16)

    @mb.program(input_specs=[mb.TensorSpec((16, 16), types.fp32), mb.TensorSpec((16,), types.fp32)])
    def program(x: Any, row: Any) -> Any:
        shared = mb.const(val=table)
        return mb.add(x=row, y=shared, name="turned"), mb.sub(x=x, y=shared, name="straight")

    before = load(program)
    after = before.clone()
    reading, turned = modes_of(after, "add", ((), (1,), (0,)))
    straight = [mode for mode in reading.graph.modes([(3, ((), (0,), (1,)))])[-1] if mode.template is not None]
    modes = [relation.original for relation in reading.graph.relations]
    ((number, found),) = turned.items()
    modes[number] = next(mode for mode in found if mode.layouts[-1] == ((), (1,), (0,)))
    modes[-1] = next(mode for mode in straight if mode.layouts[-1] == ((), (0,), (1,)))
    assert modes[number].template == modes[-1].template
    Writing(reading, modes, set(range(len(reading.graph.tensors)))).write()
    assert compare(before, after)


def test_parts_are_joined_in_one_rank() -> None:
    """Axes of length 1 in front are there by themselves in a sum; a concat must have them."""

    @mb.program(input_specs=[mb.TensorSpec((1, 6, 8), types.fp32), mb.TensorSpec((2, 6, 8), types.fp32)])
    def program(x: Any, others: Any) -> Any:
        return mb.add(x=mb.concat(values=(mb.relu(x=x), others), axis=0), y=x)

    for op_type, several in (("concat", {True}), ("add", {True, False})):
        _, modes = modes_of(load(program), op_type, ((), (0,), (1,), (2,)))
        (found,) = modes.values()
        assert {len(set(map(len, mode.layouts))) == 1 for mode in found} == several


@pytest.mark.parametrize("fused", [False, True])
def test_a_decoder_layer(fused: bool) -> None:
    """Per layer: two transposes where attention is written out, four where it is one op."""
    counts: list[dict[str, int]] = []
    for layers in (1, 2):
        model, report = laid_out(decoder(layers, fused=fused))
        assert report.applied
        counts.append({kind: kinds(model).count(kind) for kind in ("transpose", "matmul", "softmax", "tile", "conv")})
    per_layer = {kind: counts[1][kind] - counts[0][kind] for kind in counts[0]}
    assert per_layer == {
        "transpose": 4 if fused else 2,
        "matmul": 0 if fused else 2,
        "softmax": 0 if fused else 1,
        "tile": 0,
        "conv": 7,
    }


def test_coremltools_does_not_turn_it_back() -> None:
    """``common::compose_conv1d`` makes expand_dims, conv, squeeze a convolution of rank 3."""
    for program in (mlp(), mlp((1, 1, 8)), mlp((1, 6, 8), width=8), single(), decoder(1)):
        model, _ = laid_out(program)
        before = text(model)
        step_class("ct:common::compose_conv1d")().run(model)
        assert text(model) == before


def single() -> Program:
    @mb.program(input_specs=[mb.TensorSpec((1, 6, 8), types.fp32)], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        return mb.linear(x=mb.relu(x=x, name="given"), weight=weight(4, 8), name="out")

    return program


def convolutional(*, pooled: bool = True) -> Program:
    @mb.program(input_specs=[mb.TensorSpec((1, 3, 8, 8), types.fp32)], opset_version=target.iOS17)
    def program(x: Any) -> Any:
        x = mb.relu(x=mb.conv(x=x, weight=weight(4, 3, 3, 3), pad_type="same"))
        x = mb.add(x=x, y=mb.conv(x=x, weight=weight(4, 4, 1, 1)))
        if not pooled:
            return x
        x = mb.reduce_mean(x=x, axes=[2, 3], keep_dims=False)
        return mb.softmax(x=mb.linear(x=x, weight=weight(5, 4)), axis=-1)

    return program


def unlinear() -> Program:
    @mb.program(input_specs=[mb.TensorSpec((1, 6, 8), types.fp32)], opset_version=target.iOS17)
    def program(x: Any) -> Any:
        y = mb.transpose(x=mb.exp(x=mb.transpose(x=x, perm=[0, 2, 1])), perm=[0, 2, 1])
        return mb.mul(x=x, y=y)

    return program


@pytest.mark.parametrize("program", [convolutional(pooled=False), unlinear()], ids=["convolutional", "no linear"])
def test_left_to_the_letter(program: Program) -> None:
    model = load(program)
    before = text(model, weights="hash")
    report = LayoutBc1s().run(model)
    assert not report
    assert not report.misses
    assert text(model, weights="hash") == before


def test_again_changes_nothing() -> None:
    for program in (mlp(), decoder(2), decoder(1, fused=True)):
        model, _ = laid_out(program)
        before = text(model, weights="hash")
        assert not LayoutBc1s().run(model)
        assert text(model, weights="hash") == before


def test_names_and_shapes_of_outputs_stay() -> None:
    before = load(mlp())
    model, _ = laid_out(mlp())
    (old,), (new,) = before.function("main").outputs, model.function("main").outputs
    assert (old.name, old.shape) == (new.name, new.shape)


@pytest.mark.parametrize("io", ["public", "free"])
def test_more_layers_are_no_more_work_each(io: str) -> None:
    """Counted, not timed: ops read, layouts that come into question, and elements of tables computed."""
    counts: dict[int, list[int]] = {}
    for layers in (12, 16, 20):
        model = load(decoder(layers))
        LinearToConv().run(model)
        function = model.function("main")
        graph = (read_free({"main": function}, 64, {})["main"] if io == "free" else read(function, 64)).graph
        modes = graph.modes()
        problem, _ = graph.problem(modes)
        counts[layers] = [len(graph.relations), sum(map(len, modes)), len(problem.tables), graph.choose().work]
    first, second, third = (np.array(each) for each in counts.values())
    # four layers more are as much more each time
    assert (third - second <= 1.02 * (second - first)).all()
    assert third[3] < 20 << 18


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norms_over_the_channels(kind: str) -> None:
    """In the form that is safe in fp16 they work along axis 1, and move nothing."""

    @mb.program(input_specs=[mb.TensorSpec((1, 6, 8), types.fp16)], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        def half(*shape: int) -> Any:
            return weight(*shape).astype(np.float16)

        y = mb.linear(x=x, weight=half(8, 8))
        if kind == "rms":
            mean = mb.reduce_mean(x=mb.mul(x=y, y=y), axes=[-1], keep_dims=True)
            z = mb.mul(x=mb.mul(x=y, y=mb.rsqrt(x=mean, epsilon=np.float16(1e-3))), y=half(8))
        else:
            z = mb.layer_norm(x=y, axes=[-1], gamma=half(8), beta=half(8), epsilon=np.float16(1e-3))
        return mb.add(x=y, y=mb.linear(x=z, weight=half(8, 8)))

    before = load(program)
    after = before.clone()
    Pipeline.parse("fp16-safe-norm,linear-to-conv,layout-bc1s").run(after, verify="each")
    assert kinds(after).count("transpose") == 2
    axes = [op.inputs["axes"].val.tolist() for op in after.function("main").operations if "axes" in op.inputs]
    assert [1] in axes
    assert compare(before, after, metric=Exact(rtol=1e-3))


def test_one_token_needs_no_transpose() -> None:
    model, _ = laid_out(mlp((1, 1, 8)))
    assert "transpose" not in kinds(model)


def test_flexible_lengths() -> None:
    model, report = laid_out(mlp((1, get_new_symbol(), 8)), sequence=100)
    assert kinds(model).count("transpose") == 2
    assert elements_of(report)[0] == pytest.approx(800, abs=1)


def test_a_length_that_is_none() -> None:
    with pytest.raises(PassError, match="sequence is a length of at least 1, not 0"):
        LayoutBc1s(sequence=0)


def test_what_mil_refuses_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(mlp())
    LinearToConv().run(model)
    before = text(model, weights="hash")
    names = value_names(model.function("main"))
    monkeypatch.setitem(ENTRIES, "silu", Entry(ENTRIES["silu"].read, lambda op, spec, place: {"x": "nothing"}))
    report = LayoutBc1s().run(model)
    assert not report
    assert report.misses[0].reason.startswith("MIL refuses the silu it would build")
    assert text(model, weights="hash") == before
    assert value_names(model.function("main")) == names
    model.program.validate()


def test_a_search_that_ends_early_says_how_far_off_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    exact, report = laid_out(decoder(1))
    assert report.notes == ["main: 12,032 elements moved are 3,584 now, a minimum by elimination"]
    monkeypatch.setattr("milopt.layout.graphs.solve", partial(solve, largest=32, work=0))
    model, report = laid_out(decoder(1))
    (note,) = report.notes
    found = re.fullmatch(
        r"main: 12,032 elements moved are ([\d,]+) now, at most ([\d,]+) above the minimum, which branch and bound, "
        r"elimination did not reach within its limit of work",
        note,
    )
    assert found is not None, note
    now, above = (int(each.replace(",", "")) for each in found.groups())
    assert 0 <= now - 3_584 <= above
    assert kinds(model).count("conv") == kinds(exact).count("conv")


@pytest.mark.parametrize("layers", [2, 4, 9])
def test_norms_of_heads_take_no_longer(layers: int) -> None:
    """What too many layers share for elimination alone is left to branch and bound, far from its limit."""
    model = load(decoder(layers, head_norms=True))
    LinearToConv().run(model)
    choice = read_free(model.functions, 64, {})["main"].graph.choose()
    assert choice.excess == 0
    assert choice.work < WORK / 8


def test_values_of_nested_blocks_keep_their_layout() -> None:
    @mb.program(
        input_specs=[mb.TensorSpec((1, 6, 8), types.fp32), mb.TensorSpec((1,), types.bool)], opset_version=target.iOS18
    )
    def program(x: Any, flag: Any) -> Any:
        y = mb.relu(x=mb.linear(x=mb.relu(x=mb.linear(x=x, weight=weight(8, 8))), weight=weight(8, 8)))
        return mb.cond(
            pred=mb.squeeze(x=flag, axes=[0]), _true_fn=lambda: mb.add(x=y, y=x), _false_fn=lambda: mb.mul(x=y, y=y)
        )

    _, report = laid_out(program)
    assert report
    assert sum(elements_of(report)) == pytest.approx(96, abs=1)


# The minimum: against every assignment of modes, on small programs.


def brute_force(graph: Graph, modes: list[list[Any]]) -> float:
    return min(graph.cost_of(choice) for choice in product(*modes))


def lowered(program: Program) -> Graph:
    model = load(program)
    LinearToConv().run(model)
    return read(model.function("main"), 64).graph


# tried one by one, at some 100 µs each
MOST = 3000


def test_nothing_is_cheaper() -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=25, deadline=None, phases=PHASES, suppress_health_check=CHECKS)
    @given(attentions())
    def run(program: Program) -> None:
        graph = lowered(program)
        modes = graph.modes()
        assume(prod(map(len, modes)) <= MOST)
        choice = graph.choose()
        assert graph.cost_of(choice.modes) == pytest.approx(choice.cost)
        assert choice.cost == choice.bound == pytest.approx(brute_force(graph, modes))
        seen["fused" if "scaled_dot_product_attention" in op_types(program) else "written out"] += 1
        seen["fan-out"] += any(len(each.consumers) > 2 for each in graph.tensors)
        layouts_of = {layout for each in modes for mode in each for layout in mode.layouts}
        seen["heads apart from positions and features"] += any(len(axes_of(each)) == 3 for each in layouts_of)

    run()
    assert len(seen) == 4
    assert min(seen.values()) > 2, seen


@settings(max_examples=25, deadline=None, phases=PHASES, suppress_health_check=CHECKS)
@given(attentions())
def test_another_solver_finds_nothing_cheaper(program: Program) -> None:
    """Programs with too many choices to try them all: by an integer program."""
    graph = lowered(program)
    problem, _ = graph.problem(graph.modes())
    assume(problem.sizes)
    cost, _ = integers(problem)
    assert graph.choose().cost == pytest.approx(cost)


@settings(max_examples=25, deadline=None, phases=PHASES, suppress_health_check=CHECKS)
@given(attentions(), st.data())
def test_no_other_layout_is_worth_having(program: Program, data: Any) -> None:
    """The layouts that ops ask for are all that is needed: with any others at hand nothing gets cheaper."""
    graph = lowered(program)
    also = [(number, data.draw(layouts(len(tensor.sizes)))) for number, tensor in enumerate(graph.tensors)]
    assert graph.choose(also).cost == pytest.approx(graph.choose().cost)


@settings(max_examples=15, deadline=None, phases=PHASES, suppress_health_check=CHECKS)
@given(attentions())
def test_attention_stays_the_same(program: Program) -> None:
    laid_out(program)
