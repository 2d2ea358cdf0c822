"""What programs compute from positions, as tables: every step, and each reason why there is none."""

# The bodies of programs are lambdas of as many parameters as they have inputs, for which no one type can be written.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from milopt.interpreter import evaluate
from milopt.mil import Function, Program, get_new_symbol, mb, target, types
from milopt.passes.angles import Tabulated, tabulate
from milopt.passes.frequencies import Frequencies
from milopt.passes.rotary_forms import Yarn
from milopt.reports import NoMatch, place_of

ROWS, Q = 7, 3
Body = Callable[..., Any]


def built(body: Body, shape: tuple[Any, ...] = (Q,), **others: tuple[int, ...]) -> Program:
    """``body`` of positions ``p`` and of other inputs; f holds floats, u bytes."""
    shapes = {"p": shape, **others}
    kinds = {"f": types.fp32, "u": types.uint8}
    specs = {name: mb.placeholder(each, kinds.get(name, types.int32)) for name, each in shapes.items()}
    with Function(specs, opset_version=target.iOS17) as function:
        function.set_outputs([mb.identity(x=body(**function.inputs), name="out")])
    program = Program()
    program.add_function("main", function)
    return program


def table(program: Program) -> Tabulated:
    return tabulate(program.functions["main"].outputs[0], ROWS)


def assert_holds(body: Body, shape: tuple[int, ...] = (Q,)) -> Tabulated:
    """What the table says of some positions is what the program computes from them."""
    program = built(body, shape)
    found = table(program)
    assert found.positions is program.functions["main"].inputs["p"]
    assert found.table.dtype == np.float64
    positions = np.random.default_rng(0).integers(0, ROWS, shape).astype(np.int32)
    expected = evaluate(program, {"p": positions}, precision="float64")["out"]
    for at in np.ndindex(expected.shape):
        place = [0] * len(shape)
        for axis, along in enumerate(found.axes):
            if along is not None:
                place[along] = at[axis]
        inner = tuple(0 if found.axes[axis] is not None else at[axis] for axis in range(len(at)))
        # 1e-12: the same steps in float64
        row = found.table[positions[tuple(place)]]
        np.testing.assert_allclose(row[inner], expected[at], rtol=1e-12)
    return found


def wide(p: Any) -> Any:
    return mb.cast(x=p, dtype="fp32")


def column(p: Any) -> Any:
    return mb.expand_dims(x=wide(p), axes=[-1])


def narrow_column(p: Any) -> Any:
    return mb.cast(x=column(p), dtype="fp16")


ROW = np.array([0.5, 0.25], np.float32)
SIX = np.arange(6, dtype=np.float32)[:, None]
GRID = np.array([[0, 1, 2], [3, 4, 5]], np.float32)


def each_twice(x: Any) -> Any:
    """What coremltools makes of ``torch.repeat_interleave(x, 2, dim=-1)`` for x of three axes."""
    first = mb.transpose(x=x, perm=[2, 0, 1])
    count, *others = first.shape
    tiled = mb.reshape(x=mb.tile(x=first, reps=[2, 1, 1]), shape=[2, count, *others])
    joined = mb.reshape(x=mb.transpose(x=tiled, perm=[1, 0, 2, 3]), shape=[2 * count, *others])
    return mb.transpose(x=joined, perm=[1, 2, 0])


STEPS: dict[str, tuple[Body, tuple[int, ...], tuple[int | None, ...]]] = {
    "cast": (lambda p: wide(p), (Q,), (0,)),
    "cast between integers": (lambda p: wide(mb.cast(x=p, dtype="uint16")), (2, Q), (0, 1)),
    "cast to another float": (lambda p: mb.cast(x=wide(p), dtype="fp16"), (2, Q), (0, 1)),
    "identity": (lambda p: mb.identity(x=wide(p)), (Q,), (0,)),
    "cos": (lambda p: mb.cos(x=wide(p)), (Q,), (0,)),
    "sin": (lambda p: mb.sin(x=wide(p)), (Q,), (0,)),
    "unit axes": (lambda p: mb.expand_dims(x=wide(p), axes=[0, -1]), (2, Q), (None, 0, 1, None)),
    "unit axes of integers": (lambda p: wide(mb.expand_dims(x=p, axes=[1])), (2, Q), (0, None, 1)),
    "unit axes of cast integers": (
        lambda p: wide(mb.expand_dims(x=mb.cast(x=mb.expand_dims(x=p, axes=[-1]), dtype="int16"), axes=[0])),
        (2, Q),
        (None, 0, 1, None),
    ),
    "transpose": (lambda p: mb.transpose(x=column(p), perm=[2, 0, -2]), (2, Q), (None, 0, 1)),
    "product": (lambda p: mb.mul(x=column(p), y=ROW), (Q,), (0, None)),
    "product from the left": (lambda p: mb.mul(x=ROW, y=column(p)), (Q,), (0, None)),
    "quotient": (lambda p: mb.real_div(x=column(p), y=ROW), (Q,), (0, None)),
    "quotient the other way round": (
        lambda p: mb.real_div(x=ROW, y=mb.add(x=column(p), y=np.float32(1))),
        (Q,),
        (0, None),
    ),
    "sum": (lambda p: mb.add(x=column(p), y=ROW), (Q,), (0, None)),
    "difference": (lambda p: mb.sub(x=ROW, y=column(p)), (Q,), (0, None)),
    "a value and itself": (lambda p: mb.mul(x=wide(p), y=mb.add(x=wide(p), y=np.float32(1))), (2, Q), (0, 1)),
    "a constant of higher rank": (lambda p: mb.mul(x=wide(p), y=np.ones((1, 2, 1), np.float32)), (Q,), (None, None, 0)),
    "concat": (lambda p: mb.concat(values=(column(p), mb.mul(x=column(p), y=ROW)), axis=-1), (2, Q), (0, 1, None)),
    "concat before the positions": (
        lambda p: mb.concat(values=[mb.expand_dims(x=each, axes=[0]) for each in (wide(p), mb.cos(x=wide(p)))], axis=0),
        (2, Q),
        (None, 0, 1),
    ),
    "repeats": (lambda p: mb.tile(x=mb.mul(x=column(p), y=ROW), reps=[1, 1, 3]), (2, Q), (0, 1, None)),
    "repeats of a new axis": (
        lambda p: mb.tile(x=mb.expand_dims(x=mb.mul(x=column(p), y=ROW), axes=[0]), reps=[2, 1, 1]),
        (Q,),
        (None, 0, None),
    ),
    "each twice": (lambda p: each_twice(mb.mul(x=column(p), y=ROW)), (2, Q), (0, 1, None)),
    "each twice of one sequence": (lambda p: each_twice(mb.mul(x=column(p), y=ROW)), (1, Q), (0, 1, None)),
    "split before the positions": (
        lambda p: mb.reshape(x=mb.mul(x=np.arange(6, dtype=np.float32)[:, None, None], y=wide(p)), shape=[3, 2, 2, Q]),
        (2, Q),
        (None, None, 0, 1),
    ),
    "joined behind the positions": (
        lambda p: mb.reshape(x=mb.mul(x=mb.expand_dims(x=wide(p), axes=[-1, -2]), y=GRID), shape=[2, Q, 6]),
        (2, Q),
        (0, 1, None),
    ),
    "split between the positions": (
        lambda p: mb.reshape(
            x=mb.mul(x=mb.expand_dims(x=wide(p), axes=[1]), y=np.arange(6, dtype=np.float32)[:, None]),
            shape=[2, 2, 1, 3, Q],
        ),
        (2, Q),
        (0, None, None, None, 1),
    ),
    "unit axes by a reshape": (
        lambda p: mb.reshape(x=wide(p), shape=[1, 2, 1, Q, 1]),
        (2, Q),
        (None, 0, None, 1, None),
    ),
    "without unit axes by a reshape": (
        lambda p: mb.reshape(x=mb.expand_dims(x=wide(p), axes=[0, 2]), shape=[2, Q]),
        (2, Q),
        (0, 1),
    ),
    "outer product": (lambda p: mb.matmul(x=column(p), y=ROW[None]), (Q,), (0, None)),
    "outer product from the left": (
        lambda p: mb.matmul(x=ROW[:, None], y=mb.expand_dims(x=wide(p), axes=[0])),
        (Q,),
        (None, 0),
    ),
    "outer product of columns": (lambda p: mb.matmul(x=column(p), y=ROW[:, None], transpose_y=True), (Q,), (0, None)),
    "outer product of rows": (
        lambda p: mb.matmul(x=mb.expand_dims(x=wide(p), axes=[0]), y=ROW[None], transpose_x=True),
        (Q,),
        (0, None),
    ),
    "outer products in batches": (
        lambda p: mb.matmul(
            x=mb.expand_dims(x=wide(p), axes=[1]), y=ROW[None, :, None], transpose_x=True, transpose_y=True
        ),
        (2, Q),
        (0, 1, None),
    ),
}


@pytest.mark.parametrize("case", STEPS)
def test_steps(case: str) -> None:
    body, shape, axes = STEPS[case]
    assert assert_holds(body, shape).axes == axes


def test_a_constant_has_no_positions() -> None:
    program = built(lambda p: mb.mul(x=wide(p), y=np.float32(2)))
    factor = next(op for op in program.functions["main"].operations if op.op_type == "mul").inputs["y"]
    found = tabulate(factor, ROWS)
    assert (found.positions, found.axes, found.table.tolist(), found.notes) == (None, (), [2.0], ())


def test_what_is_made_of_constants_has_no_positions() -> None:
    program = built(lambda p: mb.mul(x=wide(p), y=mb.add(x=ROW[:1], y=ROW[1:], name="sum")))
    (constants,) = [op for op in program.functions["main"].operations if op.name == "sum"]
    found = tabulate(constants.outputs[0], ROWS)
    assert (found.positions, found.axes, found.table.tolist()) == (None, (None,), [[0.75]])


def test_frequencies_are_restored_or_kept_as_stored() -> None:
    rounded = (1e4 ** (-np.arange(8) / 8)).astype(np.float16)
    program = built(lambda p: mb.mul(x=mb.cast(x=column(p), dtype="fp16"), y=rounded))
    out = program.functions["main"].outputs[0]
    found = tabulate(out, ROWS)
    np.testing.assert_array_equal(found.table[1, 0], 1e4 ** (-np.arange(8) / 8))
    assert found.notes == ("inverse frequencies that fp16 had rounded were restored: theta 10000",)
    stored = tabulate(out, ROWS, as_stored=True)
    np.testing.assert_array_equal(stored.table[1, 0], rounded.astype(float))
    assert stored.notes == ()


def test_wavelengths_are_restored_where_something_is_divided_by_them() -> None:
    exact = 1e4 ** (np.arange(8) / 8)
    rounded = exact.astype(np.float16)
    found = table(built(lambda p: mb.real_div(x=narrow_column(p), y=rounded)))
    np.testing.assert_allclose(found.table[3, 0], 3 / exact, rtol=1e-15)  # float64
    assert found.notes == ("inverse frequencies that fp16 had rounded were restored: theta 10000",)
    stored: dict[str, Body] = {
        "divided": lambda p: mb.real_div(
            x=(1 / exact).astype(np.float16), y=mb.add(x=narrow_column(p), y=np.float16(1))
        ),
        "added": lambda p: mb.add(x=narrow_column(p), y=(1 / exact).astype(np.float16)),
    }
    for name, body in stored.items():
        found = table(built(body))
        numbers = (1 / exact).astype(np.float16).astype(float)
        np.testing.assert_array_equal(found.table[3, 0], numbers / 4 if name == "divided" else 3 + numbers)
        assert found.notes == ()


UNKNOWN = np.array([1, -0.3, 0.171, 0.0913], np.float16)
WHY = "they are no inverse frequencies: some are negative, or not finite"


@pytest.mark.parametrize("wavelengths", [False, True])
def test_frequencies_that_nothing_explains(wavelengths: bool) -> None:
    """Half a unit in the last place of the largest frequency, 2 ** -10 / 2, at the last position."""
    row = (1 / UNKNOWN if wavelengths else UNKNOWN).astype(np.float16)

    def body(p: Any) -> Any:
        narrow = mb.cast(x=column(p), dtype="fp16")
        made = mb.real_div if wavelengths else mb.mul
        return made(x=narrow, y=mb.const(val=row, name="row"))

    program = built(body)
    out = program.functions["main"].outputs[0]
    error = (ROWS - 1) * float(np.spacing(np.float16(1))) / 2
    with pytest.raises(NoMatch) as raised:
        tabulate(out, ROWS)
    assert place_of(raised.value.at) == "row"
    assert str(raised.value) == (
        f"fp16 has rounded its inverse frequencies, and {WHY}: at position {ROWS - 1} an angle may be "
        f"{error:.2g} rad off; approximate=true makes the table nevertheless"
    )
    found = tabulate(out, ROWS, approximate=True)
    assert found.notes == (
        f"the angles keep the fp16 rounding of the inverse frequencies, and may be {error:.2g} rad off at position "
        f"{ROWS - 1}: {WHY}",
    )
    wide_row = row.astype(float)
    np.testing.assert_array_equal(found.table[5, 0], 5 / wide_row if wavelengths else 5 * wide_row)


def yarn(factor: Any, *, cosines: bool = True, divided: bool = False, twice: bool = False) -> Tabulated:
    """Cosines of yarn's frequencies, or of the positions, times ``factor``."""
    row = Yarn(1e4, 4.0, context=64).frequencies(16).astype(np.float16)

    def body(p: Any) -> Any:
        angles = mb.mul(x=narrow_column(p), y=row) if cosines else narrow_column(p)
        angles = mb.concat(values=(angles, angles), axis=-1) if twice else angles
        return (mb.real_div if divided else mb.mul)(x=mb.cos(x=angles), y=factor)

    return table(built(body))


def test_frequencies_of_an_outer_product_are_restored() -> None:
    exact = 1e4 ** (-np.arange(8) / 8)
    found = table(built(lambda p: mb.matmul(x=narrow_column(p), y=exact.astype(np.float16)[None])))
    np.testing.assert_array_equal(found.table[1, 0], exact)
    assert found.notes == ("inverse frequencies that fp16 had rounded were restored: theta 10000",)


def test_the_attention_factor_of_yarn(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = Yarn(1e4, 4.0, context=64)

    def known(values: Any, *_: Any, **__: Any) -> Frequencies:
        """Without the search for the form of 16 frequencies."""
        found = np.reshape(exact.frequencies(16), values.shape) if values.size == 16 else values.astype(float)
        return Frequencies(found, exact if values.size == 16 else None)

    monkeypatch.setattr("milopt.passes.angles.exact_frequencies", known)
    factor = exact.attention_factor
    rounded = np.float16(factor)
    assert factor not in (1.0, float(rounded))
    cosines = np.cos(3 * exact.frequencies(16))
    np.testing.assert_allclose(yarn(rounded).table[3, 0], cosines * factor, rtol=1e-15)  # float64
    np.testing.assert_allclose(yarn(rounded, twice=True).table[3, 0], np.tile(cosines, 2) * factor, rtol=1e-15)
    # another number, numbers for each frequency, and the number beside other angles stay what they are
    np.testing.assert_allclose(yarn(np.float16(2)).table[3, 0], cosines * 2, rtol=1e-15)
    row = exact.frequencies(16)
    np.testing.assert_allclose(yarn(row.astype(np.float16)).table[3, 0], cosines * row, rtol=1e-15)
    assert yarn(rounded, cosines=False).table[0, 0, 0] == float(rounded)
    quotients = yarn(rounded, divided=True).table[3, 0]
    np.testing.assert_allclose(quotients, cosines / float(rounded), rtol=1e-15)


def test_notes_of_all_parts_are_kept_once() -> None:
    rounded = (1e4 ** (-np.arange(8) / 8)).astype(np.float16)
    others = (1e5 ** (-np.arange(8) / 8)).astype(np.float16)

    def body(p: Any) -> Any:
        angles = [mb.mul(x=mb.cast(x=column(p), dtype="fp16"), y=each) for each in (rounded, others, rounded)]
        return mb.concat(values=angles, axis=1)

    restored = "inverse frequencies that fp16 had rounded were restored: theta"
    assert table(built(body)).notes == (f"{restored} 10000", f"{restored} 100000")


def test_positions_with_a_constant_beside_them() -> None:
    """The constant part has no positions of its own, and those of the other are kept."""
    halves = np.full((Q, 1), 0.5, np.float32)
    with pytest.raises(NoMatch, match="it joins angles of different shapes"):
        table(built(lambda p: mb.concat(values=(mb.const(val=halves), column(p)), axis=1)))
    found = table(built(lambda p: mb.mul(x=np.float32(3), y=column(p))))
    assert found.positions is not None


REFUSALS: dict[str, tuple[Body, str, str]] = {
    "a float input": (
        lambda p, f: mb.mul(x=wide(p), y=f),
        "f",
        "it depends on a fp32 input, not on integer positions alone",
    ),
    "an op that is no step": (
        lambda p, f: mb.mul(x=mb.exp(x=wide(p), name="grown"), y=f),
        "grown",
        "its angles pass through exp",
    ),
    "interleaved angles": (
        lambda p, f: mb.concat(values=(column(p), column(p)), axis=-1, interleave=True, name="joined"),
        "joined",
        "its angles are interleaved",
    ),
    "angles of different shapes": (
        lambda square, f: mb.concat(
            values=(wide(square), mb.transpose(x=wide(square), perm=[1, 0])), axis=0, name="joined"
        ),
        "joined",
        "it joins angles of different shapes",
    ),
    "angles joined along the positions": (
        lambda p, f: mb.concat(values=(column(p), column(p)), axis=0, name="joined"),
        "joined",
        "it joins angles along the positions",
    ),
    "two positions joined": (
        lambda p, other: mb.concat(values=(column(p), column(other)), axis=1, name="joined"),
        "joined",
        "it depends on two integer values",
    ),
    "two positions added": (
        lambda p, other: mb.add(x=wide(p), y=wide(other), name="both"),
        "both",
        "it depends on two integer values",
    ),
    "angles repeated along the positions": (
        lambda p, f: mb.tile(x=column(p), reps=[2, 1], name="tiled"),
        "tiled",
        "it repeats angles along the positions",
    ),
    "as many repeats as another input says": (
        lambda p, f: mb.tile(x=column(p), reps=mb.concat(values=(mb.shape(x=f), [1]), axis=0), name="tiled"),
        "tiled",
        "how often it repeats angles is computed",
    ),
    **{
        f"positions reshaped to {shape}": (
            lambda square, f, shape=shape: mb.reshape(x=mb.mul(x=column(square), y=ROW), shape=shape, name="other"),
            "other",
            "it reshapes angles across the positions",
        )
        # axes are joined, split, in other order, or features go before positions
        for shape in ([Q * Q, 2], [Q, Q * 2], [2, Q, Q], [Q, 2, Q], [1, Q * 2 * Q], [Q * Q * 2])
    },
    **{
        f"six features before positions reshaped to {shape}": (
            lambda p, f, shape=shape: mb.reshape(x=mb.mul(x=SIX, y=wide(p)), shape=shape, name="other"),
            "other",
            "it reshapes angles across the positions",
        )
        for shape in ([Q * 6], [3, Q * 2], [Q, 6], [2, Q * 3])
    },
    "an axis of one position lost": (
        lambda tall, f: mb.reshape(x=wide(tall), shape=[Q], name="other"),
        "other",
        "it reshapes angles across the positions",
    ),
    "one position of two lost": (
        lambda one, f: mb.reshape(x=mb.mul(x=column(one), y=ROW), shape=[2], name="other"),
        "other",
        "it reshapes angles across the positions",
    ),
    "a row for each position": (
        lambda p, f: mb.mul(x=wide(p), y=np.arange(Q, dtype=np.float32), name="scaled"),
        "scaled",
        "a constant varies along the positions",
    ),
    "a row for each position, from the left": (
        lambda p, f: mb.mul(x=np.arange(Q, dtype=np.float32), y=wide(p), name="scaled"),
        "scaled",
        "a constant varies along the positions",
    ),
    "differences of positions": (
        lambda p, f: mb.sub(x=column(p), y=wide(p), name="apart"),
        "apart",
        "it mixes positions",
    ),
    "positions and their transposed selves": (
        lambda square, f: mb.add(x=wide(square), y=mb.transpose(x=wide(square), perm=[1, 0]), name="apart"),
        "apart",
        "it mixes positions",
    ),
    "a sum over positions": (
        lambda p, f: mb.matmul(x=mb.expand_dims(x=wide(p), axes=[0]), y=np.ones((Q, 2), np.float32), name="sum"),
        "sum",
        "it sums over angles",
    ),
    "a sum over one position": (
        lambda one, f: mb.matmul(x=mb.expand_dims(x=wide(one), axes=[0]), y=np.ones((1, 2), np.float32), name="sum"),
        "sum",
        "it sums over angles",
    ),
    "a sum over features": (
        lambda p, f: mb.matmul(x=mb.mul(x=column(p), y=ROW), y=np.ones((2, 2), np.float32), name="sum"),
        "sum",
        "it sums over angles",
    ),
    "a constant vector times a matrix": (
        lambda p, f: mb.matmul(x=np.array([2], np.float32), y=mb.expand_dims(x=wide(p), axes=[0]), name="sum"),
        "sum",
        "it sums over angles",
    ),
    "a vector times a matrix": (
        lambda one, f: mb.matmul(x=wide(one), y=np.ones((1, 2), np.float32), name="sum"),
        "sum",
        "it sums over angles",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_reasons(case: str) -> None:
    body, place, reason = REFUSALS[case]
    shapes: dict[str, tuple[int, ...]] = {"f": (Q,), "other": (Q,), "square": (Q, Q), "one": (1,), "tall": (Q, 1)}
    names = [name for name in body.__code__.co_varnames[: body.__code__.co_argcount] if name in (*shapes, "p")]
    program = built(lambda **given: body(*(given[name] for name in names)), **{each: shapes[each] for each in shapes})
    with pytest.raises(NoMatch) as why:
        table(program)
    assert (place_of(why.value.at), str(why.value)) == (place, reason)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((1, -1, 2, 1), (0, 1, None, None)),
        ((-1, 1, 2), (0, 1, None)),  # one symbol, and as many other elements, so it is the same number
        ((1, -1), None),
        ((1, -1, 4), None),
        ((-1, 2), None),
    ],
)
def test_positions_of_any_number_are_reshaped(shape: tuple[int, ...], axes: tuple[int | None, ...] | None) -> None:
    many = get_new_symbol()
    first = shape[0]
    given = (many, 1) if first == -1 else (1, many)
    program = built(lambda p: mb.reshape(x=mb.mul(x=column(p), y=ROW), shape=shape), given)
    if axes is None:
        with pytest.raises(NoMatch, match="it reshapes angles across the positions"):
            table(program)
    else:
        assert table(program).axes == axes


@pytest.mark.parametrize("shape", [(4, -1), (-1, 6), (-1,), (-1, 4), (2, -1)])
def test_features_are_not_mixed_with_positions_of_any_number(shape: tuple[int, ...]) -> None:
    """Four axes of features can't be had of six: what the symbol then counts is another number."""
    program = built(lambda p: mb.reshape(x=mb.mul(x=SIX, y=wide(p)), shape=shape), (get_new_symbol(),))
    with pytest.raises(NoMatch, match="it reshapes angles across the positions"):
        table(program)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((2, 3, None), (None, None, 0)), ((6, None, 1), (None, 0, None)), ((3, None, 2), None), ((4, None), None)],
)
def test_a_file_names_its_symbols_anew(shape: tuple[Any, ...], axes: tuple[int | None, ...] | None) -> None:
    body: Body = lambda p: mb.reshape(x=mb.mul(x=SIX, y=wide(p)), shape=(6, -1))  # noqa: E731
    program = built(body, (get_new_symbol(),))
    (op,) = [op for op in program.functions["main"].operations if op.op_type == "reshape"]
    many = get_new_symbol()
    value: Any = op.outputs[0]
    value._sym_type = types.tensor(types.fp32, tuple(many if size is None else size for size in shape))
    if axes is None:
        with pytest.raises(NoMatch, match="it reshapes angles across the positions"):
            table(program)
    else:
        found = table(program)
        assert found.axes == axes
        assert found.table.shape == (ROWS, *(1 if size is None else size for size in shape))


def test_two_symbols_are_told_apart() -> None:
    """A reshape between values that hold several lengths each is of those whose names are the same."""
    first, second = get_new_symbol(), get_new_symbol()
    program = built(lambda p: mb.reshape(x=wide(p), shape=(1, -1)), (first, second))
    (op,) = [op for op in program.functions["main"].operations if op.op_type == "reshape"]
    value: Any = op.outputs[0]
    for shape, axes in (((1, first, second, 1), (None, 0, 1, None)), ((second, first), None)):
        value._sym_type = types.tensor(types.fp32, shape)
        if axes is None:
            with pytest.raises(NoMatch, match="it reshapes angles across the positions"):
                table(program)
        else:
            assert table(program).axes == axes


def test_integers_that_are_computed_are_positions_themselves() -> None:
    """A cast of floats, or a sum, makes other positions: those are looked up, and not what they came from."""
    for body in (
        lambda p, f: wide(mb.cast(x=f, dtype="int32", name="cut")),
        lambda p, f: wide(mb.add(x=p, y=2, name="cut")),
    ):
        found = table(built(body, f=(Q,)))
        assert found.positions is not None
        assert (found.positions.name, found.axes) == ("cut", (0,))


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint16"])
def test_integers_of_every_width_are_positions(kind: str) -> None:
    found = table(built(lambda p, f: wide(mb.cast(x=mb.cast(x=f, dtype="int32"), dtype=kind)), f=(Q,)))
    assert found.positions is not None
    assert found.positions.op is not None
    assert found.positions.op.inputs["x"].name == "f"


def test_bytes_from_outside_are_positions() -> None:
    found = table(built(lambda p, u: wide(u), u=(Q,)))
    assert found.positions is not None
    assert found.positions.name == "u"


def test_a_table_counts_from_zero() -> None:
    assert table(built(lambda p: wide(p))).table.tolist() == [[float(row)] for row in range(ROWS)]
