"""What forms lose: the numbers of exact tables, and of what feedback makes of them, beside the whole of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from milopt import estimating
from milopt.clustering import palettize
from milopt.estimating import Form, losses, relative_error, squares
from milopt.feedback import with_feedback
from milopt.passes.palettes import encode_palette
from milopt.refining import output_error, refined

from .support import weights


def grouped(weight: Any, group: int) -> Any:
    """``(O, I)`` as ``(tables, 1, group, I)``."""
    return weight.reshape(-1, 1, group, weight.shape[1])


def inputs(width: int) -> Any:
    """The products of inputs whose channels hang together, and have powers from 0.01 to 4."""
    rng = np.random.default_rng(3)
    mixed: Any = rng.standard_normal((4 * width, width)) @ rng.standard_normal((width, width))
    scaled = mixed * np.geomspace(0.1, 2, width)
    return (np.transpose(scaled) @ scaled).astype(np.float32)


def test_relative_errors() -> None:
    weight: Any = np.array([3.0, 4.0], np.float16)
    assert relative_error(weight, np.array([3.0, 3.0])) == pytest.approx(1 / 25)
    assert relative_error(weight, np.array([3.0, 3.0]), np.array([0.0, 2.0])) == pytest.approx(2 / 32)
    assert relative_error(weight * 0, np.array([0.0, 0.0])) == 0.0


@pytest.mark.parametrize("at_once", [1, 7, 100])
def test_parts_add_up(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows, decoded = (rng.integers(-9, 10, (3, 2, 4, 5)).astype(np.float16) for _ in range(2))
    weighing = rng.integers(0, 3, (3, 1, 1, 5)).astype(np.float64)
    wanted = [squares(rows, decoded), squares(rows, decoded, weighing)]
    monkeypatch.setattr(estimating, "_AT_ONCE", at_once)
    assert [squares(rows, decoded), squares(rows, decoded, weighing)] == wanted
    exact = rows.astype(np.float64)
    assert wanted[1] == (np.sum(weighing * (exact - decoded) ** 2), np.sum(weighing * exact**2))


def test_without_products_the_errors_are_those_of_exact_tables() -> None:
    rows = grouped(weights((24, 32)), 8)
    found = losses(Form(rows, 4), [Form(rows, 2), Form(rows, 4), Form(rows, 2, np.ones((1, 1, 1, 1)))])
    exact = [encode_palette(rows, bits) for bits in (2, 4)]
    two, four = (each.error / each.power for each in exact)
    assert found.errors == pytest.approx((two, four, two))
    assert found.outputs == 1.0
    assert losses(Form(rows, 4), [Form(rows * np.float16(0), 2)]).errors == (0.0,)


@pytest.mark.parametrize("products", [None, np.eye(32, dtype=np.float32)], ids=["plain", "feedback"])
def test_weights_that_are_not_finite_have_no_error(products: Any) -> None:
    rows = grouped(weights((24, 32)), 8)
    rows[1, 0, 2, 3] = np.nan
    found = losses(Form(rows, 4), [Form(rows, 2), Form(rows, 4)], products)
    assert np.isnan(found.errors).all()
    assert found.outputs == 1.0


@pytest.mark.parametrize("group", [24, 8])
def test_all_channels_give_the_error_of_outputs(group: int) -> None:
    weight, products = weights((24, 32)), inputs(32)
    rows, importance = grouped(weight, group), np.diagonal(products)[None, None, None]
    found = losses(Form(grouped(weight, 24), 4, importance), [Form(rows, 3, importance)], products)
    exact = palettize(rows, 3, importance)
    indices = with_feedback(weight, exact.lut, products)
    lut, indices = refined(weight, exact.lut, indices, products)
    decoded = np.take_along_axis(np.repeat(lut, group, axis=0), indices.astype(np.int64), axis=1)
    error, power = output_error(weight, decoded, products)
    # 1e-5: what feedback makes is measured in float32
    assert found.errors[0] == pytest.approx(error / power, rel=1e-5)
    plain = palettize(grouped(weight, 24), 4, importance).decoded().reshape(24, 32)
    error, power = output_error(weight, plain, products)
    assert found.outputs == pytest.approx(error / power / relative_error(weight, plain, importance[0, 0]), rel=1e-5)


@pytest.mark.parametrize("group", [768, 16])
def test_some_channels_are_near_to_all(group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, products = weights((768, 32)), inputs(32)
    importance = np.diagonal(products)[None, None, None]
    plain = Form(grouped(weight, 768), 4, importance)
    form = Form(grouped(weight, group), 3, importance)
    some = losses(plain, [form], products)
    monkeypatch.setattr(estimating, "_CHANNELS", 768)
    whole = losses(plain, [form], products)
    # 0.1: 192 of 768 channels
    assert some.errors[0] == pytest.approx(whole.errors[0], rel=0.1)
    assert some.outputs == pytest.approx(whole.outputs, rel=0.1)
    assert some != whole
    assert whole.errors[0] < 0.7 * relative_error(form.rows, palettize(*form).decoded(), importance) * whole.outputs


@pytest.mark.parametrize(
    ("count", "most", "places"), [(4, 9, [0, 1, 2, 3]), (9, 3, [1, 4, 7]), (7, 1, [3]), (5, 2, [1, 3])]
)
def test_channels_are_spread(count: int, most: int, places: list[int]) -> None:
    assert estimating._spread(count, most).tolist() == places  # pyright: ignore[reportPrivateUsage]


def test_tables_that_lose_nothing() -> None:
    rows: Any = np.reshape(np.tile(np.array([1, 2], np.float16), (4, 16)), (1, 1, 4, 32))
    found = losses(Form(rows, 4), [Form(rows, 1)], inputs(32))
    assert found == ((0.0,), 1.0)
