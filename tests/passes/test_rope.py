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
from milopt.passes.frequencies import exact_frequencies
from milopt.passes.rope import Made, RopeTable, TabulateWave
from milopt.passes.rotary_forms import Yarn
from milopt.reports import Report
from milopt.rules import apply
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
        cos = mb.identity(x=mb.cos(x=angles, name="cos"), name="c")
        return cos, mb.identity(x=mb.sin(x=angles, name="sin"), name="s")

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


def _each_twice(positions: Any) -> Any:
    """``torch.repeat_interleave(angles, 2, dim=-1)`` as coremltools writes it."""
    first = mb.transpose(x=mb.mul(x=_columns(positions), y=frequencies(np.float32)), perm=[2, 0, 1])
    tiled = mb.reshape(x=mb.tile(x=first, reps=[2, 1, 1]), shape=[2, HALF, 1, -1])
    joined = mb.reshape(x=mb.transpose(x=tiled, perm=[1, 0, 2, 3]), shape=[2 * HALF, 1, -1])
    return mb.transpose(x=joined, perm=[1, 2, 0])


SPELLINGS: dict[str, Spelling] = {
    "each twice": _each_twice,
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
    assert not {"cos", "sin", "concat", "mul", "cast", "tile", "reshape"} & set(op_types(after))
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


def _odd(positions: Any) -> Any:
    row = frequencies(np.float16).copy()
    row[..., 3] *= np.float16(1.1)
    return mb.mul(x=_columns(positions, "fp16"), y=row)


# half of what fp16 steps by at 1, times the last position
OFF = f"{4095 * 2.0**-11:.2g} rad"


def test_frequencies_that_no_form_explains_are_refused() -> None:
    built = program(_odd)
    before = text(built)
    report = run(built)
    assert not report
    assert {miss.reason for miss in report.misses} == {
        f"fp16 has rounded its inverse frequencies, and no closed form explains them: at position 4095 an angle may be "
        f"{OFF} off; approximate=true makes the table nevertheless"
    }
    assert text(built) == before


def test_frequencies_that_no_form_explains_stay_where_that_will_do() -> None:
    before, after = program(_odd), program(_odd)
    report = RopeTable(4096, approximate=True).run(load(after))
    assert report.applied == 2
    assert report.notes == [
        f"the angles keep the fp16 rounding of the inverse frequencies, and may be {OFF} off at position 4095: no "
        "closed form explains them"
    ]
    inputs = {"position_ids": np.array([[0, 1, 2, 100, 4095]], np.int32)}
    expected, found = evaluate(before, inputs, precision="float64"), evaluate(after, inputs)
    np.testing.assert_allclose(found["c"].astype(float), expected["c"], rtol=0, atol=HALF_STEP[np.float16])


def _yarn(positions: Any) -> Any:
    row = Yarn(1e4, 4.0, context=64).frequencies(HALF).astype(np.float16)
    return _twice(mb.mul(x=_columns(positions, "fp16"), y=row))


def test_yarn_with_its_attention_factor() -> None:
    factor = 0.1 * np.log(4) + 1

    @mb.program(input_specs=[mb.TensorSpec((1, QUERIES), types.int32)], opset_version=target.iOS17)
    def built(position_ids: Any) -> Any:
        return mb.identity(x=mb.mul(x=mb.cos(x=_yarn(position_ids)), y=np.float16(factor)), name="c")

    report = run(built)
    assert report.notes == [
        "inverse frequencies that fp16 had rounded were restored: theta 10000, yarn: factor 4, beta 32 and 1, trained "
        "on 64 positions"
    ]
    exact = np.tile(Yarn(1e4, 4.0, context=64).frequencies(HALF), 2)
    expected = (factor * np.cos(np.arange(4096)[:, None] * exact)).astype(np.float16)
    # not the product with fp16's 1.139, which rounds to other numbers
    np.testing.assert_array_equal(table_of(built), expected)


def test_what_is_added_is_no_frequency() -> None:
    """A phase in fp16 stays what it is, and wavelengths are restored as the reciprocals of frequencies."""
    phase = np.linspace(0, 0.7, HALF).astype(np.float16)

    def spelling(positions: Any) -> Any:
        turns = mb.real_div(x=_columns(positions, "fp16"), y=(1 / EXACT[:6]).astype(np.float16))
        return mb.add(x=turns, y=phase[:6])

    built = program(spelling)
    row = THETA ** (-np.arange(HALF) / HALF)
    wavelengths = exact_frequencies((1e4 ** (np.arange(6) / 6)).astype(np.float16), wavelengths=True)
    np.testing.assert_allclose(wavelengths.values, 1e4 ** (np.arange(6) / 6), rtol=1e-12)
    assert not run(built)  # the first six of eight have no base of their own
    full = program(lambda positions: mb.add(
        x=mb.real_div(x=_columns(positions, "fp16"), y=(1 / row).astype(np.float16)), y=phase
    ))  # fmt: skip
    assert run(full).applied == 2
    found = evaluate(full, {"position_ids": POSITIONS})["c"]
    expected = np.cos(POSITIONS[..., None] * row + phase.astype(float))
    np.testing.assert_allclose(found.astype(float), expected, rtol=0, atol=HALF_STEP[np.float16])


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


@pytest.mark.parametrize(("spelling", "row"), [(_front_door, np.tile(EXACT, 2)), (_each_twice, np.repeat(EXACT, 2))])
def test_flexible_queries(spelling: Spelling, row: Any) -> None:
    built = program(spelling, (1, get_new_symbol()))
    assert run(built).applied == 2
    found = evaluate(built, {"position_ids": np.array([[7, 9]], np.int32)})["c"]
    np.testing.assert_allclose(found[0, 1], np.cos(9 * row), rtol=0, atol=9 * HALF_STEP[np.float32])


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
    assert {(miss.place, miss.reason) for miss in report.misses} == {("position_ids", reason)}
    assert text(built) == before


def test_bad_numbers_of_positions() -> None:
    with pytest.raises(PassError, match=r"^rope-table: context is at least 1, not 0$"):
        RopeTable(0)
    assert RopeTable(1).context == 1
    for text_of_it in ("many", "0", ""):
        model = load(program(_front_door))
        model.metadata["milopt.context"] = text_of_it
        reason = rf"^rope-table: metadata 'milopt\.context' is '{text_of_it}', not a number of positions$"
        with pytest.raises(PassError, match=reason):
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
    total = mb.reduce_sum(x=values, axes=[-1], keep_dims=True, name="sum")
    return mb.mul(x=mb.expand_dims(x=values, axes=[2]), y=total)


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
    places = {"two axes": {"cos", "sin"}, "no axis": {"cos", "sin"}, "computed frequencies": {"sum"}}
    assert {miss.place for miss in report.misses} == places.get(case, {_place_of(built)})
    assert text(built) == before


def _place_of(built: Program) -> str:
    """The op that the angles come from, which is where they stop being a function of positions."""
    (cos,) = [op for op in operations(built.functions["main"]) if op.op_type == "cos"]
    angles: Any = cos.inputs["x"]
    return str(angles.name)


def test_constant_angles_are_refused() -> None:
    @mb.program(input_specs=[mb.TensorSpec((3,), types.fp32)], opset_version=target.iOS17)
    def built(x: Any) -> Any:
        return mb.mul(x=x, y=mb.cos(x=np.arange(3, dtype=np.float32), name="cos"))

    report = run(built)
    assert [(miss.place, miss.reason) for miss in report.misses] == [("cos", "its angles are constant")]


def test_a_wave_that_is_cast_to_integers_stays() -> None:
    @mb.program(input_specs=[mb.TensorSpec((1, QUERIES), types.int32)], opset_version=target.iOS17)
    def built(position_ids: Any) -> Any:
        return mb.cast(x=mb.cos(x=_front_door(position_ids)), dtype="int32", name="whole")

    report = apply(TabulateWave("cast", 10), built)
    declined = [(miss.place, miss.reason) for miss in report.misses if miss.declined]
    assert declined == [("whole", "it is cast to int32")]


def test_float_positions_are_refused() -> None:
    built = program(
        lambda positions: mb.mul(x=positions, y=frequencies(np.float32, (1, HALF))), (1, 1), dtype=types.fp32
    )
    assert {miss.reason for miss in run(built).misses} == {"it depends on a fp32 input, not on integer positions alone"}


def test_a_long_table_is_refused() -> None:
    report = run(program(_front_door), 2**16 + 1)
    reason = "a table of 65537 positions is too long, 65536 are possible"
    assert {(miss.place, miss.reason) for miss in report.misses} == {("cos", reason), ("sin", reason)}
    assert run(program(_front_door), 2**16).applied == 2


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
    RopeTable(64).run(model)
    assert model.text_of(None, "position_ids") == "position of every token, below 64"
    plain = load(program(_front_door))
    RopeTable(64).run(plain)
    assert plain.text_of(None, "position_ids") == "positions, below 64"


@pytest.mark.parametrize("kind", ["squeeze", "expand_dims", "cast"])
def test_the_limit_is_in_the_description_of_what_the_indices_come_from(kind: str) -> None:
    def spelling(positions: Any) -> Any:
        if kind == "cast":  # of floats, so that its result is where integers begin
            moved = mb.cast(x=positions, dtype="int32")
        else:  # of integers that a rule looks through only where they are the last step
            moved = mb.squeeze(x=mb.expand_dims(x=positions, axes=[0]), axes=[0])
            moved = mb.squeeze(x=moved, axes=[0]) if kind == "squeeze" else moved
        return mb.mul(x=mb.cast(x=mb.expand_dims(x=moved, axes=[-1]), dtype="fp32"), y=frequencies(np.float32, (HALF,)))

    model = load(program(spelling, dtype=types.fp32 if kind == "cast" else types.int32))
    assert RopeTable(64).run(model).applied == 2
    assert model.text_of(None, "position_ids") == "positions, below 64"


def test_nothing_is_said_of_inputs_of_other_gathers() -> None:
    @mb.program(
        input_specs=[mb.TensorSpec((1, QUERIES), types.int32), mb.TensorSpec((1, QUERIES), types.int32)],
        opset_version=target.iOS17,
    )
    def built(position_ids: Any, ids: Any) -> Any:
        rows = mb.gather(x=np.ones((9, 2 * HALF), np.float32), indices=ids, axis=0)
        return mb.add(x=rows, y=mb.cos(x=_front_door(mb.add(x=position_ids, y=1))), name="out")

    model = load(built)
    assert RopeTable(64).run(model).applied == 1
    assert (model.text_of(None, "position_ids"), model.text_of(None, "ids")) == ("", "")


def test_tables_have_names() -> None:
    built = program(_front_door)
    run(built, 10)
    names = [op.name for op in operations(built.functions["main"]) if op.op_type == "const" and "rotary" in op.name]
    assert names == ["rotary_cos", "rotary_sin"]


def test_tables_of_equal_bytes_but_other_shapes_or_types_are_not_shared() -> None:
    made = Made()
    first = np.zeros((2, 4), np.float32)
    assert made.share(first) is first
    assert made.share(np.zeros((2, 4), np.float32)) is first
    for other in (np.zeros((4, 2), np.float32), np.zeros((2, 4), np.int32), np.ones((2, 4), np.float32)):
        assert made.share(other) is other
    assert len(made.tables) == 4


def test_the_ratio_of_the_worst_row_is_kept() -> None:
    made = Made()
    exact = np.array([[1.0, 2.0], [3.0, 4.0], [1.0, 1.0]])
    made.compare(exact, exact)
    assert made.original_db == np.inf
    made.compare(exact, exact + np.array([[0.1, 0.0], [0.3, 0.4], [0.0, 0.0]]))
    # row by row: 5 / 0.01, 25 / 0.25 and nothing lost
    assert made.original_db == pytest.approx(20)
    made.compare(exact, exact + np.array([[0.01, 0.0], [0.0, 0.0], [0.0, 0.0]]))
    assert made.original_db == pytest.approx(20)


def test_the_metric_starts_where_the_original_is_as_far_off_as_the_pass_may_be() -> None:
    built = program(_default)
    report = run(built, context=512)
    made = Made()
    angles = np.arange(512)[:, None]
    for wave in (np.cos, np.sin):
        stored = wave(angles * np.tile(frequencies(np.float16, (HALF,)).astype(float), 2))
        made.compare(wave(angles * np.tile(EXACT, 2)), stored)
    assert made.original_db < 45
    assert isinstance(report.metric, Lossy)
    assert report.metric.min_snr_db == pytest.approx(made.original_db - 10)


# --- which inputs are masks


def _with_masks(*columns: int, use: str = "add", heads: int = 1, rank: int = 4, queries: int = QUERIES) -> Program:
    shapes = [(1, heads, queries, each) if rank == 4 else (heads, queries, each) for each in columns]
    specs = [mb.TensorSpec((1, QUERIES), types.int32), *(mb.TensorSpec(shape, types.fp16) for shape in shapes)]

    def used(mask: Any) -> Any:
        if use == "cast":
            return mb.add(x=mb.cast(x=mask, dtype="fp32"), y=np.float32(1))
        if use == "select":
            return mb.select(cond=mb.greater(x=mb.fill(shape=mask.shape, value=1.0), y=0.0), a=mask, b=mask)
        if use == "add and relu":
            return mb.add(x=mb.add(x=mask, y=np.float16(1)), y=mb.relu(x=mask))
        if use == "relu":
            return mb.relu(x=mask)
        if use == "logical_and":
            return mb.cast(x=mb.logical_and(x=mb.cast(x=mask, dtype="bool"), y=np.True_), dtype="fp16")
        if use == "nothing":
            return mb.const(val=np.ones(3, np.float16))
        if use == "cast and relu":
            return mb.relu(x=mb.cast(x=mask, dtype="fp32"))
        return mb.add(x=mask, y=np.float16(1))

    if len(columns) == 1:

        @mb.program(input_specs=specs, opset_version=target.iOS18)
        def one(position_ids: Any, mask: Any) -> Any:
            if use == "attention":
                keys = mb.const(val=np.ones((1, heads, columns[0], 4), np.float16))
                query = mb.const(val=np.ones((1, heads, queries, 4), np.float16))
                made = mb.scaled_dot_product_attention(query=query, key=keys, value=keys, attn_mask=mask)
            elif use == "query":
                keys = mb.const(val=np.ones((1, heads, 7, columns[0]), np.float16))
                made = mb.scaled_dot_product_attention(query=mask, key=keys, value=keys)
            else:
                made = used(mask)
            return mb.identity(x=mb.cos(x=_front_door(position_ids)), name="c"), mb.identity(x=made, name="p")

        return one

    @mb.program(input_specs=specs, opset_version=target.iOS18)
    def two(position_ids: Any, mask: Any, other: Any) -> Any:
        kept = mb.identity(x=mb.cos(x=_front_door(position_ids)), name="c")
        return kept, mb.identity(x=used(mask), name="p"), mb.identity(x=used(other), name="o")

    return two


@pytest.mark.parametrize("use", ["add", "cast", "select", "attention", "logical_and"])
def test_masks_say_how_many_positions_there_are(use: str) -> None:
    built = _with_masks(50, use=use)
    assert run(built, None).applied == 1
    assert table_of(built).shape == (50, 2 * HALF)


def test_the_widest_mask_counts() -> None:
    for columns in ((50, 60), (60, 50)):
        built = _with_masks(*columns)
        run(built, None)
        assert len(table_of(built)) == 60


@pytest.mark.parametrize(
    "built",
    [
        _with_masks(50, use="relu"),
        _with_masks(50, use="cast and relu"),
        _with_masks(50, use="add and relu"),
        _with_masks(50, use="query"),
        _with_masks(50, use="nothing"),
        _with_masks(50, heads=2),
        _with_masks(50, rank=3),
        _with_masks(50, queries=QUERIES + 1),
    ],
    ids=["relu", "cast and relu", "add and relu", "query", "nothing", "heads", "rank", "queries"],
)
def test_other_inputs_say_nothing(built: Program) -> None:
    assert not run(built, None)


def test_a_mask_for_positions_of_rank_1() -> None:
    specs = [mb.TensorSpec((QUERIES,), types.int32), mb.TensorSpec((1, 1, QUERIES, 50), types.fp16)]

    @mb.program(input_specs=specs, opset_version=target.iOS17)
    def built(position_ids: Any, mask: Any) -> Any:
        angles = mb.mul(
            x=mb.expand_dims(x=mb.cast(x=position_ids, dtype="fp32"), axes=[1]), y=frequencies(np.float32, (1, HALF))
        )
        return mb.identity(x=mb.cos(x=angles), name="c"), mb.softmax(x=mb.add(x=mask, y=np.float16(1)), name="p")

    assert run(built, None).applied == 1
    assert len(table_of(built)) == 50


def test_positions_of_rank_0_have_no_mask() -> None:
    def spelling(positions: Any) -> Any:
        return mb.mul(x=mb.cast(x=mb.squeeze(x=positions, axes=[0]), dtype="fp32"), y=np.array([1, 2], np.float32))

    report = run(program(spelling, (1,)), None)
    assert {miss.reason for miss in report.misses} == {
        "how many positions there are is unknown: give the option context"
    }
