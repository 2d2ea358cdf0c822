"""Sums of products: those of numpy, on disk, and one for all weights with the same inputs."""

from __future__ import annotations

import io
import tempfile
from typing import Any

import numpy as np
import pytest
import torch

from milopt.calibration import accumulating
from milopt.calibration.accumulating import Products
from milopt.calibration.calibrating import calibrate
from milopt.calibration.statistics import Moments
from milopt.errors import MiloptError
from milopt.mil import Program, mb, target, types
from milopt.package import load
from milopt.passes.uses import Layout

from .support import weights


@pytest.mark.parametrize("at_once", [1, 21, 1 << 22])  # rows of one product each, some of them, all
def test_sums_are_those_of_numpy(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accumulating, "_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    made, all_rows = Products(), dict[str, list[Any]]()
    for name, width in (("a", 7), ("b", 3), ("a", 7), ("c", 5), ("b", 3), ("a", 7)):
        rows = rng.integers(-9, 10, (4, width)).astype(np.float16)  # integers: nothing is rounded
        all_rows.setdefault(name, []).append(rows.astype(np.float32))
        made.add(name, torch.tensor(rows))
    found = made.finish()
    assert list(found) == ["a", "b", "c"]
    for name, each in all_rows.items():
        rows = np.concatenate(each)
        np.testing.assert_array_equal(found[name], np.transpose(rows) @ rows)
        assert found[name].dtype == np.float32
        assert not found[name].flags.owndata


def test_nothing_was_added() -> None:
    assert Products().finish() == {}


def test_a_folder_that_is_full_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(MiloptError, match=r"^no room for a calibration's products in .*: No space left on device$"):
        Products()


def test_a_disk_that_is_full_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, _: object) -> int:
            raise OSError(28, "No space left on device")

    def full(**_: object) -> Full:
        return Full()

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(MiloptError, match=r"^no room for a calibration's products in .*: No space left on device$"):
        Products().add("a", torch.ones(2, 3))


def attention() -> Program:
    """Queries, keys and values of one value, one of them twice; an output of another; and one of the first turned."""
    first, second, third, fourth = (weights((16, 16), seed) for seed in range(4))

    @mb.program(input_specs=[mb.TensorSpec((16, 16), types.fp16)], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        q = mb.linear(x=x, weight=first)
        k = mb.linear(x=x, weight=second)
        v = mb.matmul(x=x, y=third)
        again = mb.linear(x=q, weight=second)
        return k, again, v, mb.matmul(x=x, y=fourth, transpose_x=True), mb.matmul(x=fourth, y=x)

    return program


def test_weights_of_one_value_share_their_sums() -> None:
    rows = (np.random.default_rng(1).standard_normal((16, 16)) * np.arange(1, 17)).astype(np.float16)
    found = calibrate(load(attention()), [{"x": rows}] * 2, hessian=True)

    def of(seed: int, *layout: int) -> Moments:
        moments = found.of(weights((16, 16), seed), Layout(*layout))
        assert moments is not None
        return moments

    first, second, third = of(0, 16, 16, 1), of(1, 16, 16, 1), of(2, 1, 16, 16)
    fourth, other = of(3, 1, 16, 16), of(3, 16, 16, 1)
    assert third is first
    assert second is not first  # it is multiplied with what comes of the first one too
    assert fourth is other  # both ways round, with columns of the same value
    assert fourth is not first
    wide: Any = rows.astype(np.float64)
    assert (first.count, second.count, fourth.count) == (32, 64, 32)
    # 1e-6: sums in float32
    np.testing.assert_allclose(first.products, 2 * np.transpose(wide) @ wide, rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(fourth.products, 2 * wide @ np.transpose(wide), rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(fourth.squares, 2 * np.sum(wide**2, axis=1), rtol=1e-12)


def test_a_loop_hears_a_value_more_often() -> None:
    first, second = weights((16, 16)), weights((16, 16), 1)

    @mb.program(input_specs=[mb.TensorSpec((2, 16), types.fp16)], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        once = mb.linear(x=x, weight=first)

        def more(at: Any, _: Any) -> Any:
            return mb.less(x=at, y=np.int32(3))

        def body(at: Any, so_far: Any) -> Any:
            return mb.add(x=at, y=np.int32(1)), mb.add(x=so_far, y=mb.linear(x=x, weight=second))

        return mb.while_loop(_cond=more, _body=body, loop_vars=(np.int32(0), once))[1]

    found = calibrate(load(program), [{"x": np.ones((2, 16), np.float16)}], hessian=True)
    counts = [found.of(each, Layout(16, 16, 1)) for each in (first, second)]
    assert [each.count for each in counts if each is not None] == [2, 6]
