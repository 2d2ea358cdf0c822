"""fp16-safe-norm: the same algebra, nothing lost in fp16, every spelling, and what it stays away from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milopt.interpreter import evaluate
from milopt.mil import Program, get_new_symbol, mb, target, types
from milopt.package import load
from milopt.passes.norms import Fp16SafeNorm, _clamp, _factors, _peak  # pyright: ignore[reportPrivateUsage]
from milopt.reports import Report
from milopt.text import text

from .support import Arrays, op_types

F16 = np.float16
EPS = (1e-5, 1e-6)
# Three fp16 roundings follow each other (the root, the factor, the result), each half of 2**-10, and those of the
# squares average out. Below 2**-14 fp16 steps by 2**-24.
RELATIVE, STEP = 2e-3, 2.0**-24
# the factor 1 / rms is below 2**-14 itself where rms exceeds 16384: at most 2**-25 / 65504**-1 more
RELATIVE_AT_THE_END = 4e-3

Norm = Callable[[Any], Any]


def program(norm: Norm, shape: tuple[Any, ...] = (1, 4, 32), dtype: Any = types.fp16) -> Program:
    @mb.program(input_specs=[mb.TensorSpec(shape, dtype)], opset_version=target.iOS17)
    def built(x: Any) -> Any:
        return mb.identity(x=norm(x), name="out")

    return built


def rms(x: Any, *, eps: float = 1e-5, floor: float = 0.0, axes: tuple[int, ...] = (-1,)) -> Any:
    mean = mb.reduce_mean(x=mb.pow(x=x, y=F16(2)), axes=list(axes), keep_dims=True)
    return mb.mul(x=x, y=mb.rsqrt(x=mb.add(x=mean, y=F16(eps)), epsilon=F16(floor)), name="norm")


def run(built: Program) -> Report:
    report = Fp16SafeNorm().run(load(built))
    built.validate()
    return report


def check(norm: Norm, x: Any, *, relative: float = RELATIVE, dtype: Any = types.fp16) -> None:
    """The rewritten program equals the original in float64, and in fp16 comes as near to it as fp16 can."""
    before, after = program(norm, x.shape, dtype), program(norm, x.shape, dtype)
    report = run(after)
    assert (report.applied, report.misses) == (1, [])
    inputs: Arrays = {"x": x}
    exact = evaluate(before, inputs, precision="float64")["out"]
    algebra = evaluate(after, inputs, precision="float64")["out"]
    # the epsilon is the product of two fp16 constants, at most 1e-6 off, and stands under a root
    np.testing.assert_allclose(algebra, exact, rtol=1e-6, atol=0)
    declared = evaluate(after, inputs)["out"]
    assert declared.dtype == F16
    np.testing.assert_allclose(declared.astype(np.float64), exact, rtol=relative, atol=STEP)


def rows(name: str, count: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(count)
    made = {
        "zero": np.zeros(count),
        "ordinary": x,
        "small": x * 1e-3,
        "below 1e-5": rng.uniform(-1, 1, count) * 9.9e-6,
        "least": np.where(np.arange(count) == 1, 2.0**-24, 0),
        "beyond 255": x * 300,
        "spike": np.where(np.arange(count) == 3, 24758, x * 30),  # token 0 of SmolLM2-135M
        "spike among small": np.where(np.arange(count) == 3, 65504, x * 0.1),
        "largest": np.full(count, 65504.0),
        "all large": rng.uniform(-1, 1, count) * 65504,
    }
    return made[name].astype(F16)


ORDINARY = ("zero", "ordinary", "small", "below 1e-5", "least", "beyond 255", "spike", "spike among small")


@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("count", [8, 576, 2048])
def test_rows(count: int, eps: float) -> None:
    """Every kind of row beside every other: one row's size must not touch another's."""
    check(lambda x: rms(x, eps=eps), np.stack([rows(name, count) for name in ORDINARY])[None])


@pytest.mark.parametrize("count", [8, 576, 2048])
@pytest.mark.parametrize("name", ["largest", "all large"])
def test_rows_at_the_end_of_fp16(name: str, count: int) -> None:
    check(rms, rows(name, count)[None, None], relative=RELATIVE_AT_THE_END)


def test_the_plain_form_fails_on_these_rows() -> None:
    """What the pass repairs: fp16 squares are infinite, so the row becomes 0."""
    x = rows("spike", 576)[None, None]
    plain = program(rms, x.shape)
    exact = evaluate(plain, {"x": x}, precision="float64")["out"]
    assert np.abs(exact).max() > 10
    assert not np.any(evaluate(plain, {"x": x})["out"])


@pytest.mark.parametrize("floor", [0.0, 2.0**-24, 1e-3])
def test_the_floor_of_rsqrt_counts(floor: float) -> None:
    """A row of 1e-4 is dominated by whatever is added under the root."""
    x = np.full((1, 1, 32), 1e-4, F16)
    check(lambda x: rms(x, eps=1e-6, floor=floor), x)
    check(lambda x: mb.mul(x=x, y=mb.rsqrt(x=_mean(mb.square(x=x)), epsilon=F16(floor or 1e-2))), x)


def _mean(x: Any) -> Any:
    return mb.reduce_mean(x=x, axes=[-1], keep_dims=True)


def _total(x: Any) -> Any:
    return mb.add(x=_mean(mb.mul(x=x, y=x)), y=F16(1e-5))


def _layer_norm(x: Any) -> Any:
    return rms(mb.sub(x=x, y=_mean(x)))


def _mean_in_fp32(x: Any) -> Any:
    wide = mb.cast(x=x, dtype="fp32")
    mean = mb.reduce_mean(x=mb.pow(x=wide, y=2.0), axes=[-1], keep_dims=True)
    return mb.mul(x=x, y=mb.cast(x=mb.rsqrt(x=mb.add(x=mean, y=np.float32(1e-5))), dtype="fp16"))


def _root_in_fp32(x: Any) -> Any:
    wide = mb.cast(x=x, dtype="fp32")
    mean = mb.reduce_mean(x=mb.square(x=wide), axes=[-1], keep_dims=True)
    return mb.real_div(x=x, y=mb.cast(x=mb.sqrt(x=mb.add(x=mean, y=np.float32(1e-6))), dtype="fp16"))


def _all_in_fp32(x: Any) -> Any:
    wide = mb.cast(x=x, dtype="fp32")
    mean = mb.reduce_mean(x=mb.mul(x=wide, y=wide), axes=[-1], keep_dims=True)
    norm = mb.mul(x=wide, y=mb.rsqrt(x=mb.add(x=mean, y=np.float32(1e-6)), epsilon=1e-12))
    return mb.cast(x=norm, dtype="fp16")


SPELLINGS: dict[str, Norm] = {
    "pow": rms,
    "mul": lambda x: mb.mul(x=mb.rsqrt(x=_total(x), epsilon=F16(0)), y=x),
    "square": lambda x: mb.mul(x=x, y=mb.rsqrt(x=mb.add(x=F16(1e-5), y=_mean(mb.square(x=x))), epsilon=F16(0))),
    "sqrt and division": lambda x: mb.real_div(x=x, y=mb.sqrt(x=_total(x))),
    "sqrt, division and product": lambda x: mb.mul(x=x, y=mb.real_div(x=F16(1), y=mb.sqrt(x=_total(x)))),
    "sqrt and inverse": lambda x: mb.mul(x=x, y=mb.inverse(x=mb.sqrt(x=_total(x)), epsilon=F16(0))),
    "sqrt and inverse with its epsilon": lambda x: mb.mul(x=x, y=mb.inverse(x=mb.sqrt(x=_total(x)), epsilon=F16(1e-4))),
    "power": lambda x: mb.mul(x=x, y=mb.pow(x=_total(x), y=F16(-0.5))),
    "layer norm": _layer_norm,
    "mean in fp32": _mean_in_fp32,
    "root in fp32": _root_in_fp32,
    "all in fp32": _all_in_fp32,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings(spelling: str) -> None:
    rest = ("zero", "ordinary", "small", "below 1e-5", "beyond 255")
    names = rest if spelling == "layer norm" else (*rest, "spike")  # x - mean(x) itself is rounded in fp16
    x = np.stack([rows(name, 64) for name in names])[None]
    norm = SPELLINGS[spelling]
    if spelling == "layer norm":  # the difference, made outside, is the same number in both precisions
        x = x - x.astype(np.float64).mean(-1, keepdims=True).astype(F16)
        norm = rms
        assert run(program(_layer_norm, x.shape)).applied == 1
    check(norm, x)


@pytest.mark.parametrize("axes", [(-1,), (1,), (1, 2), (-1, -3)])
def test_axes(axes: tuple[int, ...]) -> None:
    """Norms over other axes: of heads after the transpose, of channels in (B, C, 1, S)."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((2, 3, 4, 5)) * 10.0 ** rng.uniform(-3, 4, (2, 3, 4, 5))).astype(F16)
    check(lambda x: rms(x, axes=axes), x)


def test_text() -> None:
    built = program(lambda x: mb.mul(x=rms(x, floor=2.0**-24), y=np.arange(32).astype(F16)))
    run(built)
    # eps is 168 * 2**-24 in fp16 and the floor 2**-24: together the square of 13 / 4096, so there is no factor g
    assert (
        text(built)
        == """\
main[CoreML7](%x: fp16[1, 4, 32]) {
  %0: fp16[1, 4, 32] = abs(x=%x)
  %1: fp16[1, 4, 1] = reduce_max(x=%0, axes=[-1], keep_dims=true)
  %2: fp16[1, 4, 1] = maximum(x=%1, y=fp16(0.003906))
  %3: fp16[1, 4, 1] = real_div(x=fp16(4.0), y=%2)
  %4: fp16[1, 4, 32] = mul(x=%x, y=%3)
  %5: fp16[1, 4, 32] = mul(x=%4, y=%4)
  %6: fp16[1, 4, 1] = reduce_mean(x=%5, axes=[-1], keep_dims=true)
  %7: fp16[1, 4, 1] = mul(x=%3, y=fp16(0.003174))
  %8: fp16[1, 4, 1] = mul(x=%7, y=%7)
  %9: fp16[1, 4, 1] = add(x=%6, y=%8)
  %10: fp16[1, 4, 1] = rsqrt(x=%9)
  %11: fp16[1, 4, 1] = mul(x=%3, y=%10)
  %12: fp16[1, 4, 32] = mul(x=%x, y=%11)
  %13: fp16[1, 4, 32] = mul(x=%12, y=w0)
  %14: fp16[1, 4, 32] = identity(x=%13)
} -> (out=%14)
w0: fp16[32]
"""
    )


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_twice_is_once(spelling: str) -> None:
    built = program(SPELLINGS[spelling])
    run(built)
    after = text(built)
    again = run(built)
    assert (bool(again), again.misses) == (False, [])
    assert text(built) == after


def test_flexible_rows() -> None:
    built = program(rms, (1, get_new_symbol(), 32))
    assert run(built).applied == 1
    assert evaluate(built, {"x": np.ones((1, 7, 32), F16)})["out"].shape == (1, 7, 32)


def _with_other_factor(x: Any) -> Any:
    return mb.mul(x=mb.abs(x=x), y=mb.rsqrt(x=_total(x), epsilon=F16(0)))


def _with_two_uses(x: Any) -> Any:
    total = mb.add(x=_mean(mb.mul(x=x, y=x)), y=F16(1e-5), name="total")
    return mb.add(x=mb.mul(x=x, y=mb.rsqrt(x=total, epsilon=F16(0))), y=total)


def _cube(x: Any) -> Any:
    return mb.mul(x=x, y=mb.rsqrt(x=mb.add(x=_mean(mb.pow(x=x, y=F16(3), name="cube")), y=F16(1e-5))))


def _mean_of_product(x: Any) -> Any:
    return mb.mul(x=x, y=mb.rsqrt(x=mb.add(x=_mean(mb.mul(x=x, y=mb.abs(x=x))), y=F16(1e-5))))


def _computed_eps(x: Any) -> Any:
    return mb.mul(x=x, y=mb.rsqrt(x=mb.add(x=_mean(mb.square(x=x)), y=mb.abs(x=x))))


def _outside(epsilon: float, eps: float = 1e-6) -> Norm:
    def norm(x: Any) -> Any:
        wide = mb.cast(x=x, dtype="fp32")
        mean = mb.reduce_mean(x=mb.square(x=wide), axes=[-1], keep_dims=True)
        root = mb.sqrt(x=mb.add(x=mean, y=np.float32(eps)))
        return mb.mul(x=x, y=mb.cast(x=mb.inverse(x=root, epsilon=np.float32(epsilon)), dtype="fp16"), name="norm")

    return norm


REFUSALS: dict[str, tuple[Norm, list[tuple[str, str]]]] = {
    "another factor": (_with_other_factor, [("x", "x is not the same value as before")]),
    "a value used outside": (_with_two_uses, [("total", "a matched value is also used outside the match")]),
    "a cube": (_cube, [("cube", "pow's y is not 2.0")]),
    "no square": (_mean_of_product, [("", "x is not the same value as before")]),
    "no epsilon": (
        lambda x: mb.real_div(x=x, y=mb.sqrt(x=_mean(mb.square(x=x))), name="norm"),
        [("norm", "there is no epsilon under the root")],
    ),
    "a large epsilon": (lambda x: rms(x, eps=2e4), [("norm", "its epsilon, 20000, is no small number")]),
    "the least large epsilon": (lambda x: rms(x, eps=1000), [("norm", "its epsilon, 1000, is no small number")]),
    "a computed epsilon": (_computed_eps, []),
    "a negative epsilon outside": (
        _outside(-1e-3),
        [("norm", "its epsilon outside the root, -0.001, is negative")],
    ),
    "a mean of something else": (
        lambda x: mb.mul(x=x, y=mb.rsqrt(x=_mean(mb.abs(x=x, name="absolute")))),
        [("absolute", "wanted pow or mul or square, found abs")],
    ),
    "less than a mean": (lambda x: mb.mul(x=x, y=mb.rsqrt(x=mb.abs(x=x))), []),
    "the least epsilon outside that is one": (
        _outside(2.0**-33, 2.0**-20),
        [("norm", "its epsilon outside the root, 1.16415e-10, is too small")],
    ),
    "a tiny epsilon outside": (_outside(1e-9), [("norm", "its epsilon outside the root, 1e-09, is too small")]),
    "half as much again as nothing": (
        _outside(1.5e-10),
        [("norm", "its epsilon outside the root, 1.5e-10, is too small")],
    ),
    "the most that is too small": (
        _outside(2.0**-27),
        [("norm", "its epsilon outside the root, 7.45058e-09, is too small")],
    ),
}


def test_epsilons_outside_the_root_at_the_ends_of_what_is_refused() -> None:
    """Less than a ten-millionth of the root is nothing; from 2**-26 on two fp16 factors can express it."""
    x = np.stack([rows(name, 64) for name in ORDINARY])[None]
    for epsilon in (0.9e-10, 2.0**-26, 1e-3):
        check(_outside(epsilon), x)
    assert "real_div" not in op_types_of(_outside(0.9e-10))[2:]
    assert "real_div" in op_types_of(_outside(2.0**-26))[2:]


def op_types_of(norm: Norm) -> list[str]:
    """The ops after those that find the scale of the rows, of which one is a division in any case."""
    built = program(norm)
    run(built)
    kinds = op_types(built)
    return kinds[kinds.index("real_div") + 1 :]


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str) -> None:
    norm, reasons = REFUSALS[case]
    built = program(norm)
    before = text(built)
    report = run(built)
    assert not report
    assert [miss.reason for miss in report.misses] == [reason for _, reason in reasons]
    for miss, (place, _) in zip(report.misses, reasons, strict=True):
        assert place in ("", miss.place)
    assert text(built) == before


def test_an_output_inside_the_match_is_kept() -> None:
    @mb.program(input_specs=[mb.TensorSpec((1, 4, 32), types.fp16)], opset_version=target.iOS17)
    def built(x: Any) -> Any:
        total = _total(x)
        return mb.mul(x=x, y=mb.rsqrt(x=total, epsilon=F16(0)), name="out"), mb.identity(x=total, name="total")

    assert [miss.reason for miss in run(built).misses] == ["a matched value is also used outside the match"]


def test_fp32_is_left_alone() -> None:
    def norm(x: Any) -> Any:
        mean = mb.reduce_mean(x=mb.pow(x=x, y=2.0), axes=[-1], keep_dims=True)
        return mb.mul(x=x, y=mb.rsqrt(x=mb.add(x=mean, y=1e-5)))

    report = run(program(norm, dtype=types.fp32))
    assert not report
    assert [(miss.place, miss.reason) for miss in report.misses] == [("x", "the norm is fp32 from its input on")]
    joined = run(program(lambda x: norm(mb.concat(values=[x, x], axis=-1, name="joined")), dtype=types.fp32))
    assert [(miss.place, miss.reason) for miss in joined.misses] == [("joined", "the norm is fp32 from its input on")]


def test_the_layer_norm_op_is_left_alone() -> None:
    def norms(x: Any) -> Any:
        once = mb.layer_norm(x=x, axes=[-1], epsilon=F16(1e-5))
        again = mb.layer_norm(x=once, axes=[-2], epsilon=F16(1e-5))
        return mb.cast(x=mb.layer_norm(x=mb.cast(x=again, dtype="fp32"), axes=[-1]), dtype="fp16")

    report = run(program(norms))
    assert not report
    assert report.notes == ["2 layer_norm ops left alone: they have no intermediate values"]
    assert run(program(lambda x: mb.abs(x=x))).notes == []


@pytest.mark.parametrize("value", [1e-12, 1e-8, 1e-6, 1e-5, 2e-5, 1e-4, 1e-3, 1e-5 + 1e-12])
def test_factors_of_epsilons_in_use(value: float) -> None:
    for held in (value, float(np.float32(value))):
        a, g = (float(each) for each in _factors(held, 2))
        assert abs(g * a * a / held - 1) <= 1e-6  # twice what the comparison of norms allows, halved by the root


# (value, power) -> a and g, whose product g * a**power is the nearest there is
FACTORS: dict[tuple[float, int], tuple[float, float]] = {
    (1e-5, 2): (0.0021457672119140625, 2.171875),
    (1e-6, 2): (0.0011205673217773438, 0.79638671875),
    (1e-8, 2): (0.000171661376953125, 0.33935546875),
    (1e-12, 2): (0.0001499652862548828, 4.4465065002441406e-05),
    (0.5, 2): (0.5, 2.0),
    (1.0, 2): (1.0, 1.0),
    (169 * 2.0**-24, 2): (13 * 2.0**-12, 1.0),
    # beside that square by 3e-7, which is worth a factor; beside 1, whose root is of the octave below
    (169 * 2.0**-24 * (1 + 3e-7), 2): (0.0023040771484375, 1.8974609375),
    (1 - 2.0**-30, 2): (0.5, 4.0),
    (100.0, 2): (10.0, 1.0),
    (1e-5, 1): (0.002948760986328125, 0.003391265869140625),
    (1e-6, 1): (0.0011262893676757812, 0.0008878707885742188),
    (1e-3, 1): (0.038482666015625, 0.0259857177734375),
    (0.5, 1): (0.5, 1.0),
    (100.0, 1): (8.0, 12.5),
}


@pytest.mark.parametrize(("value", "power"), FACTORS)
def test_factors_are_the_best(value: float, power: int) -> None:
    found: Any = _factors(value, power)
    a, g = found
    assert a.dtype == g.dtype == np.dtype(F16)
    assert (float(a), float(g)) == FACTORS[value, power]


# 1e-12 is below the square of the least clamp; √eps lies between two powers of two, and the nearer one by ratio counts
CLAMPS = {1e-12: -13, 1e-8: -13, 2.0**-25: -12, 1e-6: -10, 1e-5: -8, 1e-3: -5, 0.5: 0, 1.0: 0, 100: 3}


@pytest.mark.parametrize("eps", CLAMPS)
def test_clamps(eps: float) -> None:
    clamp: Any = _clamp(eps)
    assert clamp == F16(2.0 ** CLAMPS[eps])
    assert clamp.dtype == F16


# elements of a row -> its peak: the most that keeps the sum of squares below 65504
PEAKS = {1: 4, 4094: 4, 4095: 2, 16376: 2, 16377: 1, 65504: 1, 100_000: 1}


@pytest.mark.parametrize("count", PEAKS)
def test_peaks(count: int) -> None:
    for shape, axes in (((1, count), [-1]), ((count, 1, 3), [0]), ((2, 1, count), [1, 2])):
        assert _peak_of(shape, axes) == PEAKS[count]
        assert PEAKS[count] == 1 or count * PEAKS[count] ** 2 <= 65504


def test_a_row_of_any_length_has_the_least_peak() -> None:
    assert _peak_of((1, get_new_symbol()), [-1]) == 1
    assert _peak_of((get_new_symbol(), 8), [-1]) == 4
    assert _peak_of((get_new_symbol(), 8), [0, 1]) == 1


def _peak_of(shape: tuple[Any, ...], axes: list[int]) -> float:
    built = program(lambda x: mb.reduce_mean(x=x, axes=axes, keep_dims=True), shape)
    (op,) = [op for op in built.functions["main"].operations if op.op_type == "reduce_mean"]
    return _peak(op.x, op.axes)


@given(st.floats(1e-12, 100))
def test_factors(value: float) -> None:
    for power, worst in ((1, 5e-5), (2, 5e-6)):  # in 20,000 random values: 3.1e-5 and 3.5e-6
        if power == 1 and value < 2.0**-26:  # which the rule declines
            continue
        a, g = (float(each) for each in _factors(value, power))
        assert abs(g * a**power / value - 1) <= worst
        assert a >= 2.0**-14  # a normal number


@given(st.integers(0, 2**10 - 1), st.sampled_from([0, 1, 17, 168]))
def test_factors_of_fp16_numbers_are_exact(count: int, floor: int) -> None:
    """A subnormal epsilon of fp16, and the sum of two, is a whole multiple of 2**-24."""
    value = (count + floor + 1) * 2.0**-24
    a, g = (float(each) for each in _factors(value, 2))
    assert abs(g * a * a / value - 1) <= 2e-7


# a fresh program is built and run twice for each example
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_rows(data: st.DataObject) -> None:
    """Random shapes, magnitudes from the least fp16 number to 16384, epsilons and spellings."""
    shape = (*data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)), data.draw(st.integers(1, 40)))
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    peak = 2.0 ** rng.uniform(-24, 14, (*shape[:-1], 1))
    x = (rng.uniform(-1, 1, shape) * peak).astype(F16)
    spelling = data.draw(st.sampled_from([name for name in SPELLINGS if name != "layer norm"]))
    eps = data.draw(st.sampled_from([1e-6, 1e-5, 1e-4, 1e-2]))
    check((lambda x: rms(x, eps=eps)) if spelling == "pow" else SPELLINGS[spelling], x)


@pytest.mark.parametrize("name", ["ios15_fixed64", "ios18_prefill64", "ios18_stateful_pal4g16"])
def test_a_published_llama(shared: Path, name: str) -> None:
    """Two norms in each of five layers, and the last one."""
    model = load(shared / "models" / "stories260K" / f"stories260K_{name}.mlpackage")
    report = Fp16SafeNorm().run(model)
    assert (report.applied, report.misses) == (11, [])
    assert "rsqrt" in op_types(model.program)
