"""Plans of single weights: their sizes, their groups, where channels lie; and what the report sums up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from milopt.clustering import packed
from milopt.metrics import Lossy
from milopt.mil import Program, constant, mb, target, types
from milopt.package import load
from milopt.passes.compressing import snr
from milopt.passes.compression import Palettize
from milopt.passes.palettes import PalettePlan, axis_of, nearest_divisor
from milopt.passes.quantization import Quantize
from milopt.passes.uses import Layout, Weight
from milopt.quantizing import quantize

from .support import linear_program, palettized, tables, weights

F16 = np.float16


# --- sizes and axes


@pytest.mark.parametrize(
    ("shape", "dtype", "group", "bits", "size"),
    [
        ((8, 5), F16, 8, 4, 20 + 2 * 16),
        ((8, 5), F16, 2, 4, 20 + 4 * 2 * 16),
        ((3, 3), F16, 3, 1, 2 + 2 * 2),  # nine bits are two bytes
        ((3, 3), np.float32, 1, 3, 4 + 3 * 4 * 8),
        ((4, 4), np.float32, 4, 8, 16 + 4 * 256),
    ],
)
def test_size_on_disk(shape: tuple[int, int], dtype: Any, group: int, bits: int, size: int) -> None:
    plan = PalettePlan(Weight(weights(shape, dtype=dtype)), Layout(1, *shape), group, bits)
    assert plan.nbytes == size
    assert plan.tables == shape[0] // group
    assert plan.rows().shape == (plan.tables, 1, group, shape[1])


def test_rows_hold_the_channels_of_a_group() -> None:
    array: Any = np.reshape(np.arange(2 * 4 * 3), (2, 4, 3))
    rows = PalettePlan(Weight(array), Layout(2, 4, 3), 2, 4).rows()
    assert rows.reshape(2, -1).tolist() == [
        [0, 1, 2, 3, 4, 5, 12, 13, 14, 15, 16, 17],
        [6, 7, 8, 9, 10, 11, 18, 19, 20, 21, 22, 23],
    ]


@pytest.mark.parametrize(
    ("layout", "shape", "axis"),
    [
        (Layout(1, 6, 4), (6, 4), 0),
        (Layout(4, 6, 1), (4, 6), 1),
        (Layout(1, 6, 4), (1, 6, 4), 1),
        (Layout(4, 6, 3), (4, 6, 1, 3), 1),
        (Layout(6, 6, 1), (6, 6), 1),
        (Layout(12, 6, 1), (3, 4, 6), 2),
        (Layout(2, 2, 2), (2, 2, 2), 1),
    ],
)
def test_the_axis_of_the_channels(layout: Layout, shape: tuple[int, ...], axis: int) -> None:
    assert axis_of(layout, shape) == axis


def test_a_shape_that_the_layout_does_not_describe() -> None:
    with pytest.raises(AssertionError) as error:
        axis_of(Layout(5, 2, 1), (2, 5))
    assert str(error.value) == "(2, 5) has no Layout(outer=5, channels=2, inner=1)"


@pytest.mark.parametrize(
    ("number", "wanted", "found"),
    [(8, 4, 4), (36, 6, 6), (27, 5, 3), (8, 3, 4), (100, 7, 5), (200, 30, 25), (96, 20, 24), (16, 32, 16), (9, 1, 1)],
)
def test_the_nearest_divisor(number: int, wanted: int, found: int) -> None:
    assert nearest_divisor(number, wanted) == found


def test_bytes_are_packed_already() -> None:
    indices = np.arange(9, dtype=np.uint8)
    assert packed(indices, 8) is indices


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
def test_the_first_index_is_in_the_lowest_bits(bits: int) -> None:
    indices = np.array([1, 0, 1, 1], np.uint8)
    number = int.from_bytes(packed(indices, bits).tobytes(), "little")
    assert number == sum(int(each) << (bits * at) for at, each in enumerate(indices))


# --- what the report sums up


def two_layers(*shapes: tuple[int, int], seeds: tuple[int, ...] = (0, 1), **options: Any) -> Program:
    @mb.program(input_specs=[mb.TensorSpec((1, shape[1]), types.fp16) for shape in shapes], opset_version=target.iOS18)
    def program(x: Any, y: Any) -> Any:
        made = [
            mb.linear(x=each, weight=mb.const(val=weights(shape, seed=seed), name=name))
            for each, shape, seed, name in zip((x, y), shapes, seeds, ("first", "second"), strict=True)
        ]
        return tuple(made)

    return program


def decibels(*pairs: tuple[Any, Any]) -> float:
    power = sum(np.sum(old.astype(np.float64) ** 2) for old, _ in pairs)
    error = sum(np.sum((old.astype(np.float64) - new.astype(np.float64)) ** 2) for old, new in pairs)
    return float(10 * np.log10(power / error))


def test_the_ratio_in_decibels() -> None:
    assert snr(100.0, 1.0) == 20
    assert snr(1.0, 100.0) == -20
    assert snr(3.0, 0.0) == float("inf")


def test_palettes_of_two_weights() -> None:
    first, second = weights((48, 64)), weights((60, 64), seed=1)
    model, report = palettized(two_layers((48, 64), (60, 64)), bits=4)
    assert (report.tried, report.applied) == (2, 2)
    decoded = {op.name: op.materialized_val_inference() for op in tables(model.function())}
    pairs = [(first, decoded["first"]), (second, decoded["second"])]
    worst, name = min((decibels(pair), name) for pair, name in zip(pairs, ("first", "second"), strict=True))
    # 48 x 64 halves and 3 tables, 60 x 64 halves and 4 tables of 15 channels
    assert report.notes == [
        "6,912 numbers in 2 weights: 13,824 -> 3,680 bytes",
        f"SNR of the weights {decibels(*pairs):.1f} dB, the lowest {worst:.1f} dB ({name})",
        "groups of 15 for 60 channels instead of groups of 16 (1 weights)",
    ]
    assert report.metric == Lossy(min_snr_db=max(0.5, round(decibels(*pairs) - 20, 1)))


def test_other_groups_are_counted() -> None:
    _, report = palettized(two_layers((60, 64), (60, 64)), bits=4)
    assert report.notes[2:] == ["groups of 15 for 60 channels instead of groups of 16 (2 weights)"]
    _, report = palettized(two_layers((7, 640), (16, 640)), bits=4)
    assert report.notes[2:] == ["one table for 7 channels instead of groups of 16 (1 weights)"]
    _, report = palettized(two_layers((60, 64), (48, 64)), bits=4, granularity="tensor")
    assert len(report.notes) == 2


def test_blocks_of_two_weights() -> None:
    first, second = weights((48, 64)), weights((40, 96), seed=1)
    model = load(two_layers((48, 64), (40, 96)))
    report = Quantize().run(model)
    assert (report.tried, report.applied, report.metric) == (2, 2, None)
    decoded = {
        op.name: op.materialized_val_inference()
        for op in model.function().operations
        if op.op_type == "constexpr_blockwise_shift_scale"
    }
    pairs = [(first, decoded["first"]), (second, decoded["second"])]
    ratio = decibels(*pairs)
    worst, name = min((decibels(pair), name) for pair, name in zip(pairs, ("first", "second"), strict=True))
    assert report.notes == [
        "6,912 numbers in 2 weights: 13,824 -> 3,888 bytes",  # 3456 and 216 scales
        f"SNR of the weights {ratio:.1f} dB, the lowest {worst:.1f} dB ({name})",
    ]
    assert Quantize(dtype="int8").run(load(two_layers((48, 64), (40, 96)))).metric == Lossy(min_snr_db=20)


def test_other_blocks_are_counted() -> None:
    report = Quantize().run(load(two_layers((64, 172), (64, 172))))
    assert report.notes[2:] == ["blocks of 43 for 172 inputs instead of 32 (2 weights)"]
    report = Quantize().run(load(two_layers((64, 172), (64, 50))))
    assert report.notes[2:] == [
        "blocks of 43 for 172 inputs instead of 32 (1 weights)",
        "blocks of 25 for 50 inputs instead of 32 (1 weights)",
    ]


@pytest.mark.parametrize("made", [Palettize(), Quantize()], ids=["palettize", "quantize"])
def test_nothing_to_do_is_told_with_its_places(made: Any) -> None:
    program = linear_program(weights((48, 64)), opset=target.iOS15)
    report = made.run(load(program))
    assert (report.tried, report.applied, report.notes, report.metric) == (1, 0, [], None)
    assert [(miss.function, miss.place) for miss in report.misses] == [("main", "w")]


def test_what_is_compressed_is_told_once_for_each_use() -> None:
    model, _ = palettized(two_layers((48, 64), (48, 64)))
    for made in (Palettize(), Quantize()):
        report = made.run(model)
        assert [(miss.function, miss.place, miss.reason) for miss in report.misses] == [
            ("main", name, "compressed already, as constexpr_lut_to_dense") for name in ("first", "second")
        ]


# --- quantize itself


def integers(array: Any, counts: tuple[int, ...], dtype: Any = "int4", **options: Any) -> tuple[Any, Any]:
    found = quantize(array, counts, dtype, **options)
    return found.data.tolist(), found.scale.tolist()


def test_scales_and_integers() -> None:
    row = np.array([[7, -3.4, 0, 1], [14, 0, -14, 0.9]], np.float32)
    found = quantize(row, (2, 2), "int4")
    assert (found.data.dtype, found.scale.dtype, found.offset) == (np.int8, np.float32, None)
    assert found.scale.tolist() == [[1.0, float(np.float32(1 / 7))], [2.0, 2.0]]
    assert found.data.tolist() == [[7, -3, 0, 7], [7, 0, -7, 0]]


def test_zeros_have_the_scale_one() -> None:
    assert integers(np.zeros((1, 4), F16), (1, 2), "int8") == ([[0, 0, 0, 0]], [[1.0, 1.0]])


def test_a_scale_among_the_subnormals_is_rounded_up_where_it_must() -> None:
    """10 steps of 2**-24 by 7 is 1.43 steps, which rounds to one: the largest number would be 10 of them."""
    step = 2.0**-24
    assert integers(np.array([[10 * step, -10 * step]], F16), (1, 1)) == ([[5, -5]], [[2 * step]])
    assert integers(np.array([[7 * step, -3 * step]], F16), (1, 1)) == ([[7, -3]], [[step]])
    # a scale that rounds to none at all is the smallest one
    assert integers(np.array([[5 * step, -3 * step]], F16), (1, 1), "int8") == ([[5, -3]], [[step]])


def test_the_first_plan_of_two_is_placed_by_its_own_name() -> None:
    model, _ = palettized(two_layers((48, 64), (64, 128)), bits=8)
    shapes = {op.name: tuple(constant(op.indices).shape) for op in tables(model.function())}
    assert shapes == {"first": (48, 64), "second": (64, 128)}
