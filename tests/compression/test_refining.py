"""Tables and indices in turn: never a larger error of the outputs, and the best one where that can be known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from milopt.clustering import palettize
from milopt.feedback import damped, with_feedback
from milopt.refining import output_error, refined


def layer(outputs: int, width: int, seed: int = 0) -> tuple[Any, Any]:
    """Weights in fp16, and the Hessian of inputs whose channels hang together."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((width, width)) * np.geomspace(0.1, 2, width)
    inputs = rng.standard_normal((4 * width, width)) @ mixed
    return rng.standard_normal((outputs, width)).astype(np.float16), np.transpose(inputs) @ inputs


def looked_up(lut: Any, indices: Any) -> Any:
    return np.take_along_axis(np.repeat(lut, len(indices) // len(lut), axis=0), indices.astype(np.int64), axis=1)


def error(rows: Any, lut: Any, indices: Any, hessian: Any) -> float:
    lost = rows.astype(np.float64) - looked_up(lut, indices)
    return float(np.sum((lost @ hessian) * lost))


def test_each_round_lessens_the_error() -> None:
    rows, products = layer(12, 40)
    hessian = damped(products)
    found = palettize(rows.reshape(3, 1, 4, 40), 3)
    lut, indices = found.lut, with_feedback(rows, found.lut, products)
    errors = [error(rows, lut, indices, hessian)]
    for rounds in (1, 2, 4):
        made, chosen = refined(rows, lut, indices, products, rounds=rounds)
        assert made.dtype == np.float16
        assert np.all(np.diff(made.astype(np.float64), axis=1) >= 0)
        errors.append(error(rows, made, chosen, hessian))
    assert errors[1] < 0.95 * errors[0]
    assert errors[3] <= errors[2] <= errors[1]


def test_entries_are_those_of_the_normal_equations() -> None:
    """fp32, so that nothing is rounded: no exchange is left to be made after many rounds, and the entries are best."""
    rows, products = layer(6, 16, seed=1)
    rows = rows.astype(np.float32)
    found = palettize(rows.reshape(2, 1, 3, 16), 2)
    hessian = damped(products)
    lut, indices = refined(rows, found.lut, found.indices.reshape(6, 16), products, rounds=30)
    for table in range(2):
        part = slice(3 * table, 3 * table + 3)
        ones = np.stack([indices[part] == entry for entry in range(4)], axis=-1).astype(np.float64)
        square = np.einsum("rik,ij,rjl->kl", ones, hessian, ones)
        wanted: Any = np.einsum("rik,ij,rj->k", ones, hessian, rows[part].astype(np.float64))
        best: Any = np.asarray(np.linalg.inv(square), np.float64) @ wanted
        # 1e-4: gradients are in float32
        np.testing.assert_allclose(lut[table], best, rtol=1e-4, atol=1e-4)
    before = error(rows, lut, indices, hessian)
    for row in range(6):
        for at in range(16):
            for entry in range(4):
                changed = indices.copy()
                changed[row, at] = entry
                assert error(rows, lut, changed, hessian) >= before * (1 - 1e-5)


def test_rows_count_by_their_weights() -> None:
    """Of two rows with one table, the one that counts is served."""
    rows, products = layer(2, 24, seed=2)
    found = palettize(rows.reshape(1, 1, 2, 24), 2)
    start = found.indices.reshape(2, 24)

    def errors(weights: Any) -> list[float]:
        lut, indices = refined(rows, found.lut, start, products, weights=np.array(weights))
        return [error(rows[at : at + 1], lut, indices[at : at + 1], products) for at in range(2)]

    first, second = errors([1.0, 1e-6]), errors([1e-6, 1.0])
    assert first[0] < second[0]
    assert second[1] < first[1]


def test_many_tables_are_refined_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, products = layer(40, 16)
    found = palettize(rows.reshape(10, 1, 4, 16), 2)
    start = found.indices.reshape(40, 16)
    whole = refined(rows, found.lut, start, products)
    monkeypatch.setattr("milopt.refining._AT_ONCE", 3 * 4 * 16)
    parts = refined(rows, found.lut, start, products)
    np.testing.assert_array_equal(whole[0], parts[0])
    np.testing.assert_array_equal(whole[1], parts[1])


def test_inputs_that_were_never_seen() -> None:
    rows, products = layer(4, 12)
    products[3] = products[:, 3] = 0.0
    found = palettize(rows.reshape(1, 1, 4, 12), 2)
    lut, indices = refined(rows, found.lut, found.indices.reshape(4, 12), products)
    assert np.isfinite(lut).all()
    assert error(rows, lut, indices, products) <= error(rows, found.lut, found.indices.reshape(4, 12), products)


def test_the_error_of_outputs() -> None:
    rows, products = layer(4, 12)
    made = rows + np.float16(0.1)
    lost, power = output_error(rows, made, products)
    # 1e-3: the differences are those of fp16 numbers
    assert lost == pytest.approx(error(rows, made, np.arange(12)[None].repeat(4, 0), products), rel=1e-3)
    assert power == pytest.approx(float(np.sum((rows.astype(np.float64) @ products) * rows)), rel=1e-5)
