"""Inverse frequencies that fp16 has rounded: every closed form is found again, and nothing else is taken for one."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milopt.passes.frequencies import angle_error, exact_frequencies, fit_theta, is_rounded
from milopt.passes.rotary_forms import BASES, Dynamic, Llama3, Plain, Proportional, Yarn

LAST = 131071
# transformers computes frequencies in fp32, and coremltools rounds those
thetas = st.sampled_from([float(digits * 10**power) for digits in range(1, 1000) for power in range(1, 7)])

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
# transformers' parameters, the size of a head -> the form; the models are named where there is one
CONFIGS: dict[str, tuple[dict[str, Any], int, Any]] = {
    "Llama 2": ({"rope_type": "default", "rope_theta": 1e4}, 128, Plain(1e4)),
    "SmolLM2-135M": ({"rope_type": "default", "rope_theta": 1e5}, 64, Plain(1e5)),
    "Qwen3": ({"rope_type": "default", "rope_theta": 1e6}, 128, Plain(1e6)),
    "Pythia": ({"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}, 64, Plain(1e4)),
    "Gemma 3, global": ({"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}, 256, Plain(1e6, 8.0)),
    "linear 2.5": ({"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}, 64, Plain(1e4, 2.5)),
    "Llama 3.1": ({"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, **LLAMA3}, 128, Llama3(5e5, 8.0)),
    "Llama 3.2": ({"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, **LLAMA3}, 64, Llama3(5e5, 32.0)),
    "QwQ": (
        {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768},
        128,
        Yarn(1e6, 4.0, context=32768),
    ),
    "gpt-oss": (
        {
            "rope_type": "yarn",
            "rope_theta": 1.5e5,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "truncate": False,
        },
        64,
        Yarn(1.5e5, 32.0, context=4096, truncate=False),
    ),
    "dynamic": ({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}, 128, Plain(1e4)),
    "proportional": (
        {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
        128,
        Proportional(1e6, turning=16),
    ),
}


def of_transformers(parameters: dict[str, Any], size: int) -> Any:
    """What the library computes, in fp32."""
    pytest.importorskip("transformers", reason="milopt[huggingface] is not installed")
    library: Any = importlib.import_module("transformers")
    config = library.LlamaConfig(hidden_size=2 * size, num_attention_heads=2, rope_parameters=parameters)
    if parameters["rope_type"] == "default":
        size = int(size * parameters.get("partial_rotary_factor", 1))
        exact = parameters["rope_theta"] ** (-np.arange(0, size, 2, dtype=np.float32) / np.float32(size))
        return exact.astype(np.float32)
    functions = importlib.import_module("transformers.modeling_rope_utils").ROPE_INIT_FUNCTIONS
    return functions[parameters["rope_type"]](config)[0].numpy()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("held", [np.float16, np.float32])
def test_forms_of_transformers(name: str, held: Any) -> None:
    """Rounded to fp16, and perhaps cast to fp32 since, they are what the library computed, to fp32's seven digits."""
    parameters, size, form = CONFIGS[name]
    exact = of_transformers(parameters, size)
    found = exact_frequencies(exact.astype(np.float16).astype(held), LAST)
    assert (found.form, found.why) == (form, "")
    # a power in fp32 takes a few roundings of 6e-8; the ramps of yarn and llama3 double that
    np.testing.assert_allclose(found.values, exact, rtol=2e-6, atol=0)


def test_attention_factors() -> None:
    assert Plain(1e4, 8.0).attention_factor == Llama3(5e5, 8.0).attention_factor == Yarn(1e4, 1.0).attention_factor == 1
    assert Yarn(1e6, 4.0).attention_factor == pytest.approx(1.138629436111989)


def test_dynamic_scaling_beyond_the_trained_length() -> None:
    """factor 4 at twice the length: the base times 5 ** (n / (n - 1))."""
    row = (1e4 * 5 ** (64 / 63)) ** (-np.arange(64) / 64)
    found = exact_frequencies(row.astype(np.float16), 8191)
    assert found.form == Dynamic(1e4, ratio=5.0)
    np.testing.assert_allclose(found.values, row, rtol=1e-12)


@pytest.mark.parametrize("form", [each[2] for each in CONFIGS.values()] + [Dynamic(1e4, ratio=5.0)], ids=str)
def test_forms_say_what_they_are(form: Any) -> None:
    assert str(form).startswith(f"theta {form.base:.0f}")
    assert form.frequencies(4).shape == (4,)
    assert form.frequencies(4)[0] == pytest.approx(1 / form.factor if type(form) is Plain else 1.0)


def in_fp32(theta: float, count: int, factor: int) -> np.ndarray[Any, Any]:
    powers: np.ndarray[Any, Any] = np.power(np.float32(theta), np.arange(count, dtype=np.float32) / np.float32(count))
    exact: np.ndarray[Any, Any] = np.divide(np.float32(1 / factor), powers)
    return exact


@given(thetas, st.sampled_from([32, 40, 48, 64]), st.sampled_from([1, 2, 4]))
def test_theta_is_found(theta: float, count: int, factor: int) -> None:
    exact = in_fp32(theta, count, factor)
    row = exact.astype(np.float16)
    assert fit_theta(row) == (theta, factor)
    found = exact_frequencies(row[None, None])
    assert found.form == Plain(theta, factor)
    # fp32 has 24 bits, and a power takes a few roundings
    np.testing.assert_allclose(found.values.ravel(), exact, rtol=1e-6)


@settings(deadline=None)  # the first table of scaled forms of a size takes half a second
@given(thetas, st.integers(2, 24), st.sampled_from([1, 8, 32]))
def test_few_frequencies(theta: float, count: int, factor: int) -> None:
    """A few numbers may leave room for several thetas: whatever is returned explains all of them."""
    row = in_fp32(theta, count, factor).astype(np.float16)
    found = exact_frequencies(row)
    # half of what fp16 steps by, and the fp32 roundings before it
    np.testing.assert_allclose(found.values, row.astype(np.float64), rtol=2.0**-11 + 1e-6, atol=2.0**-25)


def test_a_published_base_goes_before_a_shorter_number() -> None:
    """1.5e5 has two digits; of three frequencies alone it can't be told from 149,900."""
    row = (1.5e5 ** (-np.arange(3) / 3)).astype(np.float16)
    assert fit_theta(row) == (1.5e5, 1)
    assert 1.5e5 in BASES


@settings(deadline=None)
@given(thetas, st.integers(1, 31), st.sampled_from([0.99, 1.01]))
def test_other_frequencies_are_left(theta: float, at: int, change: float) -> None:
    """One that is a hundredth off is explained by nothing."""
    row = (theta ** (-np.arange(32) / 32)).astype(np.float16)
    row[at] *= np.float16(change)
    found = exact_frequencies(row)
    if found.form is None:
        np.testing.assert_array_equal(found.values, row.astype(np.float64))
        assert found.why == "no closed form explains them"
    else:  # the change was too small for a subnormal number, or another form explains that, too
        np.testing.assert_allclose(found.values, row.astype(np.float64), rtol=2.0**-11 + 1e-6, atol=2.0**-25)


def test_several_forms_that_differ_are_refused() -> None:
    """Eight frequencies, scaled in the last few by a factor that their subnormal fp16 numbers don't show."""
    row = Dynamic(1e6, ratio=12.0).frequencies(8).astype(np.float16)
    found = exact_frequencies(row, LAST)
    assert (found.form, found.why) == (
        None,
        "several closed forms explain them: theta 1000000, dynamic: 12; theta 500000, dynamic: 22",
    )
    np.testing.assert_array_equal(found.values, row.astype(np.float64))
    # over a few positions the two are the same table
    assert exact_frequencies(row, 7).form == Dynamic(1e6, ratio=12.0)


def test_forms_that_differ_by_less_than_fp16_shows() -> None:
    """2**-12 rad at the last position is the most that two forms may be apart."""
    row = Dynamic(1e6, ratio=12.0).frequencies(8).astype(np.float16)
    apart = max(abs(Dynamic(1e6, ratio=12.0).frequencies(8) - Dynamic(5e5, ratio=22.0).frequencies(8)))
    last = int(2.0**-12 / apart)
    assert exact_frequencies(row, last).form == Dynamic(1e6, ratio=12.0)
    assert exact_frequencies(row, last + 1).form is None


def test_the_largest_number_of_fp16() -> None:
    """What rounds to it ends half way to the next number that there would be."""
    assert fit_theta(np.array([65504, 1], np.float16)) is None
    found = exact_frequencies(np.array([1, 65504], np.float16), wavelengths=True)
    assert found.form is not None
    assert 65488**2 <= found.form.base <= 65520**2


@pytest.mark.parametrize("turning", [2, 3, 7])
def test_frequencies_with_zeros_at_the_end(turning: int) -> None:
    form = Proportional(1e4, turning=turning)
    assert exact_frequencies(form.frequencies(8).astype(np.float16)).form == form


def test_zeros_in_between_are_no_form() -> None:
    row = Plain(1e4).frequencies(8).astype(np.float16)
    row[3] = 0
    assert exact_frequencies(row).form is None
    assert exact_frequencies(np.array([1, 0, 0, 0], np.float16)).form is None


def test_two_frequencies_have_a_theta() -> None:
    assert fit_theta(np.array([1, 0.01], np.float16)) == (1e4, 1)
    assert fit_theta(np.array([1], np.float16)) is None
    assert fit_theta(np.array([0, 0.5], np.float16)) is None
    assert fit_theta(np.array([2, 0.5], np.float16)) is None
    assert fit_theta(np.array([1, 2], np.float16)) is None


@pytest.mark.parametrize("row", [[1.0, -0.5], [1.0, np.inf], [1.0, np.nan]])
def test_other_numbers_are_no_frequencies(row: list[float]) -> None:
    assert exact_frequencies(np.array(row, np.float16)).why == (
        "they are no inverse frequencies: some are negative, or not finite"
    )


def test_numbers_that_fp16_made_nearly_zero() -> None:
    """coremltools writes 2**-24 for what fp16 would round to 0."""
    exact = 1e11 ** (-np.arange(64) / 64)
    row = np.maximum(exact.astype(np.float16), np.float16(2.0**-24))
    assert row[-1] == 2.0**-24
    found = exact_frequencies(row)
    assert found.form == Plain(1e11)
    np.testing.assert_allclose(found.values, exact, rtol=1e-12)


def test_frequencies_that_stand_there_twice() -> None:
    exact = 1e5 ** (-np.arange(8) / 8)
    found = exact_frequencies(np.tile(exact, 2).astype(np.float16))
    np.testing.assert_allclose(found.values, np.tile(exact, 2), rtol=1e-12)


def test_fp32_frequencies_are_taken_as_they_are() -> None:
    held = (1e5 ** (-np.arange(8) / 8)).astype(np.float32)
    found = exact_frequencies(held)
    assert (found.values.dtype, found.form, found.why) == (np.float64, None, "")
    np.testing.assert_array_equal(found.values, held.astype(np.float64))
    # whole numbers, which fp16 holds, are no rounded frequencies of a base that anyone uses
    small = exact_frequencies(np.array([1, 2], np.float32))
    assert (list(small.values), small.form, small.why) == ([1, 2], None, "")


def test_what_is_rounded() -> None:
    assert is_rounded(np.ones(2, np.float16))
    assert is_rounded(np.ones(2, np.float32))
    assert not is_rounded(np.full(2, 0.1, np.float32))
    assert not is_rounded(np.ones(1, np.float16))
    assert not is_rounded(np.ones(2, np.int32))


def test_angle_errors() -> None:
    """Half a step of fp16 below 1 is 2**-12, at 1 it is 2**-11."""
    assert angle_error(np.array([0.75, 0.1]), 4096) == 1
    assert angle_error(np.array([1.0, 0.1]), 4096) == 2
