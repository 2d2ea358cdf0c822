"""rope-table: tables that hold the exact angles, every spelling, where the length comes from, and the refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milopt.errors import PassError
from milopt.interpreter import evaluate
from milopt.metrics import Lossy
from milopt.mil import Program, constant, get_new_symbol, mb, operations, target, types
from milopt.multifunction import merge
from milopt.package import load
from milopt.passes.frequencies import exact_frequencies, fit_theta
from milopt.passes.rope import RopeTable
from milopt.reports import Report
from milopt.text import text

from .support import op_types

THETA, HALF, QUERIES = 1e5, 8, 5
EXACT = THETA ** (-np.arange(HALF) / HALF)
HALF_STEP = {np.float16: 2.0**-12, np.float32: 2.0**-25}  # half of what a number below 1 steps by

Spelling = Callable[[Any], Any]


def frequencies(dtype: Any, shape: tuple[int, ...] = (1, 1, HALF)) -> Any:
    return np.reshape(EXACT.astype(np.float32).astype(dtype), shape)


def program(spelling: Spelling, shape: tuple[Any, ...] = (1, QUERIES), *, dtype: Any = types.int32) -> Program:
    @mb.program(input_specs=[mb.TensorSpec(shape, dtype)], opset_version=target.iOS17)
    def built(position_ids: Any) -> Any:
        angles = spelling(position_ids)
        return mb.identity(x=mb.cos(x=angles), name="c"), mb.identity(x=mb.sin(x=angles), name="s")

    return built


def run(built: Program, context: int | None = 4096) -> Report:
    report = RopeTable(context).run(load(built))
    built.validate()
    return report


def _columns(positions: Any, dtype: str = "fp32") -> Any:
    return mb.cast(x=mb.expand_dims(x=positions, axes=[2]), dtype=dtype)


def _twice(angles: Any, axis: int = -1) -> Any:
    return mb.concat(values=(angles, angles), axis=axis)


def _front_door(positions: Any) -> Any:
    return _twice(mb.mul(x=_columns(positions), y=frequencies(np.float32)))


def _default(positions: Any) -> Any:
    return _twice(mb.mul(x=frequencies(np.float16), y=_columns(positions, "fp16")))


def _matmul(positions: Any) -> Any:
    row = mb.cast(x=mb.expand_dims(x=positions, axes=[1]), dtype="fp32")
    angles = mb.matmul(x=frequencies(np.float32, (1, HALF, 1)), y=row)
    return _twice(mb.transpose(x=angles, perm=[0, 2, 1]))


def _matmul_transposed(positions: Any) -> Any:
    return _twice(mb.matmul(x=_columns(positions), y=frequencies(np.float32, (HALF, 1)), transpose_y=True))


def _divided(positions: Any) -> Any:
    return _twice(mb.real_div(x=_columns(positions), y=(1 / EXACT).astype(np.float32)))


def _through_int16(positions: Any) -> Any:
    chatter = mb.cast(x=mb.cast(x=positions, dtype="int16"), dtype="int32")
    return _twice(mb.mul(x=_columns(chatter), y=frequencies(np.float32)))


SPELLINGS: dict[str, Spelling] = {
    "front door": _front_door,
    "matmul": _matmul,
    "matmul, transposed": _matmul_transposed,
    "divided by wavelengths": _divided,
    "through int16": _through_int16,
    "once": lambda positions: mb.mul(x=_columns(positions), y=frequencies(np.float32)),
    "joined after the wave's layout": lambda positions: mb.expand_dims(x=_front_door(positions), axes=[1]),
    "positions last": lambda positions: mb.transpose(x=_front_door(positions), perm=[0, 2, -2]),
    "features first": lambda positions: mb.expand_dims(
        x=mb.transpose(x=_front_door(positions), perm=[2, 0, 1]), axes=[0, 2]
    ),
}
POSITIONS = np.array([[0, 1, 511, 2049, 4095]], np.int32)  # fp16 has no 2049


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings(spelling: str) -> None:
    before, after = program(SPELLINGS[spelling]), program(SPELLINGS[spelling])
    report = run(after)
    assert (report.applied, report.misses, report.notes, report.metric) == (2, [], [], None)
    assert not {"cos", "sin", "concat", "mul", "cast"} & set(op_types(after))
    inputs = {"position_ids": POSITIONS}
    expected, found = evaluate(before, inputs, precision="float64"), evaluate(after, inputs)
    for name in ("c", "s"):
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=HALF_STEP[np.float32])


def test_rounded_frequencies_are_restored() -> None:
    """The default fp16 conversion: frequencies and positions rounded to fp16, both taken back."""
    before, after = program(_default), program(_default)
    report = run(after)
    assert report.notes == ["inverse frequencies that fp16 had rounded were restored: theta 100000"]
    inputs = {"position_ids": POSITIONS}
    angles = POSITIONS[..., None] * np.tile(EXACT, 2)
    found = evaluate(after, inputs)
    np.testing.assert_allclose(found["c"].astype(float), np.cos(angles), rtol=0, atol=HALF_STEP[np.float16])
    np.testing.assert_allclose(found["s"].astype(float), np.sin(angles), rtol=0, atol=HALF_STEP[np.float16])
    # what that repairs: the rounded frequencies are off by much more already in float64
    original = evaluate(before, inputs, precision="float64")
    assert np.abs(original["c"] - np.cos(angles)).max() > 0.05


def test_the_metric_of_restored_frequencies() -> None:
    """The original is off by itself: less is asked of the comparison, as much less as the tables say."""
    wrong = np.cos(4095 * np.float64(frequencies(np.float16))) - np.cos(4095 * EXACT)
    ratio = 10 * np.log10((np.cos(4095 * EXACT) ** 2).sum() / (wrong**2).sum())
    metric = run(program(_default)).metric
    assert isinstance(metric, Lossy)
    assert metric.min_snr_db <= ratio - 10
    assert run(program(_default), context=4).metric is None


def test_frequencies_that_no_theta_explains_stay() -> None:
    odd = frequencies(np.float16).copy()
    odd[..., 3] *= np.float16(1.1)

    def spelling(positions: Any) -> Any:
        return mb.mul(x=_columns(positions, "fp16"), y=odd)

    before, after = program(spelling), program(spelling)
    notes = run(after).notes
    assert notes == ["the angles keep the fp16 rounding of the inverse frequencies: no theta explains them"]
    inputs = {"position_ids": np.array([[0, 1, 2, 100, 4095]], np.int32)}
    expected, found = evaluate(before, inputs, precision="float64"), evaluate(after, inputs)
    np.testing.assert_allclose(found["c"].astype(float), expected["c"], rtol=0, atol=HALF_STEP[np.float16])


# a program is built and run for each example
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_layout(data: st.DataObject) -> None:
    """Positions of rank 1 to 3, features at any axis, a unit axis anywhere, any positions below the context."""
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    rank = len(shape)
    context = data.draw(st.integers(1, 3000))
    at, unit = data.draw(st.integers(0, rank)), data.draw(st.integers(0, rank + 1))
    perm = data.draw(st.permutations(range(rank + 1)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    row = np.expand_dims(rng.uniform(0, 1, data.draw(st.integers(2, 6))), tuple(range(1, rank + 1 - at)))

    def spelling(positions: Any) -> Any:
        column = mb.expand_dims(x=mb.cast(x=positions, dtype="fp32"), axes=[at])
        angles = mb.transpose(x=mb.mul(x=column, y=row.astype(np.float32)), perm=perm)
        return mb.expand_dims(x=_twice(angles, perm.index(at)), axes=[unit])

    before, after = program(spelling, tuple(shape)), program(spelling, tuple(shape))
    assert run(after, context).applied == 2
    inputs = {"position_ids": rng.integers(0, context, shape).astype(np.int32)}
    expected, found = evaluate(before, inputs, precision="float64"), evaluate(after, inputs)
    for name in ("c", "s"):
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=HALF_STEP[np.float32])


def _rotation(*, scale: float | None, last: str | None, also: bool = False) -> Program:
    """Waves in fp32, scaled and cast as transformers does it; ``also``: used without that, too."""

    @mb.program(input_specs=[mb.TensorSpec((1, QUERIES), types.int32)], opset_version=target.iOS17)
    def built(position_ids: Any) -> Any:
        wave = mb.cos(x=_front_door(position_ids))
        end = wave if scale is None else mb.mul(x=wave, y=np.float32(scale))
        end = end if last is None else mb.cast(x=end, dtype=last)
        outputs = [mb.identity(x=end, name="out")]
        return [*outputs, mb.identity(x=wave, name="wave")] if also else outputs

    return built


@pytest.mark.parametrize("scale", [None, 1.1386])
@pytest.mark.parametrize("last", [None, "fp16"])
def test_scaling_and_cast_go_into_the_table(scale: float | None, last: str | None) -> None:
    built = _rotation(scale=scale, last=last)
    report = run(built)
    assert (report.applied, report.misses) == (1, [])
    assert op_types(built) == ["gather", "identity"]
    found = evaluate(built, {"position_ids": POSITIONS})["out"]
    expected = np.cos(POSITIONS[..., None] * np.tile(EXACT, 2)) * (scale or 1)
    # the program's frequencies are fp32 numbers: 4095 times half of 2**-24; numbers beyond 1 step by twice as much
    half = 2 * HALF_STEP[np.float16 if last else np.float32] + 4096 * 2.0**-25
    np.testing.assert_allclose(found.astype(float), expected, rtol=0, atol=half)


def test_a_wave_used_unscaled_too_is_tabulated_alone() -> None:
    built = _rotation(scale=1.25, last="fp16", also=True)
    assert run(built).applied == 1
    assert op_types(built) == ["gather", "mul", "cast", "identity", "identity"]


def test_text() -> None:
    built = program(lambda positions: mb.expand_dims(x=_default(positions), axes=[1]))
    run(built, 100)
    assert (
        text(built)
        == """\
main[CoreML7](%position_ids: int32[1, 5]) {
  %0: fp16[1, 5, 16] = gather(x=w0, indices=%position_ids)
  %1: fp16[1, 1, 5, 16] = expand_dims(x=%0, axes=[1])
  %2: fp16[1, 1, 5, 16] = identity(x=%1)
  %3: fp16[1, 5, 16] = gather(x=w1, indices=%position_ids)
  %4: fp16[1, 1, 5, 16] = expand_dims(x=%3, axes=[1])
  %5: fp16[1, 1, 5, 16] = identity(x=%4)
} -> (c=%2, s=%5)
w0: fp16[100, 16]
w1: fp16[100, 16]
"""
    )


def test_twice_is_once() -> None:
    built = program(_front_door)
    run(built)
    after = text(built)
    again = run(built)
    assert (bool(again), again.misses) == (False, [])
    assert text(built) == after


def test_flexible_queries() -> None:
    built = program(_front_door, (1, get_new_symbol()))
    assert run(built).applied == 2
    found = evaluate(built, {"position_ids": np.array([[7, 9]], np.int32)})["c"]
    np.testing.assert_allclose(found[0, 1], np.cos(9 * np.tile(EXACT, 2)), rtol=0, atol=9 * HALF_STEP[np.float32])


def _masked(columns: Any) -> Program:
    specs = [mb.TensorSpec((1, QUERIES), types.int32), mb.TensorSpec((1, 1, QUERIES, columns), types.fp16)]

    @mb.program(input_specs=specs, opset_version=target.iOS17)
    def built(position_ids: Any, mask: Any) -> Any:
        scores = mb.add(x=mask, y=np.float16(1))
        return mb.identity(x=mb.cos(x=_front_door(position_ids)), name="c"), mb.softmax(x=scores, name="p")

    return built


def table_of(built: Program) -> Any:
    (gather,) = [op for op in operations(built.functions["main"]) if op.op_type == "gather"]
    return constant(gather.inputs["x"])


def test_the_option_goes_before_the_metadata_and_that_before_the_mask() -> None:
    for option, metadata, rows in ((30, "40", 30), (None, "40", 40), (None, None, 50)):
        model = load(_masked(50))
        model.metadata |= {"milopt.context": metadata} if metadata else {}
        assert RopeTable(option).run(model).applied == 1
        assert table_of(model.program).shape == (rows, 2 * HALF)


@pytest.mark.parametrize("built", [program(_front_door), _masked(get_new_symbol())], ids=["no mask", "flexible mask"])
def test_an_unknown_number_of_positions_is_refused(built: Program) -> None:
    before = text(built)
    report = run(built, None)
    assert not report
    reason = "how many positions there are is unknown: give the option context"
    assert {miss.reason for miss in report.misses} == {reason}
    assert text(built) == before


def test_bad_numbers_of_positions() -> None:
    with pytest.raises(PassError, match="context is at least 1, not 0"):
        RopeTable(0)
    model = load(program(_front_door))
    model.metadata["milopt.context"] = "many"
    with pytest.raises(PassError, match=r"metadata 'milopt\.context' is 'many', not a number of positions"):
        RopeTable().run(model)


def _varying(positions: Any) -> Any:
    rows = np.ones((1, QUERIES, HALF), np.float32)
    return mb.mul(x=_columns(positions), y=rows)


def _mixed(positions: Any) -> Any:
    row = mb.cast(x=mb.expand_dims(x=positions, axes=[1]), dtype="fp32")
    return mb.mul(x=_columns(positions), y=row)


def _summed(positions: Any) -> Any:
    return mb.matmul(x=mb.cast(x=positions, dtype="fp32"), y=np.ones((QUERIES, 3), np.float32))


def _of_two(positions: Any) -> Any:
    later = mb.expand_dims(x=mb.add(x=positions, y=1), axes=[2])
    return mb.concat(values=(_front_door(positions), _twice(mb.cast(x=later, dtype="fp32"))), axis=-1)


def _computed(positions: Any) -> Any:
    values = mb.cast(x=positions, dtype="fp32")
    return mb.mul(x=mb.expand_dims(x=values, axes=[2]), y=mb.reduce_sum(x=values, axes=[-1], keep_dims=True))


def _two_features(positions: Any) -> Any:
    return mb.mul(x=mb.expand_dims(x=_front_door(positions), axes=[3]), y=np.array([1, 2, 3], np.float32))


REFUSALS: dict[str, tuple[Spelling, str]] = {
    "a constant for each query": (_varying, "a constant varies along the positions"),
    "differences of positions": (_mixed, "it mixes positions"),
    "a sum over positions": (_summed, "it sums over angles"),
    "two positions": (_of_two, "it depends on two integer values"),
    "computed frequencies": (_computed, "its angles pass through reduce_sum"),
    "two axes": (_two_features, "it has 2 axes beside the positions'"),
    "no axis": (lambda positions: mb.cast(x=positions, dtype="fp32"), "it has 0 axes beside the positions'"),
    "joined along the positions": (
        lambda positions: _twice(_front_door(positions), 1),
        "it joins angles along the positions",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str) -> None:
    spelling, reason = REFUSALS[case]
    built = program(spelling)
    before = text(built)
    report = run(built)
    assert not report
    assert {miss.reason for miss in report.misses} == {reason}
    assert text(built) == before


def test_float_positions_are_refused() -> None:
    built = program(
        lambda positions: mb.mul(x=positions, y=frequencies(np.float32, (1, HALF))), (1, 1), dtype=types.fp32
    )
    assert {miss.reason for miss in run(built).misses} == {"it depends on a fp32 input, not on integer positions alone"}


def test_a_long_table_is_refused() -> None:
    report = run(program(_front_door), 2**16 + 1)
    assert {miss.reason for miss in report.misses} == {"a table of 65537 positions is too long, 65536 are possible"}


def test_functions_share_their_tables() -> None:
    model = merge(
        {"prefill": load(program(_front_door)), "decode": load(program(_front_door, (1, 1)))}, default="decode"
    )
    assert RopeTable(64).run(model).applied == 4
    tables = [
        {id(constant(op.inputs["x"])) for op in operations(function) if op.op_type == "gather"}
        for function in model.functions.values()
    ]
    assert tables[0] == tables[1]
    assert len(tables[0]) == 2


def test_the_limit_is_in_the_description() -> None:
    model = load(program(_front_door))
    model.describe(None, "position_ids", "position of every token")
    RopeTable(64).run(model)
    assert model.text_of(None, "position_ids") == "position of every token, below 64"


# transformers computes frequencies in fp32, and coremltools rounds those
thetas = st.sampled_from([float(digits * 10**power) for digits in range(1, 1000) for power in range(1, 7)])


def in_fp32(theta: float, count: int, factor: int) -> np.ndarray[Any, Any]:
    powers: np.ndarray[Any, Any] = np.power(np.float32(theta), np.arange(count, dtype=np.float32) / np.float32(count))
    exact: np.ndarray[Any, Any] = np.divide(np.float32(1 / factor), powers)
    return exact


@given(thetas, st.sampled_from([32, 40, 48, 64]), st.sampled_from([1, 2, 4]))
def test_theta_is_found(theta: float, count: int, factor: int) -> None:
    exact = in_fp32(theta, count, factor)
    row = exact.astype(np.float16)
    assert fit_theta(row) == (theta, factor)
    found, note = exact_frequencies(row[None, None])
    assert "restored" in note
    # fp32 has 24 bits, and a power takes a few roundings
    np.testing.assert_allclose(found.ravel(), exact, rtol=1e-6)


@given(thetas, st.integers(2, 24), st.sampled_from([1, 8, 32]))
def test_few_frequencies(theta: float, count: int, factor: int) -> None:
    """A few numbers may leave room for several thetas: whatever is returned explains all of them."""
    row = in_fp32(theta, count, factor).astype(np.float16)
    found, _ = exact_frequencies(row)
    # half of what fp16 steps by, and the fp32 roundings before it
    np.testing.assert_allclose(found, row.astype(np.float64), rtol=2.0**-11 + 1e-6, atol=2.0**-25)


@given(thetas, st.integers(1, 31), st.sampled_from([0.99, 1.01]))
def test_other_frequencies_are_left(theta: float, at: int, change: float) -> None:
    """Llama 3 scales some of its frequencies: no single theta explains them."""
    row = (theta ** (-np.arange(32) / 32)).astype(np.float16)
    row[at] *= np.float16(change)
    fitted = fit_theta(row)
    exact, note = exact_frequencies(row)
    if fitted is None:
        np.testing.assert_array_equal(exact, row.astype(np.float64))
        assert "no theta explains them" in note
    else:  # the change was too small for a subnormal number
        assert row[at] < 2.0**-14 or fitted[0] != theta


def test_frequencies_that_stand_there_twice() -> None:
    row = np.tile(frequencies(np.float16, (HALF,)), 2)
    found, _ = exact_frequencies(row)
    np.testing.assert_allclose(found, np.tile(EXACT, 2), rtol=1e-12)


def test_fp32_frequencies_are_taken_as_they_are() -> None:
    found, note = exact_frequencies(frequencies(np.float32))
    assert (found.dtype, note) == (np.float64, "")
    np.testing.assert_array_equal(found, frequencies(np.float32).astype(np.float64))
