"""Inverse frequencies in detail: shortest numbers, limits of bases and factors, and what is not fitted."""

# The methods of numpy arrays whose element type is not told have types that are not known either.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from milopt.passes import frequencies
from milopt.passes.frequencies import Frequencies, angle_error, exact_frequencies, fit_theta, is_rounded
from milopt.passes.rotary_forms import Dynamic, Llama3, Plain, Proportional, Yarn, scaled_forms


@pytest.mark.parametrize(
    ("least", "most", "wanted"),
    [
        (9.5, 10.4, 10.0),
        (9.0, 11.0, None),  # 9, 10 and 11
        (2.0, 2.999, 2.0),
        (2.0, 3.0, None),
        (0.95, 1.04, 1.0),
        (115.0, 125.0, 120.0),
        (115.0, 130.0, None),
        (123.0, 123.4, 123.0),
        (123.1, 123.9, None),  # four digits and more
        (120.5, 129.9, None),
        (1e4, 1e4, 1e4),
        (7e11, 7e11, 7e11),
    ],
)
def test_the_number_of_fewest_digits(least: float, most: float, wanted: float | None) -> None:
    found = frequencies._shortest(least, most)  # pyright: ignore[reportPrivateUsage]
    assert found == (wanted if wanted is None else pytest.approx(wanted, rel=1e-12))


def row(*numbers: float) -> Any:
    return np.array(numbers, np.float16)


def test_limits_of_bases() -> None:
    """The largest base that is looked for is 1e12, the least is 1: frequencies that are all the same."""
    least = 2.0**-24
    assert fit_theta(row(1, 17 * least)) == pytest.approx((1e12, 1.0))
    assert fit_theta(row(1, 16 * least)) is None
    assert fit_theta(row(1, 1)) == (1.0, 1.0)
    assert fit_theta(row(1, 0.5)) == (4.0, 1.0)
    assert fit_theta(row(1.0009765625, 0.5)) is None
    assert fit_theta(row(0.5, 0.25)) == (4.0, 2.0)
    assert fit_theta(row(1.0)) is None


def test_what_has_no_base_is_no_error() -> None:
    """Neither are numbers that overflow on the way, whoever watches."""
    with np.errstate(all="raise"):
        assert fit_theta(row(-1, 0.5)) is None
        assert fit_theta(row(0, 0.5)) is None
        assert fit_theta(row(1, 0)) is None
        assert fit_theta(row(1, *[2.0**-24] * 63)) is None
        assert exact_frequencies(row(65504, 1)).why == "no closed form explains them"


def test_factors() -> None:
    for factor in (1.0, 2.0, 3.0, 8.0, 12.5):
        exact = 1e4 ** (-np.arange(16) / 16) / factor
        assert fit_theta(exact.astype(np.float16)) == pytest.approx((1e4, factor), rel=1e-12)
    assert fit_theta(row(1 / 2.345, 0.1)) is None  # four digits


def test_what_is_rounded_and_what_is_not() -> None:
    exact = 1e5 ** (-np.arange(8) / 8)
    assert is_rounded(exact.astype(np.float16))
    assert is_rounded(exact.astype(np.float16).astype(np.float32))
    assert not is_rounded(exact.astype(np.float32))
    assert not is_rounded(exact.astype(np.float16).astype(np.float64))
    assert not is_rounded(row(1.0))
    assert is_rounded(row(1.0, 0.5))
    assert is_rounded(np.array([1.0, np.nan], np.float32))
    with np.errstate(over="raise"):  # too large for fp16 is no error
        assert not is_rounded(np.array([1.0, 1e6], np.float32))
    assert not is_rounded(np.array([1, 2], np.int32))


def test_angles_are_off_by_half_of_what_fp16_steps() -> None:
    assert angle_error(row(1.0, 0.25), 2048) == 2048 * 2.0**-10 / 2
    assert angle_error(row(-1.0, 0.25), 1) == 2.0**-11
    assert angle_error(row(0.25, 0.125), 4) == 4 * 2.0**-12 / 2


def test_frequencies_of_fp32_are_explained_by_published_bases_alone() -> None:
    for base, found in ((1e4, Plain(1e4)), (12300.0, None)):
        exact = base ** (-np.arange(16) / 16)
        half = exact.astype(np.float16)
        assert exact_frequencies(half).form == Plain(base)
        wide = exact_frequencies(half.astype(np.float32))
        assert (wide.form, wide.why) == (found, "")
        np.testing.assert_array_equal(wide.values, exact if found else half.astype(np.float64))
    strange = exact_frequencies(np.array([1.0, 0.75, 0.5, 0.125], np.float32))
    assert (strange.form, strange.why) == (None, "")
    told = exact_frequencies(row(1.0, 0.75, 0.5, 0.125))
    assert (told.form, told.why) == (None, "no closed form explains them")


def test_wavelengths() -> None:
    exact = 1e4 ** (np.arange(4) / 4)
    found = exact_frequencies(exact.astype(np.float16), wavelengths=True)
    assert found.form == Plain(1e4)
    np.testing.assert_allclose(found.values, exact, rtol=1e-12)
    zero = exact_frequencies(row(0.0, 1.0), wavelengths=True)
    assert zero.form is None
    assert zero.why == "they are no inverse frequencies: some are negative, or not finite"


def test_frequencies_that_stand_there_twice_keep_their_shape() -> None:
    exact = 1e4 ** (-np.arange(8) / 8)
    both = np.tile(exact, 2).astype(np.float16).reshape(1, 16, 1)
    found = exact_frequencies(both)
    assert (found.form, found.values.shape) == (Plain(1e4), (1, 16, 1))
    np.testing.assert_allclose(found.values.ravel(), np.tile(exact, 2), rtol=1e-12)
    ones = exact_frequencies(row(1.0, 1.0))
    assert (ones.form, ones.why, ones.values.tolist()) == (None, "", [1.0, 1.0])
    odd = exact_frequencies((1e4 ** (-np.arange(3) / 3)).astype(np.float16))
    assert (odd.form, odd.values.shape) == (Plain(1e4), (3,))


def test_zeros_at_the_end_are_some_of_more() -> None:
    form = Proportional(1e4, turning=4)
    found = exact_frequencies(form.frequencies(16).astype(np.float16))
    assert (found.form, found.why) == (form, "")
    np.testing.assert_allclose(found.values, form.frequencies(16), rtol=1e-12)
    assert exact_frequencies(row(0.0, 0.0, 0.0, 0.0)).form is None


def test_zeros_before_other_numbers_are_not_at_the_end() -> None:
    assert exact_frequencies(row(1, 0, 0.1, 0)).form is None
    assert exact_frequencies(row(1, 0, 0, 0)).form is None
    assert exact_frequencies(row(1e-4, 1e-6, 0, 1e-6)).form is None


def test_one_number_tells_no_base() -> None:
    assert exact_frequencies(row(1e-4, 0, 0)).form is None
    assert exact_frequencies(row(1e-4, 2.0**-24, 0)).form is None
    assert fit_theta(row(1e-4, 0)) is None


def test_a_published_base_before_one_of_fewer_digits() -> None:
    """Two frequencies of 512 leave 9000 and 11000 possible."""
    form = Proportional(1e4, turning=2)
    assert exact_frequencies(form.frequencies(512).astype(np.float16)).form == form


@pytest.mark.parametrize("form", [Llama3(5e5, 8.0, context=8192), Yarn(1e4, 4.0, context=2048)])
def test_forms_that_are_scaled(form: Llama3 | Yarn) -> None:
    half = form.frequencies(32).astype(np.float16)
    found = exact_frequencies(half, 4096)
    assert (found.form, found.why) == (form, "")
    np.testing.assert_array_equal(found.values, form.frequencies(32))
    exact = form.frequencies(32)
    exact[3] *= 1.01
    assert exact_frequencies(exact.astype(np.float16), 4096).why == "no closed form explains them"


def test_numbers_that_are_not_there() -> None:
    """What would be 0 in fp16 stands as its least number; that counts as anything between."""
    exact = 1e11 ** (-np.arange(32) / 32)
    held = np.maximum(exact.astype(np.float16), np.float16(2.0**-24))
    assert exact_frequencies(held).form == Plain(1e11)


def test_results_are_values() -> None:
    found = exact_frequencies(row(1.0, 0.5))
    assert isinstance(found, Frequencies)
    with pytest.raises(AttributeError):
        found.why = "none"  # type: ignore[misc]


def test_the_forms_that_are_tried() -> None:
    forms, table = scaled_forms(4)
    assert table.shape == (len(forms), 4)
    assert len(forms) == 20 * (15 * 14 * 3 + 63)
    first = forms[:4]
    assert first == (
        Yarn(1e4, 2.0, context=32),
        Yarn(1e4, 2.0, context=32, truncate=False),
        Llama3(1e4, 2.0, context=32),
        Yarn(1e4, 2.0, context=64),
    )
    ratios = [form.ratio for form in forms if isinstance(form, Dynamic) and form.base == 1e4]
    assert ratios == [float(ratio) for ratio in range(2, 65)]
    np.testing.assert_array_equal(table[5], forms[5].frequencies(4))
    assert (Proportional(1e4).turning, Dynamic(1e4).ratio, Plain(1e4).factor) == (0, 1.0, 1.0)


def test_attention_factors_of_yarn_begin_beyond_one() -> None:
    assert Yarn(1e4, 1.0).attention_factor == 1.0
    assert Yarn(1e4, 2.0).attention_factor == pytest.approx(0.1 * np.log(2) + 1)


def test_what_rounds_to_a_number() -> None:
    """Half way to the neighbours, and a millionth beyond: below a power of two they are nearer."""
    found = frequencies._bounds(np.array([1, 0.75], np.float16), wavelengths=False)  # pyright: ignore[reportPrivateUsage]
    assert found is not None
    low, high = found
    step = 2.0**-11
    # 1e-12: float64, and far less than the millionth
    np.testing.assert_allclose(low, [(1 - step / 2) * (1 - 1e-6), (0.75 - step / 2) * (1 - 1e-6)], rtol=1e-12)
    np.testing.assert_allclose(high, [(1 + step) * (1 + 1e-6), (0.75 + step / 2) * (1 + 1e-6)], rtol=1e-12)
