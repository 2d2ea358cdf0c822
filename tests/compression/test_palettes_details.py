"""Tables of values in detail: what a plan says and how large it is, errors, and importance by number."""

# The methods of numpy arrays whose element type is not told have types that are not known either.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from milopt import clustering, refining
from milopt.feedback import with_feedback
from milopt.package import load
from milopt.passes import palettes
from milopt.passes.compression import Palettize
from milopt.passes.palettes import (
    PalettePlan,
    encode_palette,
    encode_vectors,
    importance_of,
)
from milopt.passes.uses import Layout, Weight

from .support import linear_program, tables, weights

F16: Any = np.float16


def plan(
    shape: tuple[int, ...] = (8, 6), group: int = 4, bits: int = 4, *, wide: bool = False, **more: Any
) -> PalettePlan:
    array: Any = np.arange(np.prod(shape), dtype=np.float32 if wide else F16).reshape(shape)
    return PalettePlan(Weight(array), Layout(1, shape[0], int(np.prod(shape[1:]))), group, bits, **more)


def test_what_a_plan_says() -> None:
    assert plan().form == "4 bits, a table per 4 channels"
    assert plan(group=8).form == "4 bits, a table"
    assert plan(integers=True).form == "4 bits, a table per 4 channels in int8"
    assert plan(group=8, scaled=True, bits=3).form == "3 bits, a table, a scale per channel"
    assert plan(integers=True, scaled=True).form == "4 bits, a table per 4 channels in int8, a scale per channel"
    assert plan(vector=2).form == "4 bits for vectors of 2, a table per 4 channels"
    assert (plan().tables, plan(group=8).tables, plan(bits=6).element_bits) == (2, 1, 6)
    assert (plan().vector, plan().scaled, plan().integers, plan().importance, plan().products) == (
        1,
        False,
        False,
        None,
        None,
    )
    with pytest.raises(AttributeError):
        plan().bits = 2  # type: ignore[misc]


def test_how_large_a_plan_is() -> None:
    """Indices in whole bytes, tables of 2 or 4 bytes an entry, or of one with a scale each, and scales of channels."""
    assert plan().nbytes == 24 + 2 * 16 * 2
    assert plan(wide=True).nbytes == 24 + 2 * 16 * 4
    assert plan(group=8, bits=3).nbytes == 18 + 8 * 2
    assert plan((5, 3), group=5, bits=3).nbytes == 6 + 8 * 2  # 45 bits
    assert plan(scaled=True).nbytes == 24 + 2 * 16 * 2 + 8 * 2
    assert plan(integers=True).nbytes == 24 + 2 * 16 + 2 * 2
    assert plan(integers=True, wide=True).nbytes == 24 + 2 * 16 + 2 * 4
    assert plan(vector=2).nbytes == 12 + 2 * 16 * 2 * 2


def test_which_function_does_the_work() -> None:
    function, given = plan(scaled=True, importance=np.ones(1), integers=True).job()
    assert (function, given[0].shape, given[1:3], given[4:]) == (encode_palette, (2, 1, 4, 6), (4, True), (None, True))
    function, given = plan(vector=2).job()
    assert (function, given[1:]) == (encode_vectors, (4, 2))


def rows(*, seed: int = 0) -> Any:
    """Weights ``(tables, outer, group, inner)`` = (2, 1, 4, 6)."""
    return np.random.default_rng(seed).standard_normal((2, 1, 4, 6)).astype(F16)


def unpacked(encoded: Any, bits: int) -> Any:
    data, _, count = encoded.tensors["indices"]
    every = np.unpackbits(data, bitorder="little")[: count * bits].reshape(count, bits)
    return every @ (1 << np.arange(bits))


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("integers", [False, True])
def test_the_error_is_that_of_what_is_written(scaled: bool, integers: bool) -> None:
    weights = rows()
    found = encode_palette(weights, 2, scaled, integers=integers)
    assert {name: (kind, count) for name, (_, kind, count) in found.tensors.items()} == {
        "indices": ("uint2", 48),
        "lut": ("int8" if integers else "fp16", 8),
        **({"lut_scale": ("fp16", 2)} if integers else {}),
        **({"scale": ("fp16", 8)} if scaled else {}),
    }
    indices = unpacked(found, 2).reshape(1, 2, 4, 6).transpose(1, 0, 2, 3)
    lut = found.tensors["lut"][0].reshape(2, 4).astype(np.float32)
    if integers:
        lut = (lut * found.tensors["lut_scale"][0].reshape(2, 1).astype(np.float32)).astype(F16).astype(np.float32)
    decoded = np.take_along_axis(lut.reshape(2, 1, 1, 4), indices.reshape(2, 1, 1, 24), 3).reshape(2, 1, 4, 6)
    if scaled:
        scale = found.tensors["scale"][0].reshape(2, 1, 4, 1)
        np.testing.assert_array_equal(scale, np.abs(weights).max(axis=(1, 3), keepdims=True))
        decoded = (decoded.astype(F16) * scale).astype(np.float64)
    error = float(np.sum((weights.astype(np.float64) - decoded) ** 2))
    # products of fp16 numbers may be summed up, or rounded, in another order
    assert found.error == pytest.approx(error, rel=1e-2)
    assert found.power == pytest.approx(float(np.sum(weights.astype(np.float64) ** 2)), rel=1e-9)
    assert found.wrong == 0


def test_weights_that_are_not_finite_are_counted() -> None:
    weights = rows()
    weights[0, 0, 1, 2], weights[1, 0, 0, 0] = np.nan, np.inf
    for given in ({}, {"scaled": True}, {"integers": True}):
        assert encode_palette(weights, 2, **given).wrong >= 2
    assert encode_vectors(weights, 2, 2).wrong >= 1


def test_importance_by_number() -> None:
    """A weight (8, 6) of 6 inputs has their moments along its rows, (6, 8) of 6 inputs along the groups' channels."""
    moments: Any = np.arange(6.0)
    along = importance_of(moments, plan(), Layout(8, 6, 1))
    assert along.shape == (1, 1, 1, 6)
    np.testing.assert_array_equal(along.ravel(), moments)
    own = PalettePlan(Weight(np.ones((6, 8), F16)), Layout(1, 6, 8), 2, 4)
    grouped = importance_of(moments, own, Layout(1, 6, 8))
    assert grouped.shape == (3, 1, 2, 1)
    np.testing.assert_array_equal(grouped.ravel(), moments)
    turned = PalettePlan(Weight(np.ones((6, 8), F16)), Layout(6, 8, 1), 4, 4)
    across = importance_of(moments, turned, Layout(1, 6, 8))
    assert across.shape == (1, 6, 1, 1)
    np.testing.assert_array_equal(across.ravel(), moments)
    kernel = PalettePlan(Weight(np.ones((4, 3, 2), F16)), Layout(1, 4, 6), 4, 4)
    np.testing.assert_array_equal(
        importance_of(np.array([5.0, 6, 7]), kernel, Layout(4, 3, 2)).ravel(), [5, 5, 6, 6, 7, 7]
    )


def test_vectors_are_of_neighbouring_channels() -> None:
    weights: Any = np.zeros((1, 1, 4, 3), F16)
    weights[0, 0, :, 0] = [1, 2, 3, 4]
    weights[0, 0, :, 1] = [3, 4, 1, 2]
    weights[0, 0, :, 2] = [1, 2, 1, 2]
    found = encode_vectors(weights, 1, 2)
    lut = found.tensors["lut"][0].reshape(2, 2)
    assert sorted(map(tuple, lut.tolist())) == [(1, 2), (3, 4)]
    indices = unpacked(found, 1).reshape(2, 3)
    np.testing.assert_array_equal(lut[indices].transpose(0, 2, 1).reshape(4, 3), weights[0, 0])
    assert (found.error, found.wrong, found.tensors["indices"][1:]) == (0.0, 0, ("uint1", 6))


GRID: Any = np.array([-127.0, -64.0, 64.0, 127.0], F16)


@pytest.mark.parametrize("fed_back", [False, True])
@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_weights_that_tables_hold_are_held_exactly(scaled: bool, integers: bool, fed_back: bool) -> None:
    """Of two tables of four numbers each, for four channels of 2 x 3 inputs; inputs that are not alike nor apart."""
    rng = np.random.default_rng(3)
    shape = (2, 2, 4, 3)
    weights = GRID[rng.integers(0, 4, shape)]
    weights[..., 0] = 127  # of every channel the largest
    if scaled:
        weights *= F16(2.0) ** rng.integers(-3, 3, (2, 1, 4, 1)).astype(F16)
    mixed: Any = rng.standard_normal((6, 6))
    products: Any = mixed @ mixed.T if fed_back else None
    found = encode_palette(weights, 2, scaled, None, products, integers)
    lut: Any = found.tensors["lut"][0].reshape(2, 4).astype(np.float64)
    if integers:
        lut = lut * found.tensors["lut_scale"][0].reshape(2, 1).astype(np.float64)
    indices = unpacked(found, 2).reshape(2, 2, 4, 3).transpose(1, 0, 2, 3)
    decoded = np.stack([table[each] for table, each in zip(lut, indices, strict=True)])
    if scaled:
        decoded = decoded * found.tensors["scale"][0].reshape(2, 1, 4, 1)
    # the entries and their one scale are fp16 numbers
    np.testing.assert_allclose(decoded, weights, rtol=2.0**-9)
    assert found.error <= 2.0**-18 * found.power


def test_channels_of_zeros_stay_zeros() -> None:
    weights = rows()
    weights[0, 0, 1] = 0
    found = encode_palette(weights, 2, True)
    assert (found.wrong, found.tensors["scale"][0].ravel()[1]) == (0, 0)


def test_indices_are_named_after_the_weight() -> None:
    model = load(linear_program(weights((8, 6))))
    Palettize(bits=2, group_size=4, min_elements=16).run(model)
    (table,) = tables(model.function())
    assert table.indices.name == "w_indices"


def test_numbers_that_are_not_finite_are_no_error() -> None:
    wrong = rows()
    wrong[0, 0, 1, 2] = np.inf
    with np.errstate(all="raise"):
        assert encode_palette(wrong, 2, True).wrong


def test_errors_of_scaled_numbers_count_with_the_squares_of_their_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without importance, and with feedback, where a channel is a row."""
    seen = dict[str, Any]()

    def first(values: Any, bits: int, importance: Any) -> Any:
        seen["importance"] = importance
        return clustering.palettize(values, bits, importance)

    def then(*given: Any, weights: Any) -> Any:
        seen["weights"] = weights
        return refining.refined(*given, weights=weights)

    monkeypatch.setattr(palettes, "palettize", first)
    monkeypatch.setattr(palettes, "refined", then)
    given, importance = rows(), np.arange(1.0, 7)[None, None, None]
    squares = np.abs(given).max(axis=(1, 3), keepdims=True).astype(np.float64) ** 2
    encode_palette(given, 2, True)
    np.testing.assert_array_equal(seen["importance"], squares)
    encode_palette(given, 2, True, importance)
    np.testing.assert_array_equal(seen["importance"], squares * importance)
    encode_palette(given, 2, False, importance)
    assert seen["importance"] is importance
    encode_palette(given, 2, True, None, np.eye(6))
    np.testing.assert_array_equal(seen["weights"], squares.ravel())
    encode_palette(given, 2, False, None, np.eye(6))
    assert seen["weights"] is None


def test_indices_are_chosen_again_for_entries_that_are_integers() -> None:
    given, mixed = rows(), np.asarray(np.random.default_rng(1).standard_normal((6, 6)))
    products: Any = np.matmul(mixed, mixed.T)
    found = encode_palette(given, 2, False, None, products, True)
    steps = found.tensors["lut_scale"][0].reshape(2, 1).astype(np.float32)
    entries = (found.tensors["lut"][0].reshape(2, 4) * steps).astype(F16)
    wanted = with_feedback(given.reshape(8, 6), entries, products)
    np.testing.assert_array_equal(unpacked(found, 2).reshape(8, 6), wanted)


def test_vectors_of_several_tables() -> None:
    """Two tables of four vectors hold all there are, on both sides of the channels."""
    rng = np.random.default_rng(2)
    vectors: Any = rng.permutation(16).astype(F16).reshape(2, 4, 2)
    chosen = rng.integers(0, 4, (2, 3, 2, 5))  # tables, outer, vectors of a group, inner
    given: Any = np.stack([table[each] for table, each in zip(vectors, chosen, strict=True)])
    given = given.transpose(0, 1, 2, 4, 3).reshape(2, 3, 4, 5)
    found = encode_vectors(given, 2, 2)
    assert (found.error, found.wrong) == (0.0, 0)
    indices = unpacked(found, 2).reshape(3, 2, 2, 5)  # outer, tables, ...
    decoded = np.stack([found.tensors["lut"][0].reshape(2, 4, 2)[at][indices[:, at]] for at in (0, 1)])
    np.testing.assert_array_equal(decoded.transpose(0, 1, 2, 4, 3).reshape(2, 3, 4, 5), given)
