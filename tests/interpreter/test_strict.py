"""What ``declared-strict`` promises: the documented steps of every composite op, each rounded to its declared dtype."""

from __future__ import annotations

import builtins
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from milopt.interpreter import Impls, compile, core, make_state
from milopt.interpreter.impls import Rounding, Tensor
from milopt.interpreter.ops.overflow import INTEGER_OVERFLOW
from milopt.interpreter.strict import strict
from milopt.interpreter.values import Array
from milopt.mil import mb
from tests.interpreter.strict_cases import CASES, Case, sigmoid
from tests.interpreter.support import Build, normals, program, run, state

F16: Any = np.float16
F32: Any = np.float32
README = Path(__file__).parents[2] / "milopt" / "interpreter" / "README.md"


def op_type(name: str) -> str:
    return name.split()[0]


def test_there_is_a_case_for_every_implementation() -> None:
    assert {op_type(name) for name in CASES} == set(strict)


def test_every_implementation_takes_what_the_usual_one_takes() -> None:
    """By the same names, delivered in the same way, with the same defaults; and it says where its steps come from."""
    for name, impl in strict.items():
        own = tuple(each for each in impl.parameters if each.kind.is_input)
        assert own == core[name].parameters, name
        assert impl.function.__defaults__ == core[name].function.__defaults__, name
        assert impl.function.__doc__, name


def test_the_manual_lists_the_composites() -> None:
    text = README.read_text(encoding="utf-8")
    table = text.split("<!-- composites -->")[1]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(strict)


def test_the_manual_states_what_integers_do() -> None:
    table = README.read_text(encoding="utf-8").split("<!-- integers -->")[1]
    assert dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.MULTILINE)) == dict(INTEGER_OVERFLOW)


def test_the_manuals_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    exec(builtins.compile(example, str(README), "exec"), {"__name__": "manual"})


@pytest.mark.parametrize("name", CASES)
def test_steps_are_the_op(name: str) -> None:
    """In fp32 the steps and the op are the same function.

    Some ten roundings of 6e-8 follow each other, and the differences in a norm or softmax enlarge them a few times.
    """
    case = CASES[name]
    inputs = {key: value.astype(F32) for key, value in case.inputs.items()}
    got = run(case.build(F32), inputs, precision="declared-strict", opset=case.opset)
    for have, want in zip(got, run(case.build(F32), inputs, opset=case.opset), strict=True):
        assert have.dtype == F32
        np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-6 * float(np.abs(want).max()))


@pytest.mark.parametrize("name", CASES)
def test_every_step_is_rounded(name: str) -> None:
    """Bit for bit what numpy's float16 gives for the steps, and not what rounding the result alone gives."""
    case: Case = CASES[name]
    got = run(case.build(F16), case.inputs, precision="declared-strict", opset=case.opset)
    for have, want in zip(got, case.results(), strict=True):
        np.testing.assert_array_equal(have, want, strict=True)
    declared = run(case.build(F16), case.inputs, precision="declared", opset=case.opset)
    assert any(not np.array_equal(have, other) for have, other in zip(got, declared, strict=True))


BIG = np.full((1, 2, 4, 8), 300, F16)
SIGNED = BIG * np.tile(F16([1, -1]), 4)
POINT = np.ones((1, 1, 1, 1), F16)

# what overflows, in which the result in ``declared`` is a number that fp16 holds, and what comes of it
OVERFLOWS: dict[str, tuple[Build, Mapping[str, Array], Any]] = {
    "layer_norm": (lambda x: mb.layer_norm(x=x, axes=[-1]), {"x": SIGNED}, 0),
    "layer_norm, sum of small squares": (
        lambda x: mb.layer_norm(x=x, axes=[-1]),
        {"x": np.tile(F16([100, -100]), 500)[None]},
        0,
    ),
    "instance_norm": (lambda x: mb.instance_norm(x=x), {"x": SIGNED}, 0),
    "batch_norm": (
        lambda x: mb.batch_norm(x=x, mean=F16([-60000, 0]), variance=F16([60000, 1])),
        {"x": np.full((1, 2, 1), 60000, F16)},
        [np.inf, 60000],
    ),
    "l2_norm": (lambda x: mb.l2_norm(x=x), {"x": BIG}, 0),
    "local_response_norm": (lambda x: mb.local_response_norm(x=x, size=3), {"x": BIG}, 0),
    "reduce_mean": (lambda x: mb.reduce_mean(x=x), {"x": np.full(1000, 100, F16)}, np.inf),
    "reduce_l2_norm": (lambda x: mb.reduce_l2_norm(x=x, axes=[-1]), {"x": BIG}, np.inf),
    "reduce_log_sum": (lambda x: mb.reduce_log_sum(x=x, axes=[0]), {"x": np.full(1000, 100, F16)}, np.inf),
    "avg_pool": (
        lambda x: mb.avg_pool(x=x, kernel_sizes=[2, 2], pad_type="valid"),
        {"x": np.full((1, 1, 2, 2), 40000, F16)},
        np.inf,
    ),
    "l2_pool": (lambda x: mb.l2_pool(x=x, kernel_sizes=[2, 2], pad_type="valid"), {"x": BIG}, np.inf),
    "softplus_parametric": (
        lambda x: mb.softplus_parametric(x=x, alpha=F16([1]), beta=F16([1])),
        {"x": 12 * POINT},
        np.inf,
    ),
    "linear_activation": (
        lambda x: mb.linear_activation(x=x, alpha=F16(300), beta=F16(-60000)),
        {"x": 300 * POINT},
        np.inf,
    ),
    "linear": (
        lambda x: mb.linear(x=x, weight=F16([[300]]), bias=F16([-60000])),
        {"x": np.full((1, 1), 300, F16)},
        np.inf,
    ),
    "conv": (
        lambda x: mb.conv(x=x, weight=300 * POINT, bias=F16([-60000]), pad_type="valid"),
        {"x": 300 * POINT},
        np.inf,
    ),
    "scaled_dot_product_attention": (
        lambda x: mb.scaled_dot_product_attention(query=x, key=x, value=x),
        {"x": BIG},
        np.nan,
    ),
}


@pytest.mark.parametrize("name", OVERFLOWS)
def test_an_overflow_inside_is_seen(name: str) -> None:
    build, inputs, seen = OVERFLOWS[name]
    (usual,) = run(build, inputs, precision="declared")
    (strictly,) = run(build, inputs, precision="declared-strict")
    assert np.isfinite(usual).all()
    assert np.any(usual)
    np.testing.assert_array_equal(
        strictly, np.broadcast_to(np.reshape(seen, (1, -1, 1)[: usual.ndim] or ()), usual.shape)
    )


def test_what_is_one_step_does_not_overflow_on_the_way() -> None:
    """Partial sums are not modelled, nor single products."""
    x = F16([[60000, 60000, -60000, -60000]])

    def build(x: Any) -> Any:
        return mb.reduce_sum(x=x, axes=[1]), mb.matmul(x=x, y=F16([[2], [1], [2], [1]])), mb.cumsum(x=x, axis=1)

    total, product, sums = run(build, {"x": x}, precision="declared-strict")
    assert (total, product) == (0, 0)
    np.testing.assert_array_equal(sums, F16([[60000, np.inf, 60000, 0]]))


@pytest.mark.parametrize("mode", ["EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"])
def test_large_values_pass_activations_whose_steps_saturate(mode: str) -> None:
    x = F16([-60000, -50, 50, 60000])
    (got,) = run(lambda x: mb.gelu(x=x, mode=mode), {"x": x}, precision="declared-strict")
    np.testing.assert_array_equal(got, F16([0, 0, 50, 60000]))


def test_integers_are_reduced_as_ever() -> None:
    x = np.array([[7, -8, 2]], np.int32)

    def build(x: Any) -> Any:
        return mb.reduce_mean(x=x, axes=[-1]), mb.reduce_sum_square(x=x, axes=[-1]), mb.reduce_l2_norm(x=x, axes=[-1])

    for have, want in zip(run(build, {"x": x}, precision="declared-strict"), run(build, {"x": x}), strict=True):
        np.testing.assert_array_equal(have, want, strict=True)


def test_an_implementation_of_the_caller_is_left_alone() -> None:
    mine = Impls("mine")

    @mine("silu", override=True)
    def _(x: Tensor) -> Tensor:
        return x + 1

    plan = compile(
        program(lambda x: mb.silu(x=x, name="y"), {"x": POINT}), precision="declared-strict", impls=core | mine
    )
    assert plan.run({"x": POINT})["y"].item() == 2


def test_rounding_is_for_every_implementation() -> None:
    """One that asks for it gets the rounding of the run's precision."""
    mine = Impls("mine")

    @mine("square", override=True)
    def _(x: Tensor, *, r: Rounding) -> Tensor:
        return r(x * x) / x

    x = F16([300, 0.1])
    made = program(lambda x: mb.square(x=x, name="y"), {"x": x})
    got = {
        each: compile(made, precision=each, impls=core | mine).run({"x": x})["y"].numpy()
        for each in ("float64", "declared", "declared-strict")
    }
    np.testing.assert_array_equal(got["float64"], x.astype(np.float64) * x / x)
    np.testing.assert_array_equal(got["declared"], x.astype(F32))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(got["declared-strict"], ((x * x) / x).astype(F32))
    assert np.isinf(got["declared-strict"][0])


def test_float64_is_rounded_at_once() -> None:
    """Not to float32 first: of numbers next to the middle between two fp16 numbers, that gets half of them wrong."""
    bits: Any = np.random.default_rng(0).integers(0, 0x7BFF, 2000).astype(np.uint16)
    low, high = bits.view(F16).astype(np.float64), (bits + 1).astype(np.uint16).view(F16).astype(np.float64)
    middle = np.where(np.isinf(high), 65520.0, (low + high) / 2)
    edges = np.array([0.0, 2.0**-25, 1e-300, 1e300, np.inf, np.nan])
    values: Any = np.concatenate([middle, middle * (1 + 1e-12), middle * (1 - 1e-12), edges])
    values = np.concatenate([values, -values])
    got = Rounding("fp16")(torch.as_tensor(values)).numpy()
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(got, values.astype(F16).astype(F32))
    np.testing.assert_array_equal(np.signbit(got)[~np.isnan(got)], np.signbit(values)[~np.isnan(got)])


def test_states_are_shared_with_declared_runs() -> None:
    def build(x: Any, cache: Any) -> Any:
        written = mb.coreml_update_state(state=cache, value=mb.silu(x=x))
        return mb.identity(x=written, name="y")

    x = normals(2, 3, dtype=F16)
    made = program(build, {"x": x, "cache": state(2, 3)})
    memory = make_state(made)
    compile(made, precision="declared-strict").run({"x": x}, memory)
    np.testing.assert_array_equal(memory["cache"], x * sigmoid(x))
    compile(made, precision="declared").run({"x": x}, memory)
    assert memory["cache"].dtype == F16
