"""Closed forms of rotary frequencies: every published one is known, and computes what the library does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from milopt.passes.frequencies import exact_frequencies
from milopt.passes.rotary_forms import BASES, Dynamic, Llama3, Plain, Proportional, Yarn, scaled_forms

from .test_frequencies import of_transformers

# theta of published models, the common ones first
THETAS = (
    *(1e4, 1e6, 5e5, 1e5, 1.5e5, 1e7, 5e6, 1.3e5, 2.5e5, 1.6e5, 8e6, 4e6, 2e6, 5e4, 7.5e7, 1e8, 2e5, 1e9, 1e11),
    1e3,
)
FACTORS = (2.0, 4.0, 8.0, 16.0, 32.0, 40.0, 64.0, 3.0, 2.5, 1.5, 5.0, 6.0, 10.0, 20.0, 128.0)
HALF = 64


def found(form: Any, count: int = HALF) -> Any:
    return exact_frequencies(form.frequencies(count).astype(np.float16)).form


@pytest.mark.parametrize("theta", THETAS)
def test_every_published_theta(theta: float) -> None:
    assert theta in BASES
    scaled = Yarn(theta, 4.0, context=32768)
    again = found(scaled)
    np.testing.assert_allclose(again.frequencies(HALF), scaled.frequencies(HALF), rtol=2.0**-11, atol=2.0**-25)
    if theta <= 1e7:  # of a larger one fp16 has too few frequencies left to tell it by
        assert again == scaled


def test_the_first_published_theta_that_fits_counts() -> None:
    assert BASES == THETAS


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("kind", [Yarn, Llama3])
def test_every_factor(factor: float, kind: Any) -> None:
    forms, _ = scaled_forms(HALF)
    assert kind(5e5, factor, context=8192) in forms
    assert found(Llama3(5e5, factor)) == Llama3(5e5, factor)


@pytest.mark.parametrize("power", range(5, 19))
@pytest.mark.parametrize("truncate", [False, True])
def test_every_context(power: int, truncate: bool) -> None:
    form = Yarn(1e6, 4.0, context=2**power, truncate=truncate)
    assert form in scaled_forms(HALF)[0]
    np.testing.assert_allclose(found(form).frequencies(HALF), form.frequencies(HALF), rtol=2.0**-11, atol=2.0**-25)
    assert Llama3(1e6, 4.0, context=2**power) in scaled_forms(HALF)[0]


def test_contexts_in_order() -> None:
    """Of two that explain the same numbers the shorter one counts."""
    forms = [form for form in scaled_forms(HALF)[0] if isinstance(form, Llama3)]
    contexts = [form.context for form in forms if (form.base, form.factor) == (1e4, 2.0)]
    assert contexts == [2**power for power in range(5, 19)]


def test_a_factor_of_one_is_no_scaling() -> None:
    assert not [form for form in scaled_forms(HALF)[0] if form.factor == 1 and not isinstance(form, Dynamic)]


def test_ratios() -> None:
    ratios = [form.ratio for form in scaled_forms(HALF)[0] if isinstance(form, Dynamic) and form.base == 1e4]
    assert ratios == [float(ratio) for ratio in range(2, 65)]


def test_what_is_left_out_is_as_the_library_has_it() -> None:
    assert Yarn(1e4, 4.0) == Yarn(1e4, 4.0, 32.0, 1.0, 4096, True)
    assert Llama3(5e5, 8.0) == Llama3(5e5, 8.0, 1.0, 4.0, 8192)
    assert Plain(1e4) == Plain(1e4, 1.0)
    assert Dynamic(1e4) == Dynamic(1e4, 1.0, 1.0)
    assert Proportional(1e4) == Proportional(1e4, 1.0, 0)


def test_dynamic_scaling_of_few_frequencies() -> None:
    """ratio 2 for two of them is a base 4 times as large; one frequency is 1 for every base."""
    assert Dynamic(1e4).frequencies(1).tolist() == [1.0]
    np.testing.assert_allclose(Dynamic(1e4, ratio=2.0).frequencies(2), [1, 1 / 200])


def test_attention_factors_of_yarn() -> None:
    found = [Yarn(1e4, factor).attention_factor for factor in (0.5, 1.0, 1.5, 2.0)]
    np.testing.assert_allclose(found, [1, 1, 1.0405465, 1.0693147], rtol=1e-6)


YARNS: dict[str, dict[str, Any]] = {
    "a short context": {"rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128},
    "a context beyond all turns": {"rope_theta": 50.0, "factor": 4.0, "original_max_position_embeddings": 131072},
    "a ramp of one": {"rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 4096, "beta_fast": 1.0},
    "other turns": {
        "rope_theta": 1e6,
        "factor": 16.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
    },
}


@pytest.mark.parametrize("case", YARNS)
@pytest.mark.parametrize("truncate", [False, True])
def test_yarn_is_that_of_transformers(case: str, truncate: bool) -> None:
    given = YARNS[case]
    exact = of_transformers({"rope_type": "yarn", "truncate": truncate, **given}, 64)
    form = Yarn(
        given["rope_theta"],
        given["factor"],
        given.get("beta_fast", 32.0),
        given.get("beta_slow", 1.0),
        given["original_max_position_embeddings"],
        truncate,
    )
    # a power in fp32 takes a few roundings of 6e-8; the ramp doubles that
    np.testing.assert_allclose(form.frequencies(32), exact, rtol=2e-6, atol=0)


def test_what_forms_are_called() -> None:
    assert str(Plain(1e4)) == "theta 10000"
    assert str(Plain(1e4, 2.5)) == "theta 10000, divided by 2.5"
    assert str(Dynamic(1e4, ratio=5.0)) == "theta 10000, dynamic: 5"
    assert str(Llama3(5e5, 8.0)) == "theta 500000, llama3: factor 8, low 1, high 4, trained on 8192 positions"
    yarn = "theta 1000000, yarn: factor 4, beta 32 and 1, trained on 4096 positions"
    assert str(Yarn(1e6, 4.0)) == yarn
    assert str(Yarn(1e6, 4.0, truncate=False)) == f"{yarn}, ramp not truncated"
    assert str(Proportional(1e6, turning=16)) == "theta 1000000, the first 16"
