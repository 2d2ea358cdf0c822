"""palettize in detail: which channels share a table, every reason and note, and what statistics of inputs add."""

# The methods of numpy arrays whose element type is not told have types that are not known either.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milopt.calibration.statistics import Moments, Statistics, key_of
from milopt.metrics import Lossy
from milopt.mil import Program, constant, mb, target, types
from milopt.package import Model, load
from milopt.passes.compressing import CompressionReport, Totals
from milopt.passes.compression import Palettize, inputs_of, sum_up
from milopt.passes.palettes import PalettePlan
from milopt.passes.uses import Layout, Weight, find_weights
from milopt.reports import Report

from .layers import layers, numbers
from .support import compressed, left_alone, linear_program, tables, two_functions

F16: Any = np.float16


def palettize(**options: Any) -> Palettize:
    given: dict[str, Any] = {"min_elements": 1, "bits": 1, "group_size": 4, **options}
    return Palettize(**given)


def run(source: Program | Model, **options: Any) -> tuple[Model, CompressionReport]:
    return compressed(palettize(**options), source)


def reason(source: Program | Model, **options: Any) -> list[tuple[str, str]]:
    """The reasons for leaving everything alone, and where."""
    report = left_alone(palettize(**options), source)
    assert (report.notes, report.metric) == ([], None)
    return [(miss.place, miss.reason) for miss in report.misses]


def shapes(model: Model) -> list[tuple[int, ...]]:
    return [tuple(op.inputs["lut"].shape) for function in model.functions.values() for op in tables(function)]


def plan_of(program: Program, **options: Any) -> PalettePlan:
    (weight,) = find_weights(load(program))
    return palettize(**options).plan(weight, None, Report("palettize"))


# --- tables


@pytest.mark.parametrize(
    ("use", "shape", "options", "lut"),
    [
        ("linear", (8, 6), {}, (2, 1, 2, 1)),
        ("linear", (8, 6), {"axis": 1, "group_size": 3}, (1, 2, 2, 1)),
        ("linear", (8, 6), {"axis": -1, "group_size": 2}, (1, 3, 2, 1)),
        ("linear", (8, 6), {"granularity": "tensor"}, (1, 1, 2, 1)),
        ("linear", (8, 6), {"bits": 2}, (2, 1, 4, 1)),
        ("linear", (8, 12), {"bits": 3}, (2, 1, 8, 1)),
        ("linear", (8, 6), {"cluster_dim": 2}, (2, 1, 2, 2)),
        ("linear", (8, 6), {"cluster_dim": 2, "granularity": "tensor"}, (1, 1, 2, 2)),
        ("linear", (8, 6), {"cluster_dim": 4, "group_size": 2}, (2, 1, 2, 4)),
        ("linear", (8, 6), {"cluster_dim": 4, "group_size": 4}, (2, 1, 2, 4)),
        ("linear", (8, 6), {"cluster_dim": 4, "group_size": 8}, (1, 1, 2, 4)),
        ("linear", (8, 6), {"lut_dtype": "int8"}, (2, 1, 2, 1)),
        ("linear", (8, 6), {"per_channel_scale": True}, (2, 1, 2, 1)),
        ("matmul", (6, 8), {}, (1, 2, 2, 1)),
        ("conv", (8, 6, 1), {}, (2, 1, 1, 2, 1)),
        ("rows", (8, 6), {}, (2, 1, 2, 1)),
        ("rows", (8,), {"group_size": 8}, (1, 2, 1)),
    ],
)
def test_which_channels_share_a_table(use: str, shape: Any, options: Any, lut: Any) -> None:
    model, report = run(layers((use, numbers(*shape))), **options)
    assert shapes(model) == [lut]
    assert (report.tried, report.applied, report.misses, report.name) == (1, 1, [], "palettize")
    line = report.coverage[0]
    assert line.bits == options.get("bits", 1)
    plan = plan_of(layers((use, numbers(*shape))), **options)
    assert (line.form, line.after) == (plan.form, plan.nbytes)
    assert plan.integers == (options.get("lut_dtype") == "int8")
    assert (plan.vector, plan.scaled) == (options.get("cluster_dim", 1), "per_channel_scale" in options)


@pytest.mark.parametrize(
    ("shape", "options", "note"),
    [
        ((8, 6), {"group_size": 3}, "groups of 4 for 8 channels instead of groups of 3 (1 weights)"),
        ((8, 6), {"group_size": 16}, "one table for 8 channels instead of groups of 16 (1 weights)"),
        ((8, 6), {"cluster_dim": 4, "group_size": 2}, "groups of 4 for 8 channels instead of groups of 2 (1 weights)"),
    ],
)
def test_groups_that_do_not_divide_the_channels(shape: Any, options: Any, note: str) -> None:
    _, report = run(layers(("linear", numbers(*shape))), **options)
    assert report.notes[2:] == [note]
    assert report.notes[0].startswith("48 numbers in 1 weights: 96 -> ")


def test_groups_that_are_as_asked_for_are_not_told() -> None:
    for options in ({}, {"granularity": "tensor"}, {"granularity": "tensor", "group_size": 3}):
        _, report = run(layers(("linear", numbers(8, 6))), **options)
        assert len(report.notes) == 2


def test_groups_are_counted_by_weight() -> None:
    several = layers(*(("linear", numbers(rows, 8) + rows) for rows in (8, 8, 6)), ("rows", numbers(8, 9)))
    _, report = run(several, group_size=3)
    assert report.notes[2:] == ["groups of 4 for 8 channels instead of groups of 3 (3 weights)"]
    assert report.applied == 4


# --- what all lose together


@pytest.mark.parametrize(
    ("lost", "bound"),
    [(1e-1, 0.5), (1e-2, 0.5), (10**-2.05, 0.5), (10**-2.06, 0.6), (1e-3, 10.0), (1e-5, 30.0), (1e-9, 30.0)],
)
def test_what_outputs_may_lose(lost: float, bound: float) -> None:
    report = Report("palettize")
    sum_up(Totals(2, 1000, 2000, 1500, lost, 1.0, (7.25, "w")), report)
    assert report.metric == Lossy(min_snr_db=bound)
    assert report.notes == [
        "1,000 numbers in 2 weights: 2,000 -> 1,500 bytes",
        f"SNR of the weights {-10 * np.log10(lost):.1f} dB, the lowest 7.2 dB (w)",
    ]
    assert Palettize.metric == Lossy(0.5)


def test_the_sums_are_those_of_the_run() -> None:
    _, report = run(layers(("linear", numbers(8, 6)), ("rows", numbers(8, 9))), bits=2)
    lines = {line.name: line for line in report.coverage}
    assert report.notes[0] == f"120 numbers in 2 weights: 240 -> {sum(line.after for line in report.coverage)} bytes"
    worst = min(lines.values(), key=lambda line: line.snr or 0)
    assert report.notes[1].endswith(f"the lowest {worst.snr:.1f} dB ({worst.name})")
    assert report.metric is not None


def test_lines_are_in_the_order_of_the_program() -> None:
    """The largest is compressed first, and what is left alone is known before."""
    arrays = [numbers(4, 8), numbers(8, 8), numbers(1, 8)]
    _, report = run(layers(*(("linear", each) for each in arrays)), min_elements=9)
    assert [(line.name, bool(line.reason)) for line in report.coverage] == [("w", False), ("w1", False), ("w2", True)]
    assert (report.tried, report.applied) == (3, 2)


# --- what is left alone


def test_weights_that_are_small() -> None:
    weight = numbers(8, 6)
    assert reason(layers(("linear", weight)), min_elements=49) == [("w", "too small: 48 of 49 numbers")]
    assert run(layers(("linear", weight)), min_elements=48)[1].applied == 1
    assert Palettize().min_elements == 2048
    # one number is an index of a byte and a table of two numbers; and none at all
    for least in (1, 0):
        assert reason(layers(("linear", numbers(1, 1))), min_elements=least) == [("w", "2 bytes would become 5")]
    assert reason(layers(("rows", numbers(2, 0))), min_elements=0) == [("w", "too small: 0 of 0 numbers")]


def test_weights_that_would_not_become_smaller() -> None:
    assert reason(layers(("linear", numbers(8, 4))), bits=4) == [("w", "64 bytes would become 80")]
    assert reason(layers(("linear", numbers(1, 5))), bits=2) == [("w", "10 bytes would become 10")]
    assert run(layers(("linear", numbers(1, 6))), bits=2)[1].coverage[0].after == 10


def test_embeddings_stay_where_that_is_asked_for() -> None:
    weight = numbers(8, 6)
    told = [("w", "an embedding, and embedding=False")]
    assert reason(layers(("rows", weight)), embedding=False) == told
    assert reason(layers(("linear", weight), ("rows", weight)), embedding=False) == told
    assert run(layers(("linear", weight)), embedding=False)[1].applied == 1
    assert run(layers(("rows", weight)))[1].applied == 1


def test_uses_whose_channels_lie_on_different_axes() -> None:
    weight = numbers(8, 8)
    both = layers(("linear", weight), ("matmul", weight))
    told = "its uses have their channels on different axes: linear.weight of linear, matmul.y of matmul"
    several: list[dict[str, Any]] = [
        {},
        {"granularity": "tensor", "per_channel_scale": True},
        {"granularity": "tensor", "cluster_dim": 2},
    ]
    for options in several:
        assert reason(both, **options) == [("w", told)]
    model, report = run(both, granularity="tensor")
    assert (shapes(model), report.applied) == ([(1, 1, 2, 1)] * 2, 2)


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        ({"bits": 3}, "iOS18"),
        ({"per_channel_scale": True}, "iOS18"),
        ({"cluster_dim": 2}, "iOS18"),
        ({"lut_dtype": "int8"}, "iOS18"),
        ({}, "iOS16"),
    ],
)
@pytest.mark.parametrize("granularity", ["tensor", "grouped-channel"])
def test_forms_that_older_targets_have_not(options: dict[str, Any], needed: str, granularity: str) -> None:
    old = target.iOS17 if needed == "iOS18" else target.iOS15
    program = layers(("linear", numbers(8, 12)), opset=old)
    assert reason(program, granularity=granularity, **options) == [("w", f"needs {needed}, the function is {old.name}")]
    _, report = run(layers(("linear", numbers(8, 12)), opset=target[needed]), granularity=granularity, **options)
    assert report.applied == 1


@pytest.mark.parametrize("bits", [1, 2, 4, 6])
def test_tables_of_older_targets_and_how_to_have_more(bits: int) -> None:
    weight = np.tile(numbers(8, 4), (1, 12))
    model, report = run(layers(("linear", weight), opset=target.iOS16), bits=bits)
    assert shapes(model) == [(1 << bits,)]
    assert report.coverage[0].form == f"{bits} bits, a table"
    assert report.notes[0] == (
        "tables for groups of channels are of iOS18, function 'main' is iOS16, so that its weights get one each: "
        'upgrade with --minimum-deployment-target iOS18 (milopt.upgrade(model, "iOS18"))'
    )
    assert report.notes[3:] == ["one table for 8 channels instead of groups of 4 (1 weights)"]
    _, report = run(layers(("linear", weight), opset=target.iOS16), bits=bits, granularity="tensor")
    assert len(report.notes) == 2


def test_functions_of_two_targets() -> None:
    """One form for both: that of the older one, which is told of."""
    weight = numbers(8, 6)
    both = two_functions(*(linear_program(weight, opset=target.iOS17) for _ in range(2)))
    both.functions["decode"].opset_version = target.iOS18
    model, report = run(both)
    assert (shapes(model), report.applied) == ([(1, 1, 2, 1), (2,)], 2)
    assert [note.split(",")[1] for note in report.notes[:1]] == [" function 'prefill' is iOS17"]


def test_vectors_have_no_channels() -> None:
    weight = numbers(16)
    assert reason(layers(("vector", weight)), per_channel_scale=True) == [("w", "a vector has no channels")]
    told = "1 channels are no multiple of cluster_dim, 2"
    assert reason(layers(("vector", weight)), cluster_dim=2) == [("w", told)]
    model, _ = run(layers(("vector", weight)))
    assert shapes(model) == [(1, 2, 1)]
    # of one channel there is no scale worth having either
    one = layers(("linear", numbers(1, 16)))
    assert reason(one, per_channel_scale=True) == [("w", "a vector has no channels")]
    assert run(layers(("linear", numbers(2, 16))), per_channel_scale=True)[1].applied == 1


def test_vectors_of_channels_that_do_not_divide_them() -> None:
    told = "8 channels are no multiple of cluster_dim, 3"
    assert reason(layers(("linear", numbers(8, 6))), cluster_dim=3) == [("w", told)]


def test_axes_that_a_weight_has_not() -> None:
    for axis in (2, -3):
        assert reason(layers(("linear", numbers(8, 6))), axis=axis) == [("w", f"has no axis {axis}")]


def test_compressed_weights_are_told_or_compressed_again() -> None:
    model, _ = run(layers(("linear", numbers(8, 6))), bits=2)
    assert reason(model) == [("w", "compressed already, as constexpr_lut_to_dense")]
    _, report = run(model, recompress=True)
    assert (report.tried, report.applied, report.misses, report.coverage[0].bits) == (1, 1, [], 1)


def test_weights_that_are_not_finite() -> None:
    weight = numbers(8, 6)
    weight[1, 2] = np.inf
    assert reason(layers(("linear", weight))) == [("w", "holds 1 values that are not finite")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 0}, "group_size must be at least 1, not 0"),
        ({"cluster_dim": 0}, "cluster_dim must be at least 1, not 0"),
        ({"cluster_dim": 2, "per_channel_scale": True}, "per_channel_scale is for tables of numbers, cluster_dim=1"),
        ({"cluster_dim": 2, "lut_dtype": "int8"}, "lut_dtype=int8 is for tables of numbers, cluster_dim=1"),
        (
            {"cluster_dim": 2, "weighting": "activation", "calibration": "s"},
            "weighting is for tables of numbers, cluster_dim=1",
        ),
        (
            {"weighting": "activation"},
            "weighting=activation goes with calibration, the file of milopt.calibration's statistics",
        ),
        (
            {"calibration": "s"},
            "weighting=activation goes with calibration, the file of milopt.calibration's statistics",
        ),
        ({"feedback": True}, "feedback needs weighting=activation, and a calibration with hessian=True"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message.replace('.', '[.]')}$"):
        Palettize(**options)
    assert Palettize(group_size=1, cluster_dim=1, per_channel_scale=True, lut_dtype="int8").group_size == 1
    assert Palettize(weighting="activation", calibration="s", feedback=True, per_channel_scale=True).feedback


# --- statistics of inputs


def heard(weight: Any, inputs: Layout, squares: Any, *, count: int = 2, products: Any = None) -> Statistics:
    return Statistics({key_of(weight, inputs): Moments(np.asarray(squares, float), count, products)})


def weighted(program: Program, statistics: Statistics, **options: Any) -> tuple[PalettePlan, list[str]]:
    (weight,) = find_weights(load(program))
    report = Report("palettize")
    made = palettize(weighting="activation", calibration="s", **options)
    return made.plan(weight, statistics, report), report.notes


def test_numbers_count_with_the_squares_of_their_inputs() -> None:
    weight, squares = numbers(8, 6), np.arange(1, 7)
    plan, notes = weighted(layers(("linear", weight)), heard(weight, Layout(8, 6, 1), squares))
    assert (plan.importance.shape, plan.importance.ravel().tolist()) == ((1, 1, 1, 6), (squares / 2).tolist())
    assert (plan.products, notes) == (None, [])


def test_inputs_that_were_not_seen_are_told() -> None:
    weight = numbers(8, 6)
    told = ["no inputs of w were seen: every number of it counts alike"]
    inputs = Layout(8, 6, 1)
    odd: list[tuple[Program, Statistics]] = [
        (layers(("linear", weight)), Statistics()),
        (layers(("linear", weight)), heard(weight, Layout(1, 8, 6), np.ones(8))),
        (layers(("linear", weight)), heard(weight, inputs, np.ones(5))),
        (layers(("linear", weight)), heard(weight, inputs, np.zeros(6))),
        (layers(("linear", weight)), heard(weight, inputs, [1, 2, np.inf, 3, 4, 5])),
        (layers(("linear", weight)), heard(weight, inputs, [1, 2, np.nan, 3, 4, 5])),
        (layers(("rows", weight)), heard(weight, inputs, np.ones(6))),
    ]
    for program, statistics in odd:
        plan, notes = weighted(program, statistics, feedback=True)
        assert (plan.importance, plan.products, notes) == (None, None, told)


def test_where_inputs_lie() -> None:
    """A gather multiplies with nothing; two uses may agree, in whatever shape, or not."""
    weight = numbers(6, 6)
    statistics = heard(weight, Layout(6, 6, 1), np.arange(6))
    for uses in (
        [("linear", weight)],
        [("linear", weight), ("rows", weight)],
        [("linear", weight), ("transposed", weight)],
        [("linear", weight), ("conv", weight.reshape(6, 6, 1))],
    ):
        (one,) = find_weights(load(layers(*uses)))
        found = inputs_of(one, statistics)
        assert found is not None
        assert found[0].squares.tolist() == list(range(6))
        assert found[1] == Layout(6, 6, 1)
    (other,) = find_weights(load(layers(("linear", weight), ("matmul", weight))))
    assert inputs_of(other, statistics) is None


def test_feedback_needs_products_of_the_inputs_of_a_channel() -> None:
    weight, products = numbers(6, 6), np.eye(6)
    inputs = Layout(6, 6, 1)
    plan, notes = weighted(layers(("linear", weight)), heard(weight, inputs, np.ones(6)), feedback=True, group_size=3)
    assert (plan.importance is None, plan.products) == (False, None)
    assert notes == ["no feedback among the indices of w: no hessian was collected"]
    seen = heard(weight, inputs, np.ones(6), products=products)
    plan, notes = weighted(layers(("linear", weight)), seen, feedback=True, group_size=3)
    assert plan.products is products
    assert notes == []
    plan, notes = weighted(layers(("linear", weight)), seen, group_size=3)
    assert (plan.importance is None, plan.products, notes) == (False, None, [])
    # with tables for some inputs, and of inputs that are seen at several places
    told = ["no feedback among the indices of w: its inputs are not those of a channel"]
    plan, notes = weighted(layers(("linear", weight)), seen, feedback=True, axis=1, group_size=3)
    assert (plan.importance.shape, plan.products, notes) == ((2, 1, 3, 1), None, told)
    image = numbers(6, 6, 2)
    seen = heard(image, Layout(6, 6, 2), np.ones(6), products=products)
    plan, notes = weighted(layers(("conv", image)), seen, feedback=True, group_size=3)
    assert (plan.importance is None, plan.products, notes) == (False, None, told)


def test_statistics_come_from_the_file(tmp_path: Path) -> None:
    """An input that is large makes its column's numbers exact."""
    weight = numbers(8, 6)
    path = tmp_path / "s.safetensors"
    heard(weight, Layout(8, 6, 1), [1e6, 1, 1, 1, 1, 1]).save(path)
    lost: list[float] = []
    for options in ({}, {"weighting": "activation", "calibration": str(path)}):
        model, report = run(layers(("linear", weight)), bits=2, granularity="tensor", **options)
        (op,) = tables(model.function())
        decoded = constant(op.inputs["lut"])[0, 0, constant(op.inputs["indices"]), 0]
        lost.append(float(np.sum((decoded - weight)[:, 0].astype(float) ** 2)))
        assert len(report.notes) == 2
    assert lost[1] < lost[0]


def test_a_weight_that_two_functions_hold_is_one() -> None:
    weight = numbers(8, 6)

    @mb.program(input_specs=[mb.TensorSpec((1, 6), types.fp16)], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        held = mb.const(val=weight, name="w")
        return mb.linear(x=x, weight=held), mb.linear(x=mb.relu(x=x), weight=held)

    (one,) = find_weights(load(program))
    assert isinstance(one, Weight)
    assert run(program)[1].applied == 1


def test_only_weights_are_told_to_be_compressed_already() -> None:
    """What an addition holds is none, and neither is the table that another compressed op has."""
    scale: Any = np.ones((4, 1), F16)

    @mb.program(input_specs=[mb.TensorSpec((1, 4), types.fp16)], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        held = [
            mb.constexpr_blockwise_shift_scale(data=np.full((4, 4), at, np.int8), scale=scale, name=f"w{at}")
            for at in range(2)
        ]
        return mb.linear(x=mb.add(x=x, y=held[0]), weight=held[1])

    assert reason(program) == [("w1", "compressed already, as constexpr_blockwise_shift_scale")]
