"""The blocks of a matrix, in views of it that a program may have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from milopt.huggingface.standins import StandIn, View
from milopt.huggingface.viewing import blocks_of

Array = Any


def _view(shape: tuple[int, ...], array: Array, within: Array) -> View:
    """``array``, a view of ``within``, as one of a parameter of that shape."""
    parameter = StandIn(lambda: torch.zeros(shape), shape)
    start = array.__array_interface__["data"][0] - within.__array_interface__["data"][0]
    steps = tuple(each // within.itemsize for each in array.strides)
    return View(parameter, "float16", start // within.itemsize, array.shape, steps)


def _require_right(array: Array, whole: Array, counts: tuple[int, int]) -> tuple[int, ...] | None:
    """``whole`` numbers the elements: every element of the view is in the block that it is said to be in."""
    blocks = blocks_of(_view(whole.shape, array, whole), counts)
    if blocks is None:
        return None
    rows, columns = whole.size // whole.shape[-1], whole.shape[-1]
    wanted_rows = array // columns // (rows // counts[0])
    wanted_columns = array % columns // (columns // counts[1])
    for wanted, got in ((wanted_rows, blocks.rows), (wanted_columns, blocks.columns)):
        spread = got
        for axis, (size, count) in enumerate(zip(array.shape, blocks.counts, strict=True)):
            assert size % count == 0
            spread = np.repeat(spread, size // count, axis)
        assert np.array_equal(spread, wanted)
    return blocks.counts


def _numbered(*shape: int) -> Array:
    numbers: Array = np.arange(int(np.prod(shape)))
    return numbers.reshape(shape)


_CHANGES: list[tuple[Callable[[Array], Array], tuple[int, ...]]] = [
    (lambda each: each, (24, 4)),
    (lambda each: each.T, (4, 24)),
    (lambda each: each[8:16], (8, 4)),
    (lambda each: each[:, 32:96], (24, 2)),
    # blocks of 32 that are cut at 16
    (lambda each: each[:, 16:96], (24, 5)),
    (lambda each: each.reshape(3, 8, 128), (3, 8, 4)),
    (lambda each: each.reshape(24, 128, 1, 1), (24, 4, 1, 1)),
    (lambda each: each.reshape(24, 4, 32), (24, 4, 1)),
    (lambda each: each.reshape(24, 2, 64), (24, 2, 2)),
    (lambda each: each.reshape(24, 16, 8), (24, 4, 1)),
    (lambda each: each.reshape(4, 6, 128).transpose(1, 0, 2), (6, 4, 4)),
    (lambda each: each[::2], (12, 4)),
    (lambda each: each[:, ::2], (24, 4)),
    (lambda each: each[5], (4,)),
    (lambda each: np.broadcast_to(each, (7, 24, 128)), (1, 24, 4)),
]


@pytest.mark.parametrize(("change", "counts"), _CHANGES)
def test_views(change: Callable[[Array], Array], counts: tuple[int, ...]) -> None:
    whole = _numbered(24, 128)
    assert _require_right(change(whole), whole, (24, 4)) == counts


def test_leading_axes_count_as_rows() -> None:
    whole = _numbered(3, 8, 64)
    assert _require_right(whole, whole, (24, 2)) == (3, 8, 2)
    assert _require_right(whole[1], whole, (24, 2)) == (8, 2)


def test_rows_and_columns_at_once() -> None:
    whole = _numbered(24, 128)
    assert _require_right(whole.reshape(-1), whole, (24, 4)) is None
    assert _require_right(np.lib.stride_tricks.as_strided(whole, (10,), (129 * 8,)), whole, (24, 4)) is None


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_any_view(data: st.DataObject) -> None:
    runs = data.draw(st.tuples(st.sampled_from([1, 2, 3, 6]), st.sampled_from([1, 2, 4, 8])))
    counts = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    whole = _numbered(runs[0] * counts[0], runs[1] * counts[1])
    array = whole
    for axis, size in enumerate(whole.shape):
        first = data.draw(st.integers(0, size - 1))
        last = data.draw(st.integers(first + 1, size))
        step = data.draw(st.integers(1, 3))
        array = array[(slice(None),) * axis + (slice(first, last, step),)]
    if data.draw(st.booleans()):
        array = array.T
    axis = data.draw(st.integers(0, 1))
    size = array.shape[axis]
    divisor = data.draw(st.sampled_from([each for each in range(1, size + 1) if size % each == 0]))
    steps = array.strides
    shape = (*array.shape[:axis], size // divisor, divisor, *array.shape[axis + 1 :])
    strides = (*steps[:axis], steps[axis] * divisor, *steps[axis:])
    _require_right(np.lib.stride_tricks.as_strided(array, shape, strides), whole, counts)
