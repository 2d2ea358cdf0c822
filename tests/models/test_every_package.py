"""Every package in ../shared/models runs: all functions, at several sizes, with states, in all precisions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import milopt
from milopt.interpreter import Plan, Precision, compile_all, make_state
from milopt.interpreter.values import held_dtype, is_float
from milopt.package import Model
from milopt.precisions import PRECISIONS
from milopt.verify.freezing import freeze
from tests.models.packages import PACKAGES, Package, inputs_of, shapes_of
from tests.models.twins import log_ratio

# The published program computes (1 - attention_mask) * -inf, which is NaN wherever a token may be seen.
ALL_NAN = {"gpt2_fp16"}
# dB of float64 over what fp16 adds. Each rounding is off by 2^-12 on average, which is 72 dB, and the errors of some
# hundred ops in a row add up; every package but these keeps 45. u2netp sees nothing in noise (in pictures it keeps 50)
# and yunet's scores, products of the far ends of two sigmoids, are 1e-5 there.
LEAST = {"bibyu_u2netp": 20.0, "bibyu_yunet": 28.0}

PARAMS = [pytest.param(each, id=each.name, marks=[pytest.mark.slow] if each.slow else []) for each in PACKAGES] or [
    pytest.param(None, marks=pytest.mark.skip("../shared, the folder of reference models, is absent"))
]


@pytest.mark.parametrize("package", PARAMS)
def test_a_package_gives_what_it_declares(package: Package, refilled: Callable[[str], Model]) -> None:
    model = refilled(package.name) if package.refilled else milopt.load(package.path)
    frozen = freeze(model)
    plans = {precision: compile_all(model, precision=precision) for precision in PRECISIONS}
    for function, plan in plans["declared"].items():
        for shapes in shapes_of(frozen, plan):
            inputs = inputs_of(frozen, plan, shapes)
            results = {precision: call(model, plans[precision][function], inputs) for precision in PRECISIONS}
            for name in plan.outputs:
                check(package.name, name, {precision: results[precision][name] for precision in PRECISIONS})


def call(model: Model, plan: Plan, inputs: dict[str, Any]) -> dict[str, Any]:
    """The outputs, after a look at their types and shapes; a classifier's are a label and one tensor."""
    outputs = plan.run(inputs, make_state(model) if plan.states else None)
    assert outputs.keys() == plan.outputs.keys()
    sizes: dict[str, int] = {}
    for name, info in plan.inputs.items():
        dims = zip(info.shape or (), inputs[name].shape, strict=True)
        sizes |= {dim: have for dim, have in dims if isinstance(dim, str)}
    found: dict[str, Any] = {}
    for name, info in plan.outputs.items():
        value: Any = outputs[name]
        if info.dtype == "dict":
            found[name] = value.numpy()
            assert found[name].sum() == pytest.approx(1, abs=1e-5)  # fp32 probabilities
        elif info.dtype == "string":
            assert isinstance(value, str)
            found[name] = value
        else:
            assert value.dtype == held_dtype(info.dtype, plan.precision)
            expected = [sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in info.shape or ()]
            assert all(isinstance(dim, str) or dim == have for dim, have in zip(expected, value.shape, strict=True))
            if is_float(info.dtype) and info.dtype == "fp16" and plan.precision != "float64":
                assert value.half().float().equal(value) or value.isnan().any()
            found[name] = value.numpy()
    return found


def check(package: str, output: str, values: dict[Precision, Any]) -> None:
    exact = values["float64"]
    for precision, value in values.items():
        if isinstance(value, str):
            assert value == exact
        elif package in ALL_NAN:
            assert np.isnan(value).all()
        elif value.dtype.kind == "f":
            assert value.shape == exact.shape
            assert np.isfinite(value).all(), f"{output} in {precision}"
            assert log_ratio(value, exact) > LEAST.get(package, 45.0), f"{output} in {precision}"
        else:
            # whole numbers that are counted from floats: a tie may fall to either side
            assert value.shape == exact.shape
            assert np.abs(value - exact).max() <= 1
