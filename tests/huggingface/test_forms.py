"""Floats as integers with scales and as tables: the same bits, by coremltools' own decoding, or none."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milopt.huggingface import bands
from milopt.huggingface.bands import in_blocks, per_block
from milopt.huggingface.fitting import best_form
from milopt.huggingface.forms import Form

Array = Any
_ROWS, _COLUMNS, _RUN = 12, 64, 32
_COUNTS = (_ROWS, _COLUMNS // _RUN)


def _drawn(seed: int, low: int, high: int) -> Array:
    return np.random.default_rng(seed).integers(low, high, (_ROWS, _COLUMNS))


def _scales(seed: int = 1, *, dtype: Any = np.float16, counts: tuple[int, int] = _COUNTS) -> Array:
    scales: Any = np.random.default_rng(seed).random(counts) * 0.02 + 0.001
    return scales.astype(dtype).astype(np.float32)


def _spread(each: Array) -> Array:
    return np.repeat(np.repeat(each, _ROWS // each.shape[0], 0), _COLUMNS // each.shape[1], 1)


def _by_coremltools(form: Form) -> Array:
    ops: Any = importlib.import_module("coremltools.converters.mil.mil.ops.defs.iOS18.compression")
    held = {name: each.array for name, each in form.tensors.items()}
    data = held.get("data")
    if data is None:
        data = ops.constexpr_lut_to_dense.decompress(held["indices"], held["lut"], None)
    if "scale" not in held:
        return data
    return ops.constexpr_blockwise_shift_scale.decompress(data, held["scale"], held.get("offset"))


def require_same(form: Form | None, array: Array) -> Form:
    assert form is not None
    decoded = _by_coremltools(form)
    assert decoded.dtype == array.dtype
    assert decoded.tobytes() == array.tobytes()
    for name, each in form.tensors.items():
        kind = each.dtype
        if "int" in kind:
            bits, low = int(kind.lstrip("uint")), int(each.array.min())
            least = 0 if kind.startswith("u") else -(1 << (bits - 1))
            assert least <= low <= int(each.array.max()) < least + (1 << bits), name
    return form


@pytest.mark.parametrize(
    ("low", "high", "zeros", "text"),
    [
        (-8, 8, None, "int4, a scale for 1 x 32"),
        (-9, 8, None, "uint8, a scale and an offset for 1 x 32|int8, a scale for 1 x 32"),
        (0, 16, (0, 16), "uint4, a scale and an offset for 1 x 32"),
        (-128, 128, None, "int8, a scale for 1 x 32"),
        (0, 256, (100, 256), "uint8, a scale and an offset for 1 x 32"),
        (-1, 2, None, "2 bits, one table, a scale for 1 x 32"),
    ],
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_integers(low: int, high: int, zeros: tuple[int, int] | None, text: str, dtype: Any) -> None:
    integers, scales = _drawn(0, low, high), _scales()
    if zeros is not None:
        integers = integers - _spread(np.random.default_rng(3).integers(*zeros, _COUNTS))
    array = (integers.astype(np.float32) * _spread(scales)).astype(dtype)
    form, _ = best_form(array, scales, None, _COUNTS)
    assert require_same(form, array).text in text.split("|")


def test_a_minimum_takes_tables() -> None:
    integers, scales, least = _drawn(0, 0, 16), _scales(), -_scales(2) * 7
    array = (integers.astype(np.float32) * _spread(scales) + _spread(least)).astype(np.float16)
    form, reason = best_form(array, scales, None, _COUNTS)
    assert require_same(form, array).text == "4 bits, a table for 1 x 32"
    assert form is not None
    assert form.nbytes == array.nbytes * 3 // 4
    assert reason == "integers times its scales are other numbers"


def test_levels_with_zeros_of_both_signs() -> None:
    levels = np.asarray([-3, -1.5, -0.5, -0.0, 0.0, 0.25, 1, 7], np.float32)
    picked = levels[np.random.default_rng(4).integers(0, 8, (_ROWS, _COLUMNS))]
    array = (picked * _spread(_scales())).astype(np.float16)
    form, _ = best_form(array, _scales(), levels, _COUNTS)
    assert require_same(form, array).text == "3 bits, one table, a scale for 1 x 32"


def test_scales_of_zero() -> None:
    scales = _scales()
    scales[0, 0], scales[1, 0] = 0, -0.0
    integers = _drawn(0, -8, 8)
    array = (integers.astype(np.float32) * _spread(scales)).astype(np.float16)
    assert np.signbit(array[0, :_RUN]).any()
    assert np.signbit(array[1, :_RUN]).any()
    form, _ = best_form(array, scales, None, _COUNTS)
    assert require_same(form, array).text == "int4, a scale for 1 x 32"


def test_an_integer_of_zero_has_no_sign() -> None:
    array = (_drawn(0, -8, 8).astype(np.float32) * _spread(_scales())).astype(np.float16)
    array[array == 0] = -0.0
    form, reason = best_form(array, _scales(), None, None)
    assert (form, reason) == (None, "integers times its scales are other numbers")


@pytest.mark.parametrize("counts", [(_ROWS, 1), _COUNTS])
def test_scales_that_fp16_rounds(counts: tuple[int, int]) -> None:
    """The nearest scale of fp16 gives numbers that are off by one place here and there."""
    scales = _scales(dtype=np.float32, counts=counts)
    array = (_drawn(0, -128, 128).astype(np.float32) * _spread(scales)).astype(np.float16)
    naive = (_drawn(0, -128, 128).astype(np.float32) * _spread(scales.astype(np.float16))).astype(np.float16)
    apart = np.abs(naive.view(np.int16).astype(int) - array.view(np.int16))
    assert apart.max() == 1
    form, reason = best_form(array, scales, None, counts)
    assert form is None
    assert reason.startswith(f"{scales.size} of {scales.size} scales have no fp16 form, as {float(scales[0, 0]):.9g}")
    assert "% of the floats" in reason


def test_one_scale_that_fp16_rounds_takes_a_table() -> None:
    scales = np.full((1, 1), 0.0123, np.float32)
    array = (np.random.default_rng(0).integers(-128, 128, (64, 64)) * scales).astype(np.float16)
    form, reason = best_form(array, scales, None, (1, 1))
    assert require_same(form, array).text == "8 bits, a table for 64 x 64"
    assert reason == "1 of 1 scales have no fp16 form, as 0.0122999996"


def test_a_rounded_scale_that_gives_the_same_numbers() -> None:
    scales = np.full((_ROWS, 1), 0.0123, np.float32)
    array = (_drawn(0, -2, 3) * scales).astype(np.float16)
    form, _ = best_form(array, scales, None, None)
    assert require_same(form, array).text == "int4, a scale for 1 x 64"


def test_one_element_off_by_one_place() -> None:
    array = (_drawn(0, -8, 8).astype(np.float32) * _spread(_scales())).astype(np.float16)
    array.view(np.uint16)[7, 33] += 1
    form, reason = best_form(array, _scales(), None, None)
    assert (form, reason) == (None, "integers times its scales are other numbers")
    form, _ = best_form(array, _scales(), None, _COUNTS)
    assert require_same(form, array).text == "4 bits, a table for 1 x 32"


def test_the_same_scales_are_exact_in_fp32() -> None:
    scales = _scales(dtype=np.float32)
    array = _drawn(0, -128, 128).astype(np.float32) * _spread(scales)
    form, _ = best_form(array, scales, None, _COUNTS)
    assert require_same(form, array).text == "int8, a scale for 1 x 32"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite(bad: float) -> None:
    array, scales = np.ones((_ROWS, _COLUMNS), np.float16), _scales()
    scales[3, 1] = bad
    assert best_form(array, scales, None, _COUNTS) == (None, "its scales are not finite")
    array[5, 5] = bad
    assert best_form(array, _scales(), None, _COUNTS) == (None, "it holds numbers that are not finite")


def test_integers_of_more_than_eight_bits() -> None:
    array = (_drawn(0, -300, 300).astype(np.float32) * _spread(_scales())).astype(np.float16)
    form, reason = best_form(array, _scales(), None, None)
    assert (form, reason) == (None, "it is no integers of 8 bits times its scales")


def test_more_numbers_than_a_table_has() -> None:
    array: Array = np.arange(_ROWS * _COLUMNS, dtype=np.float16)
    array = array.reshape(_ROWS, _COLUMNS)
    form, reason = best_form(array, None, None, (1, 1))
    assert (form, reason) == (None, "it has no scales; blocks of 768 hold 768 different numbers")


def test_a_long_block_of_fp16_is_counted_and_not_sorted() -> None:
    levels = np.random.default_rng(0).permutation(np.arange(-100, 100)).astype(np.float16)
    array = levels[np.random.default_rng(1).integers(0, 200, (2, 1 << 14))]
    form, _ = best_form(array, None, None, (2, 1))
    assert require_same(form, array).text == "8 bits, a table for 1 x 16384"


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3)),
    run=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 3)),
    at_once=st.sampled_from([1, 7, 40, 1 << 20]),
    offset=st.integers(0, 12),
    seed=st.integers(0, 999),
)
def test_blocks_of_any_size(shape: tuple[int, ...], run: tuple[int, ...], at_once: int, offset: int, seed: int) -> None:
    """However the array is cut into bands, and along whatever axes its blocks lie."""
    generator = np.random.default_rng(seed)
    whole = tuple(a * b for a, b in zip(shape, run, strict=True))
    scales = (generator.random(shape) + 0.5).astype(np.float16).astype(np.float32)
    integers = generator.integers(-100, 100, whole).astype(np.float32) - offset
    array = (in_blocks(integers, shape) * per_block(scales)).reshape(whole).astype(np.float16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bands, "_AT_ONCE", at_once)
        form, reason = best_form(array, scales, None, shape)
    if form is None:
        assert reason
        return
    require_same(form, array)
