"""canonicalize: each thing it removes, each it must keep, and random programs that must not change a bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milopt.interpreter import evaluate, make_state
from milopt.mil import Program, get_new_symbol, mb, operations, shape_of, target, types
from milopt.package import load
from milopt.passes.canonical import Canonicalize
from milopt.reports import Report
from milopt.text import text

from .support import assert_same, op_types

F16 = np.float16
SHAPE = (2, 3, 4)
Body = Callable[[Any], Any]


def program(body: Body, shape: tuple[Any, ...] = SHAPE, dtype: Any = types.fp32) -> Program:
    """``body`` between two ops that stay: an input and an output are no place for a rule to act."""

    @mb.program(input_specs=[mb.TensorSpec(shape, dtype)], opset_version=target.iOS17)
    def built(x: Any) -> Any:
        return mb.abs(x=body(mb.abs(x=x)), name="out")

    return built


def run(built: Program) -> Report:
    report = Canonicalize().run(load(built))
    built.validate()
    return report


def _two_casts(wide: str, last: str) -> Body:
    return lambda x: mb.cast(x=mb.cast(x=x, dtype=wide), dtype=last)


def _zero_bias(x: Any) -> Any:
    weight = np.reshape(np.arange(15, dtype=np.float32), (5, 3, 1))
    return mb.conv(x=x, weight=weight, bias=np.zeros(5, np.float32), strides=[2], pad_type="same")


def _permuted(*perms: list[int]) -> Body:
    def body(x: Any) -> Any:
        for perm in perms:
            x = mb.transpose(x=x, perm=perm)
        return x

    return body


def _shaped(*shapes: list[int]) -> Body:
    def body(x: Any) -> Any:
        for shape in shapes:
            x = mb.reshape(x=x, shape=shape)
        return x

    return body


# what goes, and what is left of it
CASES: dict[str, tuple[Body, list[str]]] = {
    "identity": (lambda x: mb.identity(x=x), []),
    "one-input concat": (lambda x: mb.concat(values=[x], axis=-1), []),
    "times 1": (lambda x: mb.mul(x=x, y=1.0), []),
    "1 times": (lambda x: mb.mul(x=np.ones((3, 1), np.float32), y=x), []),
    "divided by 1": (lambda x: mb.real_div(x=x, y=1.0), []),
    "plus 0": (lambda x: mb.add(x=np.zeros(4, np.float32), y=x), []),
    "minus 0": (lambda x: mb.sub(x=x, y=0.0), []),
    "cast to its own type": (lambda x: mb.cast(x=x, dtype="fp32"), []),
    "transpose that moves nothing": (_permuted([0, -2, 2]), []),
    "transposes that cancel": (_permuted([2, 0, 1], [1, 2, 0]), []),
    "transposes that add up": (_permuted([2, 0, 1], [2, 0, 1]), ["transpose"]),
    "three transposes": (_permuted([1, 0, 2], [0, 2, 1], [1, 2, 0]), ["transpose"]),
    "reshape to its own shape": (_shaped([2, 3, 4]), []),
    "reshapes that cancel": (_shaped([6, 4], [2, 3, 4]), []),
    "reshapes in a row": (_shaped([6, 4], [24], [3, 8]), ["reshape"]),
    "expand_dims, squeeze": (lambda x: mb.squeeze(x=mb.expand_dims(x=x, axes=[1, -1]), axes=[1, 4]), []),
    "expand_dims, reshape back": (lambda x: mb.reshape(x=mb.expand_dims(x=x, axes=[1]), shape=SHAPE), []),
    "expand_dims, reshape": (lambda x: mb.reshape(x=mb.expand_dims(x=x, axes=[1]), shape=[6, 4]), ["reshape"]),
    "tile once": (lambda x: mb.tile(x=x, reps=[1, 1, 1]), []),
    "zero bias": (_zero_bias, ["conv"]),
    "casts that widen and come back": (_two_casts("fp32", "fp32"), []),
    "nested": (lambda x: mb.mul(x=mb.concat(values=[mb.identity(x=x)], axis=0), y=1.0), []),
}


@pytest.mark.parametrize("case", CASES)
def test_removed(case: str) -> None:
    body, left = CASES[case]
    before, after = program(body), program(body)
    report = run(after)
    assert report
    assert op_types(after) == ["abs", *left, "abs"]
    assert_same(before, after, rtol=0)
    assert not run(after)


def test_the_perm_is_written_from_the_front() -> None:
    built = program(_permuted([0, -1, -2]))
    assert run(built).applied == 1
    assert (
        text(built)
        == """\
main[CoreML7](%x: fp32[2, 3, 4]) {
  %0: fp32[2, 3, 4] = abs(x=%x)
  %1: fp32[2, 4, 3] = transpose(x=%0, perm=[0, 2, 1])
  %2: fp32[2, 4, 3] = abs(x=%1)
} -> (out=%2)
"""
    )


def test_conv_keeps_everything_but_its_zero_bias() -> None:
    built = program(_zero_bias)
    run(built)
    assert (
        text(built)
        == """\
main[CoreML7](%x: fp32[2, 3, 4]) {
  %0: fp32[2, 3, 4] = abs(x=%x)
  %1: fp32[2, 5, 2] = conv(x=%0, weight=[[[0.0], [1.0], [2.0]], [[3.0], [4.0], [5.0]], [[6.0], [7.0], [8.0]], \
[[9.0], [10.0], [11.0]], [[12.0], [13.0], [14.0]]], strides=[2], pad_type="same")
  %2: fp32[2, 5, 2] = abs(x=%1)
} -> (out=%2)
"""
    )


def _shared_first(x: Any) -> Any:
    inner = mb.transpose(x=x, perm=[2, 0, 1])
    return mb.mul(x=mb.transpose(x=inner, perm=[1, 2, 0]), y=mb.reduce_sum(x=inner))


def _shared_reshape(x: Any) -> Any:
    inner = mb.reshape(x=x, shape=[6, 4])
    return mb.mul(x=mb.reshape(x=inner, shape=[4, 6]), y=mb.reduce_sum(x=inner))


def test_a_transpose_that_others_use_stays_for_them() -> None:
    before, after = program(_shared_first), program(_shared_first)
    assert run(after)
    assert op_types(after) == ["abs", "transpose", "reduce_sum", "mul", "abs"]
    assert_same(before, after)


# what must stay, to the letter
KEPT: dict[str, Body] = {
    "a constant next to 1": lambda x: mb.mul(x=x, y=np.float32(1 + 2.0**-23)),
    "not 1 everywhere": lambda x: mb.mul(x=x, y=np.array([1, 1, 1, 2], np.float32)),
    "1 that broadcasts": lambda x: mb.mul(x=x, y=np.ones((5, 1, 1, 1), np.float32)),
    "0 minus": lambda x: mb.sub(x=np.float32(0), y=x),
    "1 over": lambda x: mb.real_div(x=np.float32(1), y=mb.add(x=x, y=2.0)),
    "times 0": lambda x: mb.mul(x=x, y=0.0),
    "two-input concat": lambda x: mb.concat(values=[x, x], axis=-1),
    "transpose": _permuted([0, 2, 1]),
    "reshape": _shaped([6, 4]),
    "a reshape that others use": _shared_reshape,
    "squeeze of other axes": lambda x: mb.squeeze(x=mb.expand_dims(x=x, axes=[0, 2]), axes=[0]),
    "tile": lambda x: mb.tile(x=x, reps=[1, 2, 1]),
    "a bias": lambda x: mb.conv(x=x, weight=np.ones((5, 3, 1), np.float32), bias=np.arange(5, dtype=np.float32)),
    "cast": lambda x: mb.cast(x=x, dtype="fp16"),
}


def test_a_transpose_of_a_square_moves_too() -> None:
    built = program(_permuted([0, 2, 1]), (3, 3, 3))
    assert not run(built)


@pytest.mark.parametrize("case", KEPT)
def test_kept(case: str) -> None:
    built = program(KEPT[case])
    before = text(built)
    report = run(built)
    assert (bool(report), report.misses) == (False, [])
    assert text(built) == before


def test_an_output_keeps_its_name() -> None:
    """An identity that gives an input or another output a second name is no op without effect."""

    @mb.program(input_specs=[mb.TensorSpec(SHAPE, types.fp32)], opset_version=target.iOS17)
    def built(x: Any) -> Any:
        return mb.identity(x=x, name="a"), mb.mul(x=x, y=1.0, name="b"), mb.abs(x=x, name="c")

    assert run(built)
    assert (
        text(built)
        == """\
main[CoreML7](%x: fp32[2, 3, 4]) {
  %0: fp32[2, 3, 4] = identity(x=%x)
  %1: fp32[2, 3, 4] = identity(x=%x)
  %2: fp32[2, 3, 4] = abs(x=%x)
} -> (a=%0, b=%1, c=%2)
"""
    )
    assert not run(built)


# type of x, the type between, the last type, what is left
CASTS: list[tuple[Any, str, str, list[str]]] = [
    (types.fp16, "fp32", "fp16", []),
    (types.fp16, "fp32", "int32", ["cast"]),
    (types.int32, "fp32", "int32", ["cast", "cast"]),
    (types.fp32, "fp16", "fp32", ["cast", "cast"]),
    (types.int32, "int16", "int32", ["cast", "cast"]),
    (types.int32, "fp16", "int32", ["cast", "cast"]),
]


@pytest.mark.parametrize(("dtype", "wide", "last", "left"), CASTS)
def test_casts(dtype: Any, wide: str, last: str, left: list[str]) -> None:
    built = program(_two_casts(wide, last), dtype=dtype)
    report = run(built)
    assert op_types(built) == ["abs", *left, "abs"]
    assert len(report.misses) == (len(left) == 2)
    if len(left) == 2:
        first = {types.int32: "int32", types.fp32: "fp32"}[dtype]
        assert report.misses[0].reason == f"{wide} does not hold every {first}"


def test_removing_a_narrow_cast_would_change_numbers() -> None:
    """What the refusals above protect: fp16 has no 2049 and no 1e5, int16 no 70000."""
    built = program(_two_casts("fp16", "fp32"))
    run(built)
    x = np.zeros(SHAPE, np.float32)
    x[0, 0, :2] = 2049, 1e5
    assert evaluate(built, {"x": x})["out"][0, 0, :2].tolist() == [2048, np.inf]


def _guard(ids: Any, rows: int, narrow: str | None) -> Any:
    guarded = mb.select(cond=mb.greater_equal(x=ids, y=0), a=ids, b=mb.add(x=ids, y=rows))
    return mb.cast(x=guarded, dtype=narrow) if narrow else guarded


def embedding(
    indices: Callable[[Any], Any] = lambda ids: ids, *, rows: int = 40, table: Any = None, axis: int = 0
) -> Program:
    values = np.reshape(np.arange(rows * 3, dtype=np.float32), (rows, 3)) if table is None else table

    @mb.program(input_specs=[mb.TensorSpec((1, 5), types.int32)], opset_version=target.iOS17)
    def built(ids: Any) -> Any:
        return mb.gather(x=mb.const(val=values, name="table"), indices=indices(ids), axis=axis, name="out")

    return built


def _default_conversion(ids: Any) -> Any:
    return _guard(mb.cast(x=mb.cast(x=ids, dtype="int16"), dtype="int32"), 40, "int16")


INDICES: dict[str, Body] = {
    "default conversion": _default_conversion,
    "guard": lambda ids: _guard(ids, 40, None),
    "guard and cast": lambda ids: _guard(ids, 40, "uint16"),
    "cast": lambda ids: mb.cast(x=ids, dtype="int16"),
    "casts": lambda ids: mb.cast(x=mb.cast(x=ids, dtype="uint16"), dtype="int32"),
}


@pytest.mark.parametrize("spelling", INDICES)
def test_indices(spelling: str) -> None:
    before, after = embedding(INDICES[spelling]), embedding(INDICES[spelling])
    assert run(after)
    assert (
        text(after)
        == """\
main[CoreML7](%ids: int32[1, 5]) {
  %0: fp32[1, 5, 3] = gather(x=w0, indices=%ids)
} -> (out=%0)
w0: fp32[40, 3]
"""
    )
    ids = np.array([[0, 39, 7, 7, 1]], np.int32)
    np.testing.assert_array_equal(evaluate(after, {"ids": ids})["out"], evaluate(before, {"ids": ids})["out"])


def test_a_guard_that_goes_is_told_of() -> None:
    notes = run(embedding(_default_conversion)).notes
    assert notes == ["indices given from outside must not be negative: embeddings no longer count those from the end"]


def _other_axis(ids: Any) -> Any:
    return _guard(ids, 40, None)


REFUSALS: dict[str, tuple[Program, str, str]] = {
    "computed indices": (
        embedding(lambda ids: _guard(mb.sub(x=ids, y=3, name="before"), 40, None)),
        "before",
        "its indices are computed, and may be negative",
    ),
    "another number": (
        embedding(lambda ids: _guard(ids, 39, None)),
        "table",
        "its guard adds 39, but its table has 40 rows",
    ),
    "the number of another axis": (
        embedding(_other_axis, table=np.ones((40, 3), np.float32), axis=1),
        "table",
        "its guard adds 40, but its table has 3 rows",
    ),
    "more rows than int16 counts": (
        embedding(lambda ids: mb.cast(x=ids, dtype="int16", name="cut"), table=np.ones((2**15 + 1, 1), F16)),
        "cut",
        "32769 rows don't fit int16, and the cast changes indices",
    ),
    "more rows than a guard's int8 counts": (
        embedding(lambda ids: _guard(ids, 200, "int8"), rows=200),
        "ids",
        "200 rows don't fit int8, and the cast changes indices",
    ),
    "fractions": (
        embedding(lambda ids: mb.cast(x=mb.cast(x=ids, dtype="fp16", name="half"), dtype="int32")),
        "half",
        "its indices come from fp16",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str) -> None:
    built, place, reason = REFUSALS[case]
    before = text(built)
    report = run(built)
    assert not report
    assert (place, reason) in [(miss.place, miss.reason) for miss in report.misses]
    assert text(built) == before


def test_a_table_of_any_number_of_rows() -> None:
    specs = [mb.TensorSpec((get_new_symbol(), 3)), mb.TensorSpec((1, 5), types.int32)]

    @mb.program(input_specs=specs, opset_version=target.iOS17)
    def built(table: Any, ids: Any) -> Any:
        return mb.gather(x=table, indices=mb.cast(x=ids, dtype="int16"), axis=0, name="out")

    report = run(built)
    reasons = [(miss.place, miss.reason) for miss in report.misses if miss.declined]
    assert reasons == [("table", "its table has a flexible number of rows")]


def test_indices_that_are_not_int32() -> None:
    @mb.program(input_specs=[mb.TensorSpec((1, 5), types.fp32)], opset_version=target.iOS17)
    def built(floats: Any) -> Any:
        return mb.gather(x=np.ones((40, 3), np.float32), indices=mb.cast(x=floats, dtype="int32"), axis=0, name="out")

    report = run(built)
    reasons = [(miss.place, miss.reason) for miss in report.misses if miss.declined]
    assert reasons == [("floats", "its indices are fp32")]


def test_gathers_keep_what_they_say() -> None:
    specs = [mb.TensorSpec((2, 5, 40), types.fp32), mb.TensorSpec((2, 7), types.int32)]

    def build() -> Program:
        @mb.program(input_specs=specs, opset_version=target.iOS17)
        def built(table: Any, ids: Any) -> Any:
            return mb.gather(
                x=table,
                indices=mb.cast(x=ids, dtype="int16"),
                axis=-1,
                batch_dims=1,
                validate_indices=True,
                name="out",
            )

        return built

    after = build()
    assert run(after).applied == 1
    (gather,) = [op for op in operations(after.functions["main"]) if op.op_type == "gather"]
    assert (gather.axis.val, gather.batch_dims.val, gather.validate_indices.val) == (-1, 1, True)
    assert op_types(after) == ["gather"]


def test_reasons_are_told_once_however_often_the_rules_run() -> None:
    def indices(ids: Any) -> Any:
        return mb.cast(x=mb.cast(x=mb.identity(x=ids), dtype="fp16"), dtype="int32")

    report = run(embedding(indices))
    assert report.applied == 1
    assert len({(miss.rule, miss.place, miss.reason) for miss in report.misses}) == len(report.misses)


def test_the_last_row_of_int16_is_reached() -> None:
    """32768 rows fit: the greatest index is 32767."""
    built = embedding(lambda ids: mb.cast(x=ids, dtype="int16"), table=np.ones((2**15, 1), F16))
    assert run(built).applied == 1


def test_dead_ops() -> None:
    @mb.program(input_specs=[mb.TensorSpec(SHAPE, types.fp32)], opset_version=target.iOS17)
    def built(x: Any) -> Any:
        unused = mb.exp(x=mb.add(x=x, y=3.0))
        mb.reduce_sum(x=mb.sin(x=mb.cos(x=unused)))
        mb.const(val=np.ones(3, np.float32))
        return mb.abs(x=x, name="out")

    report = run(built)
    # exp, add, cos, sin, reduce_sum and the constant; not the constants of those
    assert (report.applied, report.notes) == (6, ["6 dead ops removed"])
    assert [op.op_type for op in operations(built.functions["main"])] == ["abs"]


def test_a_dead_user_hides_nothing() -> None:
    """transpose and its inverse, with the value between them in use by a dead op only."""

    def body(x: Any) -> Any:
        inner = mb.reshape(x=x, shape=[6, 4])
        mb.exp(x=inner)
        return mb.reshape(x=inner, shape=[24])

    built = program(body)
    run(built)
    assert op_types(built) == ["abs", "reshape", "abs"]


def test_nested_blocks() -> None:
    @mb.program(input_specs=[mb.TensorSpec((3,), types.fp32), mb.TensorSpec((1,), types.bool)])
    def built(x: Any, pred: Any) -> Any:
        def yes() -> Any:
            mb.exp(x=x)
            return mb.abs(x=mb.mul(x=mb.identity(x=x), y=1.0))

        return mb.cond(pred=mb.squeeze(x=pred), _true_fn=yes, _false_fn=lambda: mb.sin(x=x), name="out")

    assert run(built).applied == 3
    assert [op.op_type for op in operations(built.functions["main"]) if op.op_type != "const"] == [
        "squeeze",
        "cond",
        "abs",
        "sin",
    ]


def test_states_are_kept() -> None:
    specs = [
        mb.TensorSpec((3,), types.fp16),
        mb.StateTensorSpec((3,), types.fp16),
        mb.StateTensorSpec((4,), types.fp16),
    ]

    @mb.program(input_specs=specs, opset_version=target.iOS18)
    def built(x: Any, cache: Any, unused: Any) -> Any:
        mb.exp(x=mb.read_state(input=unused))  # coremltools refuses a state that nothing reads
        mb.exp(x=mb.read_state(input=cache))  # of this one there is another
        mb.coreml_update_state(state=cache, value=mb.identity(x=x))
        return mb.add(x=mb.read_state(input=cache), y=x, name="out")

    assert run(built).applied == 4
    assert op_types(built) == ["read_state", "coreml_update_state", "read_state", "add"]
    state = make_state(load(built))
    x = np.arange(3, dtype=F16)
    np.testing.assert_array_equal(evaluate(built, {"x": x}, state=state)["out"], 2 * x)


def test_an_unused_op_that_writes_a_state_inside_is_kept() -> None:
    specs = [mb.TensorSpec((1,), types.bool), mb.TensorSpec((3,), types.fp16), mb.StateTensorSpec((3,), types.fp16)]

    @mb.program(input_specs=specs, opset_version=target.iOS18)
    def built(pred: Any, x: Any, cache: Any) -> Any:
        def write() -> Any:
            return mb.coreml_update_state(state=cache, value=x)

        mb.cond(pred=mb.squeeze(x=pred), _true_fn=write, _false_fn=lambda: mb.identity(x=x))
        return mb.abs(x=x, name="out")

    before = text(built)
    assert not run(built)
    assert text(built) == before


def test_symbolic_reshapes() -> None:
    """The same symbols at both ends are the same shape; where they differ, both reshapes stay."""
    rows = get_new_symbol()
    for shapes in ([[-1, 4]], [[2, -1], [-1, 4]]):
        built = program(_shaped(*shapes), (rows, 4))
        run(built)
        assert op_types(built) == ["abs", "abs"]
    assert not run(program(_shaped([2, -1], [4, -1]), (rows, 4)))


@st.composite
def bodies(draw: st.DrawFn) -> Body:
    """A chain of moves, casts, neutral operands and ops that do something."""
    kinds = st.sampled_from(["move", "shape", "unit", "cast", "neutral", "other", "keep"])
    seed, steps = draw(st.integers(0, 2**32 - 1)), draw(st.lists(kinds, min_size=1, max_size=12))

    def body(x: Any) -> Any:
        rng = np.random.default_rng(seed)
        kept: list[Any] = []
        for step in steps:
            if step == "keep":
                kept.append(mb.reduce_max(x=mb.cast(x=x, dtype="fp32")))
            else:
                x = STEPS[step](x, rng)
        x = mb.cast(x=x, dtype="fp32")
        for each in kept:
            x = mb.mul(x=x, y=each)
        return x

    return body


def _other_shape(x: Any, rng: np.random.Generator) -> Any:
    size = math.prod(shape_of(x))
    divisors = [each for each in range(1, size + 1) if size % each == 0]
    first = divisors[int(rng.integers(len(divisors)))]
    return mb.reshape(x=x, shape=[first, size // first])


def _unit(x: Any, rng: np.random.Generator) -> Any:
    if x.rank < 5 and rng.random() < 0.5:
        return mb.expand_dims(x=x, axes=[int(rng.integers(2 * int(x.rank) + 2)) - x.rank - 1])
    ones = [axis for axis, dim in enumerate(x.shape) if dim == 1]
    return mb.squeeze(x=x, axes=[ones[0]]) if ones and x.rank > 1 else x


def _neutral(x: Any, rng: np.random.Generator) -> Any:
    if x.dtype == types.int16 or rng.random() < 0.2:
        return mb.concat(values=[x], axis=0)
    name, number = list({"mul": 1, "add": 0, "sub": 0}.items())[int(rng.integers(3))]
    return getattr(mb, name)(x=x, y=_number(number, x))


def _number(number: Any, like: Any) -> Any:
    return np.array(number, types.nptype_from_builtin(like.dtype))


def _other(x: Any, rng: np.random.Generator) -> Any:
    return x if x.dtype == types.int16 else mb.add(x=x, y=_number(rng.integers(1, 5), x))


def _move(x: Any, rng: np.random.Generator) -> Any:
    return mb.transpose(x=x, perm=[int(axis) - x.rank for axis in rng.permutation(x.rank)])


def _cast(x: Any, rng: np.random.Generator) -> Any:
    return mb.cast(x=x, dtype=("fp32", "fp16", "int32", "int16")[int(rng.integers(4))])


STEPS: dict[str, Callable[[Any, np.random.Generator], Any]] = {
    "move": _move,
    "shape": _other_shape,
    "unit": _unit,
    "cast": _cast,
    "neutral": _neutral,
    "other": _other,
}


# each example builds two programs and runs them twice
@settings(max_examples=100, deadline=None)
@given(
    bodies(),
    st.sampled_from([types.fp32, types.fp16, types.int32]),
    st.sampled_from([SHAPE, (3, 3), (2, 1, 2)]),
    st.integers(0, 2**32 - 1),
)
def test_any_chain(body: Body, dtype: Any, shape: tuple[int, ...], seed: int) -> None:
    """In both precisions not a bit changes, and a second run finds nothing."""
    before, after = program(body, shape, dtype), program(body, shape, dtype)
    original = text(after)
    report = run(after)
    assert bool(report) == (text(after) != original)
    x = (np.random.default_rng(seed).standard_normal(shape) * 300).astype(types.nptype_from_builtin(dtype))
    for precision in ("float64", "declared"):
        expected = evaluate(before, {"x": x}, precision=precision)["out"]
        np.testing.assert_array_equal(evaluate(after, {"x": x}, precision=precision)["out"], expected)
    assert not run(after)


def test_a_default_conversion(shared: Path) -> None:
    model = load(shared / "models" / "stories260K" / "stories260K_ios18_prefill64.mlpackage")
    assert Canonicalize().run(model).applied == 2
    assert op_types(model.program)[0] == "gather"
    assert "select" not in op_types(model.program)
